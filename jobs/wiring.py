"""The composition root: adapters into ports, and stage kinds to their entry points."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from infra.code_archive import checkout_root
from infra.provenance import LocalProvenance
from infra.remote_files import FsspecFiles
from infra.storage import LocalStore, open_store
from jobs.stage import StageEntry
from jobs.stage_sources import AnySource, fingerprint, source_bytes
from jobs.stage_task import append_line, execute_stage, log_path
from jobs.workspace import StorePlace, Workspace
from pipeline.cost import estimate
from pipeline.dag.graph import Graph, StageNode
from pipeline.dag.plan import Facts
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.shard_set import ShardSet
from schemas.artifacts import StageResult
from schemas.errors import DataError, SpecError
from schemas.evaluation import LabelSetsSource
from schemas.experiment import ExperimentSpec
from schemas.runs import StageRequest

if TYPE_CHECKING:
    from infra.mlflow_tracking import MlflowTracker
    from infra.object_store import ObjectStore

ENTRY_MODULES: Mapping[str, str] = {
    "ingest": "jobs.ingest",
    "filter": "jobs.filter",
    "append": "jobs.append",
    "remove": "jobs.remove",
    "import": "jobs.import_weights",
    "pretrain": "jobs.train",
    "finetune": "jobs.train",
    "evaluate": "jobs.evaluate",
    "baseline": "jobs.baseline",
    "features": "jobs.features",
    "probe": "jobs.probe",
    "compare": "jobs.compare",
    "interpret": "jobs.interpret",
    "robustness": "jobs.robustness",
    "report": "jobs.report",
}
"""Stage kind -> the module whose `run` makes its artifact; imported in the stage's process only."""

CACHE_BYTES = 32 * 2**30
"""What a workspace keeps of remote shard sets at most."""

_OWN_CORES: Mapping[str, float] = {
    "evaluate": 1,
    "baseline": 1,
    "features": 1,
    "probe": 1,
    "compare": 1,
    "interpret": 1,
    "import": 1,
    "robustness": 1,
    "report": 1,
}
"""Cores of the stage task itself. The other kinds hand their work to tasks and workers."""


def cores_of(request: StageRequest) -> float:
    """What the process of a stage takes from the cluster.

    A stage that searches and then starts a gang holds its core for both: Ray lends out the core of
    a task that waits, so the gang can have it.
    """
    trains_alone = request.spec.get("resources", {}).get("engine") == "torch"
    if trains_alone or request.spec.get("search") is not None:
        return 1
    return _OWN_CORES.get(request.spec["kind"], 0)


def stage_entry(kind: str) -> StageEntry:
    """The entry point of a kind."""
    entry: StageEntry = importlib.import_module(ENTRY_MODULES[kind]).run
    return entry


def provenance() -> LocalProvenance:
    """Facts of the code and the environment of this process."""
    return LocalProvenance(checkout_root(), ENTRY_MODULES)


def store_at(place: StorePlace) -> "LocalStore | ObjectStore":
    """The artifact store of a workspace."""
    return open_store(place.uri, local=place.local, say=_to_stderr)


def _to_stderr(line: str) -> None:
    from jobs.console import stderr

    stderr().print(line, markup=False)


def planning_facts(experiment: ExperimentSpec, file: str, workspace: Workspace) -> Facts:
    """What planning may ask of this machine; `file` is what the user called the spec."""
    here = provenance()
    return Facts(
        store=store_at(workspace.store),
        experiment=experiment.name,
        file=file,
        libraries=here.library_versions,
        fingerprint=lambda source: _fingerprint(source, experiment),
        code_files=here.code_files,
    )


def _fingerprint(source: AnySource, experiment: ExperimentSpec) -> str:
    """The fingerprint of what a stage reads from outside; what is not there is a spec's error."""
    try:
        return fingerprint(source, FsspecFiles())
    except DataError as error:
        stages = experiment.stages.items()
        named = [name for name, spec in stages if spec.outside() == source]
        stage = named[0] if named else "STAGE"
        field = "label_sets" if isinstance(source, LabelSetsSource) else "source"
        raise SpecError(
            error.what,
            where=f"stages.{stage}.{field}",
            hint=error.hint or f"--set {stage}.{field}.uri=PATH",
        ) from error


def stage_costs(graph: Graph) -> Callable[[StageNode], dict[str, float]]:
    """Estimates the cost of a stage of `graph` from its spec."""
    size = partial(source_bytes, remote=FsspecFiles())
    return partial(estimate, graph=graph, source_bytes=size)


def execute_in_worker(request: StageRequest) -> StageResult:
    """What a Ray task runs: the stage, with this node's adapters."""
    from infra.ray_pool import RayPool

    say = partial(append_line, log_path(request))
    return execute_stage(
        request,
        entry=stage_entry(request.spec["kind"]),
        store=open_store(request.store, say=lambda line: say(f"{request.stage}: {line}")),
        provenance=provenance(),
        pool=RayPool(),
        files=FsspecFiles(),
    )


def open_shard_set(location: str, workspace: Workspace) -> ShardSet:
    """A shard set in a folder or behind a URI; files of the latter are kept in the workspace.

    Raises:
        DataError: If there is no shard set.
        IntegrityError: If its manifest or a table is not what was written.
    """
    cache = ShardCache(workspace.root / "cache", limit_bytes=CACHE_BYTES)
    return ShardSet.open(location, files=FsspecFiles(), cache=cache)


def tracker(uri: str, *, workspace: Path, experiment: str) -> "MlflowTracker":
    """MLflow at `uri`; artifacts of a local database go beside it."""
    from infra.mlflow_tracking import MlflowTracker

    return MlflowTracker(uri, artifact_root=workspace / "mlartifacts", experiment=experiment)
