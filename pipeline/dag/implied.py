"""Stages that a spec implies: a probe of `data` and `model` reads a stage of features of both."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.dag.overrides import Path
from schemas.errors import SpecError
from schemas.probing import FeaturesSpec, ProbeSpec
from schemas.stage import StageRef

if TYPE_CHECKING:
    from pipeline.dag.graph import StageNode

SUFFIX = "-features"


def with_implied(nodes: Iterable["StageNode"], place: Callable[[Path], str]) -> list["StageNode"]:
    """The nodes, and before each probe that names no features the stage that it is to read.

    Probes of the same data and model share one, called after the first of them.

    Raises:
        SpecError: If a stage bears the name that the new one would have.
    """
    given = list(nodes)
    names = {node.name for node in given}
    made: dict[tuple[str, str], str] = {}
    found: list[StageNode] = []
    for node in given:
        if not isinstance(node.spec, ProbeSpec) or "features" in node.inputs:
            found.append(node)
            continue
        data, model = node.inputs["data"], node.inputs["model"]
        key = data.stage, str(model)
        if key not in made:
            found.append(_features(node, data, model))
            made[key] = found[-1].name
        if made[key] in names:
            raise _taken(node, made[key], place)
        found.append(_probe(node, made[key], data))
    return found


def _features(probe: "StageNode", data: StageRef, model: StageRef) -> "StageNode":
    base = f"{probe.base_name}{SUFFIX}"
    name = f"{base}{probe.name.removeprefix(probe.base_name)}"  # of the same variant
    spec = FeaturesSpec(data=data.stage, model=str(model))
    return replace(probe, name=name, base_name=base, spec=spec, inputs=spec.inputs())


def _probe(node: "StageNode", features: str, data: StageRef) -> "StageNode":
    reference = StageRef(features, data.split)
    spec = node.spec.revise(features=str(reference), data=None, model=None)
    return replace(node, spec=spec, inputs=spec.inputs())


def _taken(node: "StageNode", name: str, place: Callable[[Path], str]) -> SpecError:
    return SpecError(
        f"{node.name} implies a stage {name!r} of features, and the experiment has one of that "
        f"name; let {node.name} read it (features: {name}), or give one of them another name",
        where=place(("stages", node.base_name)),
    )
