"""Which model a person means: a folder, an artifact, or a stage of a spec.

vitrail model info run.yaml transfer            what the stage `transfer` of the spec made last
vitrail model info finetune-0123456789ab        an artifact of the workspace
vitrail model info /path/to/model               a folder with model.json, or an artifact's folder
"""

from dataclasses import dataclass
from pathlib import Path

from jobs.data_sets import artifact_files, made_last, one_node
from jobs.target import Target
from jobs.wiring import store_at
from jobs.workspace import open_workspace
from pipeline.dag.graph import expand
from schemas.artifacts import FILES_FOLDER, StageResult
from schemas.checkpoint import MODEL_FILE, MODEL_FOLDER
from schemas.errors import UsageError

MAKERS = ("pretrain", "finetune", "import")
"""Kinds whose artifact holds a model."""
_FORMS = "a folder with model.json, an artifact of the workspace, or a spec and a stage"


@dataclass(frozen=True)
class ModelName:
    """A model as a person names it."""

    text: str
    """MODEL: a folder or an artifact; a spec where `stage` is given."""
    stage: str | None
    workspace: Path | None

    def folder(self) -> Path:
        """The folder with `model.json`.

        Raises:
            UsageError: If the name means no model of ours; the sentence says what it could mean.
        """
        found = self.folder_or_none()
        if found is None:
            raise UsageError(
                f"{self.text!r} names no model; name {_FORMS}",
                hint=f"vitrail model import {self.text}",
            )
        return found

    def folder_or_none(self) -> Path | None:
        """The same, or None where the name means no model of ours."""
        workspace = open_workspace(self.workspace)
        if self.stage is not None:
            return self._of_stage(self.stage)
        path = Path(self.text).expanduser()
        if path.is_dir():
            return _in_folder(path)
        made = artifact_files(workspace, self.text)
        return None if made is None else _in_folder(made)

    def _of_stage(self, stage: str) -> Path:
        target = Target(self.text, self.workspace, None, ())
        experiment = target.experiment()
        node = one_node(experiment, expand(experiment), stage)
        if node.kind not in MAKERS:
            makers = [name for name, spec in experiment.stages.items() if spec.kind in MAKERS]
            raise UsageError(
                f"{stage} is of kind {node.kind} and makes no model; "
                f"these do: {', '.join(makers) or 'none'}"
            )
        result = made_last(target, experiment, node.name)
        store = store_at(open_workspace(self.workspace).store)
        return store.local(result) / MODEL_FOLDER


def _in_folder(folder: Path) -> Path | None:
    """The model in a folder: its own, or that of an artifact's attempt or files."""
    for candidate in (folder, folder / MODEL_FOLDER, folder / FILES_FOLDER / MODEL_FOLDER):
        if (candidate / MODEL_FILE).is_file():
            return candidate
    result = folder / "result.json"
    if result.is_file():
        attempt = StageResult.model_validate_json(result.read_bytes()).attempt
        return _in_folder(folder / "attempts" / attempt / FILES_FOLDER)
    return None
