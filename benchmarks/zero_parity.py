"""[zero_parity] ZeRO-0 to 3 on two processes against plain torch on one, in fp32, over 50 steps.

Each stage with 1 and with 4 micro-batches a step, gradients clipped, at a rate at which the loss
falls by half or more. Compared at every step: losses and gradient norms; at the end: parameters,
but for the biases of keys, whose true gradient is zero, so that Adam makes steps of rounding.
"""

import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path

from benchmarks.figure import Figure, arguments, conclude, conditions
from pipeline.model.vit import KEY_BIAS
from pipeline.training.engine import TorchEngine
from schemas.model import ViTSpec
from tests.support.training import OPTIM, FakeLoader, engine_spec, model
from tests.support.zero_runs import STEPS, Outcome, ZeroRun, follow, run_world

_SPEC = ViTSpec(
    width=64, depth=3, num_heads=4, mlp_dim=128, patch_px=4, image_px=(16, 16), num_classes=10
)
_OPTIM = OPTIM.revise(peak_lr=2e-3, warmup_steps=5)
_ACCUMULATIONS = (1, 4)
_ABSOLUTE, _RELATIVE = 1e-5, 1e-4
_FALL = 0.5
_ENDS = 5
"""Steps whose mean loss is that of the start, or of the end."""


def main() -> int:
    """Train with every stage and compare."""
    options = arguments(__doc__)
    details: dict[str, dict[str, float]] = {}
    for seed in range(options.seed, options.seed + options.trials):
        with tempfile.TemporaryDirectory() as folder:
            details |= _compare(Path(folder), seed)
    worst = max(max(it["loss"], it["parameters"]) for it in details.values())
    norm = max(it["norm_relative"] for it in details.values())
    fall = max(it["loss_left_ratio"] for it in details.values())
    return conclude(
        Figure(
            name="zero_parity",
            figure=worst,
            unit="largest difference of a loss or a parameter from plain torch",
            goal=f"at most {_ABSOLUTE}; norms within {_RELATIVE} relative; the loss halves",
            holds=worst <= _ABSOLUTE and norm <= _RELATIVE and fall <= _FALL,
            conditions=conditions(
                seed=options.seed,
                trials=options.trials,
                steps=STEPS,
                ranks=2,
                peak_lr=_OPTIM.peak_lr,
                clip_norm=_OPTIM.clip_norm,
            ),
            details=details,
        )
    )


def _compare(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    engine = TorchEngine(model(_SPEC, seed=seed), engine_spec(_SPEC, _OPTIM))
    expected = follow(engine, FakeLoader(_SPEC, seed=seed), None, _OPTIM)
    runs = [
        ZeroRun(
            f"zero{stage}-x{count}-seed{seed}", stage, count, optim=_OPTIM, spec=_SPEC, seed=seed
        )
        for stage, count in product(range(4), _ACCUMULATIONS)
    ]
    found = run_world(folder / "world", 2, runs)
    return {name: _differences(outcome, expected) for name, outcome in found.items()}


def _differences(found: Outcome, expected: Outcome) -> dict[str, float]:
    losses = list(expected.losses.values())
    steps, names = expected.losses, [n for n in expected.weights if not n.endswith(KEY_BIAS)]
    return {
        "loss": max(abs(found.losses[step] - expected.losses[step]) for step in steps),
        "norm_relative": max(abs(found.norms[s] / expected.norms[s] - 1) for s in steps),
        "parameters": max(
            float((found.weights[name] - expected.weights[name]).abs().max()) for name in names
        ),
        "loss_left_ratio": statistics.mean(losses[-_ENDS:]) / statistics.mean(losses[:_ENDS]),
    }


if __name__ == "__main__":
    sys.exit(main())
