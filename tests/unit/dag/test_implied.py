"""A probe of data and model, without a stage of features."""

from pathlib import Path

import pytest

from pipeline.dag.graph import Graph
from pipeline.dag.selection import Selection
from schemas.errors import SpecError
from schemas.stage import StageRef
from tests.support.dag import TEXT, World, graph_of

PROBE = "  fewshot: {kind: probe, data: pets, model: pretrain, shots: [1, 5]}\n"
WRITTEN = (
    "  features: {kind: features, data: pets, model: pretrain}\n"
    "  probe: {kind: probe, features: features, shots: [1, 5]}\n"
)


def with_lines(lines: str, *overrides: str) -> Graph:
    return graph_of(*overrides, text=TEXT.replace("profiles:", lines + "profiles:"))


def test_a_probe_of_data_and_model_reads_a_stage_of_features_of_both() -> None:
    graph = with_lines(PROBE)
    assert graph.node("fewshot").inputs == {"features": StageRef("fewshot-features", "test")}
    assert graph.node("fewshot-features").inputs == {
        "data": StageRef("pets", None),
        "model": StageRef("pretrain", None),
    }


def test_both_ways_of_writing_are_one_piece_of_work(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(with_lines(PROBE))
    assert set(world.actions(with_lines(WRITTEN)).values()) == {"reuse"}


def test_probes_of_the_same_share_one_stage() -> None:
    graph = with_lines(PROBE + PROBE.replace("fewshot", "other").replace("pets", "pets@train"))
    assert graph.node("other").inputs == {"features": StageRef("fewshot-features", "train")}
    assert [node.name for node in graph.nodes if node.kind == "features"] == ["fewshot-features"]


def test_each_variant_has_features_of_its_own() -> None:
    graph = with_lines(PROBE, "matrix={pretrain.model.pool: [cls, gap]}")
    found = [node for node in graph.nodes if node.kind == "features"]
    assert [node.base_name for node in found] == ["fewshot-features"] * 2
    for pool in ("cls", "gap"):
        variant = f"[pretrain.model.pool={pool}]"
        assert graph.node(f"fewshot{variant}").reads == (f"fewshot-features{variant}",)
        assert f"pretrain{variant}" in graph.node(f"fewshot-features{variant}").reads


def test_an_implied_stage_can_be_chosen_by_its_name(tmp_path: Path) -> None:
    actions = World(tmp_path).actions(with_lines(PROBE), Selection(until=("fewshot-features",)))
    assert actions["fewshot-features"] == "pending"
    assert actions["fewshot"] == "skip"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            PROBE + "  fewshot-features: {kind: features, data: pets, model: transfer}\n",
            "implies a stage 'fewshot-features'",
        ),
        ("  fewshot: {kind: probe, data: pets}\n", "reads either features"),
        ("  fewshot: {kind: probe, features: f, model: pretrain}\n", "reads either features"),
        (PROBE.replace("[1, 5]", "[5, 5]"), "shots lists something twice"),
        (PROBE.replace("[1, 5]", "[0]"), "shots has a number below 1"),
        (PROBE.replace("pets", "pets@val"), "'fewshot-features' has no split 'val'"),
        (WRITTEN.replace("features: features,", "features: features@tset,"), "did you mean 'test'"),
        (WRITTEN.replace("data: pets", "data: pets@test"), "reads the whole set; write pets"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(lines: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        with_lines(lines)
