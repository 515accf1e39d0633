"""Artifacts in a real store, a page about them, and an independent reader of both."""

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
from scipy import stats

from infra.storage import LocalStore, open_store
from schemas.artifacts import StageRecord
from schemas.report_page import Number, ReportDocument, Trace
from schemas.runs import InputArtifact
from tests.support.artifacts import stage_record
from tests.support.small_stage import SPEC


def stored(
    folder: Path,
    made: Sequence[InputArtifact],
    reads: Mapping[str, Mapping[str, str]],
    *,
    seconds: float = 1.5,
) -> list[InputArtifact]:
    """Commit artifacts to a store in `folder`; `reads` maps stages to ports and the stages read.

    `seconds` is what each took.
    """
    store = open_store(str(folder))
    found: dict[str, InputArtifact] = {}
    for number, it in enumerate(made):
        record = _record(it, number, reads.get(it.stage, {}), found).revise(seconds=seconds)
        found[it.stage] = _commit(store, it, record)
    return list(found.values())


def _record(
    made: InputArtifact,
    number: int,
    reads: Mapping[str, str],
    found: Mapping[str, InputArtifact],
) -> StageRecord:
    work = stage_record(number).key_record.revise(kind=made.kind)
    return stage_record(number).revise(
        stage=made.stage,
        key=work.key(),
        key_record=work,
        metrics=made.metrics,
        spec=SPEC.dump() if made.kind == "pretrain" else {"kind": made.kind},
        input_artifacts={port: found[stage].artifact for port, stage in reads.items()},
    )


def _commit(store: LocalStore, made: InputArtifact, record: StageRecord) -> InputArtifact:
    attempt = store.begin(made.kind, record.key)
    for path in sorted(Path(made.path).rglob("*")):
        if path.is_file():
            target = attempt.path / path.relative_to(made.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    result = store.commit(attempt, record, known_sha256={})
    return made.revise(artifact=result.artifact, digest=result.digest, path=str(store.path(result)))


def numbers_of(document: ReportDocument) -> Iterator[Number]:
    """Every number of a page, in no order."""
    for headline in document.headlines:
        yield from (headline.number, *headline.detail.numbers)
    for artifact in document.lineage:
        yield from artifact.figures
    for section in document.sections:
        for table in section.tables:
            for row in table.rows:
                for cell in row.cells:
                    yield from cell.numbers


def read_trace(trace: Trace, files: Mapping[str, Path]) -> Any:
    """What stands at a trace; `files` maps artifacts to the folders of their files."""
    folder = files[trace.artifact]
    path = folder.parent / trace.file if trace.file == "record.json" else folder / trace.file
    if trace.file.endswith(".jsonl"):
        key, _, step = trace.where.rpartition("@")
        points = [json.loads(line) for line in path.read_text().splitlines()]
        return [it["value"] for it in points if (it["key"], it["step"]) == (key, int(step))][-1]
    if trace.file.endswith(".arrow"):
        column, _, value = trace.where.partition("=")
        with pa.ipc.open_file(path) as reader:
            return reader.read_all()[column].to_pylist().count(value)
    found = json.loads(path.read_bytes())
    for part in trace.where.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found[int(name) if isinstance(found, list) else name]
    return found


def recomputed(number: Number, files: Mapping[str, Path]) -> float | None:
    """The number from the artifacts alone; None where it is an estimate of the cost model."""
    if number.how.startswith("estimate of "):
        return None
    if number.how == "step":
        return float(number.traces[0].where.rpartition("@")[2])
    values = [read_trace(it, files) for it in number.traces]
    if number.how.endswith("end of the t-interval"):
        return _t_end(values, number)
    return float(_HOW[number.how](values[0] if isinstance(values[0], list) else values))


def _gap(values: Sequence[float]) -> float:
    half = len(values) // 2
    return statistics.fmean(values[:half]) - statistics.fmean(values[half:])


_HOW: Mapping[str, Callable[[Any], float]] = {
    "": lambda values: values[0],
    "how many": len,
    "half of how many": lambda values: len(values) // 2,
    "sum": sum,
    "mean": statistics.fmean,
    "median": statistics.median,
    "mean of the first half less mean of the second": _gap,
}


def _t_end(values: Sequence[float], number: Number) -> float:
    half = len(values) // 2
    pairs = zip(values[:half], values[half:], strict=True) if number.unit == "points" else None
    sample = values if pairs is None else [first - second for first, second in pairs]
    interval = stats.ttest_1samp(sample, 0.0).confidence_interval(0.95)
    return float(interval.low if number.how.startswith("low") else interval.high)


@dataclass
class ShownNumber:
    """A number as the page shows it."""

    value: float
    text: str
    origin: str
    chips: list[str]
    """Addresses of the chips in the same row, card or figure."""


@dataclass
class PageReader(HTMLParser):
    """Reads the numbers and chips of a page, row by row."""

    numbers: list[ShownNumber] = field(default_factory=list)
    chips: dict[str, str] = field(default_factory=dict)
    """Address -> title."""
    anchors: set[str] = field(default_factory=set)
    loose: list[str] = field(default_factory=list)
    """Digits in a column of numbers that belong to no number."""

    def __post_init__(self) -> None:
        super().__init__()
        self._row: list[ShownNumber] = []
        self._row_chips: list[str] = []
        self._number: ShownNumber | None = None
        self._in_column = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag in ("tr", "li"):
            self._row, self._row_chips = [], []
        if given.get("class") in ("data", "model", "measure"):  # a box of the lineage
            self._row, self._row_chips = [], [given["href"].removeprefix("#")]
        if tag == "data":
            self._begin(given["value"], given["title"])
        if "data-value" in given:
            self._begin(given["data-value"], given["data-origin"])
        if given.get("class") == "chip":
            address = given["href"].removeprefix("#")
            self._row_chips.append(address)
            self.chips[address] = given["title"]
        if tag == "td":
            self._in_column = given.get("class") in ("number", "main")

    def _begin(self, value: str, origin: str) -> None:
        self._number = ShownNumber(float(value), "", origin, [])
        self._row.append(self._number)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("data", "tspan"):
            self._number = None
        if tag == "td":
            self._in_column = False
        if tag in ("tr", "li", "tspan"):
            for number in self._row:
                number.chips = list(self._row_chips)
            self.numbers += self._row
            self._row = []

    def handle_data(self, data: str) -> None:
        if self._number is not None:
            self._number.text += data
        elif self._in_column and re.search(r"\d", data):
            self.loose.append(data)
