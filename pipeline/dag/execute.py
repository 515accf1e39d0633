"""Carry out a plan through the ports: plan again whenever a stage ends, start what is ready.

The store is the only state: after a crash the same call goes on from what was committed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.dag.graph import Graph, StageNode
from pipeline.dag.mirror import DIGEST_TAG
from pipeline.dag.plan import Facts, Planned, decide
from pipeline.dag.selection import Chosen, Selection, choose
from pipeline.ports import StageRunner
from schemas.artifacts import LOGS_FOLDER, KeyRecord, StageResult, artifact_name
from schemas.errors import InfrastructureError, IntegrityError, PausedError, VitrailError
from schemas.runs import Event, InputArtifact, RunStatus, StageOutcome, StageRequest, StageStatus
from schemas.spec import canonical_json
from schemas.stage import SHARD_SETS

MAX_RETRIES = 2
"""Further tries for a stage whose machinery failed."""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class RunContext:
    """What one run is given from outside."""

    run: str
    pause_path: str
    """File whose presence asks running stages to stop at the next safe point."""
    emit: Callable[[Event], None]
    pause: Callable[[], bool]
    """Whether a stop was asked for: then nothing new begins."""
    now_ms: Callable[[], int]
    """Milliseconds since 1970, UTC."""
    metrics_path: Callable[[str], str]
    """Artifact name -> the segment file to which a stage that makes it writes its points."""


def execute(
    graph: Graph, facts: Facts, *, runner: StageRunner, context: RunContext, selection: Selection
) -> tuple[StageOutcome, ...]:
    """Run what has to run, several stages at once, and tell how each stage ended.

    A stage that fails takes only its dependants with it. A stage that the plan calls reuse is never
    run, unless a consumer finds its bytes damaged; then it is made again once.

    Raises:
        SpecError: As `plan`, before anything runs.
        UsageError: As `plan`.
        UnreachableError: If the store or the machinery cannot be reached any more.
    """
    return _Controller(graph, facts, runner, context, choose(graph, selection)).run()


def run_status(outcomes: tuple[StageOutcome, ...]) -> RunStatus:
    """How a run as a whole ended."""
    statuses = {outcome.status for outcome in outcomes}
    if "failed" in statuses:
        return "failed"
    return "paused" if "paused" in statuses else "finished"


@dataclass
class _Controller:
    graph: Graph
    facts: Facts
    runner: StageRunner
    context: RunContext
    chosen: Chosen
    known: dict[str, StageResult] = field(default_factory=dict)
    """Artifacts made or found whole since the run began."""
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)
    in_flight: set[str] = field(default_factory=set)
    announced: set[str] = field(default_factory=set)
    """Stages whose begin was told and whose end was not."""
    tries: Counter[str] = field(default_factory=Counter)
    remade: dict[str, str] = field(default_factory=dict)
    """Stage -> its damaged artifact, discarded; a second time is a failure."""
    excused: set[str] = field(default_factory=set)
    """Stages that were reading such an artifact meanwhile: they may stumble over it too."""
    paused: bool = False

    def run(self) -> tuple[StageOutcome, ...]:
        while True:
            planned = decide(self.graph, self.facts, chosen=self.chosen, known=self.known)
            for entry in planned:
                self._take_note(entry)
            if not (self.paused or self.context.pause()):
                self._start_ready(planned)
            if not self.in_flight:
                return self._summary(planned)
            ended = self.runner.wait(POLL_SECONDS)
            while not ended:
                ended = self.runner.wait(POLL_SECONDS)
            for request, outcome in ended:
                self._end(request, outcome)

    def _take_note(self, entry: Planned) -> None:
        """Remember what is at hand; forget what an input that was made again has outdated."""
        node, result = entry.node, entry.result
        if result is None:
            if self.known.pop(node.name, None) is not None:
                self.outcomes.pop(node.name, None)
            return
        told = node.name in self.outcomes and self.known.get(node.name) == result
        self.known[node.name] = result
        # What is in flight may be committed before its end is heard: that is told by its end.
        told = told or node.name in self.in_flight
        if entry.decision.action == "reuse" and not told:
            self.facts.remember(node.name, result)
            self.outcomes[node.name] = _outcome(node, "reused", result)
            self._log(node, f"{node.name}: reused {result.artifact}, {entry.decision.reason}")
            note = self.facts.registration_note(node, result)
            if note:
                self._log(node, note)

    def _start_ready(self, planned: tuple[Planned, ...]) -> None:
        for entry in planned:
            name = entry.node.name
            ready = entry.decision.action == "run" and name not in self.in_flight
            if not ready or entry.record is None or name in self.outcomes:
                continue
            if entry.stale is not None:
                self.facts.store.discard(entry.stale, entry.decision.reason)
            request = self._request(entry.node, entry.record)
            self.runner.submit(request)
            self.in_flight.add(name)
            if name not in self.announced:
                self._announce(entry, request)

    def _request(self, node: StageNode, record: KeyRecord) -> StageRequest:
        return StageRequest(
            experiment=self.facts.experiment,
            run=self.context.run,
            stage=node.name,
            spec=node.spec.dump(),
            seed=node.seed,
            key=record.key(),
            key_record=record,
            inputs={port: self._input(node, port) for port in node.inputs},
            store=self.facts.store.uri,
            pause_path=self.context.pause_path,
        )

    def _input(self, node: StageNode, port: str) -> InputArtifact:
        reference = node.inputs[port]
        result = self.known[reference.stage]
        return InputArtifact(
            stage=reference.stage,
            kind=result.kind,
            artifact=result.artifact,
            digest=result.digest,
            path=str(self.facts.store.path(result)),
            split=reference.split,
            metrics=result.metrics,
        )

    def _announce(self, entry: Planned, request: StageRequest) -> None:
        node = entry.node
        self.announced.add(node.name)
        artifact = artifact_name(node.kind, request.key)
        self._log(node, f"{node.name}: runs, {entry.decision.reason}")
        self._emit(
            node,
            type="stage_started",
            params={"seed": str(node.seed), **_flat(request.spec)},
            tags={"kind": node.kind, "key": request.key, "artifact": artifact},
            metrics_path=self.context.metrics_path(artifact),
        )

    def _end(self, request: StageRequest, ended: StageResult | BaseException) -> None:
        node = self.graph.node(request.stage)
        self.in_flight.discard(node.name)
        self.tries[node.name] += 1
        if isinstance(ended, StageResult):
            self._succeeded(node, request, ended)
        elif isinstance(ended, PausedError):
            self.paused = True
            self._stopped(node, request, "paused", ended)
        elif isinstance(ended, InfrastructureError) and self.tries[node.name] <= MAX_RETRIES:
            self._log(node, f"{node.name}: to be tried again, {ended.what}")
        elif not (isinstance(ended, IntegrityError) and self._make_again(node, ended)):
            self._stopped(node, request, "failed", ended)

    def _succeeded(self, node: StageNode, request: StageRequest, result: StageResult) -> None:
        self.known[node.name] = result
        self.facts.remember(node.name, result)
        self.outcomes[node.name] = _outcome(node, "ran", result)
        files = self.facts.store.local(result)
        self.announced.discard(node.name)
        self._emit(
            node,
            type="stage_finished",
            status="ran",
            tags={DIGEST_TAG: result.digest},
            metrics=result.metrics,
            metrics_path=self._kept_curve(result, files),
            datasets=_datasets(request),
            artifacts=_browsed(node.kind, files),
            register_as=getattr(node.spec, "register_as", None),
        )

    def _kept_curve(self, result: StageResult, files: Path) -> str | None:
        """The points of the stage as committed with its artifact, if it logged any."""
        name = Path(self.context.metrics_path(result.artifact)).name
        kept = files / LOGS_FOLDER / name
        return str(kept) if kept.is_file() else None

    def _stopped(
        self, node: StageNode, request: StageRequest, status: StageStatus, error: BaseException
    ) -> None:
        text = str(error) if isinstance(error, VitrailError) else f"{type(error).__name__}: {error}"
        self._conclude(_unmade(node, status, request.key, error=text), _datasets(request))

    def _conclude(self, outcome: StageOutcome, datasets: tuple[dict[str, str], ...] = ()) -> None:
        """Keep the outcome of a stage that made nothing; tell it if its begin was told."""
        self.outcomes[outcome.name] = outcome
        if outcome.name in self.announced:
            self.announced.discard(outcome.name)
            self._emit(
                self.graph.node(outcome.name),
                type="stage_finished",
                status=outcome.status,
                message=outcome.error,
                datasets=datasets,
            )

    def _make_again(self, reader: StageNode, error: IntegrityError) -> bool:
        """Discard the artifacts that `error` calls damaged, if they are upstream of `reader`.

        False if there is nothing to be made again: then the error is the failure of `reader`.
        """
        if reader.name in self.excused:
            self.excused.discard(reader.name)
            return any(artifact in str(error) for artifact in self.remade.values())
        upstream = self.graph.upstream([reader.name]) - {reader.name}
        damaged = {
            name: self.known[name]
            for name in sorted(upstream & set(self.known))
            if self.known[name].artifact in str(error)
        }
        if not damaged or damaged.keys() & self.remade.keys():
            return False
        for name, result in damaged.items():
            text = f"{name}: made again, {reader.name} found it damaged: {error.what}"
            self._log(self.graph.node(name), text)
            self.facts.store.discard(result, f"damaged: {error.what}")
            del self.known[name]
            self.outcomes.pop(name, None)
            self.remade[name] = result.artifact
        self.excused |= self.in_flight & self.graph.downstream(damaged)
        # What is damaged has to be made again even if it was not selected.
        names = self.graph.upstream(self.chosen.names)
        self.chosen = Chosen(names, self.chosen.forced - damaged.keys())
        return True

    def _summary(self, planned: tuple[Planned, ...]) -> tuple[StageOutcome, ...]:
        for entry in planned:
            if entry.node.name not in self.outcomes:
                self._conclude(self._not_run(entry))
        return tuple(self.outcomes[entry.node.name] for entry in planned)

    def _not_run(self, entry: Planned) -> StageOutcome:
        node, key = entry.node, entry.decision.key
        if entry.decision.action == "run":
            return _unmade(node, "paused", key, error="not finished: a stop was asked for")
        if entry.decision.action == "skip":
            return _unmade(node, "skipped", key, error=None)
        name = entry.waits_for[0]
        error = f"depends on {name}, which {_HOW[self.outcomes[name].status]}"
        return _unmade(node, "skipped", key, error=error)

    def _log(self, node: StageNode, message: str) -> None:
        self._emit(node, type="log", message=message)

    def _emit(self, node: StageNode, **details: Any) -> None:
        now = self.context.now_ms()
        self.context.emit(Event(at_ms=now, stage=node.name, kind=node.kind, **details))


_HOW = {"failed": "failed", "paused": "is paused", "skipped": "was skipped"}


def _outcome(node: StageNode, status: StageStatus, result: StageResult) -> StageOutcome:
    return StageOutcome(
        name=node.name,
        kind=node.kind,
        status=status,
        key=result.key,
        artifact=result.artifact,
        seconds=result.seconds if status == "ran" else 0.0,
        metrics=result.metrics,
    )


def _unmade(
    node: StageNode, status: StageStatus, key: str | None, *, error: str | None
) -> StageOutcome:
    return StageOutcome(
        name=node.name,
        kind=node.kind,
        status=status,
        key=key,
        artifact=artifact_name(node.kind, key) if key else None,
        seconds=0.0,
        metrics={},
        error=error,
    )


def _browsed(kind: str, files: Path) -> tuple[str, ...]:
    """What people look at in the tracker: of a corpus its figures, of all else everything."""
    if kind not in SHARD_SETS:
        return (str(files),)
    figures = (files / "figures", files / LOGS_FOLDER / "figures")
    return tuple(str(folder) for folder in figures if folder.is_dir())


def _datasets(request: StageRequest) -> tuple[dict[str, str], ...]:
    return tuple(
        {
            "name": found.stage,
            "digest": found.digest,
            "context": found.split or "all",
            "path": found.path,
        }
        for found in request.inputs.values()
        if found.kind in SHARD_SETS
    )


def _flat(spec: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Leaves under dotted names, as text; text as it is, all else as JSON."""
    found: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, dict) and value:
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value if isinstance(value, str) else canonical_json(value)
    return found
