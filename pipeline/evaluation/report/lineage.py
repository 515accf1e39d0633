"""The picture of what was made from what: boxes and lines in pixels; a template draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pipeline.evaluation.figures import short
from pipeline.evaluation.report.known_by import known_by
from pipeline.evaluation.report.layout import Layout, Place, lay_out
from pipeline.evaluation.report.sources import Made, metrics_of, record_of
from pipeline.evaluation.study import split_name
from schemas.report_page import Number, PageArtifact
from schemas.runs import InputArtifact
from schemas.stage import SHARD_SETS

WIDTH, HEIGHT = 168, 62
"""Of a box."""
_BESIDE, _BETWEEN = 20, 44
"""From box to box along a layer, and from layer to layer."""
_BORDER = 6
_NAME_CHARS, _WHAT_CHARS = 19, 13
_MOST_BOXES = 40
"""Beyond, the variants of a stage share a box."""
_NARROW = 1000
"""A picture that runs downwards is preferred up to this width."""

Family = Literal["data", "model", "measure"]


@dataclass(frozen=True)
class Box:
    """One artifact, or the variants of one stage."""

    x: float
    y: float
    name: str
    title: str
    """The whole name, and what else does not fit."""
    below: str
    family: Family
    artifact: PageArtifact
    """The first, where there are several."""
    numbers: tuple[Number, ...]


@dataclass(frozen=True)
class Line:
    """From what was read to what read it."""

    path: str
    """In the words of SVG."""
    family: Family
    """Of what was read."""


@dataclass(frozen=True)
class Picture:
    """All of it."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def lineage(sources: Sequence[InputArtifact], made: Sequence[Made]) -> tuple[PageArtifact, ...]:
    """Every artifact once, each after all that it reads; those without a record come last."""
    given = {it.artifact: it for it in sources}
    known = tuple(_recorded(it, given.get(it.artifact)) for it in made)
    told = {it.artifact for it in known}
    bare = tuple(_bare(it) for name, it in given.items() if name not in told)
    return known + bare


def picture(artifacts: Sequence[PageArtifact]) -> Picture:
    """Boxes and lines; downwards where that is narrow enough, else to the right."""
    groups = _groups(artifacts)
    layout = lay_out(_reads(groups))
    downwards = _is_narrow(layout)
    boxes = tuple(_box(groups[it], place, downwards) for it, place in layout.nodes.items())
    lines = tuple(
        Line(_path(places, downwards), _family(groups[source][0].kind))
        for (source, _), places in layout.lines.items()
    )
    passed = [place for places in layout.lines.values() for place in places]
    corners = [_corner(it, downwards) for it in (*layout.nodes.values(), *passed)]
    return Picture(
        width=max((x for x, _ in corners), default=0) + WIDTH + _BORDER,
        height=max((y for _, y in corners), default=0) + HEIGHT + _BORDER,
        boxes=boxes,
        lines=lines,
    )


def _recorded(made: Made, given: InputArtifact | None) -> PageArtifact:
    kind = made.record.key_record.kind
    return PageArtifact(
        artifact=made.artifact,
        stage=made.record.stage if given is None else given.stage,
        kind=kind,
        digest=made.digest,
        reads=made.record.input_artifacts,
        figures=known_by(kind, record_of(made)),
    )


def _bare(given: InputArtifact) -> PageArtifact:
    return PageArtifact(
        artifact=given.artifact,
        stage=given.stage,
        kind=given.kind,
        digest=given.digest,
        figures=known_by(given.kind, metrics_of(given)),
    )


def _groups(artifacts: Sequence[PageArtifact]) -> dict[str, list[PageArtifact]]:
    """Box -> its artifacts."""
    apart = len(artifacts) <= _MOST_BOXES
    found: dict[str, list[PageArtifact]] = {}
    for it in artifacts:
        found.setdefault(it.artifact if apart else split_name(it.stage).stage, []).append(it)
    return found


def _reads(groups: Mapping[str, Sequence[PageArtifact]]) -> dict[str, list[str]]:
    """Box -> the boxes it reads; in an order in which each comes after those."""
    box_of = {it.artifact: name for name, its in groups.items() for it in its}
    reads = {
        name: sorted({box_of[read] for it in its for read in it.reads.values() if read in box_of})
        for name, its in groups.items()
    }
    ordered: dict[str, list[str]] = {}
    while len(ordered) < len(reads):
        ready = [it for it in reads if it not in ordered and set(reads[it]) <= set(ordered)]
        assert ready, "artifacts are made from older ones alone"  # noqa: S101
        ordered |= {it: reads[it] for it in ready}
    return ordered


def _is_narrow(layout: Layout) -> bool:
    down = layout.breadth * (WIDTH + _BESIDE)
    return down <= max(_NARROW, layout.num_layers * (WIDTH + _BETWEEN))


def _box(its: Sequence[PageArtifact], place: Place, downwards: bool) -> Box:  # noqa: FBT001
    x, y = _corner(place, downwards)
    first, shared = its[0], len(its) > 1
    stage, variant = split_name(first.stage)
    what = short(_what(first.kind, variant, shared=shared), _WHAT_CHARS)
    below = f"{len(its)} variants" if shared else first.digest[:12]
    return Box(
        x=x,
        y=y,
        name=short(stage, _NAME_CHARS),
        title=f"{stage if shared else first.stage}, {first.kind}, {first.artifact}",
        below=f"{what} \N{MIDDLE DOT} {below}",
        family=_family(first.kind),
        artifact=first,
        numbers=() if shared else first.figures,
    )


def _what(kind: str, variant: str | None, *, shared: bool) -> str:
    """Variants of a stage are of one kind: what tells them apart is said instead."""
    return kind if variant is None or shared else variant


def _corner(place: Place, downwards: bool) -> tuple[float, float]:  # noqa: FBT001
    layer, at = place
    if downwards:
        x, y = (at - 0.5) * (WIDTH + _BESIDE), float(layer * (HEIGHT + _BETWEEN))
    else:
        x, y = float(layer * (WIDTH + _BETWEEN)), (at - 0.5) * (HEIGHT + _BESIDE)
    return round(x + _BORDER, 1), round(y + _BORDER, 1)


def _path(places: Sequence[Place], downwards: bool) -> str:  # noqa: FBT001
    """From the far side of the first box through the places of the line to the near side."""
    corners = [_corner(it, downwards) for it in places]
    half = (WIDTH / 2, HEIGHT / 2)
    points: list[tuple[float, float]] = []
    for index, (x, y) in enumerate(corners):
        near = (x + half[0], y) if downwards else (x, y + half[1])
        far = (x + half[0], y + HEIGHT) if downwards else (x + WIDTH, y + half[1])
        points += [near] * (index > 0) + [far] * (index < len(corners) - 1)
    start, *rest = points
    words = [f"M{start[0]:g} {start[1]:g}"]
    for (x0, y0), (x1, y1) in pairwise([start, *rest]):
        bend = (y1 - y0) / 2 if downwards else (x1 - x0) / 2
        first, second = (
            ((x0, y0 + bend), (x1, y1 - bend)) if downwards else ((x0 + bend, y0), (x1 - bend, y1))
        )
        words.append(f"C{first[0]:g} {first[1]:g} {second[0]:g} {second[1]:g} {x1:g} {y1:g}")
    return " ".join(words)


def _family(kind: str) -> Family:
    if kind in SHARD_SETS:
        return "data"
    return "model" if kind in ("import", "pretrain", "finetune") else "measure"
