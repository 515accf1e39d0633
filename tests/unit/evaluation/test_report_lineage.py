import re
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.report.html import lineage_svg
from pipeline.evaluation.report.layout import lay_out
from pipeline.evaluation.report.lineage import HEIGHT, WIDTH, picture
from schemas.report_page import PageArtifact

CHAIN = {"corpus": [], "clean": ["corpus"], "model": ["clean"], "score": ["corpus", "model"]}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    size = draw(st.integers(1, 24))
    return {
        f"s{node}": [f"s{it}" for it in sorted(draw(st.sets(st.integers(0, node - 1), max_size=3)))]
        if node
        else []
        for node in range(size)
    }


def artifacts(reads: Mapping[str, Sequence[str]]) -> list[PageArtifact]:
    return [
        PageArtifact(
            artifact=f"evaluate-{name}",
            stage=name,
            kind="ingest" if not sources else "evaluate",
            digest="0" * 64,
            reads={f"of[{port}]": f"evaluate-{it}" for port, it in enumerate(sources)},
        )
        for name, sources in reads.items()
    ]


def test_a_stage_stands_one_layer_below_the_deepest_that_it_reads() -> None:
    layers = {name: layer for name, (layer, _) in lay_out(CHAIN).nodes.items()}
    assert layers == {"corpus": 0, "clean": 1, "model": 2, "score": 3}


def test_a_long_line_has_a_place_in_each_layer_that_it_passes() -> None:
    layout = lay_out(CHAIN)
    passed = layout.lines["corpus", "score"]
    assert [layer for layer, _ in passed] == [0, 1, 2, 3]
    for layer, place in passed[1:-1]:
        others = [at for name, (its, at) in layout.nodes.items() if its == layer]
        assert all(abs(place - at) >= 0.65 - 1e-9 for at in others), "it passes beside the boxes"


def test_lines_that_need_not_cross_do_not() -> None:
    twisted = {"a": [], "b": [], "of-b": ["b"], "of-a": ["a"]}
    at = {name: place for name, (_, place) in lay_out(twisted).nodes.items()}
    assert (at["a"] < at["b"]) == (at["of-a"] < at["of-b"])


@given(graphs())
def test_boxes_never_overlap_and_lines_go_from_box_to_box(reads: dict[str, list[str]]) -> None:
    drawn = picture(artifacts(reads))
    for first, second in combinations(drawn.boxes, 2):
        apart = abs(first.x - second.x) >= WIDTH or abs(first.y - second.y) >= HEIGHT
        assert apart, (first.name, second.name)
    assert all(0 <= it.x <= drawn.width - WIDTH for it in drawn.boxes)
    assert all(0 <= it.y <= drawn.height - HEIGHT for it in drawn.boxes)
    assert len(drawn.lines) == sum(map(len, reads.values()))
    for line in drawn.lines:
        places = [float(it) for it in re.findall(r"-?[\d.]+", line.path)]
        assert max(places[::2]) <= drawn.width
        assert min(places) >= 0


@given(graphs())
def test_every_stage_stands_below_what_it_reads(reads: dict[str, list[str]]) -> None:
    layout = lay_out(reads)
    for (source, node), places in layout.lines.items():
        assert layout.nodes[source][0] < layout.nodes[node][0]
        assert all(after == before + 1 for (before, _), (after, _) in pairwise(places))


def test_a_study_of_many_variants_shares_boxes() -> None:
    reads: dict[str, list[str]] = {"corpus": []}
    for seed in range(25):
        reads[f"model[seed={seed}]"] = ["corpus"]
        reads[f"score[seed={seed}]"] = ["corpus", f"model[seed={seed}]"]
    drawn = picture(artifacts(reads))
    assert [(box.name, box.below) for box in drawn.boxes] == [
        ("corpus", "ingest \N{MIDDLE DOT} 000000000000"),
        ("model", "evaluate \N{MIDDLE DOT} 25 variants"),
        ("score", "evaluate \N{MIDDLE DOT} 25 variants"),
    ]
    assert len(drawn.lines) == 3


def test_a_chain_runs_downwards_and_a_broad_study_to_the_right() -> None:
    chain = picture(artifacts({"a": [], "b": ["a"], "c": ["b"]}))
    assert [box.x for box in chain.boxes] == [chain.boxes[0].x] * 3
    broad = picture(artifacts({"a": [], **{f"m{it}": ["a"] for it in range(9)}}))
    assert {box.x for box in broad.boxes[1:]} == {broad.boxes[1].x}


def test_names_of_users_are_escaped_in_the_picture() -> None:
    text = lineage_svg(picture(artifacts({"<b>&": []})))
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text
