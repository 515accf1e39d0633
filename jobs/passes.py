"""Passes over a split in a stage: by the stage's own process, or by Ray tasks.

task = pass_of(Classify(model_folder), request.inputs["data"], spec)
table = do_pass(task, tools.attempt.path / "predictions.arrow", spec, tools)
...
return StageOutput(metrics, spent=(PASSES_FOLDER,))
"""

from pathlib import Path

import pyarrow as pa

from infra.serial_pool import SerialPool
from jobs.stage import StageTools
from pipeline.data.staging import BuildTools
from pipeline.evaluation.passes import PASSES_FOLDER, Pass, Work, run_pass
from pipeline.ports import TaskPool
from schemas.manifest import DATASET_FOLDER
from schemas.passes import PassStageSpec
from schemas.runs import InputArtifact

__all__ = ["PASSES_FOLDER", "do_pass", "pass_of", "pool_of"]


def pass_of(
    work: Work, data: InputArtifact, spec: PassStageSpec, *, images: int | None = None
) -> Pass:
    """The work on a split of a shard set, or on its first `images`, as the spec says.

    The split is the one that `data` names, or the one that is meant where it names none.
    """
    return Pass(
        dataset=Path(data.path) / DATASET_FOLDER,
        split=data.split or spec.default_splits["data"],
        work=work,
        batch_samples=spec.batch_samples,
        threads=spec.threads,
        gpus=spec.gpus_per_worker,
        images=images,
    )


def pool_of(spec: PassStageSpec, tools: StageTools) -> TaskPool:
    """Who does the work: one worker without a GPU is the stage's own process, else Ray tasks."""
    alone = spec.workers == 1 and not spec.gpus_per_worker
    return SerialPool() if alone else tools.pool


def do_pass(
    task: Pass, out: Path, spec: PassStageSpec, tools: StageTools, *, label: str = "classifying"
) -> pa.Table:
    """Do it, with the workers of the spec; see `run_pass` for what comes back and is raised."""
    build = BuildTools(pool_of(spec, tools), tools.attempt.progress, tools.stop, tools.say)
    return run_pass(task, out, tools=build, label=label, at_once=spec.workers)
