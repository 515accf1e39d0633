"""The page on a phone and on paper: in a browser where there is one, else by its structure."""

import html
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.evaluation.report import Origin, write_report
from tests.support.evaluation import measured, shard_set

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--disable-quic",
)  # fmt: skip
PHONE_PX = 390
MEASURE = """<!DOCTYPE html><iframe id="page" style="width:{width}px;height:900px" srcdoc="{page}">
</iframe><script>document.getElementById('page').onload = event => {{
const root = event.target.contentDocument.documentElement;
document.body.append('width of the page: ' + root.scrollWidth);
}};</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with names that nobody can break into lines."""
    folder = tmp_path_factory.mktemp("page")
    long = "a" * 150
    sources = [
        shard_set(folder, "corpus", rejections={"truncated": 3}),
        shard_set(folder, f"clean-{long}", removed=[(f"{long}/1.jpg", f"{long}/9.jpg")]),
        measured(folder, f"accuracy-{long}", "evaluate", correct={"model": 80}),
        measured(folder, "pixels", "baseline", correct={"nearest_neighbour": 88}),
    ]
    (folder / "out").mkdir()
    write_report(
        folder / "out", title=f"Title {long}", sources=sources, origin=Origin("e", "r", ())
    )
    return folder / "out" / "report.html"


def test_every_table_scrolls_inside_itself(page: Path) -> None:
    text = page.read_text()
    assert text.count("<table") == len(re.findall(r'<div class="wide"[^>]*><table', text)) > 5
    assert ".wide { overflow-x: auto;" in text
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text


def test_headings_are_nested_and_pictures_have_words(page: Path) -> None:
    text = page.read_text()
    levels = [int(it) for it in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(len(it) > 10 for it in re.findall(r'<img [^>]*alt="([^"]*)"', text))
    assert re.findall(r"<img (?![^>]*alt=)", text) == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [PHONE_PX, 1440])
def test_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path, width: int) -> None:
    opened = page.read_text().replace("<details", "<details open")
    (tmp_path / "measure.html").write_text(
        MEASURE.format(width=width, page=html.escape(opened, quote=True))
    )
    words = ["--dump-dom", "--window-size=1600,1000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(BROWSER), *FLAGS, *words, f"file://{tmp_path / 'measure.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"width of the page: (\d+)", done.stdout)
    assert found, done.stderr
    assert int(found[1]) <= width
