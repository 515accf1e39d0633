"""Stages that change shard sets, in the graph: what they may read, and what runs again."""

from pathlib import Path

import pytest

from pipeline.cost import estimate
from schemas.errors import SpecError
from tests.support.dag import CURATED, REMOVED_UID, World, graph_of

CHANGED = ("corpus", "pets", "grown", "left", "clean", "pretrain")


@pytest.fixture
def made(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.run(graph_of(text=CURATED))
    return world


def actions(world: World, *overrides: str) -> list[str]:
    found = world.actions(graph_of(*overrides, text=CURATED))
    return [found[name] for name in CHANGED]


def test_a_second_run_does_nothing(made: World) -> None:
    assert set(made.actions(graph_of(text=CURATED)).values()) == {"reuse"}


def test_one_more_image_to_remove_does_not_touch_the_corpus(made: World) -> None:
    override = f"left.uids=['{REMOVED_UID}', '{'f' * 32}']"
    assert actions(made, override) == ["reuse", "reuse", "reuse", "run", "pending", "pending"]
    made.run(graph_of(override, text=CURATED))
    assert made.runner.ran[0] == "left"
    assert not {"corpus", "pets", "grown"} & set(made.runner.ran)


def test_new_images_run_the_append_and_what_reads_it(made: World) -> None:
    made.listing["/data/more"] = "another listing"
    assert actions(made) == ["reuse", "reuse", "run", "pending", "pending", "pending"]


def test_a_changed_corpus_runs_all_of_them(made: World) -> None:
    made.listing["/data/photos"] = "another listing"
    assert actions(made) == ["run", "reuse", "pending", "pending", "pending", "pending"]


def test_where_the_new_images_lie_is_not_keyed(made: World) -> None:
    made.listing["/elsewhere"] = "/data/more"
    assert set(actions(made, "grown.source.uri=/elsewhere")) == {"reuse"}


def test_every_reader_of_a_shard_set_takes_the_new_kinds() -> None:
    for reader in ("clean.against=[grown@train]", "transfer.data=left", "report.of=[grown, left]"):
        text = CURATED.replace("/data/more}", "/data/more, splits: {train: a, test: b}}")
        assert graph_of(reader, text=text)


def test_an_append_has_the_splits_of_both() -> None:
    split = "grown.source.splits={extra: e}"
    assert graph_of("clean.data=left@extra", split, text=CURATED)
    assert graph_of("clean.data=left@train", split, text=CURATED)
    with pytest.raises(SpecError, match=r"'left' has no split 'test'.*train, extra"):
        graph_of("clean.data=left@test", split, text=CURATED)


def test_a_removal_reads_whole_shard_sets_only() -> None:
    with pytest.raises(SpecError, match="'pretrain' is of kind pretrain"):
        graph_of("left.data=pretrain", text=CURATED)


@pytest.mark.parametrize("reference", ["left.data=grown@train", "grown.to=corpus@train"])
def test_a_split_cannot_be_named_where_the_whole_set_changes(reference: str) -> None:
    with pytest.raises(SpecError, match=r"the whole set; write (grown|corpus)"):
        graph_of(reference, text=CURATED)


def test_an_append_costs_what_its_own_source_takes() -> None:
    graph = graph_of(text=CURATED)
    sizes = {"/data/photos": 1000, "/data/more": 10}
    costs = {
        name: estimate(graph.node(name), graph, lambda source: sizes[source.uri])
        for name in ("corpus", "grown")
    }
    assert [costs[name]["disk_bytes"] for name in costs] == [2000, 20]
