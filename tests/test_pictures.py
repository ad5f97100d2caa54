"""The pictures of README.md are those that tests/pictures.py makes, and it still makes them."""

import re
from pathlib import Path

import pytest
from chromium import PROGRAM
from conftest import TEMPLATE, Project
from pictures import FOLDER, PICTURES, SCHEMES, WIDTH, make
from PIL import Image


def test_the_pictures_of_the_readme():
    readme = (TEMPLATE / "README.md").read_text()
    shown = set(re.findall(r'(?:src|srcset|href)="([^"]+\.png)"', readme))
    made = {f"{name}-{scheme}.png" for name in PICTURES for scheme in SCHEMES}
    assert shown == {f"{FOLDER.relative_to(TEMPLATE)}/{name}" for name in made}
    assert {file.name for file in FOLDER.iterdir()} == made, "run: make pictures"
    assert len(re.findall(r'<img [^>]*alt="[^"]{40,}"', readme)) == len(PICTURES)
    for file in FOLDER.iterdir():
        assert file.stat().st_size < 150_000
        assert Image.open(file).width == WIDTH


@pytest.mark.browser
def test_they_can_be_made_again(ready: Project, tmp_path: Path):
    if PROGRAM is None:
        pytest.skip("Chromium is not installed")
    make(["first-page", "refusal"], ready, tmp_path)
    for scheme in SCHEMES:
        again, before = (
            Image.open(each / f"first-page-{scheme}.png") for each in (tmp_path, FOLDER)
        )
        assert again.size == before.size
        assert len(again.convert("RGB").getcolors(64)) > 16
    assert len(list(tmp_path.glob("refusal-*.png"))) == len(SCHEMES)
    assert ready.run("git", "status", "--short").stdout == ""
