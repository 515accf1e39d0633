from pathlib import Path

import pytest

from pipeline.dag.execute import _browsed, run_status
from pipeline.dag.selection import Selection
from schemas.artifacts import artifact_name
from schemas.errors import (
    InfrastructureError,
    IntegrityError,
    PausedError,
    SpecError,
    StageFailedError,
    UsageError,
)
from schemas.runs import StageRequest
from tests.support.dag import STAGES, World, graph_of, statuses
from tests.support.fakes import default_content


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_first_run_makes_everything_in_order_and_the_second_makes_nothing(
    world: World,
) -> None:
    graph = graph_of()
    assert statuses(world.run(graph)) == ["ran"] * 8
    assert set(world.runner.ran) == set(STAGES)
    for node in graph.nodes:
        for upstream in node.reads:
            assert world.runner.ran.index(upstream) < world.runner.ran.index(node.name)
    second = world.run(graph)
    assert statuses(second) == ["reused"] * 8
    assert world.runner.ran == []
    assert run_status(tuple(second.values())) == "finished"


def test_independent_branches_are_in_flight_together(world: World) -> None:
    world.run(graph_of())
    assert world.runner.most_at_once >= 2


def test_what_is_committed_before_its_end_is_heard_was_not_reused(world: World) -> None:
    world.runner.commits_early = True
    assert statuses(world.run(graph_of())) == ["ran"] * 8
    said = [event.message for event in world.events if event.type == "log"]
    assert not [line for line in said if "reused" in (line or "")]
    assert len([event for event in world.events if event.type == "stage_finished"]) == 8


def test_a_changed_field_runs_its_stage_and_what_reads_it_only(world: World) -> None:
    world.run(graph_of())
    world.run(graph_of("transfer.optim.peak_lr=3e-4"))
    assert world.runner.ran == ["transfer", "accuracy", "report"]


def test_an_equal_artifact_stops_the_cascade(world: World) -> None:
    world.runner.content = lambda request: request.spec["kind"]
    world.run(graph_of())
    changed = graph_of("corpus.image.quality=80")
    assert world.actions(changed)["pretrain"] == "pending"
    outcomes = world.run(changed)
    assert world.runner.ran == ["corpus"]
    assert statuses(outcomes) == ["ran"] + ["reused"] * 7


def test_a_failure_takes_only_its_dependants_with_it(world: World) -> None:
    world.runner.failures["pretrain"] = [StageFailedError("the loss is not finite")]
    outcomes = world.run(graph_of())
    assert statuses(outcomes) == [
        *("ran", "ran", "ran", "failed", "skipped", "skipped", "ran", "skipped")
    ]
    assert outcomes["pretrain"].error == "the loss is not finite"
    assert outcomes["transfer"].error == "depends on pretrain, which failed"
    assert outcomes["report"].error == "depends on accuracy, which was skipped"
    assert run_status(tuple(outcomes.values())) == "failed"
    (finished,) = world.told("stage_finished", "pretrain")
    assert (finished.status, finished.message) == ("failed", "the loss is not finite")
    assert world.told("stage_finished", "transfer") == []
    again = world.run(graph_of())
    assert run_status(tuple(again.values())) == "finished"
    assert world.runner.ran == ["pretrain", "transfer", "accuracy", "report"]


def test_any_exception_of_a_stage_is_its_failure(world: World) -> None:
    world.runner.failures["pixels"] = [ZeroDivisionError("by zero")]
    outcomes = world.run(graph_of())
    assert outcomes["pixels"].error == "ZeroDivisionError: by zero"


@pytest.mark.parametrize(("times", "status"), [(2, "ran"), (3, "failed")])
def test_failed_machinery_is_tried_again_twice(world: World, times: int, status: str) -> None:
    world.runner.failures["pixels"] = [InfrastructureError("a worker died")] * times
    outcomes = world.run(graph_of())
    assert outcomes["pixels"].status == status
    assert world.runner.ran.count("pixels") == 3
    assert len(world.told("stage_started", "pixels")) == 1
    assert len(world.told("stage_finished", "pixels")) == 1
    assert any(
        "to be tried again" in (event.message or "") for event in world.told("log", "pixels")
    )


def test_other_failures_are_not_tried_again(world: World) -> None:
    world.runner.failures["pixels"] = [StageFailedError("no"), StageFailedError("no")]
    world.run(graph_of())
    assert world.runner.ran.count("pixels") == 1


def test_a_paused_stage_pauses_the_run_and_the_next_run_goes_on(world: World) -> None:
    world.runner.failures["pretrain"] = [PausedError("stopped at step 3")]
    outcomes = world.run(graph_of())
    assert outcomes["pretrain"].status == "paused"
    assert outcomes["transfer"].error == "depends on pretrain, which is paused"
    assert run_status(tuple(outcomes.values())) == "paused"
    assert run_status(tuple(world.run(graph_of()).values())) == "finished"
    assert world.runner.ran[0] == "pretrain"


def test_a_stop_between_stages_begins_nothing_new(world: World) -> None:
    world.pause_after = 1
    outcomes = world.run(graph_of())
    assert set(world.runner.ran) == {"corpus", "pets"}, "what was in flight came to its end"
    assert statuses(outcomes, ["clean", "pixels"]) == ["paused", "paused"]
    assert run_status(tuple(outcomes.values())) == "paused"


def test_every_stage_whose_begin_was_told_has_its_end_told(world: World) -> None:
    world.pause_after = 2
    world.runner.failures["pets"] = [InfrastructureError("a worker died")]
    outcomes = world.run(graph_of())
    assert outcomes["pets"].status == "paused"
    (finished,) = world.told("stage_finished", "pets")
    assert finished.status == "paused"


def test_a_damaged_input_is_made_again_once_with_a_message(world: World) -> None:
    graph = graph_of()
    corpus = world.run(graph)["corpus"].artifact
    changed = graph_of("clean.max_hamming_bits=5")
    damaged = IntegrityError(f"/store/artifacts/{corpus}/shard.arrow is not what was written")
    world.runner.failures["clean"] = [damaged]
    outcomes = world.run(changed)
    assert world.runner.ran[:3] == ["clean", "corpus", "clean"]
    assert statuses(outcomes, ["corpus", "clean", "pretrain"]) == ["ran", "ran", "ran"]
    assert world.store.discarded[0][0] == corpus
    (message,) = [e.message for e in world.told("log", "corpus") if "made again" in str(e.message)]
    assert "clean found it damaged" in str(message)


def test_an_input_that_is_damaged_twice_fails_its_reader(world: World) -> None:
    corpus = world.run(graph_of())["corpus"].artifact
    world.runner.failures["clean"] = [IntegrityError(f"{corpus} is damaged") for _ in range(2)]
    outcomes = world.run(graph_of("clean.max_hamming_bits=5"))
    assert statuses(outcomes, ["corpus", "clean"]) == ["ran", "failed"]


def test_a_damaged_input_is_made_again_although_it_is_not_selected(world: World) -> None:
    pets = world.run(graph_of())["pets"].artifact
    world.runner.failures["pixels"] = [IntegrityError(f"{pets} is damaged")]
    outcomes = world.run(graph_of("pixels.image_px=4"), Selection(only=("pixels",)))
    assert world.runner.ran == ["pixels", "pets", "pixels"]
    assert statuses(outcomes, ["pets", "pixels", "report"]) == ["ran", "ran", "skipped"]


def test_a_chain_of_unselected_stages_is_made_again_as_far_as_needed(world: World) -> None:
    corpus = world.run(graph_of())["corpus"].artifact
    world.runner.failures["pretrain"] = [IntegrityError(f"shards of {corpus} are damaged")]
    world.runner.content = lambda request: f"other {request.key}"
    changed = graph_of("pretrain.optim.peak_lr=1")
    outcomes = world.run(changed, Selection(only=("pretrain",)))
    assert world.runner.ran == ["pretrain", "corpus", "clean", "pretrain"]
    assert statuses(outcomes) == [
        *("ran", "reused", "ran", "ran", "skipped", "skipped", "skipped", "skipped")
    ]


def test_two_readers_of_one_damaged_input_make_it_again_together(world: World) -> None:
    pets = world.run(graph_of())["pets"].artifact
    for reader in ("pixels", "clean"):
        world.runner.failures[reader] = [IntegrityError(f"{pets} is damaged")]
    outcomes = world.run(graph_of("pixels.image_px=4", "clean.max_hamming_bits=5"))
    assert world.runner.ran.count("pets") == 1
    assert statuses(outcomes, ["pets", "pixels", "clean"]) == ["ran", "ran", "ran"]
    assert len(world.store.discarded) == 1


def test_readers_of_an_input_that_was_made_again_otherwise_run_again(world: World) -> None:
    pets = world.run(graph_of())["pets"].artifact
    world.runner.failures["pixels"] = [IntegrityError(f"{pets} is damaged")]
    world.runner.content = lambda request: f"other {request.stage}"
    outcomes = world.run(graph_of("pixels.image_px=4", "clean.max_hamming_bits=5"))
    assert set(statuses(outcomes)) <= {"ran", "reused"}
    made = {name: world.store.refs["pets", name].digest for name in STAGES}
    for name, request in world.runner.requests.items():
        if outcomes[name].status == "ran":
            for found in request.inputs.values():
                assert found.digest == made[found.stage], f"{name} read an old {found.stage}"


def test_an_integrity_error_that_names_no_input_is_a_failure(world: World) -> None:
    world.runner.failures["pretrain"] = [IntegrityError("checkpoint 3 cannot be read")]
    outcomes = world.run(graph_of())
    assert outcomes["pretrain"].status == "failed"
    assert world.store.discarded == []


def test_force_makes_again_what_is_made(world: World) -> None:
    world.run(graph_of())
    outcomes = world.run(graph_of(), Selection(force=("pretrain",)))
    assert world.runner.ran == ["pretrain"], "an equal result stops the cascade"
    assert statuses(outcomes, ["pretrain", "transfer"]) == ["ran", "reused"]
    assert world.store.discarded == [(outcomes["pretrain"].artifact, "forced by the user")]


def test_a_damaged_artifact_is_discarded_before_it_is_made_again(world: World) -> None:
    first = world.run(graph_of())
    result = world.store.refs["pets", "corpus"]
    (world.store.path(result) / "content.txt").unlink()
    outcomes = world.run(graph_of())
    assert world.runner.ran == ["corpus"]
    assert world.store.discarded == [
        (first["corpus"].artifact, "its artifact is damaged: content.txt is missing")
    ]
    assert statuses(outcomes) == ["ran"] + ["reused"] * 7


def test_one_piece_of_work_under_two_names_is_done_once(world: World) -> None:
    text = graph_text_with_twin()
    outcomes = world.run(graph_of(text=text))
    assert world.runner.ran.count("pixels") + world.runner.ran.count("twin") == 1
    assert {outcomes["pixels"].status, outcomes["twin"].status} == {"ran", "reused"}
    assert outcomes["pixels"].artifact == outcomes["twin"].artifact


def test_when_work_under_two_names_fails_both_say_so(world: World) -> None:
    world.runner.failures["pixels"] = [StageFailedError("no")]
    outcomes = world.run(graph_of(text=graph_text_with_twin()))
    assert outcomes["twin"].error == "depends on pixels, which failed"


def graph_text_with_twin() -> str:
    from tests.support.dag import TEXT

    twin = "  twin: {kind: baseline, data: pets, image_px: 8}\n  report:"
    return TEXT.replace("  report:", twin)


def test_a_request_holds_all_that_a_stage_needs(world: World) -> None:
    outcomes = world.run(graph_of())
    request = world.runner.requests["transfer"]
    assert request.inputs["data"].split == "train"
    assert request.inputs["init"].artifact == outcomes["pretrain"].artifact
    assert Path(request.inputs["init"].path).is_dir()
    assert request.inputs["init"].metrics == {"test/made_count": 1.0}
    assert (request.seed, request.run, request.store) == (17, "r1", world.store.uri)
    assert request.key == request.key_record.key()


def test_events_tell_the_tracker_what_it_needs(world: World) -> None:
    outcomes = world.run(graph_of())
    (started,) = world.told("stage_started", "transfer")
    assert started.params["optim.peak_lr"] == "0.001"
    assert started.params["resources.workers"] == "1", "execution fields too"
    assert started.params["init"] == "pretrain"
    assert started.params["search"] == "null"
    artifact = outcomes["transfer"].artifact
    assert started.tags == {
        "kind": "finetune",
        "key": str(outcomes["transfer"].key),
        "artifact": str(artifact),
    }
    assert started.metrics_path == f"/store/{artifact}/progress/metrics.jsonl"
    (finished,) = world.told("stage_finished", "transfer")
    assert (finished.status, finished.register_as) == ("ran", "pets")
    assert finished.metrics == {"test/made_count": 1.0}
    (dataset,) = finished.datasets
    assert (dataset["name"], dataset["context"]) == ("pets", "train")
    assert len(dataset["digest"]) == 64
    assert len(finished.artifacts) == 1
    (corpus,) = world.told("stage_finished", "corpus")
    assert corpus.artifacts == (), "a corpus does not go to the tracker"


def test_a_reused_stage_is_told_by_a_log_line_only(world: World) -> None:
    world.run(graph_of())
    world.run(graph_of())
    assert {event.type for event in world.events} == {"log"}
    assert len(world.events) == 8


def test_a_reused_stage_is_remembered_under_its_name(world: World) -> None:
    world.run(graph_of())
    world.store.refs.clear()
    world.run(graph_of())
    assert {stage for _, stage in world.store.refs} == set(STAGES)


def test_unselected_stages_are_neither_run_nor_remembered(world: World) -> None:
    outcomes = world.run(graph_of(), Selection(until=("clean",)))
    assert set(world.runner.ran) == {"corpus", "pets", "clean"}
    assert outcomes["report"].status == "skipped"
    assert outcomes["report"].error is None
    assert run_status(tuple(outcomes.values())) == "finished"


def test_a_selection_that_cannot_run_is_refused_before_anything_runs(world: World) -> None:
    with pytest.raises(SpecError, match="accuracy reads pets"):
        world.run(graph_of(), Selection(only=("accuracy", "pixels")))
    with pytest.raises(UsageError, match="--force names report"):
        world.run(graph_of(), Selection(until=("clean",), force=("report",)))
    assert world.runner.ran == []


def test_the_end_of_a_stage_names_the_curve_that_was_committed_with_it(world: World) -> None:
    def content(request: StageRequest) -> str:
        artifact = artifact_name(request.spec["kind"], request.key)
        (attempt,) = (world.root / "artifacts" / artifact / "attempts").iterdir()
        (attempt / "logs").mkdir()
        (attempt / "logs" / "metrics.jsonl").touch()
        return default_content(request)

    world.run(graph_of(), Selection(until=("corpus",)))
    (finished,) = world.told("stage_finished", "corpus")
    assert finished.metrics_path is None
    world.runner.content = content
    world.run(graph_of(), Selection(until=("pets",)))
    (finished,) = world.told("stage_finished", "pets")
    kept = world.store.path(world.store.refs["pets", "pets"]) / "logs" / "metrics.jsonl"
    assert finished.metrics_path == str(kept)


def test_a_name_given_to_a_model_that_is_made_already_is_said_not_to_be_registered(
    world: World,
) -> None:
    world.run(graph_of())
    world.run(graph_of("transfer.register_as=cats"))
    assert [event.message for event in world.told("log", "transfer")][1:] == [
        "transfer: is reused, so it is not registered as cats; --force transfer registers it"
    ]
    world.run(graph_of("transfer.register_as=null"))
    assert len(world.told("log", "transfer")) == 1


def test_the_tracker_gets_the_figures_of_a_corpus_and_all_of_anything_else(tmp_path: Path) -> None:
    assert _browsed("ingest", tmp_path) == ()
    for folder in ("figures", "logs/figures", "dataset"):
        (tmp_path / folder).mkdir(parents=True)
    figures = (str(tmp_path / "figures"), str(tmp_path / "logs" / "figures"))
    assert _browsed("append", tmp_path) == figures
    assert _browsed("evaluate", tmp_path) == (str(tmp_path),)
