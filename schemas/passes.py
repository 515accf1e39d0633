"""What a user says of how a model is run over a split."""

from pydantic import Field

from schemas.gates import GatedStageSpec
from schemas.spec import Execution


class PassStageSpec(GatedStageSpec):
    """Base of the stages that show a model every image of a split, once.

    None of this is in a key: batches are the same for any number of workers, and so are the bytes
    of what is made. Other sizes of batches, threads or devices round in another way.
    """

    batch_samples: Execution[int] = Field(default=64, gt=0)
    """Images in one forward."""
    threads: Execution[int] = Field(default=1, ge=1)
    """Of a worker: so many decode, and as many compute."""
    workers: Execution[int] = Field(default=1, ge=1)
    """Ray tasks that work at the same time, a core for each; 1: the stage's own process does it."""
    gpus_per_worker: Execution[float] = Field(default=0, ge=0)
    """GPUs of each worker, or what part of one; 0: the model runs on the CPU."""
