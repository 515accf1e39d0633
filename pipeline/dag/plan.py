"""What will run and why, from the graph, the store, and nothing else."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipeline.dag.graph import Graph, StageNode
from pipeline.dag.keys import diff, digest_in, key_record
from pipeline.dag.overrides import spec_path
from pipeline.dag.selection import Chosen, Selection, choose
from pipeline.ports import ArtifactStore
from schemas.artifacts import KeyRecord, StageRecord, StageResult, artifact_name
from schemas.errors import SpecError, VitrailError
from schemas.runs import Action, Change, Decision
from schemas.spec import canonical_json

T = TypeVar("T")

NOT_SELECTED = "not selected"

TOLD_CHANGES = 3
"""Changes that a reason spells out; the rest are counted."""
TOLD_STAGES = 3
"""Likewise, the stages that a reason names."""


@dataclass(frozen=True)
class Facts:
    """What planning asks of the world; the same question is asked once in a lifetime."""

    store: ArtifactStore
    experiment: str
    """Name under which the store remembers what each stage made last."""
    file: str
    """What the user calls the experiment on the command line: a path or a recipe."""
    libraries: Callable[[Sequence[str]], Mapping[str, str]]
    """Distributions -> installed versions."""
    fingerprint: Callable[[Any], str]
    """Of what `StageSpec.outside` says: lists a raw source, reads nothing of it."""
    code_files: Callable[[str], Mapping[str, str]]
    """Stage kind -> the source files of ours that it uses now, each with its sha256."""
    _answers: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False)

    def library_versions(self, node: StageNode) -> Mapping[str, str]:
        """Versions of the libraries that shape the stage's bytes."""
        names = node.spec.needed_libraries()
        return self._once(("libraries", " ".join(names)), lambda: self.libraries(names))

    def source_fingerprint(self, node: StageNode) -> str | None:
        """What the raw source of the stage contributes to its key; None where it has none."""
        source = node.spec.outside()
        if source is None:
            return None
        question = ("fingerprint", canonical_json(source.dump()))
        return self._once(question, lambda: self.fingerprint(source))

    def remember(self, stage: str, result: StageResult) -> None:
        """Note that `result` is what the stage of this name made last."""
        if self.store.get_ref(self.experiment, stage) != result:  # a write is slower than a look
            self.store.set_ref(self.experiment, stage, result)

    def registration_note(self, node: StageNode, result: StageResult) -> str | None:
        """What to say if a reused model was asked for under a name that it was not made with."""
        name = getattr(node.spec, "register_as", None)
        record = self._record(result) if name else None
        if record is None or record.spec.get("register_as") == name:
            return None
        force = f"--force {shlex.quote(node.name)}"
        return f"{node.name}: is reused, so it is not registered as {name}; {force} registers it"

    def last_record(self, stage: str) -> StageRecord | None:
        """The record of what the stage of this name made last, if it can still be read."""
        return self._once(("record", stage), lambda: self._read_last(stage))

    def _read_last(self, stage: str) -> StageRecord | None:
        last = self.store.get_ref(self.experiment, stage)
        return None if last is None else self._record(last)

    def _record(self, result: StageResult) -> StageRecord | None:
        try:
            return self.store.record(result)
        except VitrailError:
            return None  # only explanations are lost; reuse itself rests on `present`

    def changed_code(self, result: StageResult) -> tuple[str, ...]:
        """Source files that made an artifact, or would now, and have changed since."""
        record = self._record(result)
        if record is None:
            return ()
        before = record.environment.code_files
        now = self._once(("code", result.kind), lambda: self.code_files(result.kind))
        files = sorted(before.keys() | now.keys())
        return tuple(file for file in files if before.get(file) != now.get(file))

    def _once(self, question: tuple[str, str], ask: Callable[[], T]) -> T:
        if question not in self._answers:
            self._answers[question] = ask()
        answer: T = self._answers[question]
        return answer


@dataclass(frozen=True)
class Planned:
    """The decision on one stage, and what is needed to act on it."""

    node: StageNode
    decision: Decision
    record: KeyRecord | None = None
    """None while an input is not made yet."""
    result: StageResult | None = None
    """The artifact at hand; None if the stage has to be made, or was not looked for."""
    stale: StageResult | None = None
    """A result in the way of making the stage: damaged, or to be made again by force."""
    waits_for: tuple[str, ...] = ()
    """Nodes that have to be made before more can be said."""


def plan(graph: Graph, facts: Facts, *, selection: Selection) -> tuple[Planned, ...]:
    """One decision for each stage, in topological order.

    Raises:
        SpecError: If the selection names no stage, or leaves out one that has to be made first.
        UsageError: If the selection contradicts itself.
    """
    return decide(graph, facts, chosen=choose(graph, selection), known={})


def decide(
    graph: Graph, facts: Facts, *, chosen: Chosen, known: Mapping[str, StageResult]
) -> tuple[Planned, ...]:
    """As `plan`, for a run under way: `known` are artifacts made or checked since it began."""
    planner = _Planner(graph, facts, chosen, known)
    needed = graph.upstream(chosen.names)
    for node in graph.nodes:
        planner.done[node.name] = planner.decide(node) if node.name in needed else _left_out(node)
    return tuple(planner.done.values())


@dataclass
class _Planner:
    graph: Graph
    facts: Facts
    chosen: Chosen
    known: Mapping[str, StageResult]
    done: dict[str, Planned] = field(default_factory=dict)
    makers: dict[str, str] = field(default_factory=dict)
    """Key -> the stage that runs to make it."""

    def decide(self, node: StageNode) -> Planned:
        missing = tuple(name for name in node.reads if self.done[name].result is None)
        if missing:
            return self._blocked(node, missing)
        record = self._record(node)
        known = self.known.get(node.name)
        if known is not None and known.key == record.key():
            return self._made(node, record, known, code=())
        result = self.facts.store.lookup(node.kind, record.key())
        fault = self.facts.store.present(result) if result else None
        reason = f"its artifact is damaged: {fault}" if fault else None
        if node.name not in self.chosen.names:
            return _left_out(node, record, result=None if fault else result, reason=reason)
        if node.name in self.chosen.forced:
            reason = "forced by the user"
        if result is None or reason or record.key() in self.makers:
            return self._to_make(node, record, stale=result, reason=reason)
        return self._made(node, record, result, code=self.facts.changed_code(result))

    def _record(self, node: StageNode, missing: Sequence[str] = ()) -> KeyRecord:
        """The key record; where an input is not made yet, with what was read last time."""
        last = self.facts.last_record(node.name) if missing else None
        before = last.key_record.inputs if last else {}
        digests: dict[str, str] = {}
        for port, reference in node.inputs.items():
            found = self.done[reference.stage].result
            unknown = digest_in(before.get(port, f"what {reference.stage} makes"))
            digests[port] = found.digest if found else unknown
        return key_record(
            node,
            digests,
            fingerprint=self.facts.source_fingerprint(node),
            libraries=self.facts.library_versions(node),
        )

    def _blocked(self, node: StageNode, missing: tuple[str, ...]) -> Planned:
        if node.name not in self.chosen.names:
            return _left_out(node)
        for name in missing:
            if name not in self.chosen.names:
                raise self._not_made(node, name)
        verb = "runs" if len(missing) == 1 else "run"
        reason = f"depends on {_listed(missing)}, which {verb} first"
        last = self.facts.last_record(node.name)
        changes = diff(last.key_record, self._record(node, missing)) if last else ()
        if changes:
            reason += f"; {_told(changes)}"
        decision = _decision(node, "pending", reason, changes=changes, last=last)
        return Planned(node, decision, waits_for=missing)

    def _not_made(self, node: StageNode, name: str) -> SpecError:
        found = self.done[name].decision.reason
        why = "" if found == NOT_SELECTED else f" ({found})"
        return SpecError(
            f"{node.name} reads {name}, which is not selected and not made yet{why}",
            where=spec_path(("stages", node.base_name)),
            hint=f"vitrail run {shlex.quote(self.facts.file)} --until {shlex.quote(name)}",
        )

    def _made(
        self, node: StageNode, record: KeyRecord, result: StageResult, *, code: tuple[str, ...]
    ) -> Planned:
        if node.name not in self.chosen.names:
            return _left_out(node, record, result=result)
        decision = _decision(node, "reuse", "nothing that shapes it changed", record=record)
        return Planned(node, decision.revise(code_changed=code), record, result)

    def _to_make(
        self,
        node: StageNode,
        record: KeyRecord,
        *,
        stale: StageResult | None = None,
        reason: str | None = None,
    ) -> Planned:
        maker = self.makers.setdefault(record.key(), node.name)
        if maker != node.name:
            # Two names for one piece of work: it is done once.
            reason = f"the same work as {maker}, which runs first"
            decision = _decision(node, "pending", reason, record=record)
            return Planned(node, decision, record, waits_for=(maker,))
        last = self.facts.last_record(node.name)
        changes = diff(last.key_record, record) if last else ()
        reason = reason or _why(last, changes)
        decision = _decision(node, "run", reason, record=record, changes=changes, last=last)
        return Planned(node, decision, record, stale=stale)


def _why(last: StageRecord | None, changes: tuple[Change, ...]) -> str:
    if last is None:
        return "never made"
    return _told(changes) if changes else "its artifact is gone from the store"


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - TOLD_STAGES
    *first, last = (*names[:TOLD_STAGES], f"{more} more") if more > 0 else names
    return f"{', '.join(first)} and {last}" if first else last


def _told(changes: tuple[Change, ...]) -> str:
    told = ", ".join(str(change) for change in changes[:TOLD_CHANGES])
    more = f" and {len(changes) - TOLD_CHANGES} more" if len(changes) > TOLD_CHANGES else ""
    return f"changed: {told}{more}"


def _left_out(
    node: StageNode,
    record: KeyRecord | None = None,
    *,
    result: StageResult | None = None,
    reason: str | None = None,
) -> Planned:
    decision = _decision(node, "skip", reason or NOT_SELECTED, record=record if result else None)
    return Planned(node, decision, record, result)


def _decision(
    node: StageNode,
    action: Action,
    reason: str,
    *,
    record: KeyRecord | None = None,
    changes: tuple[Change, ...] = (),
    last: StageRecord | None = None,
) -> Decision:
    key = record.key() if record else None
    return Decision(
        stage=node.name,
        kind=node.kind,
        action=action,
        reason=reason,
        changes=changes,
        key=key,
        artifact=artifact_name(node.kind, key) if key else None,
        estimate={"last_seconds": last.seconds} if last else {},
    )
