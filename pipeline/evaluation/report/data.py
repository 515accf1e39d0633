"""Section `data`: the shard sets, what was refused and what was taken out."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.data.shards.quality import rejected_files
from pipeline.evaluation.report.cells import (
    amounts,
    computed,
    main,
    names,
    numbers,
    row,
    text,
    words,
)
from pipeline.evaluation.report.sources import Document, of_kinds
from pipeline.evaluation.report.words import in_words
from schemas.errors import IntegrityError
from schemas.manifest import (
    DATASET_FOLDER,
    MANIFEST_FILE,
    REJECTIONS_FILE,
    TOMBSTONES_FILE,
    ShardSetManifest,
)
from schemas.quality import QUALITY_FILE, QualityReport
from schemas.records import TOMBSTONES
from schemas.report import TEST_COPIES_FILE, TestCopiesReport
from schemas.report_page import Cell, Column, Number, Row, Section, ShownFigure, Table, Trace
from schemas.runs import InputArtifact
from schemas.stage import SHARD_SETS

MAX_MATCHES = 50
"""Removed images of one filter that a page lists."""
_MOST_CLASSES = 60
_MANIFEST = f"{DATASET_FOLDER}/{MANIFEST_FILE}"
_REJECTIONS = f"{DATASET_FOLDER}/{REJECTIONS_FILE}"
_TOMBSTONES = f"{DATASET_FOLDER}/{TOMBSTONES_FILE}"


def data_section(sources: Sequence[InputArtifact], drawn: Sequence[ShownFigure]) -> Section:
    """All tables; `drawn` are the figures of the stages."""
    sets = of_kinds(sources, *SHARD_SETS)
    built, cleaned = of_kinds(sets, "ingest", "append"), of_kinds(sets, "filter")
    return Section(
        name="data",
        title="Data",
        intro="What the models learned from and were measured on. Nothing is left out in silence: "
        "each refused file and each image that was taken out has a reason.",
        tables=(
            *_sets_table(sets),
            *_test_copies_table(cleaned),
            *_rejections_table(built),
            *_matches_table(cleaned),
            *(table for it in built for table in _classes_table(it)),
        ),
        figures=tuple(drawn),
    )


def _sets_table(sets: Sequence[InputArtifact]) -> tuple[Table, ...]:
    if not sets:
        return ()
    head = (
        *names("stage"),
        *words("kind"),
        *main("images"),
        *amounts("classes"),
        *words("refused", "taken out"),
        Column(title="manifest", kind="code"),
    )
    return (Table(title="Shard sets", columns=head, rows=tuple(map(_set_row, sets))),)


def _set_row(source: InputArtifact) -> Row:
    manifest = Document.read(source, _MANIFEST, ShardSetManifest)
    digest = hashlib.sha256((Path(source.path) / _MANIFEST).read_bytes()).hexdigest()
    classes = computed(
        len(manifest.at("class_names")), "count", [manifest.trace("class_names")], how="how many"
    )
    splits, refused = sorted(manifest.at("splits")), sorted(manifest.at("rejections"))
    return row(
        [
            text(source.stage),
            text(source.kind),
            numbers(
                *(manifest.number("splits", it, "rows", unit="count", label=it) for it in splits)
            ),
            numbers(classes),
            _or_none(
                manifest.number("rejections", it, unit="count", label=in_words(it))
                for it in refused
            ),
            _or_none(_removed(source)),
            text(digest[:12]),
        ],
        source.artifact,
    )


def _or_none(found: Iterable[Number]) -> Cell:
    shown = tuple(found)
    return numbers(*shown) if shown else text("none")


def _removed(source: InputArtifact) -> list[Number]:
    counts = Counter(_tombstones(source)["reason"].to_pylist())
    return [
        _rows_with(source, _TOMBSTONES, it, counts[it], label=in_words(it)) for it in sorted(counts)
    ]


def _rows_with(
    source: InputArtifact, file: str, reason: str, count: int, *, label: str = ""
) -> Number:
    trace = Trace(artifact=source.artifact, file=file, where=f"reason={reason}")
    return Number(value=count, unit="count", traces=(trace,), label=label)


def _test_copies_table(cleaned: Sequence[InputArtifact]) -> tuple[Table, ...]:
    rows = [found for it in cleaned for found in _test_copies_rows(it)]
    if not rows:
        return ()
    head = (
        *names("filter", "test split"),
        *main("its images with a copy in the data"),
        *amounts("of", "taken out of the data"),
    )
    return (
        Table(
            title="Copies of test images",
            note="Test splits are never changed. An image that repeats images of several of them "
            "counts in each.",
            columns=head,
            rows=tuple(rows),
        ),
    )


def _test_copies_rows(source: InputArtifact) -> list[Row]:
    report = Document.read(source, TEST_COPIES_FILE, TestCopiesReport)
    return [
        row(
            [
                text(source.stage),
                text(found["test_set"]),
                *(
                    numbers(report.number("tests", place, name, unit="count"))
                    for name in ("found", "images", "removed")
                ),
            ]
        )
        for place, found in enumerate(report.at("tests"))
    ]


def _rejections_table(built: Sequence[InputArtifact]) -> tuple[Table, ...]:
    rows = [found for it in built for found in _rejection_rows(it)]
    if not rows:
        return ()
    return (
        Table(
            title="Files that were refused, by reason",
            note="The first few of each reason; all are in the stage's dataset/rejections.arrow.",
            columns=(*names("stage"), *words("reason"), *amounts("files"), *names("such as")),
            rows=tuple(rows),
            folded=True,
        ),
    )


def _rejection_rows(source: InputArtifact) -> list[Row]:
    """Most files first."""
    path = Path(source.path) / _REJECTIONS
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    with pa.memory_map(str(path)) as file:
        found = rejected_files(pa.ipc.open_file(file).read_all())
    return [
        row(
            [
                text(source.stage),
                text(in_words(it.reason)),
                numbers(_rows_with(source, _REJECTIONS, it.reason, it.files)),
                text("; ".join(it.examples)),
            ]
        )
        for it in found
    ]


def _matches_table(cleaned: Sequence[InputArtifact]) -> tuple[Table, ...]:
    """The first images that filters took out as copies, each with the image that it copies."""
    rows = [found for it in cleaned for found in _match_rows(it)]
    if not rows:
        return ()
    return (
        Table(
            title="Images taken out, and the images that they copy",
            note=f"At most {MAX_MATCHES} of a filter; all are in its dataset/tombstones.arrow.",
            columns=(
                *names("filter", "image"),
                *words("reason"),
                *names("copy of"),
                *words("in"),
            ),
            rows=tuple(rows),
            folded=True,
        ),
    )


def _match_rows(source: InputArtifact) -> list[Row]:
    copies = _tombstones(source)
    first = copies.filter(copies["matched_source"].is_valid()).slice(0, MAX_MATCHES)
    return [
        row(
            [
                text(source.stage),
                text(it["source"]),
                text(in_words(it["reason"])),
                text(it["matched_source"]),
                text(it["matched_set"]),
            ],
            source.artifact,
        )
        for it in first.to_pylist()
    ]


def _classes_table(source: InputArtifact) -> tuple[Table, ...]:
    """Images of each class, most first; corpora that were never measured have none."""
    if not (Path(source.path) / QUALITY_FILE).is_file():
        return ()
    report = Document.read(source, QUALITY_FILE, QualityReport)
    classes, splits = report.at("class_names"), report.at("splits")
    totals = [sum(it["images_of_class"][place] for it in splits) for place in range(len(classes))]
    order = sorted(range(len(classes)), key=lambda place: (-totals[place], classes[place]))
    return (
        Table(
            title=f"{source.stage}: images of each class",
            note=f"The largest {_MOST_CLASSES} of {len(classes):,}."
            if len(classes) > _MOST_CLASSES
            else "",
            columns=(*names("class"), *amounts(*(it["split"] for it in splits))),
            rows=tuple(
                row(
                    [
                        text(classes[place]),
                        *(
                            numbers(
                                report.number(
                                    "splits", split, "images_of_class", place, unit="count"
                                )
                            )
                            for split in range(len(splits))
                        ),
                    ]
                )
                for place in order[:_MOST_CLASSES]
            ),
            folded=True,
        ),
    )


def _tombstones(source: InputArtifact) -> pa.Table:
    """The removed rows of a shard set; a set that nothing was taken from has no such file."""
    path = Path(source.path) / _TOMBSTONES
    if not path.exists():
        return TOMBSTONES.empty_table()
    with pa.ipc.open_file(path) as reader:
        return reader.read_all()
