"""What all of the service costs a request, beside a bare app with the same query: `make bench`.

The service runs in production mode with its log, metrics, limits and checks. The bare app is Flask
and Flask-SQLAlchemy, without any of them, under gunicorn's own gthread worker with as many workers
and threads. Rounds of both alternate in one run; each line is the median of their ratios.

1. Requests per second of one resource and of a list, and memory of a worker.
2. Page 1 and page 50,000 of a list of a million rows.
3. The number of threads: the service with others, for these two requests and while a row is held.

Needs wrk. Arguments: rounds (9), seconds of a round (3), connections (16).
"""

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# In place of this folder, in which this file would be taken for the library of its name.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import requests
from conftest import Project, clean_environment, free_port, generate, wait_until
from production import SECRET, Database, running

ROUNDS, SECONDS, CONNECTIONS = (
    [int(word) for word in sys.argv[1:]] + [9, 3, 16][len(sys.argv) - 1 :]
)[:3]
PATHS = {"one resource": "/api/books/1", "a list": "/api/books"}
BARE = """
from flask import Flask, jsonify
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
import datetime
import os


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Book(db.Model):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    isbn: Mapped[str]
    title: Mapped[str]
    genre: Mapped[str]
    published: Mapped[int | None]
    author_id: Mapped[int]
    created_at: Mapped[datetime.datetime]
    updated_at: Mapped[datetime.datetime]


def shown(book):
    return {
        "id": book.id,
        "isbn": book.isbn,
        "title": book.title,
        "genre": book.genre,
        "published": book.published,
        "author_id": book.author_id,
        "created_at": book.created_at.isoformat(),
        "updated_at": book.updated_at.isoformat(),
    }


app = Flask(__name__)
url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
app.config["SQLALCHEMY_DATABASE_URI"] = url
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 40}
db.init_app(app)


@app.get("/api/books/<int:book_id>")
def one(book_id):
    return jsonify(shown(db.get_or_404(Book, book_id)))


@app.get("/api/books")
def several():
    found = db.session.scalars(select(Book).order_by(Book.id).limit(20))
    return jsonify(items=[shown(book) for book in found])
"""
ROWS = """
INSERT INTO books (isbn, title, genre, author_id)
SELECT lpad(n::text, 13, '0'), 'Book ' || n, 'fiction', (SELECT min(id) FROM authors)
FROM generate_series(1, {}) n
"""


@contextlib.contextmanager
def serving(command: list[str], folder: Path, port: int, **settings: str) -> Iterator[int]:
    """Run a server until the block ends; its process id."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=clean_environment(PORT=str(port), **settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None, f"{command} ended"
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{port}/api/books", timeout=9).status_code == 200
        return False

    try:
        wait_until(answers, f"{command} serves")
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def per_second(port: int, path: str) -> float:
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", f"http://127.0.0.1:{port}{path}"]
    report = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in report, report
    found = re.search(r"Requests/sec:\s+([\d.]+)", report)
    assert found, report
    return float(found[1])


def megabytes(master: int) -> float:
    """What a worker has for itself, and its share of the rest (PSS)."""
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    sizes = []
    for pid in workers:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        assert found
        sizes.append(int(found[1]) / 1024)
    return statistics.mean(sizes)


def ratios(service: int, bare: int) -> None:
    for what, path in PATHS.items():
        found = [per_second(service, path) / per_second(bare, path) for _ in range(ROUNDS)]
        low, high = min(found), max(found)
        print(f"{what}: {statistics.median(found):.2f} of the bare app ({low:.2f} to {high:.2f})")


def pages(port: int) -> None:
    def seconds(after: int) -> float:
        started = time.perf_counter()
        requests.get(f"http://127.0.0.1:{port}/api/books?after={after}", timeout=60)
        return time.perf_counter() - started

    pairs = [(seconds(0), seconds(999_980)) for _ in range(50)]
    ratio = statistics.median(last / first for first, last in pairs)
    print(f"page 50,000 of a million rows takes {ratio:.2f} times as long as page 1")


def threads(project: Project, database: Database, settings: dict[str, str], folder: Path) -> None:
    for number in ("4", "10", "40", "80"):
        port = free_port()
        command = [str(project.python), "-m", "gunicorn"]
        others = settings | {"WEB_THREADS": number}
        with serving(command, project.path, port, **others):
            speed = [per_second(port, path) for path in PATHS.values()]
        print(f"{number} threads: {speed[0]:.0f} and {speed[1]:.0f} requests per second")


def main() -> None:
    assert shutil.which("wrk"), "install wrk: apt-get install wrk"
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        project = Project(Path(folder, "book-service"))
        Path(folder, "bare.py").write_text(BARE)
        with running(project) as database:
            settings = {
                "APP_ENV": "production",
                "SECRET_KEY": SECRET,
                "DATABASE_URL": database.url,
                "DRAIN_SECONDS": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            for words in (["db", "upgrade"], ["seed", "all"]):
                assert project.flask(*words, **settings).returncode == 0
            database.sql(ROWS.format(200))
            gunicorn = [str(project.python), "-m", "gunicorn"]
            port, bare, metrics = free_port(), free_port(), free_port()
            options = f"-b 127.0.0.1:{bare} -w 2 -k gthread --threads 24 --keep-alive 75 bare:app"
            with (
                serving(
                    gunicorn, project.path, port, METRICS_PORT=str(metrics), **settings
                ) as ours,
                serving([*gunicorn, *options.split()], Path(folder), bare, **settings) as theirs,
            ):
                ratios(port, bare)
                print(
                    f"memory of a worker: {megabytes(ours) / megabytes(theirs):.2f} of the bare app"
                )
            threads(project, database, settings, Path(folder))
            database.sql("TRUNCATE books", ROWS.format(1_000_000), "ANALYZE books")
            with serving(gunicorn, project.path, port, **settings):
                pages(port)


if __name__ == "__main__":
    os.environ.pop("DATABASE_URL", None)
    main()
