"""What a user asks of a measurement at least: gates, which decide how a run ends."""

from typing import Self

from pydantic import Field, model_validator

from schemas.spec import Execution, Semantic, Spec
from schemas.stage import StageSpec
from schemas.words import nearest


class Bound(Spec):
    """What a metric has to be; both ends are allowed values."""

    min: Execution[float | None] = None
    max: Execution[float | None] = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a gate needs min, max or both, as in {min: 0.9}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}; no value could be right")
        return self

    def __str__(self) -> str:
        """As a sentence says it."""
        ends = [("at least", self.min), ("at most", self.max)]
        return " and ".join(f"{word} {end:.6g}" for word, end in ends if end is not None)

    def holds(self, value: float) -> bool:
        """Whether the value is allowed; NaN never is."""
        above = self.min is None or value >= self.min
        below = self.max is None or value <= self.max
        return above and below


class GatedStageSpec(StageSpec):
    """Base of the stages that measure something."""

    gate: Execution[dict[str, Bound]] = {}
    """Metric -> what it has to be, such as `top1_ratio: {min: 0.9}`; named as in the metrics of the
    stage, with or without the split before it. Not in the key: nothing is measured again when it
    changes. A run that does not meet one still makes all its stages, and then exits with 7."""

    @model_validator(mode="after")
    def _gates_name_what_is_measured(self) -> Self:
        known = self.measured()
        for gate in self.gate:
            name = gate.rpartition("/")[2]
            if known and name not in known:
                near = nearest(name, list(known))
                meant = f"did you mean {near}?" if near else f"it measures {', '.join(known)}"
                raise ValueError(f"gate names {gate}, which is not measured; {meant}")
        return self

    def measured(self) -> tuple[str, ...]:
        """Names of what the stage will measure, without the split; empty where nobody can say."""
        return ()


class UnmetGate(Spec):
    """A gate that a run did not meet."""

    stage: Semantic[str]
    metric: Semantic[str]
    value: Semantic[float | None]
    """As measured; null where the stage measured nothing of that name."""
    sentence: Semantic[str] = Field(min_length=1)
    """What was asked, what was measured, and where it is set."""
