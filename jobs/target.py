"""What a command works on: a spec as the user named it, with overrides, in a workspace."""

from dataclasses import dataclass
from pathlib import Path

from jobs.recipes import find_spec
from pipeline.dag.experiment_file import load_experiment
from schemas.data import IngestSpec
from schemas.experiment import AnyStage, ExperimentSpec
from schemas.sources import SklearnSource


@dataclass(frozen=True)
class Target:
    """A spec's file or recipe, the workspace, the profile and the `--set` options."""

    spec: str
    workspace: Path | None
    profile: str | None
    overrides: tuple[str, ...]

    def experiment(self) -> ExperimentSpec:
        """The validated experiment, with places of corpora that mean the same in every process."""
        found = load_experiment(
            find_spec(self.spec), profile=self.profile, overrides=self.overrides
        )
        stages = {name: _with_absolute_source(stage) for name, stage in found.stages.items()}
        return found.model_copy(update={"stages": stages})


def _with_absolute_source(stage: AnyStage) -> AnyStage:
    """Workers run elsewhere, and no shell expands `~` within `--set corpus.source.uri=~/photos`."""
    if not isinstance(stage, IngestSpec) or isinstance(stage.source, SklearnSource):
        return stage
    uri = str(Path(stage.source.uri).expanduser().absolute())
    # A copy remembers which fields the user gave, which the matrix has to know.
    source = stage.source.model_copy(update={"uri": uri})
    return stage.model_copy(update={"source": source})
