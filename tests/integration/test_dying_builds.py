"""Decoders, workers and drivers that die while Ray builds: the bytes are those of a calm build."""

import contextlib
import json
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from schemas.data import IngestSpec
from schemas.manifest import REJECTIONS_FILE, SHARD_TABLE_FILE
from tests.conftest import RaySession
from tests.support.build_process import start
from tests.support.corpora import encode, picture, write_folder
from tests.support.datasets import build, ingest_spec

pytestmark = pytest.mark.ray


def finish(process: object) -> str:
    printed, errors = process.communicate(timeout=400)  # type: ignore[attr-defined]
    assert process.returncode == 0, errors  # type: ignore[attr-defined]
    digest: str = json.loads(printed.splitlines()[-1])["digest"]
    return digest


def test_one_build_outlives_decoders_that_crash_and_hang(
    ray_cluster: RaySession, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "raw", per_class=5)
    spec = ingest_spec(folder, image={"decode_seconds": 5.0}, max_rejected_ratio=0.5)
    build(spec, tmp_path / "good")
    for name in ("crash", "hang"):
        data = encode(picture(0, 5), "GIF", comment=name.encode())
        (folder / "wave" / f"{name}.gif").write_bytes(data)
    finish(start(spec, tmp_path / "poisoned", address=ray_cluster.address, broken=True))
    table = pa.ipc.open_file(str(tmp_path / "poisoned" / "out" / REJECTIONS_FILE)).read_all()
    assert table["source"].to_pylist() == ["wave/crash.gif", "wave/hang.gif"]
    assert table["reason"].to_pylist() == ["decoder_crash", "decode_timeout"]
    shards = [tmp_path / name / "out" / SHARD_TABLE_FILE for name in ("good", "poisoned")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> IngestSpec:
    """A corpus of several units, which takes a while."""
    folder = write_folder(tmp_path_factory.mktemp("large") / "raw", per_class=400)
    return ingest_spec(folder, shard_bytes=400_000)


def workers_of(driver: int) -> list[psutil.Process]:
    """Processes of this test's cluster that prepare images or write shards."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.cmdline()[0] if process.cmdline() else ""
        except psutil.Error:
            continue
        if process.pid != driver and name in ("ray::prepare", "ray::write"):
            found.append(process)
    return found


def kill_once_busy(driver: int, victim: str, *, after_seconds: float) -> None:
    """kill -9 of the driver or of a worker, a while after the first worker was seen at work."""
    while psutil.pid_exists(driver) and not (workers := workers_of(driver)):
        time.sleep(0.05)
    time.sleep(after_seconds)
    target = psutil.Process(driver) if victim == "driver" else workers[0]
    with contextlib.suppress(psutil.NoSuchProcess):
        target.send_signal(signal.SIGKILL)


def committed(where: Path) -> dict[str, int]:
    """Unit -> when it was committed."""
    return {
        file.name: file.stat().st_mtime_ns
        for file in where.glob("progress/units/*.json")
        if not file.name.startswith(".")
    }


def test_killed_workers_and_drivers_change_nothing_and_nothing_is_done_twice(
    ray_cluster: RaySession, large: IngestSpec, tmp_path: Path
) -> None:
    calm = finish(start(large, tmp_path / "calm", address=ray_cluster.address))
    shutil.rmtree(tmp_path / "calm")
    rng, where = random.Random(1), tmp_path / "killed"
    before: dict[str, int] = {}
    for victim in ("driver", "driver", "worker"):
        driver = start(large, where, address=ray_cluster.address)
        kill_once_busy(driver.pid, victim, after_seconds=rng.uniform(0, 0.5))
        if victim == "driver":
            driver.communicate(timeout=400)
            before |= committed(where)
    assert finish(driver) == calm
    now = committed(where)
    assert {name: now[name] for name in before} == before, "committed units stay"
    assert not list(where.glob("progress/units/*.begun"))
