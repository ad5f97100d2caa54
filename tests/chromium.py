"""Chromium, told over a pipe what to do: https://chromedevtools.github.io/devtools-protocol"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # No name resolves, so a page must get everything from its service.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
]
SECONDS = 120


class Page:
    """One tab, and what the browser had to say of its pages: errors, and what it refused."""

    def __init__(self, to: int, of: int) -> None:
        self.to, self.of = to, os.fdopen(of, "rb", buffering=0)
        self.number = 0
        self.rest = b""
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        words = {"targetId": target, "flatten": True}
        self.session = self.ask("Target.attachToTarget", **words)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **words: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": words}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def look(self, width: int = 1200, height: int = 800, scheme: str = "light") -> None:
        """Be a window of this size, of somebody who likes it light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str, until: str = "true") -> None:
        """Load a page and wait until an expression of JavaScript is true in it."""
        self.events.clear()
        self.ask("Page.navigate", url=url)
        self.wait(f"document.readyState == 'complete' && location.href != 'about:blank' && {until}")

    def wait(self, expression: str) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.value(expression):
            assert time.monotonic() < deadline, f"waited {SECONDS} s until {expression}"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is."""
        words = {"expression": expression, "returnByValue": True}
        result = self.ask("Runtime.evaluate", **words)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13}
        for kind in ("rawKeyDown", "keyUp"):
            words = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            self.ask("Input.dispatchKeyEvent", **words)
        if key == "Enter":
            self.ask("Input.dispatchKeyEvent", type="char", text="\r")

    def complaints(self) -> list[str]:
        """What stands on the console, and which requests failed."""
        kinds = "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"
        kinds += ("Network.loadingFailed",)
        return [json.dumps(each["params"]) for each in self.events if each.get("method") in kinds]

    def requests(self) -> list[str]:
        """The URLs that the page asked for."""
        sent = [each for each in self.events if each.get("method") == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in sent]

    def picture(self) -> bytes:
        """The window, as a PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = self.of.read(1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile in this folder, which ends with the block."""
    ours, theirs = os.pipe(), os.pipe()
    # The browser reads commands from 3 and writes to 4.
    script = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
    process = subprocess.Popen(
        ["bash", "-c", script, str(PROGRAM), *OPTIONS, f"--user-data-dir={profile}"],
        pass_fds=(ours[0], theirs[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(ours[0])
    os.close(theirs[1])
    try:
        yield Page(ours[1], theirs[0])
    finally:
        # It ends when nobody is left at the other end of the pipe.
        os.close(ours[1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
