"""The axes of a matrix: which stages each one touches, and what it sets there."""

import itertools
import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from pipeline.dag.overrides import Path, parse_path, set_at, spec_path
from pipeline.dag.problems import as_spec_error
from schemas.errors import SpecError
from schemas.experiment import AnyStage, ExperimentSpec

MAX_COMBINATIONS = 4096

Place = Callable[[Path], str]
"""Tells a user where a path of the experiment was written."""

Choice = tuple[int, ...]
"""For each axis, the index of the value taken."""

_PLAIN = re.compile(r"^[A-Za-z0-9_.+-]+$")


@dataclass(frozen=True)
class Axis:
    """One line of the matrix."""

    name: str
    changes: tuple[dict[Path, Any], ...]
    """For each value, what it sets where."""
    labels: tuple[str, ...]
    """For each value, what stands in the names of variants."""

    @cached_property
    def stages(self) -> frozenset[str]:
        """Stages that at least one value overrides."""
        paths = [path for change in self.changes for path in change]
        return frozenset(str(path[1]) for path in paths if path[0] == "stages")

    @cached_property
    def sets_seed(self) -> bool:
        """Whether at least one value overrides the experiment's seed."""
        return any(("seed",) in change for change in self.changes)


class Matrix:
    """All axes, and the specs and seeds that their combinations give."""

    def __init__(self, experiment: ExperimentSpec, place: Place) -> None:
        self._experiment = experiment
        self._place = place
        self._specs: dict[tuple[str, Choice], AnyStage] = {}
        self.axes = tuple(
            _read_axis(name, values, experiment, place(("matrix", name)))
            for name, values in experiment.matrix.items()
        )

    def choices(self) -> list[Choice]:
        """Every combination, the last axis running fastest.

        Raises:
            SpecError: If there are more than `MAX_COMBINATIONS`.
        """
        sizes = [len(axis.changes) for axis in self.axes]
        if math.prod(sizes) > MAX_COMBINATIONS:
            raise SpecError(
                f"the matrix has {math.prod(sizes):,} combinations; "
                f"at most {MAX_COMBINATIONS:,} are expanded",
                where=self._place(("matrix",)),
            )
        return list(itertools.product(*(range(size) for size in sizes)))

    def touching(self, stage: str) -> frozenset[int]:
        """Indices of the axes that override the stage itself."""
        spec = self._experiment.stages[stage]
        return frozenset(
            index
            for index, axis in enumerate(self.axes)
            if stage in axis.stages or (axis.sets_seed and spec.uses_seed)
        )

    def seed(self, choice: Choice, axes: frozenset[int]) -> int:
        """The experiment's seed under the values of these axes."""
        seed = self._experiment.seed
        for index in sorted(axes):
            seed = self.axes[index].changes[choice[index]].get(("seed",), seed)
        return seed

    def label(self, choice: Choice, axes: frozenset[int]) -> str:
        """`[axis=value,axis=value]`, or nothing where no axis counts."""
        parts = [f"{self.axes[i].name}={self.axes[i].labels[choice[i]]}" for i in sorted(axes)]
        return f"[{','.join(parts)}]" if parts else ""

    def spec(self, stage: str, choice: Choice) -> AnyStage:
        """The stage's spec with the overrides of its own axes.

        Raises:
            SpecError: If an override breaks a rule of the spec.
        """
        pairs = zip(self.axes, choice, strict=True)
        taken = [(axis, index) for axis, index in pairs if stage in axis.stages]
        key = stage, tuple(index for _, index in taken)
        if key not in self._specs:
            self._specs[key] = self._overridden(stage, taken)
        return self._specs[key]

    def _overridden(self, stage: str, taken: list[tuple[Axis, int]]) -> AnyStage:
        base = self._experiment.stages[stage]
        if not taken:
            return base
        # Only what the user gave: a default must not clash with an alternative that an axis sets.
        data = base.model_dump(mode="json", exclude_unset=True)
        where = "; ".join(self._place(("matrix", axis.name)) for axis, _ in taken)
        for axis, index in taken:
            for path, value in axis.changes[index].items():
                if path[:2] == ("stages", stage):
                    set_at(data, path[2:], deepcopy(value), where=where)
        try:
            return type(base).parse(data)
        except ValidationError as error:
            raise as_spec_error(
                error,
                root=type(base),
                data=data,
                place=lambda path: f"{where}, {spec_path(('stages', stage, *path))}",
            ) from error


def _read_axis(
    name: str, values: tuple[Any, ...] | dict[str, Any], experiment: ExperimentSpec, where: str
) -> Axis:
    if not values:
        raise SpecError(f"the axis {name!r} has no values; give at least one", where=where)
    if not _PLAIN.match(name):
        raise SpecError(
            f"{name!r} cannot name an axis; use letters, digits, '.', '_' and '-'", where=where
        )
    maps, labels = _values(name, values, where)
    changes = tuple(
        {_axis_path(dotted, experiment, where): value for dotted, value in entry.items()}
        for entry in maps
    )
    for change in changes:
        _check_seed(change, where)
    return Axis(name, changes, labels)


def _values(
    name: str, values: tuple[Any, ...] | dict[str, Any], where: str
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """What each value of an axis overrides, and what it is called."""
    is_path = name == "seed" or "." in name
    if not isinstance(values, dict):
        if is_path:
            return [{name: value} for value in values], _labels(values)
        maps = [_override_map(name, value, where) for value in values]
        return maps, tuple(str(index) for index in range(len(values)))
    if is_path:
        raise SpecError(
            f"the values of {name!r} were given names; allowed is a list of values, or names where "
            "the axis has a free name and its values are overrides",
            where=where,
        )
    for label in values:
        if not _PLAIN.match(label):
            raise SpecError(
                f"{label!r} cannot name a value of the axis {name!r}; use letters, digits, '.', "
                "'_', '+' and '-'",
                where=where,
            )
    return list(values.values()), tuple(values)


def _labels(values: tuple[Any, ...]) -> tuple[str, ...]:
    """The values where all are short plain words, and differ; else their indices."""
    words = [_word(value) for value in values]
    if len(set(words)) == len(words) and all(_PLAIN.match(w) and len(w) <= 24 for w in words):
        return tuple(words)
    return tuple(str(index) for index in range(len(values)))


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _override_map(name: str, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(
            f"{value!r} was given as a value of the axis {name!r}; allowed is a mapping of "
            "overrides (STAGE.field: value), because the name is neither seed nor a dotted path",
            where=where,
        )
    return value


def _axis_path(dotted: str, experiment: ExperimentSpec, where: str) -> Path:
    path = parse_path(dotted, stages=experiment.stages, where=where)
    if path[0] in ("name", "matrix"):
        raise SpecError(f"a matrix cannot change {path[0]}; it sets stages and seed", where=where)
    if path[0] == "stages" and experiment.stages[str(path[1])].kind == "report":
        raise SpecError(
            f"{dotted!r} is in a report, which is never multiplied: it shows all variants",
            where=where,
        )
    return path


def _check_seed(change: dict[Path, Any], where: str) -> None:
    seed = change.get(("seed",), 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SpecError(f"{seed!r} was given as seed; allowed is an integer from 0 up", where=where)
