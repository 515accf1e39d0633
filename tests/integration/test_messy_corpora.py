"""Corpora that were collected to break image readers: nothing crashes, nothing vanishes."""

import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.images.prepare import BYTES_PER_PIXEL
from pipeline.data.shards.shard_set import ShardSet
from schemas.manifest import REJECTIONS_FILE
from tests.support.build_process import start
from tests.support.datasets import ingest_spec

pytestmark = pytest.mark.slow

MAX_PIXELS = 40_000_000
BESIDES_BYTES = 2**30
"""Python with torch and pyarrow, a unit's stored rows, a bucket."""


def run(*command: str, cwd: Path) -> None:
    """Run an installer; without a network there is nothing to test."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{command[0]} cannot get the images: {done.stderr.strip()[-200:]}")


def debian(package: str, folder: Path) -> Path:
    """The files of a Debian package, unpacked and not installed."""
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    folder.mkdir()
    run("apt-get", "download", package, cwd=folder)
    (archive,) = folder.glob("*.deb")
    run("dpkg-deb", "-x", str(archive), "files", cwd=folder)
    return folder / "files" / "usr"


def pillow(folder: Path) -> Path:
    """Pillow's own test images, from its source distribution."""
    folder.mkdir()
    run(
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"),
        *("--disable-pip-version-check", "pillow==13.0.0"),
        cwd=folder,
    )
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "files", filter="data")
    return next(folder.glob("files/*/Tests/images"))


def corpus(name: str, folder: Path) -> Path:
    return pillow(folder) if name == "pillow" else debian(name, folder)


def listed(folder: Path) -> set[str]:
    """Every file that the walk of an image folder meets."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


@pytest.mark.parametrize(
    "name",
    [
        "pillow",
        "gdk-pixbuf-tests",
        "libjxl-testdata",
        "openclipart-png",
        "gnome-backgrounds",
        "mate-backgrounds",
    ],
)
def test_every_file_of_a_messy_corpus_is_accounted_for(name: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "all").parent.mkdir()
    shutil.copytree(
        corpus(name, tmp_path / "package"), raw / "all", symlinks=False, dirs_exist_ok=True,
        ignore_dangling_symlinks=True,
    )  # fmt: skip
    (raw / "other").mkdir()
    files = listed(raw)
    image = {"max_side_px": 256, "max_pixels": MAX_PIXELS}
    spec = ingest_spec(raw, image=image, max_rejected_ratio=1.0, select={"classes": ["all"]})
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    driver = start(spec, tmp_path)
    _, errors = driver.communicate(timeout=3000)
    assert driver.returncode == 0, errors
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak <= max(before * 1024, BYTES_PER_PIXEL * MAX_PIXELS + BESIDES_BYTES)
    data = ShardSet.open(tmp_path / "out")
    split = data.split("train")
    kept = {split.row(index).source for index in range(split.num_rows)}
    table = pa.ipc.open_file(str(tmp_path / "out" / REJECTIONS_FILE)).read_all()
    refused = table["source"].to_pylist()
    assert kept.isdisjoint(refused)
    assert sorted([*kept, *refused]) == sorted(files)
    reasons = Counter(table["reason"].to_pylist())
    assert reasons["decoder_crash"] == reasons["decode_timeout"] == 0
