"""What git says is released, and the code of a release."""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from alembic.script import Script

from app.config import ROOT
from app.core import history

# Where the released code may be; the best place comes first.
MAIN_BRANCHES = ["origin/HEAD", "origin/main", "origin/master", "main", "master"]
# What importing the models needs, and `flask seed`.
CODE = ["app", "pyproject.toml", ".flaskenv"]


def is_git_here() -> bool:
    """Whether git is installed."""
    return shutil.which("git") is not None


def git(*words: str) -> list[str]:
    """The lines that git answers; none if it does not know or is not installed."""
    return _output(*words).decode(errors="replace").splitlines()


def last_release() -> str | None:
    """The last tag or, without tags, the main branch; None if git knows neither."""
    places = [*git("describe", "--tags", "--abbrev=0"), *MAIN_BRANCHES]
    return next((each for each in places if _revision_files(each)), None)


def released_revisions() -> set[str]:
    """The revisions that the last release has."""
    place = last_release()
    names = _revision_files(place) if place else set()
    return {each.revision for each in history.load().walk_revisions() if _name(each) in names}


def release_before(pending: Iterable[Script]) -> str | None:
    """The newest release without these revisions; else the commit before the first of them."""
    new = {_name(each) for each in pending}
    places = [*git("describe", "--tags", "--abbrev=0"), *MAIN_BRANCHES, "HEAD"]
    files = {place: _revision_files(place) for place in places}
    places = [each for each in places if files[each] and not files[each] & new]
    if places:
        return max(places, key=lambda each: len(files[each]))  # of equals, the first
    for name in sorted(new):
        path = f"migrations/versions/{name}"
        if added := git("log", "--diff-filter=A", "--format=%h", "-1", "--", path):
            before = git("rev-parse", "--short", "--verify", "--quiet", f"{added[0]}^")
            return next((each for each in before if not _revision_files(each) & new), None)
    return None


def is_known(place: str) -> bool:
    """Whether git has this tag, branch or commit."""
    return bool(git("rev-parse", "--verify", "--quiet", place + "^{commit}"))


def unpack(place: str, folder: Path) -> bool:
    """Put the code of a release into a folder; False if it has none in this place."""
    there = {*git("ls-tree", "--name-only", place, *CODE)}
    if "app" not in there:
        return False
    archive = _output("archive", "--format=tar", place, *(each for each in CODE if each in there))
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return True


def _revision_files(place: str) -> set[str]:
    names = git("ls-tree", "--name-only", place, "migrations/versions/")
    return {Path(each).name for each in names if each.endswith(".py")}


def _name(script: Script) -> str:
    return Path(script.path).name


def _output(*words: str) -> bytes:
    try:
        return subprocess.check_output(["git", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return b""
