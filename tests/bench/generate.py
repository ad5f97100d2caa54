"""Where the time of a generation goes, measured in one run: `make bench`.

1. Rendering alone, without hooks, compared with copying the same files. Aim: under 0.1 s.
2. A whole generation with warm caches: the shares of uv, the `flask db` commands, and the rest.
   Aim: the rest is the smallest.
"""

import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import TEMPLATE, generate
from cookiecutter.main import cookiecutter

RUNS = 15


def seconds(work: Callable[[Path], object], folder: Path) -> float:
    """The median of several runs, each into its own folder."""
    times = []
    for number in range(RUNS):
        started = time.monotonic()
        work(folder / str(number))
        times.append(time.monotonic() - started)
    return statistics.median(times)


def render(folder: Path) -> None:
    options = {"no_input": True, "default_config": True, "accept_hooks": False}
    cookiecutter(str(TEMPLATE), output_dir=str(folder), **options)


def copy(folder: Path) -> None:
    shutil.copytree(TEMPLATE / "{{cookiecutter.project_slug}}", folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        rendering = seconds(render, Path(name, "rendered"))
        copying = seconds(copy, Path(name, "copied"))
        print(f"rendering: {rendering:.3f} s, {rendering / copying:.1f} times a copy")

        generate(Path(name, "warm"))
        started = time.monotonic()
        output = generate(Path(name, "generated")).stdout
        total = time.monotonic() - started
        assert "not done" not in output, output
        steps = {step: float(time) for step, time in re.findall(r"(.*?): .*\(([\d.]+) s\)", output)}
        uv = steps["environment"] + steps["dependencies"]
        flask = steps["flask db init"] + steps["first migration"] + steps["flask db upgrade"]
        shares = {"uv": uv, "flask db": flask, "all else": total - uv - flask}
        parts = ", ".join(f"{part} {share / total:.0%}" for part, share in shares.items())
        print(f"a whole generation: {total:.1f} s: {parts}")


if __name__ == "__main__":
    main()
