"""[quickstart] The recipe `digits`: the whole DAG in 5 minutes and 6 GiB; then nothing, in 5 s."""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.processes import VITRAIL, Measured, measure

_SECONDS, _BYTES, _AGAIN_SECONDS = 300.0, 6 * 2**30, 5.0


def main() -> int:
    """Run the recipe in fresh workspaces, each twice."""
    options = arguments(__doc__)
    first, second = [], []
    for trial in range(options.trials):
        with tempfile.TemporaryDirectory() as folder:
            # An address where no Ray can be proves that a second run does not ask for one.
            seed = ("--set", f"seed={options.seed + trial}")
            command = (VITRAIL, "run", "digits", "--output", "json", *seed)
            first.append(measure(*command, cwd=Path(folder)))
            second.append(measure(*command, "--address", "127.0.0.1:1", cwd=Path(folder)))
    seconds = statistics.median(run.seconds for run in first)
    again = statistics.median(run.seconds for run in second)
    peak = max(run.peak_bytes for run in first)
    ran = {stage["status"] for run in second for stage in _stages(run)}
    holds = (
        all(run.code == 0 for run in (*first, *second))
        and seconds <= _SECONDS
        and peak <= _BYTES
        and again <= _AGAIN_SECONDS
        and ran == {"reused"}
    )
    return conclude(
        Figure(
            name="quickstart",
            figure=round(seconds, 1),
            unit="seconds of the whole DAG",
            goal="at most 300 s and 6 GiB; second run reuses all in at most 5 s without Ray",
            holds=holds,
            conditions=conditions(recipe="digits", trials=options.trials, seed=options.seed),
            details={
                "peak_gib": round(peak / 2**30, 2),
                "second_run_seconds": round(again, 2),
                "second_run_statuses": sorted(ran),
                "stage_seconds": {it["name"]: round(it["seconds"], 1) for it in _stages(first[0])},
            },
        )
    )


def _stages(run: Measured) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run.stdout)["stages"]
    return found


if __name__ == "__main__":
    sys.exit(main())
