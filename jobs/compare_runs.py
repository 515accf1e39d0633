"""`vitrail compare RUN_A RUN_B`: the `evaluate` stages of two runs, from the store alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infra.run_folder import open_run
from jobs.compare import answers_of
from jobs.console import print_document, stdout, table
from jobs.wiring import store_at
from jobs.workspace import Workspace, open_workspace
from pipeline.dag.keys import diff
from pipeline.ports import ArtifactStore
from schemas.artifacts import StageResult
from schemas.comparison import (
    RESAMPLES,
    ComparedModel,
    RunComparison,
    StageChange,
    StageComparison,
)
from schemas.errors import IntegrityError, UsageError, VitrailError
from schemas.runs import RunDocument, StageOutcome

_SEED = 0
_MEASURED = "evaluate"
_RAW_DATA = "inputs.source"


def show_comparison(first: str, second: str, folder: Path | None, output: str) -> None:
    """Print how two runs compare.

    Raises:
        UsageError: If a run is unknown or has not ended, or they have no `evaluate` in common.
    """
    workspace = open_workspace(folder)
    runs = _Run.read(workspace, first), _Run.read(workspace, second)
    document = _compare(*runs)
    if output == "json":
        print_document(document)
    else:
        _print(document)


@dataclass(frozen=True)
class _Run:
    """A run that has ended, and the store with its artifacts."""

    name: str
    stages: dict[str, StageOutcome]
    store: ArtifactStore

    @classmethod
    def read(cls, workspace: Workspace, run: str) -> "_Run":
        path = open_run(workspace.runs, run).path / "outcome.json"
        try:
            document = RunDocument.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UsageError(
                f"{run} has not ended, so there is nothing to compare", hint=f"vitrail status {run}"
            ) from None
        except ValidationError as error:
            raise IntegrityError(f"{path} is not what a run writes at its end") from error
        stages = {stage.name: stage for stage in document.stages}
        return cls(run, stages, store_at(workspace.store))

    def measured(self) -> list[str]:
        """Names of the `evaluate` stages that have a result."""
        stages = self.stages.values()
        return [it.name for it in stages if it.kind == _MEASURED and it.status in {"ran", "reused"}]

    def result(self, stage: str) -> StageResult | None:
        """What a stage made or reused, if it is still in the store."""
        outcome = self.stages.get(stage)
        if outcome is None or outcome.key is None:
            return None
        return self.store.lookup(outcome.kind, outcome.key)


def _compare(first: _Run, second: _Run) -> RunComparison:
    ours, theirs = first.measured(), second.measured()
    both = [name for name in ours if name in theirs]
    if not both:
        raise UsageError(
            f"no stage of kind {_MEASURED} is in both runs; {first.name} has "
            f"{', '.join(ours) or 'none'}, {second.name} has {', '.join(theirs) or 'none'}"
        )
    return RunComparison(
        first=first.name,
        second=second.name,
        stages=tuple(_stage(name, first, second) for name in both),
        changes=tuple(_changes(first, second)),
        only_first=tuple(name for name in ours if name not in theirs),
        only_second=tuple(name for name in theirs if name not in ours),
    )


def _stage(name: str, first: _Run, second: _Run) -> StageComparison:
    from pipeline.evaluation.compare import Resampling, compare

    same = first.stages[name].key == second.stages[name].key
    results = [run.result(name) for run in (first, second)]
    found = [
        answers_of(run.store.path(result), run.name)
        for run, result in zip((first, second), results, strict=True)
        if result is not None
    ]
    if len(found) < 2:
        problem = "its artifact is no longer in the store"
        return StageComparison(stage=name, same_artifact=same, problem=problem)
    try:
        report = compare(found, Resampling(RESAMPLES, _SEED))
    except VitrailError as error:
        return StageComparison(stage=name, same_artifact=same, problem=error.what)
    return StageComparison(
        stage=name,
        same_artifact=same,
        pair=report.pairs[0],
        first=report.models[0],
        second=report.models[1],
        images=report.images,
    )


def _changes(first: _Run, second: _Run) -> Iterator[StageChange]:
    """What was changed, stage by stage; other inputs only follow from changes upstream."""
    for name in first.stages:
        ours, theirs = first.result(name), second.result(name)
        if ours is None or theirs is None or ours.key == theirs.key:
            continue
        records = (run.store.record(it).key_record for run, it in ((first, ours), (second, theirs)))
        for change in diff(*records):
            if not change.field.startswith("inputs.") or change.field == _RAW_DATA:
                yield StageChange(stage=name, change=change)


def _print(document: RunComparison) -> None:
    console = stdout()
    columns = ("stage", f">{document.first}", f">{document.second}", ">difference", "95 %", ">p")
    console.print(table(columns, [_row(it) for it in document.stages]))
    for stage in document.stages:
        if stage.problem:
            console.print(f"{stage.stage}: not compared: {stage.problem}", markup=False)
    for run, names in (
        (document.first, document.only_first),
        (document.second, document.only_second),
    ):
        if names:
            console.print(f"only in {run}: {', '.join(names)}", markup=False)
    console.print(
        f"second less first; intervals by a paired bootstrap of {RESAMPLES} resamples; p by "
        "McNemar's exact test, of each stage by itself",
        markup=False,
    )
    console.print()
    if not document.changes:
        console.print("the specs do not differ")
        return
    rows = [
        (it.stage, it.change.field, _text(it.change.before), _text(it.change.after))
        for it in document.changes
    ]
    console.print(table(("stage", "field", document.first, document.second), rows))


def _row(stage: StageComparison) -> tuple[str, ...]:
    if stage.pair is None or stage.first is None or stage.second is None:
        return (stage.stage, "-", "-", "-", "-", "-")
    pair = stage.pair
    return (
        stage.stage,
        _ratio(stage.first),
        _ratio(stage.second),
        "same artifact" if stage.same_artifact else _points(-pair.difference_ratio),
        f"{_points(-pair.high_ratio)} to {_points(-pair.low_ratio)}",
        f"{pair.mcnemar_p:.2g}",
    )


def _points(ratio: float) -> str:
    return f"{100 * ratio + 0.0:+.1f}"  # plus zero: no minus before nothing


def _ratio(model: ComparedModel) -> str:
    return f"{100 * model.top1_ratio:.1f} %"


def _text(value: object) -> str:
    return "-" if value is None else str(value)
