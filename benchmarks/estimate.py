"""[estimate] The formulas of `pipeline.cost` beside what torch and the engines measure, on the CPU.

Models drawn by the seed, and four of known sizes, each take one real training step of their
objective: parameters are counted, FLOPs by torch's counter (attention in tiles as it counts the
GPU's kernels of that kind), and bytes by hooks on saved tensors. One engine alone and two processes
in each ZeRO stage tell which tensors live after an update and after a backward pass.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from benchmarks.figure import Figure, arguments, conclude, conditions
from pipeline.cost import activation_bytes, state_bytes, trained_parameters, training_flops
from schemas.backbones import ResNetSpec
from schemas.model import ModelSpec, ViTSpec
from schemas.objectives import AnyObjective, MaeSpec, MaskedPatchSpec
from schemas.optim import OptimSpec
from tests.support.costs import SUPERVISED, Case, count
from tests.support.held import WORLD, Held, held_alone, held_in_world

_MODELS = 60
_FLOPS_GOAL = 0.01
_KEPT_GOAL = 0.15
_OPTIM = OptimSpec(peak_lr=1e-3, ema_decay=0.9)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "width": (48, 96, 192),
    "depth": (2, 3, 6),
    "num_heads": (3, 6),
    "mlp_dim": (96, 192, 384),
    "image_px": ((32, 48), (64, 64)),
    "patch_px": (8, 16),
    "pool": ("cls", "gap", "map"),
    "position": ("none", "learned_1d", "learned_2d", "relative", "sincos_2d"),
    "position_at": ("stem", "every_layer", "shared"),
    "registers": (0, 4),
    "layer_scale": (None, 0.1),
    "qk_norm": (False, True),
    "drop_path": (0.0, 0.2),
    "dropout": (0.0, 0.0, 0.1),
    "patch_dropout": (0.0, 0.0, 0.25),
    "axial": (False, False, True),
    "norm_at": ("tokens", "pooled"),
    "hidden_head": (False, True),
    "distillation_token": (False, False, True),
    "stem": (None, None, None, {"blocks": (1, 2), "width": 32}),
    "num_classes": (10, 1000),
}
_KNOWN = ({"variant": "Ti", "patch_px": 16}, {"variant": "S", "patch_px": 32})


def main() -> int:
    """Measure all of it."""
    options = arguments(__doc__, trials=_MODELS)
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    cases = [*_known(), *(_drawn(rng) for _ in range(options.trials))]
    errors = {case.name: _errors(case) for case in cases}
    wrong = [name for name, (parameters, _, _) in errors.items() if parameters]
    flops = max(errors.items(), key=lambda pair: pair[1][1])
    kept = max(errors.items(), key=lambda pair: pair[1][2])
    state = _state()
    return conclude(
        Figure(
            name="estimate",
            figure=round(kept[1][2], 4),
            unit="largest relative error of the activations kept for the backward pass",
            goal=f"at most {_KEPT_GOAL}; FLOPs within {_FLOPS_GOAL}, parameters exact, state exact "
            "but for padding, step counters and gradients of tensors that a border cuts",
            holds=not wrong
            and flops[1][1] <= _FLOPS_GOAL
            and kept[1][2] <= _KEPT_GOAL
            and all(line["holds"] for line in state.values()),
            conditions=conditions(seed=options.seed, models=len(cases)),
            details={
                "wrong_parameters": wrong,
                "largest_flops_error": round(flops[1][1], 6),
                "worst_flops": flops[0],
                "median_kept_error": round(float(np.median([it[2] for it in errors.values()])), 4),
                "worst_kept": kept[0],
                "state_bytes": state,
            },
        )
    )


def _errors(case: Case) -> tuple[int, float, float]:
    """Of parameters, absolute; of FLOPs and kept bytes, relative."""
    counted = count(case)
    flops = case.samples * training_flops(case.model, case.objective, recompute=case.recompute)
    kept = activation_bytes(
        case.model,
        case.objective,
        samples=case.samples,
        bf16=case.bf16,
        recompute=case.recompute,
    )
    return (
        abs(trained_parameters(case.model, case.objective) - counted.parameters),
        abs(flops / counted.flops - 1),
        abs(kept / counted.saved_bytes - 1),
    )


def _known() -> list[Case]:
    """Two sizes of the paper at 224 px, in both precisions."""
    found = []
    for fields in _KNOWN:
        model = ModelSpec.parse({**fields, "image_px": 224}).to_vit(num_classes=1000)
        for bf16 in (False, True):
            name = f"{fields['variant']}/{fields['patch_px']} {'bf16' if bf16 else 'fp32'}"
            found.append(Case(name, model, bf16=bf16, samples=2))
    return found


def _drawn(rng: np.random.Generator) -> Case:
    """A model, its objective, and how it is trained."""
    bf16, recompute = bool(rng.integers(2)), bool(rng.integers(2))
    samples = int(rng.choice([1, 2, 4, 6]))
    model, objective = _model(rng)
    said = model.model_dump(exclude_defaults=True)
    name = f"{objective.type} {said} bf16={bf16} recompute={recompute} samples={samples}"
    return Case(name, model, objective, bf16, recompute, samples)


def _model(rng: np.random.Generator) -> tuple[ViTSpec | ResNetSpec, AnyObjective]:
    """What the specs allow."""
    if rng.integers(8) == 0:
        blocks = tuple(int(n) for n in rng.integers(1, 4, size=rng.integers(1, 4)))
        side = int(rng.integers(32, 97))
        resnet = ResNetSpec(blocks=blocks, width=32, image_px=(side, 64), num_classes=10)
        return resnet, SUPERVISED
    while True:
        fields = {name: of[int(rng.integers(len(of)))] for name, of in _CHOICES.items()}
        try:
            model = ViTSpec.model_validate(fields)
        except ValidationError:
            continue  # parts that do not go together
        return _with_objective(rng, model)


def _with_objective(rng: np.random.Generator, model: ViTSpec) -> tuple[ViTSpec, AnyObjective]:
    """Learning from images alone for a third of those that can."""
    mae = MaeSpec(decoder_width=24, decoder_depth=2, decoder_heads=2)
    for objective in (MaskedPatchSpec(), mae):
        if rng.integers(3) == 0 and not list(objective.conflicts(model)):
            return model.revise(num_classes=0), objective
    return model, SUPERVISED


def _state() -> dict[str, dict[str, Any]]:
    """By engine and stage: bytes held and stated."""
    found = {"torch": _line(held_alone(_OPTIM), 0, world=1)}
    with tempfile.TemporaryDirectory() as folder:
        for stage, held in held_in_world(Path(folder), _OPTIM, [0, 1, 2, 3]).items():
            found[f"zero{stage}"] = _line(held, stage, world=WORLD)
    return found


def _line(held: Held, stage: int, *, world: int) -> dict[str, Any]:
    stated = state_bytes(held.parameters, _OPTIM, zero_stage=stage, world=world)
    most, cut = held.most_besides(stated, stage), held.most_cut(stage)
    updated, computed = held.without_gradients(stated, stage), held.with_gradients(stated)
    return {
        "after_update": held.after_update,
        "beyond_stated": updated,
        "with_gradients": held.after_backward,
        "with_gradients_beyond_stated": computed,
        "allowed_beyond": [most, most + cut],
        "holds": 0 <= updated <= most and 0 <= computed <= most + cut,
    }


if __name__ == "__main__":
    sys.exit(main())
