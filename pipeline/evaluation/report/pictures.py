"""The figures that stages drew, copied beside the page under names that say whose they are."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.tables import read_document
from schemas.artifacts import LOGS_FOLDER
from schemas.report import FIGURE_NOTES_FILE, FIGURES_FOLDER, FigureNote, FigureNotes
from schemas.report_page import ShownFigure
from schemas.runs import InputArtifact


def copy_figures(
    folder: Path, sources: Sequence[InputArtifact], *, folded: bool
) -> tuple[ShownFigure, ...]:
    """Copy every figure of `sources` into the figures of `folder`, as their notes list them.

    A figure that no note speaks of is shown under its file's name.
    """
    target = folder / FIGURES_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    shown = []
    for source in sources:
        for note, original in _figures_of(source):
            name = f"{_file_name(source.stage)}-{note.file}"
            shutil.copyfile(original, target / name)
            shown.append(
                ShownFigure(
                    file=name,
                    title=f"{source.stage}: {note.title}",
                    caption=note.caption,
                    artifacts=(source.artifact,),
                    folded=folded,
                )
            )
    return tuple(shown)


def _figures_of(source: InputArtifact) -> list[tuple[FigureNote, Path]]:
    """Noted figures first, in the order of the notes; those that are no content lie among logs."""
    folders = [Path(source.path) / FIGURES_FOLDER, Path(source.path) / LOGS_FOLDER / FIGURES_FOLDER]
    files = {it.name: it for folder in folders for it in sorted(folder.glob("*.png"))}
    noted = {note.file: note for folder in folders for note in _notes_of(folder)}
    spoken = [(note, files.pop(name)) for name, note in noted.items() if name in files]
    silent = [(FigureNote(file=name, title=_title(path)), path) for name, path in files.items()]
    return spoken + silent


def _notes_of(folder: Path) -> tuple[FigureNote, ...]:
    path = folder / FIGURE_NOTES_FILE
    return read_document(path, FigureNotes).figures if path.exists() else ()


def _title(path: Path) -> str:
    return path.stem.replace("_", " ")


def _file_name(stage: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", stage).strip("_")
