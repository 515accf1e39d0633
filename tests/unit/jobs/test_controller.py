from pathlib import Path

import pytest

from infra.run_folder import RunFolder
from jobs.controller import RunOptions, run_pipeline
from jobs.workspace import Workspace
from pipeline.dag.experiment_file import parse_experiment
from pipeline.dag.selection import Selection

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
