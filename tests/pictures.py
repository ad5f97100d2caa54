"""The pictures of README.md, made from a generated project: `make pictures`.

Each is what a browser shows or what a command prints. Names on the command line choose some.
"""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from pathlib import Path

from chromium import PROGRAM, Page, browsing
from conftest import TEMPLATE, Project, clean_environment, generate
from PIL import Image
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

FOLDER = TEMPLATE / ".github/pictures"
WIDTH, HEIGHT = 960, 740
COLUMNS = 106
TERMINAL = """<!doctype html><meta charset="utf-8"><title>terminal</title>
<body style="margin: 0; color: {foreground}; background: {background}">
<pre style="margin: 0; padding: 24px; font: 14.2px/1.45 DejaVu Sans Mono, monospace">{code}</pre>
"""
SCHEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": SVG_EXPORT_THEME}


class Studio:
    """A project, and a browser to look at it."""

    def __init__(self, project: Project, page: Page) -> None:
        self.project = project
        self.page = page

    def shown(self, path: str, until: str = "true") -> dict[str, bytes]:
        """A page of the running service."""
        with self.project.serving() as server:
            return {each: self._picture(server.url + path, each, until) for each in SCHEMES}

    def printed(self, *commands: str, ends_with: int = 0) -> dict[str, bytes]:
        """What these commands print on a terminal; `ends_with` is the last one's exit code."""
        output = ""
        for each in commands:
            printed, code = self._run(each)
            output += f"\x1b[1m$ {each}\x1b[0m\n{printed}\n"
        assert code == ends_with, output
        pictures = {}
        for scheme, theme in SCHEMES.items():
            console = Console(record=True, width=COLUMNS, file=io.StringIO())
            console.print(Text.from_ansi(output.rstrip()), soft_wrap=False)
            html = console.export_html(theme=theme, code_format=TERMINAL, inline_styles=True)
            file = self.project.path.parent / "terminal.html"
            file.write_text(html)
            pictures[scheme] = self._picture(file.as_uri(), scheme, "true")
        return pictures

    def change(self, file: str, old: str, new: str) -> None:
        """Edit a file of the project."""
        path = self.project.path / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def _picture(self, url: str, scheme: str, until: str) -> bytes:
        self.page.look(WIDTH, HEIGHT, scheme)
        self.page.open(url, until)
        if url.startswith("file:"):  # nothing that was printed is cut off
            height = self.page.value("document.body.offsetHeight")
            self.page.look(WIDTH, max(HEIGHT, height), scheme)
        return smaller(self.page.picture())

    def _run(self, command: str) -> tuple[str, int]:
        """What a person would see, and the exit code: on a terminal, programs print colours."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        process = subprocess.Popen(
            command,
            shell=True,
            cwd=self.project.path,
            env=clean_environment(TERM="xterm-256color", GIT_PAGER="cat"),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        output = b""
        try:
            while part := os.read(ours, 65536):
                output += part
        except OSError:  # how Linux says that nobody is left at the other end
            pass
        os.close(ours)
        return output.decode().replace("\r\n", "\n"), process.wait()


def smaller(picture: bytes) -> bytes:
    """The same with few colours, which is a third of the size and looks no different."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        few = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True)
    return file.getvalue()


def first_page(studio: Studio) -> dict[str, bytes]:
    return studio.shown("/")


def api(studio: Studio) -> dict[str, bytes]:
    return studio.shown("/docs/", "document.querySelectorAll('.opblock').length > 5")


def refusal(studio: Studio) -> dict[str, bytes]:
    """A renamed attribute, which others would write as a loss of data."""
    studio.change("app/models/books.py", "title: Mapped", "name: Mapped")
    try:
        return studio.printed(
            "git diff --unified=0 app/models",
            "uv run flask db migrate -m 'a better name'",
            ends_with=1,
        )
    finally:
        studio.change("app/models/books.py", "name: Mapped", "title: Mapped")


def rehearsal(studio: Studio) -> dict[str, bytes]:
    """A new column and index; without paths, and without the lines that tell how far it is."""
    column = "published: Mapped[int | None]"
    new = f"{column} = mapped_column(index=True)\n    pages: Mapped[int | None]"
    studio.change("app/models/books.py", column, new)
    return studio.printed(
        "uv run flask db migrate -m 'count pages' >/dev/null",
        "uv run flask db rehearse 2>/dev/null",
    )


# The last one leaves the project changed.
PICTURES: dict[str, Callable[[Studio], dict[str, bytes]]] = {
    "first-page": first_page,
    "api": api,
    "refusal": refusal,
    "rehearsal": rehearsal,
}


def make(names: list[str], project: Project, folder: Path) -> None:
    """Make these pictures, each for light and for dark."""
    folders = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folders as profile, browsing(Path(profile)) as page:
        studio = Studio(project, page)
        for name in names:
            for scheme, picture in PICTURES[name](studio).items():
                file = folder / f"{name}-{scheme}.png"
                file.write_bytes(picture)
                print(f"{file}: {len(picture) / 1000:.0f} kB")


def main() -> None:
    if PROGRAM is None:
        sys.exit("Chromium is not installed. On Debian: apt-get install chromium")
    names = sys.argv[1:] or list(PICTURES)
    if unknown := set(names) - PICTURES.keys():
        sys.exit(f"No such picture: {', '.join(unknown)}. There are {', '.join(PICTURES)}.")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = generate(Path(folder))
        assert result.returncode == 0, result.stdout
        make(names, Project(Path(folder) / "book-service"), FOLDER)


if __name__ == "__main__":
    main()
