"""What `vitrail predict` does: name what is on images, draw where the model looks."""

from pathlib import Path

import numpy as np

from jobs.console import print_document, stderr, stdout, table
from jobs.model_names import ModelName
from pipeline.evaluation.attention import Look, Seen, draw_overlay, look_at
from pipeline.model.saved import load_model
from schemas.checkpoint import SavedModel
from schemas.errors import UsageError, VitrailError
from schemas.model_documents import Guess, ImagePrediction, PredictDocument

SUFFIX = ".attention.png"
_WHAT = {
    "class token": "attention of the class token",
    "pooling query": "attention of the pooling query",
    "mean over patches": "mean attention on each patch",
}
_HOW = {"last": "last layer", "rollout": "through all layers"}
_NOTHING = "nothing"
_TITLE_CHARS = 34


def predict_images(  # a command has as many options as it has
    name: ModelName, images: list[Path], *, attention: Look, top: int, out: Path, output: str
) -> None:
    """Show the model every image; prints classes and writes an overlay for each into `out`.

    Never beside the images: in the folder of a corpus an overlay would be another image of it.
    """
    folder = name.folder()
    model, saved = load_model(folder)
    _check_places(images, out)
    what, notes = _NOTHING, _notes(saved)
    found: list[ImagePrediction] = []
    for image in images:
        seen = look_at(
            model,
            image.read_bytes(),
            name=str(image),
            look=attention,
            probabilities=saved.probabilities,
        )
        guesses = _guesses(seen, saved, top)
        overlay = None
        if seen.reads is not None:
            what = f"{_WHAT[seen.reads]}, {_HOW[attention]}"
            overlay = out / (image.name + SUFFIX)
            _draw(overlay, seen, title=_title(image, guesses), caption=what)
        elif not found:
            notes = (*notes, f"no attention is drawn: {seen.why_not}")
        found.append(ImagePrediction(image=str(image), top=guesses, overlay=_text(overlay)))
    for note in notes:
        stderr().print(f"note: {note}", markup=False)
    document = PredictDocument(
        location=str(folder), attention=what, images=tuple(found), notes=notes
    )
    if output == "json":
        print_document(document)
    else:
        _print(document)


def _check_places(images: list[Path], out: Path) -> None:
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise UsageError(f"there is no image {', '.join(missing)}")
    if len({image.name for image in images}) < len(images):
        raise UsageError("two images have one name; show them apart, each with another --out")
    out.mkdir(parents=True, exist_ok=True)


def _notes(saved: SavedModel) -> tuple[str, ...]:
    notes = []
    if not saved.spec.num_classes:
        notes.append(
            "the model has no head, so it names no classes; fine-tune it on labelled images first"
        )
    elif not saved.class_names:
        notes.append("nobody said what the classes are called, so they are numbered")
    if saved.spec.num_classes and saved.probabilities == "sigmoid":
        notes.append("every class is a question of its own: probabilities do not add up to one")
    return tuple(notes)


def _guesses(seen: Seen, saved: SavedModel, top: int) -> tuple[Guess, ...]:
    if seen.probabilities is None:
        return ()
    names = saved.class_names or tuple(f"class {it}" for it in range(saved.spec.num_classes))
    best = np.argsort(-seen.probabilities, kind="stable")[:top]
    return tuple(
        Guess(class_name=names[it], probability=min(1.0, float(seen.probabilities[it])))
        for it in best.tolist()
    )


def _title(image: Path, guesses: tuple[Guess, ...]) -> str:
    if not guesses:
        return image.name[:_TITLE_CHARS]
    return f"{guesses[0].class_name[:_TITLE_CHARS]}, {guesses[0].probability:.0%}"


def _draw(path: Path, seen: Seen, *, title: str, caption: str) -> None:
    try:
        draw_overlay(path, seen, title=title, caption=caption)
    except OSError as error:
        raise VitrailError(
            f"{path} cannot be written: {error.strerror}", hint="name a folder with --out DIR"
        ) from error


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print(document: PredictDocument) -> None:
    console = stdout()
    for index, image in enumerate(document.images):
        if index:
            console.print()
        console.print(image.image, markup=False)
        rows = [(it.class_name, f"{100 * it.probability:.1f} %") for it in image.top]
        if rows:
            console.print(table(("class", ">probability"), rows))
        if image.overlay is not None:
            console.print(f"{document.attention}: {image.overlay}", markup=False)
