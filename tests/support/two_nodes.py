"""A cluster of two nodes of one core each, one of which goes down: `python -m ... FOLDER`.

In a process of its own, since the tests' process has joined another cluster. Writes `told.json`:
where the ranks stood, what was said, and the curves.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from infra.ray_cluster import import_ray
from infra.worker_gang import Foreman, Gang, run_gang
from jobs.train import worker_environment
from jobs.train_worker import run_in_gang
from schemas.manifest import DATASET_FOLDER
from schemas.resources import WorkersRange
from tests.support import gang as work
from tests.support.datasets import small_set
from tests.support.small_stage import SPEC, losses_in, plan_in


def main(folder: Path) -> None:
    """Ask where the ranks are, train undisturbed, and train while a node goes down."""
    ray = import_ray()
    from ray.cluster_utils import Cluster

    small_set(folder, per_class=12)
    (folder / "out").rename(folder / DATASET_FOLDER)
    node = {"num_cpus": 1, "object_store_memory": 128 * 2**20}
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        # Ray Train tells nodes apart by their addresses.
        cluster.add_node(**node, node_ip_address="127.0.0.2")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        told = _run_all(folder, ray.get_runtime_context().get_node_id())
        (folder / "told.json").write_text(json.dumps(told))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _run_all(folder: Path, kept: str) -> dict[str, Any]:
    said: list[str] = []
    foreman = Foreman(said.append, stop=lambda: False)
    stood = run_gang(work.stand, {}, _gang(folder / "stood"), foreman)
    losses = []
    for name, function in (("whole", run_in_gang), ("halved", work.train_and_lose_a_node)):
        plan = plan_in(folder / name, folder, workers=WorkersRange(min=1, max=2))
        config = {"plan": plan, "after": "step-00000010", "kept": kept}
        run_gang(function, config, _gang(folder / name), foreman)
        losses.append(losses_in(folder / name))
    return {"ranks": stood["ranks"], "said": said, "whole": losses[0], "halved": losses[1]}


def _gang(folder: Path) -> Gang:
    return Gang(
        worlds=(2, 1),
        cpus_per_worker=1,
        gpus_per_worker=0,
        name=folder.name,
        storage=folder / "ray",
        env=worker_environment(SPEC.resources),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
