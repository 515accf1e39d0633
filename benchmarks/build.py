"""[build] One manifest digest over worker counts, orders of completion, and kill -9 of anything.

Builds the same corpus with 1, 2 and 7 workers undisturbed, then once for each trial while a
worker, the driver or a whole node is killed at random moments, again and again, until the build is
done. Counts the committed units that were done once more.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.raw_corpora import raw_images, write_classes

_IMAGES, _CLASSES = 6000, 24
_TRIALS = 3
_VICTIMS = ("worker", "driver", "node")
"""Each is killed once in a trial, in random order."""
_MAX_PAUSE_SECONDS = 1.0
_WORKERS = ("ray::list", "ray::prepare", "ray::write")
_ROOT = Path(__file__).resolve().parents[1]
_DRIVER = """
import json, logging, sys
from pathlib import Path
from infra.ray_cluster import import_ray
from infra.ray_pool import RayPool
from schemas.data import IngestSpec
from tests.support.datasets import build
from infra.serial_pool import SerialPool
pool = SerialPool()
if sys.argv[3]:
    import_ray().init(address=sys.argv[3], log_to_driver=False, logging_level=logging.ERROR)
    pool = RayPool()
print(build(IngestSpec.parse(json.loads(sys.argv[1])), Path(sys.argv[2]), pool=pool).digest)
"""


@dataclass
class Disturbed:
    """What the builds that were disturbed came to."""

    digests: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    redone: int = 0
    """Units and shards that were written again although they were committed."""
    committed: int = 0
    """Units and shards that stood at the last kills, and so might have been."""


def main() -> int:
    """Build calmly, then disturbed; compare the digests."""
    options = arguments(__doc__)
    trials = max(_TRIALS, options.trials)
    rng = random.Random(options.seed)
    disturbed = Disturbed()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "raw")
        found = raw_images(options.corpus, _IMAGES, seed=options.seed)
        images = write_classes(folder, found, classes=_CLASSES)
        spec = _spec(folder)
        calm = {"1 worker": _calm(spec, scratch, address="")}
        with _cluster() as cluster:
            calm["2 workers"] = _calm(spec, scratch, address=cluster.address)
            node = cluster.add_node(num_cpus=5)
            calm["7 workers"] = _calm(spec, scratch, address=cluster.address)
            for _ in range(trials):
                node = _disturb(spec, Path(scratch, "disturbed"), cluster, node, rng, disturbed)
    digests = {*calm.values(), *disturbed.digests}
    return conclude(
        Figure(
            name="build",
            figure=len(digests),
            unit="distinct manifest digests",
            goal="one, over 1, 2, 7 workers and any kill -9; 0 committed pieces done again",
            holds=len(digests) == 1 and disturbed.redone == 0 and disturbed.kills.total() > 0,
            conditions=conditions(
                corpus=options.corpus.name if options.corpus else "generated",
                images=images,
                trials=trials,
                seed=options.seed,
            ),
            details={
                "kills": dict(disturbed.kills),
                "committed_pieces_at_kills": disturbed.committed,
                "committed_pieces_done_again": disturbed.redone,
                "digest": sorted(digests)[0],
            },
        )
    )


def _spec(folder: Path) -> str:
    source = {"type": "image_folder", "uri": str(folder)}
    small = {"shard_bytes": 2**20, "max_rejected_ratio": 1.0}
    return json.dumps({"source": source, "image": {"max_side_px": 128}, **small})


@contextlib.contextmanager
def _cluster() -> Any:
    """Two logical cores that nobody kills; more come and go."""
    from infra.ray_cluster import import_ray

    import_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def _start(spec: str, where: Path, address: str) -> "subprocess.Popen[str]":
    # Tasks import our packages from here.
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, spec, str(where), address],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def _calm(spec: str, scratch: str, *, address: str) -> str:
    where = Path(scratch, "calm")
    digest = _digest(_start(spec, where, address))
    shutil.rmtree(where)
    return digest


def _digest(process: "subprocess.Popen[str]") -> str:
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a build ended with {process.returncode}; see above")
    return printed.splitlines()[-1]


def _disturb(
    spec: str, where: Path, cluster: Any, node: Any, rng: random.Random, so_far: Disturbed
) -> Any:
    """One build with kills on its way; returns the node that stands now."""
    before: dict[str, int] = {}
    driver = _start(spec, where, cluster.address)
    for victim in rng.sample(_VICTIMS, len(_VICTIMS)):
        _wait_for_work(driver, where, since=len(before))
        time.sleep(rng.uniform(0, _MAX_PAUSE_SECONDS))
        if driver.poll() is not None:
            break
        before |= _pieces(where)
        node = _kill(victim, driver, cluster, node)
        so_far.kills[victim] += 1
        if victim == "driver":
            driver.communicate()
            driver = _start(spec, where, cluster.address)
    so_far.digests.append(_digest(driver))
    now = _pieces(where)
    so_far.committed += len(before)
    so_far.redone += sum(now.get(name) != written for name, written in before.items())
    shutil.rmtree(where)
    return node


def _wait_for_work(driver: "subprocess.Popen[str]", where: Path, *, since: int) -> None:
    """Wait until a worker is busy and more pieces stand than before, or until the build ends."""
    while driver.poll() is None and not (_workers() and len(_pieces(where)) > since):
        time.sleep(0.05)


def _kill(victim: str, driver: "subprocess.Popen[str]", cluster: Any, node: Any) -> Any:
    if victim == "node":
        cluster.remove_node(node, allow_graceful=False)
        return cluster.add_node(num_cpus=5)
    target: Callable[[], None] = driver.kill
    if victim == "worker":
        workers = _workers()
        target = workers[0].kill if workers else lambda: None
    with contextlib.suppress(psutil.NoSuchProcess):
        target()
    return node


def _workers() -> list[psutil.Process]:
    """Our own cluster's processes that are at work on a piece."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0] in _WORKERS:
                found.append(process)
    return found


def _pieces(where: Path) -> dict[str, int]:
    """Commit of a unit or a bucket -> when it was written."""
    return {
        f"{kind}/{file.name}": file.stat().st_mtime_ns
        for kind in ("units", "buckets")
        for file in where.glob(f"progress/{kind}/[!.]*.json")
    }


if __name__ == "__main__":
    sys.exit(main())
