"""What a user says of measuring a model while it trains."""

from typing import Literal

from pydantic import Field

from schemas.spec import Semantic, Spec


class ValidationSpec(Spec):
    """Every image of `validation_data` once, every `every_steps` steps and after the last one."""

    every_steps: Semantic[int] = Field(ge=1)
    metric: Semantic[Literal["loss", "top1_ratio"]] = "loss"
    """What makes one validation better than another: a smaller mean loss (without label smoothing;
    of an objective without labels its own), or a larger share of right answers."""
    keep_best: Semantic[bool] = False
    """The stage's model is that of the best validation, not of the last step."""
    patience: Semantic[int | None] = Field(default=None, ge=1)
    """Training ends after so many validations in a row that are no better than the best one;
    null: at its full duration."""
