"""Runs every benchmark, or those that are named, and keeps their documents.

`python -m benchmarks [NAME...]`; `gpu` is only run by its name.
"""

import json
import subprocess
import sys
from pathlib import Path

MODULES = (
    "quickstart",
    "photos",
    "dedup",
    "order",
    "loader_resume",
    "shuffle",
    "loader",
    "loader_peers",
    "scale",
    "bitrot",
    "build",
    "corruption",
    "ingest",
    "model_speed",
    "zero_parity",
    "step",
    "engine_overhead",
    "data_wait",
    "estimate",
    "exact_evaluation",
    "probe",
    "learning",
    "torn_checkpoint",
    "kill_resume",
    "elastic_resume",
    "checkpoint_step",
)
_RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Exit 0 if every goal holds."""
    return max(_run(name) for name in sys.argv[1:] or MODULES)


def _run(name: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=False
    )
    lines = done.stdout.splitlines()
    if not lines:
        print(f"{name}: no result, exit {done.returncode}")
        return 1
    document = json.loads(lines[-1])
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    verdict = "holds" if document["holds"] else "does not hold"
    print(f"{name}: {document['figure']} {document['unit']}; {document['goal']}: {verdict}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
