"""The course of a training stage through its data, from its spec and artifacts alone."""

from dataclasses import dataclass

from jobs.console import stderr
from jobs.data_sets import artifact_files, made_last, one_node
from jobs.target import Target
from jobs.wiring import open_shard_set, store_at
from jobs.workspace import open_workspace
from pipeline.dag.graph import StageNode, expand
from pipeline.data.feed.mixtures import MixedSplit
from pipeline.data.feed.tracing import Trace
from pipeline.data.shards.shard_set import Split
from pipeline.training.schedule import total_steps
from schemas.artifacts import StageRecord, StageResult
from schemas.errors import DataError, UsageError
from schemas.experiment import STAGE_KINDS, ExperimentSpec
from schemas.manifest import DATASET_FOLDER
from schemas.spec import semantic_fields
from schemas.training import TrainingSpec


@dataclass(frozen=True)
class Traced:
    """A training stage that can be asked which step takes what."""

    stage: str
    trace: Trace
    splits: tuple[Split, ...]
    names: tuple[str, ...]
    """STAGE@SPLIT of each split."""
    total_steps: int


@dataclass(frozen=True)
class _Training:
    """What decides the course."""

    node: StageNode
    spec: TrainingSpec
    seed: int
    folders: tuple[str, ...]
    """Of the shard sets, in the order of the ports."""
    steps: int | None
    """Chosen by a search; None: the spec says it."""


def trace_of(target: Target, stage: str) -> Traced:
    """The course of a training stage of the target's spec.

    A stage that was trained is answered for as it was trained, with its own record of spec and
    data; any other as the spec stands, with the data that was made last.

    Raises:
        UsageError: If the stage does not train, or its data was never made.
    """
    experiment = target.experiment()
    node = one_node(experiment, expand(experiment), stage)
    spec = node.spec
    if not isinstance(spec, TrainingSpec):
        kinds = [key for key, spec in experiment.stages.items() if isinstance(spec, TrainingSpec)]
        raise UsageError(
            f"{stage} is of kind {node.kind} and takes no training steps; these stages do: "
            f"{', '.join(kinds) or 'none'}"
        )
    training = _trained(target, experiment, node) or _planned(target, experiment, node, spec=spec)
    return _traced(target, training)


def _trained(target: Target, experiment: ExperimentSpec, node: StageNode) -> _Training | None:
    """As the stage was trained last; None if it never was."""
    workspace = open_workspace(target.workspace)
    store = store_at(workspace.store)
    result = store.get_ref(experiment.name, node.name)
    if result is None:
        return None
    record = store.record(result)
    spec: TrainingSpec = STAGE_KINDS[node.kind].parse(record.spec)
    if record.key_record.fields != semantic_fields(node.spec):
        note = f"note: the spec has changed since; this is of {result.artifact}, as it was trained"
        stderr().print(note, markup=False)
    return _Training(
        node=node,
        spec=spec,
        seed=record.key_record.seed or 0,
        folders=tuple(_folder(target, record, port) for port in _ports(spec)),
        steps=_searched(result),
    )


def _folder(target: Target, record: StageRecord, port: str) -> str:
    name = record.input_artifacts[port]
    files = artifact_files(open_workspace(target.workspace), name)
    if files is None:
        raise DataError(f"{name}, which {record.stage} was trained on, is no longer in the store")
    return str(files / DATASET_FOLDER)


def _searched(result: StageResult) -> int | None:
    steps = result.metrics.get("search/steps_count")
    return None if steps is None else int(steps)


def _planned(
    target: Target, experiment: ExperimentSpec, node: StageNode, *, spec: TrainingSpec
) -> _Training:
    """As the spec stands, with the data that was made last."""
    store = store_at(open_workspace(target.workspace).store)
    made = [made_last(target, experiment, node.inputs[port].stage) for port in _ports(spec)]
    folders = tuple(str(store.local(result) / DATASET_FOLDER) for result in made)
    return _Training(node, spec, node.seed, folders, None)


def _ports(spec: TrainingSpec) -> list[str]:
    return [port for port in spec.inputs() if port.partition("[")[0] == "data"]


def _traced(target: Target, training: _Training) -> Traced:
    workspace = open_workspace(target.workspace)
    references = [training.spec.inputs()[port] for port in _ports(training.spec)]
    sets = [open_shard_set(folder, workspace) for folder in training.folders]
    splits = tuple(
        data.split(reference.split or "train")
        for data, reference in zip(sets, references, strict=True)
    )
    phases = training.spec.mixture
    data = splits[0] if phases is None else MixedSplit(splits, phases)
    trace = Trace(data, training.spec.batch, seed=training.seed)
    return Traced(
        stage=training.node.name,
        trace=trace,
        splits=splits,
        names=tuple(map(str, references)),
        total_steps=training.steps
        or total_steps(training.spec.in_steps().duration, trace.steps_per_epoch),
    )
