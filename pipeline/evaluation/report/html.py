"""The page as one HTML file without scripts and without links to anything outside."""

import base64
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.evaluation.report.lineage import HEIGHT, WIDTH, Picture, picture
from pipeline.evaluation.report.words import number_text
from schemas.report_page import Headline, Number, ReportDocument

_PAGE, _LINEAGE = "page.html.j2", "lineage.svg.j2"
_INCLUDED = ("parts.html.j2", "style.css.j2")
"""Named here so that the code of a report is known to rest on them."""
_FIGURE_SCALE = 1.5
"""Pixels of a figure for each pixel of a page: figures are drawn at 144 dots an inch."""


@dataclass(frozen=True)
class Image:
    """A PNG file as part of a page."""

    address: str
    width: int
    height: int

    @classmethod
    def read(cls, path: Path) -> "Image":
        """The file itself as an address, and its size on the page."""
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of the header chunk
        return cls(
            address="data:image/png;base64," + base64.b64encode(content).decode(),
            width=round(width / _FIGURE_SCALE),
            height=round(height / _FIGURE_SCALE),
        )


def page(document: ReportDocument, figures: Path) -> str:
    """The page; every name that a user chose is escaped. `figures` is the folder of the PNGs."""
    shown = [it.file for section in document.sections for it in section.figures]
    text: str = (
        _environment()
        .get_template(_PAGE)
        .render(
            document=document,
            known={it.artifact: it for it in document.lineage},
            images={file: Image.read(figures / file) for file in shown},
            picture=picture(document.lineage),
            size=(WIDTH, HEIGHT),
        )
    )
    return text.lstrip()


def lineage_svg(drawn: Picture) -> str:
    """The picture of the lineage as a file of its own."""
    text: str = _environment().get_template(_LINEAGE).render(picture=drawn, size=(WIDTH, HEIGHT))
    return text


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(shown=number_text, origin=origin, artifacts=_artifacts)
    return environment


def origin(number: Number) -> str:
    """Where a number was read, or what it was computed from."""
    first = number.traces[0]
    place = f"{first.artifact}: {first.file}#{first.where}"
    if not number.how:
        return place
    more = f" and {len(number.traces) - 1} more" if len(number.traces) > 1 else ""
    return f"{number.how}, from {place}{more}"


def _artifacts(headline: Headline) -> list[str]:
    numbers: Iterable[Number] = (headline.number, *headline.detail.numbers)
    return list(dict.fromkeys(trace.artifact for it in numbers for trace in it.traces))
