"""What a fine-tuning leaves as it was, what it adds for a while, and how it finds its rate."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.spec import Semantic, Spec

ADAPTER_FOLDER = "adapter"
"""Of an artifact whose model was trained by `lora`."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_Name = Annotated[str, Field(min_length=1)]


class FreezeSpec(Spec):
    """Parts that keep the weights of `init`, bit for bit; exactly one of the two fields.

    What is frozen has no gradient, no moments, no average and no weight decay, and BatchNorm layers
    in it keep their statistics too. Skipped branches and dropout go on as `model` says.
    """

    up_to_layer: Semantic[int | None] = Field(default=None, ge=0)
    """Layers 0 to this one, numbered as for `optim.layer_decay`: 0 is patches, positions and
    tokens, then come the blocks, from 1."""
    all_but: Semantic[_Name | tuple[_Name, ...] | None] = None
    """The parts that go on learning, as the model names its modules and parameters: `head`, or
    `[head, norm, blocks.11]`."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "FreezeSpec":
        if (self.up_to_layer is None) == (self.all_but is None):
            raise ValueError(
                "give either freeze.up_to_layer, such as 8, or freeze.all_but, such as head"
            )
        if self.all_but == ():
            raise ValueError("freeze.all_but names nothing that learns; name a part, such as head")
        return self

    @property
    def learning_parts(self) -> tuple[str, ...]:
        """`all_but` as a list."""
        parts = self.all_but or ()
        return (parts,) if isinstance(parts, str) else parts


class LoraSpec(Spec):
    """Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) B A, of which B and A alone learn.

    B begins as zero and A as peft has it, evenly in 1 / sqrt(inputs), so that the first step starts
    from the very model of `init`. All else is frozen but the new head. The product is added to W
    when the model is saved, which then is like any other; B, A and the head lie beside it in
    `adapter/`, in peft's form.
    """

    rank: Semantic[int] = Field(default=8, gt=0)
    """Columns of B, rows of A."""
    alpha: Semantic[float] = Field(default=16.0, gt=0)
    """Over the rank, the factor of the product."""
    targets: Semantic[tuple[_Name, ...]] = Field(default=("query", "value"), min_length=1)
    """Dense layers by the last parts of their names. Of a ViT: query, key, value, out, dense1,
    dense2; a library's model has its own."""
    dropout: Semantic[float] = Field(default=0.0, ge=0, lt=1)
    """Share of the numbers that A does not see in training."""

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / self.rank


class SearchSpec(Spec):
    """Choose learning rate and steps on a held-out part of the training labels."""

    peak_lr: Semantic[tuple[Annotated[float, Field(gt=0)], ...]] = Field(min_length=1)
    steps: Semantic[tuple[Annotated[int, Field(gt=0)], ...]] = Field(min_length=1)
    holdout_ratio: Semantic[float] = Field(default=0.3, gt=0, lt=1)
    """Share of each class held out (at least one image of each). The paper: 0.1 of Pets and
    Flowers, 0.02 of CIFAR, 0.01 of ImageNet."""
    repeats: Semantic[int] = Field(default=1, ge=1)
    """Independent draws of the held-out part; their accuracies are averaged."""


class AdapterConfig(Spec):
    """`adapter_config.json`, by peft's names: what its weights are and where they belong."""

    peft_type: Semantic[Literal["LORA"]] = "LORA"
    task_type: Semantic[None] = None
    base_model_name_or_path: Semantic[None] = None
    """Peft asks for the model itself: that of `init`, with a head of the new classes."""
    bias: Semantic[Literal["none"]] = "none"
    inference_mode: Semantic[Literal[True]] = True
    r: Semantic[int]
    lora_alpha: Semantic[float]
    lora_dropout: Semantic[float]
    target_modules: Semantic[tuple[str, ...]]
    modules_to_save: Semantic[tuple[str, ...]]
    """The heads, which are new and learned whole."""
