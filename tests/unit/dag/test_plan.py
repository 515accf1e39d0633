from pathlib import Path

import pytest

from pipeline.dag.plan import Facts, Planned, plan
from pipeline.dag.selection import Selection, choose
from schemas.errors import SpecError, UsageError
from schemas.runs import Change
from tests.support.dag import STAGES, TEXT, World, graph_of


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def made(world: World) -> World:
    world.run(graph_of())
    return world


def said(world: World, stage: str, *overrides: str, selection: Selection | None = None) -> Planned:
    planned = world.plan(graph_of(*overrides), selection)
    return next(entry for entry in planned if entry.node.name == stage)


def test_at_first_the_sources_run_and_all_else_waits(world: World) -> None:
    actions = world.actions(graph_of())
    assert [name for name in STAGES if actions[name] == "run"] == ["corpus", "pets"]
    assert set(actions.values()) == {"run", "pending"}
    assert said(world, "corpus").decision.reason == "never made"
    assert said(world, "clean").decision.reason == "depends on corpus and pets, which run first"
    assert said(world, "report").decision.key is None


def test_planning_changes_nothing(made: World) -> None:
    before = (dict(made.store.results), dict(made.store.refs), list(made.store.discarded))
    made.plan(graph_of("seed=3"), Selection(force=("corpus",)))
    assert before == (made.store.results, made.store.refs, made.store.discarded)


def test_the_plan_names_the_first_changed_stage_and_its_field(made: World) -> None:
    graph = graph_of("pretrain.optim.peak_lr=3e-4")
    assert made.actions(graph) == {
        **dict.fromkeys(("corpus", "pets", "clean", "pixels"), "reuse"),
        "pretrain": "run",
        **dict.fromkeys(("transfer", "accuracy", "report"), "pending"),
    }
    decision = said(made, "pretrain", "pretrain.optim.peak_lr=3e-4").decision
    assert decision.changes == (Change(field="optim.peak_lr", before=1e-3, after=3e-4),)
    assert decision.reason == "changed: optim.peak_lr 0.001 -> 0.0003"
    assert decision.estimate == {"last_seconds": 1.5}


def test_a_waiting_stage_tells_its_own_changes_already(made: World) -> None:
    decision = said(made, "transfer", "seed=18").decision
    assert decision.action == "pending"
    assert [change.field for change in decision.changes] == ["seed"]
    assert decision.reason == "depends on pretrain, which runs first; changed: seed 17 -> 18"
    assert said(made, "accuracy", "seed=18").decision.changes == ()


def test_a_waiting_stage_tells_an_input_that_it_did_not_have(made: World) -> None:
    decision = said(made, "clean", "clean.against=[pets@test, pets@train]", "pets.image.quality=80")
    (change,) = decision.decision.changes
    assert (change.field, change.before) == ("inputs.against[1]", None)
    assert change.after == "pets=what pets makes@train"


def test_many_changes_are_counted(made: World) -> None:
    overrides = [f"corpus.image.{name}=50" for name in ("quality", "max_side_px", "min_side_px")]
    reason = said(made, "corpus", *overrides, "corpus.shuffle_seed=4").decision.reason
    assert reason.endswith("and 1 more")


def test_changed_versions_and_sources_are_reasons(made: World) -> None:
    made.provenance.versions["torch"] = "9.9"
    made.listing["/data/photos"] = "another listing"
    changed = said(made, "pretrain").decision.changes
    assert changed == (Change(field="libraries.torch", before="1.0", after="9.9"),)
    # torch resizes at ingest: its version shapes stored bytes, too.
    assert said(made, "corpus").decision.changes == (
        Change(field="inputs.source", before="/data/photos", after="another listing"),
        Change(field="libraries.torch", before="1.0", after="9.9"),
    )


def test_another_kind_under_the_same_name_is_one_change(made: World) -> None:
    text = TEXT.replace(
        "pixels: {kind: baseline, data: pets, image_px: 8}",
        "pixels: {kind: evaluate, data: pets@train, model: transfer}",
    )
    planned = made.plan(graph_of(text=text))
    (decision,) = [entry.decision for entry in planned if entry.node.name == "pixels"]
    assert decision.changes == (Change(field="kind", before="baseline", after="evaluate"),)


def test_execution_fields_and_names_change_nothing(made: World) -> None:
    graph = graph_of(
        "pretrain.resources.workers=2",
        "pretrain.resources.zero_stage=3",
        "pretrain.checkpoint.every_steps=7",
        "accuracy.batch_samples=3",
        "transfer.register_as=other",
    )
    assert set(made.actions(graph).values()) == {"reuse"}


def test_the_uri_of_a_source_is_not_its_identity(made: World) -> None:
    made.listing["/moved"] = "/data/photos"
    assert made.actions(graph_of("corpus.source.uri=/moved"))["corpus"] == "reuse"


def test_a_damaged_artifact_runs_again_and_says_why(made: World) -> None:
    result = made.store.refs["pets", "pretrain"]
    (made.store.path(result) / "content.txt").write_text("x")
    planned = said(made, "pretrain")
    assert planned.decision.action == "run"
    assert planned.decision.reason == "its artifact is damaged: content.txt was changed"
    assert planned.stale == result


def test_an_artifact_that_was_taken_away_runs_again(made: World) -> None:
    made.store.discard(made.store.refs["pets", "pretrain"], "by hand")
    assert said(made, "pretrain").decision.reason == "its artifact is gone from the store"


def test_an_unreadable_record_costs_explanations_only(made: World) -> None:
    made.store.records.clear()
    assert set(made.actions(graph_of()).values()) == {"reuse"}
    assert said(made, "pretrain", "pretrain.optim.peak_lr=1").decision.reason == "never made"


def test_changed_code_is_told_and_reused(made: World) -> None:
    made.provenance.code_files["pipeline/x.py"] = "1" * 64
    decision = said(made, "pretrain").decision
    assert decision.action == "reuse"
    assert decision.code_changed == ("pipeline/x.py",)
    assert decision.reason == "nothing that shapes it changed"


def test_files_that_came_or_went_are_changed_code(made: World) -> None:
    del made.provenance.code_files["pipeline/x.py"]
    made.provenance.code_files["pipeline/new.py"] = "2" * 64
    assert said(made, "pretrain").decision.code_changed == ("pipeline/new.py", "pipeline/x.py")


def test_code_that_another_kind_uses_is_not_told(made: World) -> None:
    made.provenance.own_code["evaluate"] = {"pipeline/figures.py": "3" * 64}
    told = {entry.node.name: entry.decision.code_changed for entry in made.plan(graph_of())}
    assert told.pop("accuracy") == ("pipeline/figures.py",)
    assert set(told.values()) == {()}


def test_force_runs_what_is_made(made: World) -> None:
    planned = said(made, "pretrain", selection=Selection(force=("pretrain",)))
    assert (planned.decision.action, planned.decision.reason) == ("run", "forced by the user")
    assert planned.stale is not None


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(), set(STAGES)),
        (Selection(only=("transfer", "pixels")), {"transfer", "pixels"}),
        (Selection(from_=("transfer",)), {"transfer", "accuracy", "report"}),
        (Selection(until=("clean",)), {"corpus", "pets", "clean"}),
        (Selection(from_=("pretrain",), until=("accuracy",)), {"pretrain", "transfer", "accuracy"}),
    ],
)
def test_a_selection_means_these_stages(selection: Selection, chosen: set[str]) -> None:
    assert choose(graph_of(), selection).names == chosen


def test_unselected_stages_are_skipped(made: World) -> None:
    actions = made.actions(graph_of("pretrain.optim.peak_lr=1"), Selection(only=("pixels",)))
    assert actions.pop("pixels") == "reuse"
    assert set(actions.values()) == {"skip"}


def test_what_no_selected_stage_needs_is_not_even_listed(made: World) -> None:
    asked = []
    facts = Facts(
        store=made.store,
        experiment="pets",
        file="run.yaml",
        libraries=made.provenance.library_versions,
        fingerprint=lambda source: asked.append(source.uri) or source.uri,
        code_files=made.provenance.code_files_of,
    )
    plan(graph_of(), facts, selection=Selection(only=("pixels",)))
    assert asked == ["/data/pets"]


def test_a_missing_upstream_is_named_with_the_command_that_makes_it(world: World) -> None:
    with pytest.raises(SpecError) as refused:
        world.plan(graph_of(), Selection(only=("transfer",)))
    assert "transfer reads pets, which is not selected and not made yet" in refused.value.what
    assert refused.value.hint == "vitrail run run.yaml --until pets"


def test_a_damaged_upstream_that_is_not_selected_is_named(made: World) -> None:
    result = made.store.refs["pets", "pets"]
    (made.store.path(result) / "content.txt").unlink()
    with pytest.raises(SpecError, match=r"not made yet \(its artifact is damaged"):
        made.plan(graph_of("pixels.image_px=4"), Selection(only=("pixels",)))


@pytest.mark.parametrize("option", ["only", "from_", "until", "force"])
def test_a_word_that_names_no_stage_is_refused_with_the_nearest(option: str, world: World) -> None:
    with pytest.raises(SpecError, match="did you mean 'pretrain'"):
        world.plan(graph_of(), Selection(**{option: ("pretrian",)}))


def test_options_that_contradict_each_other_are_refused(world: World) -> None:
    with pytest.raises(UsageError, match="--only excludes"):
        world.plan(graph_of(), Selection(only=("pets",), until=("pets",)))


def test_the_name_of_a_stage_selects_all_its_variants(world: World) -> None:
    graph = graph_of("matrix={seed: [1, 2]}")
    assert choose(graph, Selection(only=("pixels",))).names == {"pixels[seed=1]", "pixels[seed=2]"}
    one = choose(graph, Selection(only=("pixels[seed=1]",)))
    assert one.names == {"pixels[seed=1]"}


def test_a_shared_stage_of_a_matrix_is_reused_between_experiments(made: World) -> None:
    actions = made.actions(graph_of("matrix={seed: [17, 18]}"))
    assert actions["corpus"] == "reuse"
    assert actions["pretrain[seed=17]"] == "reuse", "the same work as before the matrix"
    assert actions["pretrain[seed=18]"] == "run"


def test_a_reason_names_three_stages_that_come_first_and_counts_the_rest(world: World) -> None:
    planned = world.plan(graph_of("matrix={pixels.image_px: [1, 2, 3, 4]}"))
    assert planned[-1].decision.reason == (
        "depends on accuracy, pixels[pixels.image_px=1], pixels[pixels.image_px=2] and 2 more, "
        "which run first"
    )
