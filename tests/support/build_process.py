"""A build in a process of its own, which may die: `python -m tests.support.build_process`.

Arguments: the spec as JSON, a folder for progress and result, and the address of a Ray cluster, or
nothing for a build in this one process. Prints the digest.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra.serial_pool import SerialPool
from pipeline.ports import TaskPool
from schemas.data import IngestSpec
from tests.support.datasets import build

BROKEN_CODEC = Path(__file__).parent / "broken_codec"
ROOT = Path(__file__).parents[2]


def start(
    spec: IngestSpec, where: Path, *, address: str = "", broken: bool = False
) -> "subprocess.Popen[str]":
    """Begin a build; with `broken`, under a codec that dies and hangs."""
    path = [str(ROOT), *([str(BROKEN_CODEC)] if broken else [])]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.support.build_process",
            json.dumps(spec.dump()),
            str(where),
            address,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    spec, where = IngestSpec.parse(json.loads(sys.argv[1])), Path(sys.argv[2])
    sys.stdout.write(json.dumps(_build(spec, where, sys.argv[3])) + "\n")


def _build(spec: IngestSpec, where: Path, address: str) -> dict[str, Any]:
    said: list[str] = []
    if not address:
        result = build(spec, where, pool=SerialPool(), said=said)
    else:
        import logging

        from infra.ray_cluster import import_ray
        from infra.ray_pool import RayPool

        environment = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
        import_ray().init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        pool: TaskPool = RayPool()
        result = build(spec, where, pool=pool, said=said)
    return {"digest": result.digest, "said": said}


if __name__ == "__main__":
    main()
