"""Decoders that really die and really hang, in processes of their own."""

import json
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.images.prepare import Prepared, prepare
from pipeline.data.ingest.isolation import Child, preparing
from schemas.data import ImageSpec
from schemas.manifest import REJECTIONS_FILE, SHARD_TABLE_FILE
from tests.support.build_process import start
from tests.support.corpora import broken_files, encode, odd_files, picture, write_folder
from tests.support.datasets import build, ingest_spec

SPEC = ImageSpec(max_side_px=64, decode_seconds=3.0)


def poison(name: str) -> bytes:
    return encode(picture(0, 5), "GIF", comment=name.encode())


def rejected(folder: Path) -> dict[str, str]:
    table = pa.ipc.open_file(str(folder / "out" / REJECTIONS_FILE)).read_all()
    return dict(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_a_build_survives_decoders_that_crash_and_hang(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=4)
    undisturbed = ingest_spec(folder, image={"decode_seconds": 3.0}, max_rejected_ratio=0.5)
    build(undisturbed, tmp_path / "good")
    for name in ("crash", "hang"):
        (folder / "wave" / f"{name}.gif").write_bytes(poison(name))
    first = start(undisturbed, tmp_path / "poisoned", broken=True)
    first.communicate(timeout=300)
    assert first.returncode in (-signal.SIGSEGV, -signal.SIGALRM)
    second = start(undisturbed, tmp_path / "poisoned", broken=True)
    printed, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    assert json.loads(printed.splitlines()[-1])["digest"]
    assert rejected(tmp_path / "poisoned") == {
        "wave/crash.gif": "decoder_crash",
        "wave/hang.gif": "decode_timeout",
    }
    shards = [tmp_path / name / "out" / SHARD_TABLE_FILE for name in ("good", "poisoned")]
    assert shards[0].read_bytes() == shards[1].read_bytes(), "all other images, byte by byte"


def test_a_child_gives_what_the_process_itself_gives() -> None:
    files = [*odd_files().values(), *(data for data, _ in broken_files().values())]
    with Child(SPEC, hashes=True) as child:
        for data in files:
            assert child.prepare(data) == prepare(data, SPEC, hashes=True)


def test_the_marker_is_there_while_images_are_prepared_and_not_longer(tmp_path: Path) -> None:
    marker = tmp_path / "units" / "000001.begun"
    with preparing(marker, SPEC, hashes=False) as run:
        assert marker.exists()
        assert isinstance(run(encode(picture(0, 1))), Prepared)
    assert not marker.exists()
    with pytest.raises(KeyError), preparing(marker, SPEC, hashes=False):
        raise KeyError
    assert not marker.exists(), "an error is no death"


def test_an_alarm_that_somebody_else_has_set_is_set_again(tmp_path: Path) -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 500.0)
    try:
        with preparing(tmp_path / "begun", SPEC, hashes=False) as run:
            run(encode(picture(0, 1)))
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_unit_that_was_left_halfway_is_prepared_in_a_child(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=2)
    spec = ingest_spec(folder)
    first = build(spec, tmp_path)
    for name in ("out", "progress/units"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "progress" / "units").mkdir()
    (tmp_path / "progress" / "units" / "000000.begun").touch()
    assert build(spec, tmp_path).digest == first.digest
    assert not (tmp_path / "progress" / "units" / "000000.begun").exists()
