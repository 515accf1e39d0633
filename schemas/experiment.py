"""The root of what a user writes: named stages, an optional matrix, named profiles."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from schemas.comparison import CompareSpec
from schemas.curation import AppendSpec, FilterSpec, RemoveSpec
from schemas.data import IngestSpec
from schemas.evaluation import BaselineSpec, EvaluateSpec, ReportSpec
from schemas.interchange import ImportSpec
from schemas.interpret import InterpretSpec
from schemas.probing import FeaturesSpec, ProbeSpec
from schemas.robustness import RobustnessSpec
from schemas.spec import Execution, Semantic, Spec
from schemas.stage import STAGE_NAME
from schemas.training import FinetuneSpec, PretrainSpec

AnyStage = Annotated[
    IngestSpec
    | FilterSpec
    | AppendSpec
    | RemoveSpec
    | ImportSpec
    | PretrainSpec
    | FinetuneSpec
    | EvaluateSpec
    | BaselineSpec
    | FeaturesSpec
    | ProbeSpec
    | CompareSpec
    | InterpretSpec
    | RobustnessSpec
    | ReportSpec,
    Field(discriminator="kind"),
]

STAGE_KINDS: dict[str, type[Any]] = {
    kind.model_fields["kind"].default: kind
    for kind in (
        IngestSpec,
        FilterSpec,
        AppendSpec,
        RemoveSpec,
        ImportSpec,
        PretrainSpec,
        FinetuneSpec,
        EvaluateSpec,
        BaselineSpec,
        FeaturesSpec,
        ProbeSpec,
        CompareSpec,
        InterpretSpec,
        RobustnessSpec,
        ReportSpec,
    )
}

Override = dict[str, Any]
"""Dotted path (`STAGE.field...` or `seed`) -> value."""


class ExperimentSpec(Spec):
    """One declared pipeline."""

    name: Execution[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: Semantic[int] = Field(ge=0)
    """Seed of every stage that draws: initial weights, order, augmentation."""
    stages: Semantic[dict[str, AnyStage]] = Field(min_length=1)
    matrix: Semantic[dict[str, tuple[Any, ...] | dict[str, Override]]] = {}
    """Axis -> values. An axis is a dotted path, or a free name whose values are override maps; with
    names (`{small: {...}, large: {...}}`) they stand in the names of variants, else their numbers.
    """
    profiles: Execution[dict[str, Override]] = {}
    """Name -> overrides that `--profile NAME` applies (`matrix` may be among them)."""

    @model_validator(mode="after")
    def _stage_names_are_plain(self) -> "ExperimentSpec":
        for name in self.stages:
            if not STAGE_NAME.match(name) or name in type(self).model_fields:
                raise ValueError(
                    f"{name!r} cannot name a stage; use letters, digits, - and _, beginning with a "
                    f"letter, and none of {', '.join(type(self).model_fields)}"
                )
        return self
