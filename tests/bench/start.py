"""How long a newcomer waits, each number next to its lower bound, in one run: `make bench`.

1. From `cookiecutter --no-input` with warm caches to the first 200 of /api/books, next to the
   share of `uv sync`. Aim: one command, under 10 s.
2. From `init.sh` on a migrated database to the first 200, next to gunicorn alone. Aim: at most 2.5
   times as long.
3. A test of the generated project, next to an empty test there. Aim: at most 10 ms more.
"""

import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import Project, generate

RUNS = 5
EMPTY_TESTS = (
    "import pytest\n\n\n@pytest.mark.parametrize('n', range(77))\ndef test(n):\n    pass\n"
)


def seconds_to_first_answer(project: Project, *command: str) -> float:
    started = time.monotonic()
    with project.serving(*command):
        return time.monotonic() - started


def seconds_of_tests(project: Project, *files: str) -> list[float]:
    """How long each test took according to pytest, fixtures included."""
    report = project.path.parent / "report.xml"
    project.run(project.python, "-m", "pytest", "-q", f"--junitxml={report}", *files)
    return [float(test.get("time", 0)) for test in ElementTree.parse(report).iter("testcase")]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder, "warm"))

        started = time.monotonic()
        output = generate(Path(folder, "cold")).stdout
        generated = time.monotonic() - started
        assert "not done" not in output, output
        project = Project(Path(folder, "cold", "book-service"))
        first = seconds_to_first_answer(project)
        sync = re.search(r"dependencies: done \(([\d.]+) s\)", output)
        assert sync
        print(
            f"cookiecutter to the first 200: {generated + first:.1f} s, uv sync alone {sync[1]} s"
        )

        gunicorn = [str(project.python), "-m", "gunicorn"]
        pairs = [
            (seconds_to_first_answer(project), seconds_to_first_answer(project, *gunicorn))
            for _ in range(RUNS)
        ]
        ratio = statistics.median(ours / floor for ours, floor in pairs)
        print(f"init.sh / gunicorn alone: {ratio:.2f}  {[f'{a:.2f}/{b:.2f}' for a, b in pairs]}")

        empty = project.path / "tests" / "test_empty.py"
        empty.write_text(EMPTY_TESTS)
        names = [str(file) for file in (project.path / "tests").glob("test_*.py") if file != empty]
        for what, average in (("median", statistics.median), ("mean", statistics.mean)):
            costs = [
                average(seconds_of_tests(project, *names))
                - average(seconds_of_tests(project, str(empty)))
                for _ in range(RUNS)
            ]
            cost = statistics.median(costs) * 1000
            print(f"a test costs {cost:.1f} ms more than an empty one ({what} of the suite)")


if __name__ == "__main__":
    main()
