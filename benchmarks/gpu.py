"""[gpu] ViT-B/16 and L/16 at 224 px on one GPU, in bf16, their blocks compiled.

Images/s and share of the peak by plain torch, on one batch again and again and from 256-px JPEG
shards through the loader; DeepSpeed ZeRO-1, 2 and 3 beside it; memory beside what `estimate` says.
Each measurement is a process of its own, with our loop as a stage runs it. `--tiny` goes through
all of it on a CPU with models that say nothing of speed, to see that it runs.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.gpu_case import Case, Outcome
from benchmarks.loading import made_up, shard_set

_GOALS = {"B": 3000.0, "L": 900.0}
"""Images/s."""
_DATA_PATH_GOAL = 0.95
_STEPS = 30
_FLAGS = {"tiny": "run through on a CPU, with small models and few images"}


def main() -> int:
    """Measure every case, one after the other."""
    options = arguments(__doc__, trials=_STEPS, flags=_FLAGS)
    if not options.tiny and not torch.cuda.is_available():
        print(
            "error: there is no GPU here that torch can use\n"
            "  try: python -m benchmarks.gpu --tiny, which runs through on a CPU",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as name:
        shards = _shards(Path(name), tiny=options.tiny)
        found = {
            case.variant: _measure(case, shards)
            for case in _cases(options.seed, options.trials, tiny=options.tiny)
        }
    goals = [] if options.tiny else [_reached(it, _GOALS[name]) for name, it in found.items()]
    first = next(iter(found.values()))["torch"]
    return conclude(
        Figure(
            name="gpu",
            figure=round(first.images_per_second, 1),
            unit=f"images/s of ViT-{next(iter(found))}/16, plain torch, one batch again and again",
            goal=(
                "none on a CPU, where it only has to run"
                if options.tiny
                else f"at least {_GOALS['B']:.0f} for B and {_GOALS['L']:.0f} for L at 224 px, "
                f"data path at least {_DATA_PATH_GOAL} of that"
            ),
            holds=all(goals),
            conditions=conditions(
                seed=options.seed,
                steps=options.trials,
                device="CPU" if options.tiny else torch.cuda.get_device_name(),
            ),
            details={
                variant: {name: _rounded(outcome) for name, outcome in outcomes.items()}
                for variant, outcomes in found.items()
            },
        )
    )


def _cases(seed: int, steps: int, *, tiny: bool) -> list[Case]:
    if tiny:
        return [Case("Ti", 32, 4, min(steps, 2), None, None, on_gpu=False, seed=seed)]
    base = Case("B", 224, 256, steps, None, None, on_gpu=True, seed=seed)
    return [base, replace(base, variant="L", samples=128)]


def _measure(case: Case, shards: Path) -> dict[str, Outcome]:
    """Outcomes by name: engines on a held batch, and plain torch behind the loader."""
    cases = {
        "torch": case,
        "loader": replace(case, shards=str(shards)),
        **{f"zero{stage}": replace(case, zero_stage=stage) for stage in (1, 2, 3)},
    }
    return {name: _outcome(it) for name, it in cases.items()}


def _outcome(case: Case) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.gpu_case", json.dumps(asdict(case))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def _reached(outcomes: dict[str, Outcome], goal: float) -> bool:
    rate = outcomes["torch"].images_per_second
    return rate >= goal and outcomes["loader"].images_per_second >= _DATA_PATH_GOAL * rate


def _rounded(outcome: Outcome) -> dict[str, float | None]:
    return {
        name: value if value is None else round(value, 4 if name == "mfu_ratio" else 1)
        for name, value in asdict(outcome).items()
    }


def _shards(where: Path, *, tiny: bool) -> Path:
    """JPEG of 256 px in shards, of pictures made up."""
    pictures = made_up(where / "raw", classes=4, per_class=4 if tiny else 1500, side_px=256)
    source = {"type": "image_folder", "uri": str(pictures)}
    return shard_set(source, where / "set", image={"max_side_px": 256}).folder


if __name__ == "__main__":
    sys.exit(main())
