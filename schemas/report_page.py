"""`report.json`: what a report page shows, for programs; each number says where it was read."""

from typing import Literal

from pydantic import Field

from schemas.spec import Semantic, Spec

Unit = Literal[
    "count", "ratio", "points", "loss", "plain", "seconds", "bytes", "flops", "per_second"
]
"""How a number is shown: `ratio` in per cent, `points` as a difference of two ratios in percentage
points, `loss` with four decimals, `plain` with four digits."""

RECORD_FILE = "record.json"
"""A trace to it means the record of the artifact, which lies beside its files."""


class Trace(Spec):
    """Where a number stands in an artifact."""

    artifact: Semantic[str]
    file: Semantic[str]
    """Path among the artifact's files, or `RECORD_FILE`."""
    where: Semantic[str]
    """A JSON pointer; of a `.jsonl` log `KEY@STEP`; of an `.arrow` table `COLUMN=VALUE`, which
    counts its rows."""


class Number(Spec):
    """One number of a page."""

    value: Semantic[int | float]
    unit: Semantic[Unit]
    traces: Semantic[tuple[Trace, ...]] = Field(min_length=1)
    how: Semantic[str] = ""
    """What was computed of the traced numbers; empty where it is the traced number itself."""
    label: Semantic[str] = ""
    """A word that stands before it."""


class Cell(Spec):
    """Text, or numbers."""

    text: Semantic[str] = ""
    numbers: Semantic[tuple[Number, ...]] = ()
    between: Semantic[str] = ", "
    """What stands between two numbers."""


class Row(Spec):
    """One line of a table and the artifacts that its numbers come from."""

    cells: Semantic[tuple[Cell, ...]]
    artifacts: Semantic[tuple[str, ...]] = Field(min_length=1)
    marked: Semantic[bool] = False
    """Whether it stands out, such as the winner of a search."""


class Column(Spec):
    """The head of a column."""

    title: Semantic[str]
    kind: Semantic[Literal["text", "name", "code", "number", "main"]] = "text"
    """`name` may break anywhere, `code` is for digests and versions; numbers stand on the right,
    and `main` is what the table is about."""


class Table(Spec):
    """Rows under a title."""

    title: Semantic[str]
    note: Semantic[str] = ""
    """Sentences that say how to read it."""
    columns: Semantic[tuple[Column, ...]]
    rows: Semantic[tuple[Row, ...]]
    folded: Semantic[bool] = False
    """Whether a page shows its title alone until somebody asks for more."""


class ShownFigure(Spec):
    """A picture on a page."""

    file: Semantic[str]
    """Name in the report's folder of figures."""
    title: Semantic[str]
    caption: Semantic[str] = ""
    artifacts: Semantic[tuple[str, ...]] = Field(min_length=1)
    """What it was drawn from."""
    folded: Semantic[bool] = False


class Block(Spec):
    """Text that somebody copies: commands, a file."""

    title: Semantic[str]
    text: Semantic[str]
    folded: Semantic[bool] = False


class Section(Spec):
    """A part of a page, with an entry in its table of contents."""

    name: Semantic[str]
    """The last part of its address."""
    title: Semantic[str]
    intro: Semantic[str] = ""
    tables: Semantic[tuple[Table, ...]] = ()
    figures: Semantic[tuple[ShownFigure, ...]] = ()
    blocks: Semantic[tuple[Block, ...]] = ()
    from_records: Semantic[bool] = False
    """Whether it tells how the artifacts were made: equal artifacts may differ in it."""


class Headline(Spec):
    """A figure at the top of a page."""

    title: Semantic[str]
    number: Semantic[Number]
    measure: Semantic[str]
    """What the number is, and what the detail is of it."""
    detail: Semantic[Cell]


class Note(Spec):
    """A sentence that a reader must not miss."""

    text: Semantic[str]
    artifacts: Semantic[tuple[str, ...]] = Field(min_length=1)


class PageArtifact(Spec):
    """An artifact that a page rests on: given to the report, or an ancestor of one that was."""

    artifact: Semantic[str]
    """`<kind>-<key12>`."""
    stage: Semantic[str]
    """As the experiment of the report calls it; of an ancestor, as it was called when made."""
    kind: Semantic[str]
    digest: Semantic[str]
    """Of its content."""
    reads: Semantic[dict[str, str]] = {}
    """Port -> artifact."""
    figures: Semantic[tuple[Number, ...]] = ()
    """What it is known by, at most two."""


class ReportDocument(Spec):
    """What the page shows, in the order of the page."""

    schema_version: Semantic[Literal[2]] = 2
    title: Semantic[str]
    experiment: Semantic[str]
    headlines: Semantic[tuple[Headline, ...]]
    notes: Semantic[tuple[Note, ...]]
    lineage: Semantic[tuple[PageArtifact, ...]]
    """Each after all that it reads."""
    sections: Semantic[tuple[Section, ...]]
