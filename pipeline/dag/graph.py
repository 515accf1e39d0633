"""From an experiment to its graph: variants expanded, references checked, in topological order."""

import graphlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pipeline.dag.implied import with_implied
from pipeline.dag.matrix import Choice, Matrix, Place
from pipeline.dag.overrides import spec_path
from pipeline.dag.splits import Splits, check_reference, port_field, port_path, splits_made
from schemas.errors import SpecError
from schemas.experiment import AnyStage, ExperimentSpec
from schemas.spec import Tag, tag_of
from schemas.stage import StageRef
from schemas.words import nearest


@dataclass(frozen=True)
class StageNode:
    """One stage of the graph, a variant of a stage of the experiment."""

    name: str
    """`STAGE`, or `STAGE[axis=value,...]` with the axes that touch it."""
    base_name: str
    spec: AnyStage
    """Its references name nodes of the graph."""
    seed: int
    inputs: dict[str, StageRef]
    """Port -> the node it reads and the split that is meant."""

    @property
    def kind(self) -> str:
        """Kind of the stage."""
        return self.spec.kind

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the nodes it reads, each once, in the order of its ports."""
        return tuple(dict.fromkeys(reference.stage for reference in self.inputs.values()))


@dataclass(frozen=True)
class Graph:
    """Stages, each after everything it reads; declared order wherever that leaves a choice."""

    nodes: tuple[StageNode, ...]

    @cached_property
    def by_name(self) -> dict[str, StageNode]:
        """Every node under its name."""
        return {node.name: node for node in self.nodes}

    def node(self, name: str) -> StageNode:
        """The node of this name."""
        return self.by_name[name]

    def matching(self, word: str) -> tuple[str, ...]:
        """The node of this name, or all variants of the stage of this name.

        Raises:
            SpecError: If there is none.
        """
        if word in self.by_name:
            return (word,)
        found = tuple(node.name for node in self.nodes if node.base_name == word)
        if not found:
            names = list(dict.fromkeys(node.base_name for node in self.nodes))
            raise SpecError(_no_such_stage(word, [*names, *self.by_name], listed=names))
        return found

    def upstream(self, names: Iterable[str]) -> frozenset[str]:
        """These nodes and everything they read, directly or not."""
        found = set(names)
        for node in reversed(self.nodes):
            if node.name in found:
                found.update(node.reads)
        return frozenset(found)

    def downstream(self, names: Iterable[str]) -> frozenset[str]:
        """These nodes and everything that reads them, directly or not."""
        found = set(names)
        for node in self.nodes:
            if found.intersection(node.reads):
                found.add(node.name)
        return frozenset(found)


def expand(experiment: ExperimentSpec, *, place: Place = spec_path) -> Graph:
    """The graph of an experiment, its matrix multiplied out.

    Stages that a variant does not touch are shared, and `report` stages are never multiplied. A
    stage that a probe implies (`pipeline.dag.implied`) stands beside those that were declared.

    Args:
        experiment: A valid experiment.
        place: Tells where a path of the experiment was written, for errors.

    Raises:
        SpecError: If a reference names no stage, one of a wrong kind or a split that it has not, if
            stages read each other in a circle, or if the matrix breaks a rule.
    """
    expansion = _Expansion(experiment, place)
    graph = Graph(_in_order(with_implied(expansion.nodes(), place)))
    _check_splits(graph, place)
    return graph


def _check_splits(graph: Graph, place: Place) -> None:
    known: dict[str, Splits] = {}
    for node in graph.nodes:
        for port, reference in node.inputs.items():
            where = place(port_path(node.base_name, node.spec, port))
            splits = known[reference.stage]
            check_reference(node.spec, port, reference, splits=splits, where=where)
        known[node.name] = splits_made(node.spec, node.inputs, known)


class _Expansion:
    def __init__(self, experiment: ExperimentSpec, place: Place) -> None:
        self.experiment = experiment
        self.place = place
        self.matrix = Matrix(experiment, place)
        self.checked: dict[int, AnyStage] = {}
        """By identity, which holding the spec keeps unique: the matrix shares equal specs."""
        self.axes: dict[tuple[str, Choice], frozenset[int]] = {}
        """Indices of the axes that touch a stage, itself or through what it reads."""

    def nodes(self) -> list[StageNode]:
        choices = self.matrix.choices()
        for choice in choices:
            self._find_axes(choice)
        found: dict[str, StageNode] = {}
        for stage in self.experiment.stages:
            for choice in choices:
                name = self._name(stage, choice)
                if name not in found:
                    found[name] = self._node(stage, choice, choices)
        return list(found.values())

    def _find_axes(self, choice: Choice) -> None:
        reads = {stage: self._checked_reads(stage, choice) for stage in self.experiment.stages}
        try:
            order = list(graphlib.TopologicalSorter(reads).static_order())
        except graphlib.CycleError as error:
            raise self._cycle(error.args[1]) from error
        for stage in order:
            inherited = [self.axes[upstream, choice] for upstream in reads[stage]]
            own = self.matrix.touching(stage)
            is_report = self.experiment.stages[stage].kind == "report"
            self.axes[stage, choice] = frozenset() if is_report else own.union(*inherited)

    def _checked_reads(self, stage: str, choice: Choice) -> list[str]:
        spec = self.matrix.spec(stage, choice)
        if id(spec) not in self.checked:
            self._check(stage, spec)
            self.checked[id(spec)] = spec
        return [reference.stage for reference in spec.inputs().values()]

    def _check(self, stage: str, spec: AnyStage) -> None:
        try:
            inputs = spec.inputs()
        except ValueError as error:
            raise SpecError(str(error), where=self.place(("stages", stage))) from error
        for port, reference in inputs.items():
            where = self.place(port_path(stage, spec, port))
            upstream = self.experiment.stages.get(reference.stage)
            if upstream is None:
                names = list(self.experiment.stages)
                raise SpecError(_no_such_stage(reference.stage, names), where=where)
            field = port_field(port)
            allowed = spec.ports[field]
            if upstream.kind not in allowed:
                raise SpecError(
                    f"{reference.stage!r} is of kind {upstream.kind}; {field} of a {spec.kind} "
                    f"stage reads {' or '.join(allowed)}" + self._instead(allowed, stage),
                    where=where,
                )

    def _instead(self, kinds: tuple[str, ...], stage: str) -> str:
        stages = self.experiment.stages.items()
        fitting = [name for name, spec in stages if spec.kind in kinds and name != stage]
        return f": {', '.join(fitting)}" if fitting else "; the experiment has none of them"

    def _cycle(self, found: list[str]) -> SpecError:
        """The circle as data flows, from its first declared stage; `found` ends where it begins."""
        circle = found[:-1]
        start = circle.index(min(circle, key=list(self.experiment.stages).index))
        circle = [*circle[start:], *circle[:start]]
        return SpecError(
            f"stages read each other in a circle: {' -> '.join([*circle, circle[0]])}; "
            "a stage can only read what is made before it",
            where=self.place(("stages", circle[0])),
        )

    def _name(self, stage: str, choice: Choice) -> str:
        return stage + self.matrix.label(choice, self.axes[stage, choice])

    def _node(self, stage: str, choice: Choice, choices: list[Choice]) -> StageNode:
        spec = self.matrix.spec(stage, choice)
        # A report shows every variant; any other stage reads the one of its own choice.
        spec = self._renamed(spec, choices if spec.kind == "report" else [choice])
        seed = self.matrix.seed(choice, self.axes[stage, choice])
        return StageNode(self._name(stage, choice), stage, spec, seed, spec.inputs())

    def _renamed(self, spec: AnyStage, choices: list[Choice]) -> AnyStage:
        """The spec with references to nodes instead of stages."""
        changes: dict[str, str | tuple[str, ...]] = {}
        for name, field in type(spec).model_fields.items():
            value = getattr(spec, name)
            if tag_of(field) is not Tag.INPUT or value is None:
                continue
            if isinstance(value, str):
                changes[name] = self._variants(value, choices)[0]
            else:
                changes[name] = tuple(v for item in value for v in self._variants(item, choices))
        same = all(getattr(spec, name) == value for name, value in changes.items())
        return spec if same else spec.revise(**changes)

    def _variants(self, text: str, choices: list[Choice]) -> list[str]:
        stage, at, split = text.partition("@")
        names = dict.fromkeys(self._name(stage, choice) for choice in choices)
        return [name + at + split for name in names]


def _no_such_stage(word: str, names: list[str], *, listed: list[str] | None = None) -> str:
    meant = nearest(word, names)
    question = f" (did you mean {meant!r}?)" if meant else ""
    return f"there is no stage {word!r}{question}; stages are {', '.join(listed or names)}"


def _in_order(nodes: list[StageNode]) -> tuple[StageNode, ...]:
    """Topological order; among stages that are ready, the first declared goes first."""
    waiting = {node.name: len(node.reads) for node in nodes}
    readers: dict[str, list[int]] = {node.name: [] for node in nodes}
    for index, node in enumerate(nodes):
        for name in node.reads:
            readers[name].append(index)
    ready = [index for index, node in enumerate(nodes) if not node.reads]
    ordered: list[StageNode] = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        ordered.append(node)
        for index in readers[node.name]:
            waiting[nodes[index].name] -= 1
            if not waiting[nodes[index].name]:
                heapq.heappush(ready, index)
    return tuple(ordered)
