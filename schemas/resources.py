"""What a user says of where and how training is done: nothing here is in a key."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.spec import Execution, Spec


class WorkersRange(Spec):
    """A world that takes what it gets, at each start and after each loss of a process."""

    min: Execution[int] = Field(ge=1)
    """Fewest processes."""
    max: Execution[int] = Field(ge=1)
    """Most processes, inclusive."""

    @model_validator(mode="after")
    def _goes_up(self) -> "WorkersRange":
        if self.max < self.min:
            raise ValueError(f"workers has min {self.min} and max {self.max}; min must not be more")
        return self


class ResourcesSpec(Spec):
    """Where and how the work is done; nothing here changes what is computed beyond rounding."""

    workers: Execution[Annotated[int, Field(ge=1)] | WorkersRange] = 1
    """Processes of the training world; or `{min: A, max: B}`: at each start and restart the most
    that divide the global batch and have room on the nodes that live then. Batches and learning
    rates stay the same."""
    gpus_per_worker: Execution[float] = Field(default=0, ge=0)
    cpus_per_worker: Execution[float] = Field(default=0.5, gt=0)
    threads: Execution[int] = Field(default=1, ge=1)
    """Torch threads of a worker."""
    loader_threads: Execution[int] = Field(default=2, ge=1)
    """Threads of a worker that decode images."""
    micro_batch: Execution[Annotated[int, Field(gt=0)] | Literal["auto"] | None] = None
    """Samples in one forward on one worker. None: the worker's whole share of the global batch;
    `auto`: the largest part of it that, by the estimate, fits in the memory of every worker."""
    recompute: Execution[bool] = False
    """Keep nothing inside blocks for the backward pass and run them twice: a third more work for
    most of the memory of activations."""
    compile: Execution[bool] = False
    """Compile the blocks of a ViT, or another model whole, by torch.compile: a minute or more at
    the start, faster steps on a GPU; on a CPU it needs a C++ compiler. Not in `zero_stage` 3."""
    engine: Execution[Literal["deepspeed", "torch"]] = "deepspeed"
    """`torch` is the single-process reference."""
    zero_stage: Execution[Literal[0, 1, 2, 3, "auto"]] = "auto"
    """How much of the training state the workers share out: nothing, moments and the weights to
    update, gradients too, weights too. `auto`: the lowest that, by the estimate, fits in the memory
    of every worker, from 1 on where there are several."""
    offload_optimizer: Execution[bool] = False
    """Keep moments, averages and the weights to update in the memory of the host, and update there:
    less memory of the GPU, slower steps. From `zero_stage` 1 on."""

    @model_validator(mode="after")
    def _torch_is_alone(self) -> "ResourcesSpec":
        if self.engine == "torch" and self.most_workers > 1:
            raise ValueError(
                "engine torch runs one worker; set workers to 1 or engine to deepspeed"
            )
        return self

    @model_validator(mode="after")
    def _compiles_whole_weights(self) -> "ResourcesSpec":
        if self.compile and self.engine == "deepspeed" and self.zero_stage == 3:
            raise ValueError(
                "compile needs whole weights, and zero_stage 3 gathers them inside the forward; "
                "set compile to false or a lower zero_stage"
            )
        return self

    @model_validator(mode="after")
    def _offloads_what_is_apart(self) -> "ResourcesSpec":
        if self.offload_optimizer and (self.engine == "torch" or self.zero_stage == 0):
            raise ValueError(
                "offload_optimizer needs engine deepspeed and zero_stage 1, 2, 3 or auto; in "
                "others there is nothing apart from the model that could be moved"
            )
        return self

    @property
    def most_workers(self) -> int:
        """The upper end of `workers`."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def fewest_workers(self) -> int:
        """The lower end of `workers`."""
        return self.workers if isinstance(self.workers, int) else self.workers.min


class CheckpointSpec(Spec):
    """When training state is written, so that a killed run goes on from there."""

    every_steps: Execution[int] = Field(default=500, ge=1)
    keep_last: Execution[int] = Field(default=2, ge=1)
    """How many of the newest are kept while the stage runs."""
    keep_every_steps: Execution[int | None] = Field(default=None, ge=1)
    """Those at whole multiples of this step are kept too; a pre-training keeps them, as its last
    one, in its artifact."""
