"""What a command works on: a spec as the user named it, with overrides, in a workspace."""

from dataclasses import dataclass
from pathlib import Path

from jobs.recipes import find_spec
from pipeline.dag.experiment_file import load_experiment
from schemas.experiment import ExperimentSpec


@dataclass(frozen=True)
class Target:
    """A spec's file or recipe, the workspace, the profile and the `--set` options."""

    spec: str
    workspace: Path | None
    profile: str | None
    overrides: tuple[str, ...]

    def experiment(self) -> ExperimentSpec:
        """The validated experiment."""
        return load_experiment(find_spec(self.spec), profile=self.profile, overrides=self.overrides)
