"""One run of a pipeline, from the plan to the table: the process that a person or a job starts."""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.code_archive import copy_code
from infra.run_folder import RunFolder, create_run, this_process
from infra.time_ids import run_id
from jobs.catch_up import AfterOthers, catch_up, mirror_of
from jobs.console import print_error, stderr
from jobs.progress import RunView
from jobs.results import artifact_path
from jobs.signals import StopRequests, children, kill
from jobs.stage_task import METRICS_FILE
from jobs.wiring import cores_of, execute_in_worker, planning_facts
from jobs.workspace import Workspace
from pipeline.dag.execute import RunContext, execute, run_status
from pipeline.dag.gates import unmet_gates
from pipeline.dag.graph import Graph, expand
from pipeline.dag.mirror import Mirror, MirrorThread
from pipeline.dag.plan import Facts, Planned, plan
from pipeline.dag.selection import Selection
from schemas.errors import GateError, StageFailedError, VitrailError
from schemas.experiment import ExperimentSpec
from schemas.gates import UnmetGate
from schemas.runs import Event, RunDocument, RunState, StageOutcome

_MIRROR_SECONDS = 2.0
_MIRROR_DEADLINE_SECONDS = 90.0
"""How long the end of a run waits for the tracker; what is left is delivered by the next run."""
_EXIT_CODES = {"finished": 0, "failed": 1, "paused": 75, "killed": 130, "running": 1}


@dataclass(frozen=True)
class RunOptions:
    """Where and how to run."""

    file: str
    """What the user called the spec."""
    workspace: Workspace
    selection: Selection
    address: str | None
    """A Ray cluster; None starts one for this run."""
    tracking_uri: str
    run_id: str | None
    """Given by whoever submitted the run; None makes one."""


def run_pipeline(experiment: ExperimentSpec, options: RunOptions) -> tuple[RunDocument, int]:
    """Make what is not made yet; returns what became of each stage, and the exit code."""
    graph = expand(experiment)
    facts = planning_facts(experiment, options.file, options.workspace)
    planned = plan(graph, facts, selection=options.selection)
    if not any(entry.decision.action in {"run", "pending"} for entry in planned):
        return _nothing_to_do(graph, facts, planned, options)
    options.workspace.require_writable()
    _warn_of_disk(graph, planned, options)
    with _run_folder(experiment, options) as folder:
        return _Run(experiment, options, graph, facts, folder).go()


def _nothing_to_do(
    graph: Graph, facts: Facts, planned: tuple[Planned, ...], options: RunOptions
) -> tuple[RunDocument, int]:
    if options.workspace.store_uri is not None:
        options.workspace.require_writable()  # so that other commands find the store
    outcomes = []
    for entry in planned:
        result, name = entry.result, entry.node.name
        if result is not None and entry.decision.action == "reuse":
            facts.remember(name, result)
            note = facts.registration_note(entry.node, result)
            if note:
                stderr().print(note, markup=False)
        outcomes.append(
            StageOutcome(
                name=name,
                kind=entry.node.kind,
                status="reused" if entry.decision.action == "reuse" else "skipped",
                key=entry.decision.key,
                artifact=entry.decision.artifact,
                seconds=0.0,
                metrics=result.metrics if result is not None else {},
            )
        )
    _catch_up(options, say=lambda text: stderr().print(text, markup=False))
    document = RunDocument(
        run="",
        status="finished",
        stages=tuple(outcomes),
        report=_report_page(outcomes, options.workspace),
        unmet_gates=_unmet_gates(graph, outcomes),
    )
    _say_unmet(document)
    return document, _exit_code(document)


def _warn_of_disk(graph: Graph, planned: tuple[Planned, ...], options: RunOptions) -> None:
    """Say before the work, not after hours of it, that the disk may not be large enough."""
    from infra.atomic_files import free_bytes
    from jobs.wiring import stage_costs

    costs = stage_costs(graph)
    due = [entry.node for entry in planned if entry.decision.action in {"run", "pending"}]
    needed = int(sum(costs(node).get("disk_bytes", 0) for node in due))
    free = free_bytes(options.workspace.root)
    if needed > free:
        stderr().print(
            f"warning: the run may need {needed} bytes of disk, and {free} are free", markup=False
        )


@contextmanager
def _run_folder(experiment: ExperimentSpec, options: RunOptions) -> Iterator[RunFolder]:
    """A folder for the run; its state says `killed` if nobody has said anything else."""
    now = datetime.now(UTC)
    host, pid, began = this_process()
    state = RunState(
        run=options.run_id or run_id(time.time_ns(), os.urandom(3)),
        experiment=experiment.name,
        status="running",
        host=host,
        pid=pid,
        process_started=began,
        started_at=now.isoformat(),
        address=options.address,
        submission=options.run_id,
        tracking_uri=options.tracking_uri,
    )
    folder = create_run(options.workspace.runs, state)
    try:
        folder.write_spec(experiment)
        yield folder
    except BaseException:
        ended = datetime.now(UTC).isoformat()
        folder.write_state(folder.read_state().revise(status="failed", ended_at=ended))
        raise
    finally:
        folder.close()


class _Run:
    def __init__(
        self,
        experiment: ExperimentSpec,
        options: RunOptions,
        graph: Graph,
        facts: Facts,
        folder: RunFolder,
    ) -> None:
        self.experiment = experiment
        self.options = options
        self.graph = graph
        self.facts = facts
        self.folder = folder
        self.run = folder.path.name
        self.view = RunView(folder.log_path)

    def go(self) -> tuple[RunDocument, int]:
        stderr().print(f"run {self.run}", markup=False)
        self._emit_start()
        mirror = self._mirror()
        thread = MirrorThread(
            AfterOthers(mirror, self._catch_up), interval_seconds=_MIRROR_SECONDS, say=self.view.say
        )
        with StopRequests(self._pause) as stops, self.view:
            thread.start()
            try:
                outcomes = self._execute(stops)
            except BaseException as error:
                self._tell_failure(error)
                thread.stop(deadline_seconds=_MIRROR_DEADLINE_SECONDS)
                raise
            status = run_status(outcomes)
            if stops.requested and status == "finished":
                self.view.say("everything was finished before the stop took effect")
            self._emit_end(status, outcomes)
            self.view.refresh()
            if not thread.stop(deadline_seconds=_MIRROR_DEADLINE_SECONDS):
                self.view.say("the tracker has not been told everything; the next run goes on")
        return self._conclude(mirror, outcomes)

    def _mirror(self) -> Mirror:
        options = self.options
        return mirror_of(
            self.folder,
            workspace=options.workspace,
            tracking_uri=options.tracking_uri,
            say=self.view.say,
        )

    def _catch_up(self) -> None:
        _catch_up(self.options, say=self.view.say)

    def _tell_failure(self, error: BaseException) -> None:
        what = error.what if isinstance(error, VitrailError) else f"{type(error).__name__}: {error}"
        # What ended the run may be a full disk, which takes no event either: then `error` counts.
        with suppress(VitrailError, OSError):
            self._emit_end("failed", (), message=what)

    def _pause(self) -> None:
        self.folder.request_pause()
        self.view.say("stopping at the next safe point; once more kills at once")

    def _emit(self, event: Event) -> None:
        self.folder.append(event)
        if event.type == "stage_started" and event.stage:
            self.view.stage_started(event.stage)
        elif event.type == "stage_finished" and event.stage:
            self.view.stage_ended(event.stage, event.status or "ended", event.message)
        elif event.type == "log" and event.message:
            self.view.say(event.message)

    def _emit_start(self) -> None:
        note = f"`vitrail run {self.options.file}` in `{self.options.workspace.root}`"
        self._emit(
            Event(
                type="run_started",
                at_ms=_now_ms(),
                params={"name": self.experiment.name, "seed": str(self.experiment.seed)},
                tags={
                    "vitrail.run": self.run,
                    "vitrail.experiment": self.experiment.name,
                    "mlflow.note.content": note,
                },
            )
        )

    def _emit_end(
        self, status: str, outcomes: tuple[StageOutcome, ...], message: str | None = None
    ) -> None:
        metrics = {
            f"{_plain(stage.name)}/{key}": value
            for stage in outcomes
            for key, value in stage.metrics.items()
            if key.endswith("_ratio")
        }
        self._emit(
            Event(
                type="run_finished",
                at_ms=_now_ms(),
                status=status,
                message=message,
                metrics=metrics,
                tags=self._gate_tags(outcomes),
            )
        )

    def _gate_tags(self, outcomes: tuple[StageOutcome, ...]) -> dict[str, str]:
        """What the tracker shows of gates; nothing where no stage has one."""
        if not any(getattr(node.spec, "gate", {}) for node in self.graph.nodes):
            return {}
        unmet = "; ".join(gate.sentence for gate in _unmet_gates(self.graph, outcomes))
        return {"vitrail.gates": f"not met: {unmet}" if unmet else "met"}

    def _execute(self, stops: StopRequests) -> tuple[StageOutcome, ...]:
        from infra.ray_cluster import cluster, require_shared
        from infra.ray_stages import RayStageRunner

        with (
            # Ray's warnings come on stdout, which belongs to the data that a person asked for.
            (self.folder.path / "ray.txt").open("a") as notes,
            redirect_stdout(notes),
            _shipped_code(self.options.address) as code,
            cluster(self.options.address, code=code) as ray,
        ):
            stops.listen()
            if self.options.address is not None:
                require_shared(ray, self.options.workspace.root)
            runner = RayStageRunner(execute_in_worker, cores_of=cores_of)
            try:
                return execute(
                    self.graph,
                    self.facts,
                    runner=_Watched(runner, self.view),
                    context=self._context(),
                    selection=self.options.selection,
                )
            finally:
                runner.close()
                if self.options.address is None:
                    _end_embedded(ray)

    def _context(self) -> RunContext:
        store = self.facts.store
        return RunContext(
            run=self.run,
            pause_path=str(self.folder.pause_path),
            emit=self._emit,
            pause=self.folder.pause_path.exists,
            now_ms=_now_ms,
            metrics_path=lambda artifact: str(store.progress(artifact) / METRICS_FILE),
        )

    def _conclude(
        self, mirror: Mirror, outcomes: tuple[StageOutcome, ...]
    ) -> tuple[RunDocument, int]:
        status = run_status(outcomes)
        document = RunDocument(
            run=self.run,
            status=status,
            stages=outcomes,
            tracking_url=mirror.url(),
            report=_report_page(outcomes, self.options.workspace),
            unmet_gates=_unmet_gates(self.graph, outcomes),
        )
        (self.folder.path / "outcome.json").write_text(json.dumps(document.dump(), indent=1))
        self.folder.write_state(
            self.folder.read_state().revise(
                status=status,
                ended_at=datetime.now(UTC).isoformat(),
                tracking_url=document.tracking_url,
            )
        )
        if status != "finished":
            _say_how_to_go_on(outcomes, submitted=self.options.run_id is not None)
        _say_unmet(document)
        return document, _exit_code(document)


class _Watched:
    """A runner that draws while it waits."""

    def __init__(self, runner: Any, view: RunView) -> None:
        self._runner = runner
        self._view = view
        self.submit = runner.submit
        self.close = runner.close

    def wait(self, timeout_seconds: float) -> Any:
        self._view.refresh()
        return self._runner.wait(min(timeout_seconds, 0.25))


@contextmanager
def _shipped_code(address: str | None) -> Iterator[Path | None]:
    """A copy of our packages for a cluster that may lack them; a Ray job has brought its own."""
    if address in {None, "auto"}:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vitrail-code-") as folder:
        yield copy_code(Path(folder))


def _end_embedded(ray: Any) -> None:
    """End the cluster of this run, and whatever of it would outlive the call."""
    family = children()  # asked before: those whose parent has ended are nobody's children
    ray.shutdown()
    kill(family)


def _catch_up(options: RunOptions, *, say: Callable[[str], None]) -> None:
    catch_up(
        options.workspace,
        tracking_uri=options.tracking_uri,
        deadline_seconds=_MIRROR_DEADLINE_SECONDS,
        say=say,
    )


def _report_page(outcomes: Any, workspace: Workspace) -> str | None:
    pages = [artifact_path(stage, workspace) for stage in outcomes if stage.kind == "report"]
    found = [page / "report.html" for page in pages if page is not None]
    return str(found[-1]) if found else None


def _unmet_gates(graph: Graph, outcomes: Iterable[StageOutcome]) -> tuple[UnmetGate, ...]:
    """Of every stage that was measured, now or before."""
    return tuple(
        gate
        for outcome in outcomes
        if outcome.status in {"ran", "reused"}
        for gate in unmet_gates(graph.node(outcome.name), outcome.metrics)
    )


def _say_unmet(document: RunDocument) -> None:
    for gate in document.unmet_gates:
        print_error(GateError(gate.sentence))


def _exit_code(document: RunDocument) -> int:
    """Of how the run ended; a gate that is not met counts where all else went well."""
    code = _EXIT_CODES[document.status]
    return GateError.exit_code if code == 0 and document.unmet_gates else code


def _say_how_to_go_on(outcomes: tuple[StageOutcome, ...], *, submitted: bool) -> None:
    """Errors of the failed stages, and how to go on: what runs in a job is not what was typed."""
    again = shlex.join(["vitrail", *sys.argv[1:]])
    for stage in outcomes:
        if stage.status == "failed":
            what, *more = (stage.error or "it failed").splitlines()
            print_error(StageFailedError(f"{stage.name}: {what}"))
            for line in more:
                stderr().print(line, markup=False)
    way = "submit the same again to go on" if submitted else f"go on with: {again}"
    stderr().print(way, markup=False)


def _plain(name: str) -> str:
    """A name with only what trackers allow in the key of a metric."""
    return "".join(mark if mark.isalnum() or mark in "-_. /" else "_" for mark in name)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
