from pathlib import Path

import pytest

from infra.run_folder import RunFolder
from jobs.controller import RunOptions, _exit_code, _unmet_gates, run_pipeline
from jobs.workspace import Workspace
from pipeline.dag.experiment_file import parse_experiment
from pipeline.dag.graph import Graph, expand
from pipeline.dag.selection import Selection
from schemas.errors import SpecError
from schemas.runs import RunDocument, StageOutcome
from schemas.spec import semantic_fields

SPEC = """
name: small
seed: 1
stages:
  digits: {kind: ingest, source: {type: sklearn, name: digits}}
"""


def options(workspace: Workspace) -> RunOptions:
    return RunOptions(
        file="run.yaml",
        workspace=workspace,
        selection=Selection(),
        address=None,
        tracking_uri=workspace.tracking_uri,
        run_id="run-1",
    )


def test_a_run_that_breaks_in_a_way_nobody_foresaw_is_told_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: object, **_more: object) -> None:
        raise RuntimeError("the machinery is out of order")

    monkeypatch.setattr("infra.ray_cluster.cluster", broken)
    workspace = Workspace(tmp_path)
    experiment = parse_experiment(SPEC, name_of_file="run.yaml")
    with pytest.raises(RuntimeError, match="out of order"):
        run_pipeline(experiment, options(workspace))
    folder = RunFolder(workspace.runs / "run-1")
    events = [event for event, _ in folder.read_events(0)]
    assert [event.type for event in events] == ["run_started", "run_finished"]
    assert events[-1].status == "failed"
    assert events[-1].message == "RuntimeError: the machinery is out of order"
    assert folder.read_state().status == "failed"
    assert folder.load_cursor().event_offset == folder.events_path.stat().st_size


GATED = """
name: small
seed: 1
stages:
  digits: {kind: ingest, source: {type: sklearn, name: digits}, split: {test_ratio: 0.2}}
  start:
    kind: pretrain
    data: digits
    model: {width: 16, depth: 1, num_heads: 2, mlp_dim: 32, patch_px: 4, image_px: 8}
    optim: {peak_lr: 1e-3}
    batch: {global_samples: 16}
    duration: {steps: 2}
  accuracy: {kind: evaluate, data: digits@test, model: start, gate: {GATE}}
"""


def outcome(name: str, **metrics: float) -> StageOutcome:
    return StageOutcome(
        name=name,
        kind="evaluate",
        status="reused",
        key="k",
        artifact="a",
        seconds=0.0,
        metrics={f"test/{key}": value for key, value in metrics.items()},
    )


def gated(gate: str) -> Graph:
    return expand(parse_experiment(GATED.replace("{GATE}", gate), name_of_file="run.yaml"))


LOW_TOP1 = (
    "accuracy has test/top1_ratio 0.5 and must have at least 0.9 (set in "
    "stages.accuracy.gate.top1_ratio)"
)
LOW_NLL = (
    "accuracy has test/nll 1.5 and must have at least 2 and at most 3 (set in "
    "stages.accuracy.gate.nll)"
)
NO_TOP5 = (
    "accuracy measures no top5_ratio; did you mean top1_ratio? (set in "
    "stages.accuracy.gate.top5_ratio)"
)


@pytest.mark.parametrize(
    ("gate", "sentences"),
    [
        ("{top1_ratio: {min: 0.5}, nll: {max: 2}}", []),
        ("{test/top1_ratio: {min: 0.5, max: 0.5}}", []),
        ("{top1_ratio: {min: 0.9}, nll: {min: 2, max: 3}}", [LOW_TOP1, LOW_NLL]),
        ("{top5_ratio: {min: 0.9}}", [NO_TOP5]),
    ],
)
def test_a_gate_is_met_or_told_in_a_sentence(gate: str, sentences: list[str]) -> None:
    graph = gated(gate)
    found = _unmet_gates(graph, [outcome("accuracy", top1_ratio=0.5, nll=1.5)])
    assert [it.sentence for it in found] == sentences
    document = RunDocument(run="", status="finished", stages=(), unmet_gates=found)
    assert _exit_code(document) == (7 if sentences else 0)
    assert _exit_code(document.revise(status="failed")) == 1


def test_a_stage_that_was_not_made_has_no_gate_to_meet() -> None:
    skipped = outcome("accuracy").revise(status="skipped")
    assert _unmet_gates(gated("{top1_ratio: {min: 0.9}}"), [skipped]) == ()


def test_a_metric_that_is_not_a_number_meets_no_gate() -> None:
    graph = gated("{nll: {max: 9}}")
    assert len(_unmet_gates(graph, [outcome("accuracy", nll=float("nan"))])) == 1


def test_a_gate_on_what_is_never_measured_is_refused_before_anything_runs() -> None:
    with pytest.raises(SpecError, match="names top1_raito, which is not measured; did you") as told:
        gated("{top1_raito: {min: 0.9}}")
    assert "stages.accuracy" in (told.value.where or "")
    with pytest.raises(SpecError, match="needs min, max or both"):
        gated("{top1_ratio: {}}")
    with pytest.raises(SpecError, match="no value could be right"):
        gated("{top1_ratio: {min: 0.9, max: 0.1}}")


def test_gates_are_in_no_key() -> None:
    specs = [gated(gate).node("accuracy").spec for gate in ("{}", "{nll: {max: 1}}")]
    assert specs[0] != specs[1]
    assert semantic_fields(specs[0]) == semantic_fields(specs[1])
