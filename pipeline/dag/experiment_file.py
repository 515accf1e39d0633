"""An experiment as a user writes it: file, profile, `--set`, references; errors tell the place."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from pipeline.dag.graph import expand
from pipeline.dag.overrides import Path, parse_path, set_at, spec_path
from pipeline.dag.problems import as_spec_error
from pipeline.dag.references import resolve_references
from pipeline.dag.yaml_text import MAX_BYTES, Document, read_yaml
from schemas.errors import SpecError, UsageError
from schemas.experiment import ExperimentSpec
from schemas.words import nearest


def load_experiment(
    path: FilePath, *, profile: str | None = None, overrides: Sequence[str] = ()
) -> ExperimentSpec:
    """Read, override and check an experiment, its graph included; see `parse_experiment`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text: {error.reason}", where=str(path)) from error
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}", where=str(path)) from error
    return parse_experiment(text, name_of_file=str(path), profile=profile, overrides=overrides)


def parse_experiment(
    text: str, *, name_of_file: str, profile: str | None = None, overrides: Sequence[str] = ()
) -> ExperimentSpec:
    """The experiment in `text`.

    Args:
        text: YAML 1.2.
        name_of_file: What errors call the text.
        profile: Name of one of its profiles, applied first.
        overrides: `DOTTED.PATH=VALUE` each, the value in YAML 1.2, applied in order.

    Raises:
        SpecError: If the text, an override or the graph breaks a rule; tells up to five problems.
        UsageError: If an override has no `=` or no value.
    """
    document = read_yaml(text, name=name_of_file)
    if not isinstance(document.data, dict):
        raise SpecError("an experiment is a mapping with name, seed and stages", where=name_of_file)
    draft = _Draft(name_of_file, document)
    draft.check_profiles()
    if profile is not None:
        draft.apply_profile(profile)
    for override in overrides:
        draft.apply_override(override)
    data = resolve_references(draft.data, place=draft.place)
    try:
        experiment = ExperimentSpec.parse(data)
    except ValidationError as error:
        raise as_spec_error(error, root=ExperimentSpec, data=data, place=draft.place) from error
    expand(experiment, place=draft.place)
    return experiment


@dataclass
class _Draft:
    """The experiment's plain data while overrides are applied, and where each part came from."""

    file: str
    document: Document
    origins: dict[Path, str] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.document.data
        return data

    def place(self, path: Path) -> str:
        """Where the value at `path` was written: the override, or file:line and spec path."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self._overridden(path, length)
        return f"{self._line(path)}, {spec_path(path)}" + self._changed_below(path)

    def _overridden(self, path: Path, length: int) -> str:
        origin = self.origins[path[:length]]
        return origin if length == len(path) else f"{origin}, {spec_path(path)}"

    def _changed_below(self, path: Path) -> str:
        """A rule over several fields may be broken by an override of one of them."""
        origins = [text for key, text in self.origins.items() if key[: len(path)] == path]
        return f" (with {', '.join(origins)})" if origins and path else ""

    def _line(self, path: Path) -> str:
        lines = self.document.lines
        known = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in lines)
        return f"{self.file}:{lines[known]}"

    def check_profiles(self) -> None:
        """A profile that is not used today must name real stages all the same."""
        profiles = self.data.get("profiles") or {}
        if not isinstance(profiles, dict):
            return  # the schema says so, with all other problems
        for name, changes in profiles.items():
            for dotted in changes if isinstance(changes, dict) else ():
                self._path(dotted, self._line(("profiles", name, dotted)))

    def apply_profile(self, name: str) -> None:
        profiles = self.data.get("profiles") or {}
        if not isinstance(profiles, dict) or not isinstance(profiles.get(name), dict):
            raise _unknown_profile(name, profiles, self.file)
        for dotted, value in profiles[name].items():
            line = self._line(("profiles", name, dotted))
            self._set(dotted, value, where=f"{line}, profile {name}: {dotted}")

    def apply_override(self, text: str) -> None:
        dotted, equals, value = text.partition("=")
        dotted = dotted.strip()
        if not (dotted and equals and value.strip()):
            raise UsageError(
                f"--set {text!r} is not of the form PATH=VALUE", hint="--set STAGE.field=VALUE"
            )
        where = f"--set {dotted}"
        self._set(dotted, read_yaml(value, name=where).data, where=where)

    def _set(self, dotted: str, value: Any, *, where: str) -> None:
        path = self._path(dotted, where)
        set_at(self.data, path, deepcopy(value), where=where)
        for old in [key for key in self.origins if key[: len(path)] == path]:
            del self.origins[old]
        self.origins[path] = where

    def _path(self, dotted: str, where: str) -> Path:
        stages = self.data.get("stages")
        names = list(stages) if isinstance(stages, dict) else []
        return parse_path(dotted, stages=names, where=where)


def _unknown_profile(name: str, profiles: Any, file: str) -> SpecError:
    known = list(profiles) if isinstance(profiles, dict) else []
    meant = nearest(name, known)
    question = f" (did you mean {meant!r}?)" if meant else ""
    listed = f"there are {', '.join(known)}" if known else "the file defines none"
    return SpecError(f"there is no profile {name!r}{question}; {listed}", where=file)
