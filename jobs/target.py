"""What a command works on: a spec as the user named it, with overrides, in a workspace."""

from dataclasses import dataclass
from pathlib import Path

from jobs.recipes import find_spec
from jobs.workspace import Workspace, open_workspace
from pipeline.dag.experiment_file import load_experiment
from schemas.data import CorpusSpec
from schemas.experiment import AnyStage, ExperimentSpec
from schemas.interchange import ImportSpec
from schemas.sources import HfSource, SklearnSource


@dataclass(frozen=True)
class Target:
    """A spec's file or recipe, the workspace, the profile and the `--set` options."""

    spec: str
    workspace: Path | None
    profile: str | None
    overrides: tuple[str, ...]
    store: str | None = None
    """The store that was asked for, where the command has the option."""

    def place(self) -> Workspace:
        """The workspace, with its store."""
        return open_workspace(self.workspace, self.store)

    def experiment(self) -> ExperimentSpec:
        """The validated experiment, with places of corpora that mean the same in every process."""
        found = load_experiment(
            find_spec(self.spec), profile=self.profile, overrides=self.overrides
        )
        stages = {name: _with_absolute_source(stage) for name, stage in found.stages.items()}
        return found.model_copy(update={"stages": stages})


def _with_absolute_source(stage: AnyStage) -> AnyStage:
    """Workers run elsewhere, and no shell expands `~` within `--set corpus.source.uri=~/photos`."""
    if isinstance(stage, ImportSpec):
        weights = stage.source
        uri = str(Path(weights.uri).expanduser().absolute())
        return stage.model_copy(update={"source": weights.model_copy(update={"uri": uri})})
    if not isinstance(stage, CorpusSpec) or isinstance(stage.source, SklearnSource):
        return stage
    source = stage.source
    place = Path(source.uri).expanduser()
    is_of_hub = isinstance(source, HfSource) and not place.is_dir()
    if "://" in source.uri or is_of_hub:
        return stage
    # A copy remembers which fields the user gave, which the matrix has to know.
    source = source.model_copy(update={"uri": str(place.absolute())})
    return stage.model_copy(update={"source": source})
