"""Which shard set a person means: a folder, a URI, an artifact, or a stage of a spec.

vitrail data inspect run.yaml corpus          what the stage `corpus` of the spec made last
vitrail data inspect ingest-0123456789ab      an artifact of the workspace
vitrail data inspect /path/to/set             a folder with a manifest, or an artifact's folder
vitrail data inspect s3://bucket/set          the same behind a URI, read through a cache
"""

from dataclasses import dataclass
from pathlib import Path

from jobs.target import Target
from jobs.wiring import open_shard_set, store_at
from jobs.workspace import Workspace, open_workspace
from pipeline.dag.graph import Graph, StageNode, expand
from pipeline.data.files import is_remote, place_of
from pipeline.data.shards.shard_set import ShardSet
from schemas.artifacts import FILES_FOLDER, StageResult
from schemas.errors import UsageError, VitrailError
from schemas.experiment import ExperimentSpec
from schemas.manifest import DATASET_FOLDER, MANIFEST_FILE
from schemas.stage import SHARD_SETS

_FORMS = "a folder or a URI of a shard set, an artifact of the workspace, or a spec and a stage"


@dataclass(frozen=True)
class SetName:
    """A shard set as a person names it."""

    text: str
    """SET: a folder, a URI, an artifact; a spec where `stage` is given."""
    stage: str | None
    workspace: Path | None

    def open(self) -> ShardSet:
        """The set, with its tables checked.

        Raises:
            UsageError: If the name means nothing; the sentence says what it could mean.
        """
        return open_shard_set(self.location(), open_workspace(self.workspace))

    def location(self) -> str:
        """Folder or URI of the set; nothing is read of it."""
        workspace = open_workspace(self.workspace)
        if self.stage is not None:
            target = Target(self.text, self.workspace, None, ())
            return str(_of_stage(target, self.stage, workspace))
        if is_remote(self.text):
            return self.text
        path = Path(place_of(self.text))
        if path.is_dir():
            return str(_in_folder(path))
        made = artifact_files(workspace, self.text)
        if made is None:
            raise UsageError(
                f"{self.text!r} names no shard set; name {_FORMS}",
                hint=f"vitrail data inspect SPEC {self.text}",
            )
        return str(_dataset(made, self.text))


def artifact_files(workspace: Workspace, name: str) -> Path | None:
    """Folder of the files of a committed artifact, by its name; None if there is none."""
    store = store_at(workspace.store)
    result = store.named(name)
    return None if result is None else store.local(result)


def one_node(experiment: ExperimentSpec, graph: Graph, stage: str) -> StageNode:
    """The one stage, or the one variant of it, that a name means.

    Raises:
        SpecError: If the spec has no such stage.
        UsageError: If it has several variants.
    """
    names = graph.matching(stage)
    if len(names) > 1:
        raise UsageError(
            f"{stage} of {experiment.name} has {len(names)} variants: {', '.join(names[:5])}",
            hint=f"name one of them, in quotes: '{names[0]}'",
        )
    return graph.node(names[0])


def made_last(target: Target, experiment: ExperimentSpec, stage: str) -> StageResult:
    """What a stage of the spec made or reused last.

    Raises:
        UsageError: If it never ran in this workspace.
    """
    workspace = open_workspace(target.workspace)
    result = store_at(workspace.store).get_ref(experiment.name, stage)
    if result is None:
        raise UsageError(
            f"{stage} of {experiment.name} was never made in {workspace.root}",
            hint=f"vitrail run {target.spec} --until {stage.partition('[')[0]}",
        )
    return result


def _of_stage(target: Target, stage: str, workspace: Workspace) -> Path:
    experiment = target.experiment()
    node = one_node(experiment, expand(experiment), stage)
    if node.kind not in SHARD_SETS:
        makers = [name for name, spec in experiment.stages.items() if spec.kind in SHARD_SETS]
        raise UsageError(
            f"{stage} is of kind {node.kind} and makes no shard set; "
            f"these do: {', '.join(makers) or 'none'}"
        )
    result = made_last(target, experiment, node.name)
    return store_at(workspace.store).local(result) / DATASET_FOLDER


def _in_folder(folder: Path) -> Path:
    """The set in a folder: its own, or that of an artifact's attempt or files."""
    for candidate in (folder, folder / DATASET_FOLDER, folder / FILES_FOLDER / DATASET_FOLDER):
        if (candidate / MANIFEST_FILE).is_file() and (candidate / "shards.arrow").is_file():
            return candidate
    result = folder / "result.json"
    if result.is_file():
        attempt = StageResult.model_validate_json(result.read_bytes()).attempt
        return _dataset(folder / "attempts" / attempt / FILES_FOLDER, str(folder))
    return folder  # opening it says what is missing


def _dataset(files: Path, name: str) -> Path:
    if not (files / DATASET_FOLDER).is_dir():
        raise VitrailError(f"{name} holds no shard set; artifacts of {', '.join(SHARD_SETS)} do")
    return files / DATASET_FOLDER
