"""Which pictures are drawn of what was found, and what is written under each."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.evaluation.interpret import charts, pictures
from pipeline.evaluation.interpret.study import Findings
from schemas.interpret import Attention, InterpretReport, Looks
from schemas.report import FIGURES_FOLDER, FigureNote

Draw = Callable[[Path], None]


def draw_all(folder: Path, found: Findings) -> tuple[FigureNote, ...]:
    """Draw every section that was found into the folder of figures; what each picture shows."""
    notes = []
    for note, draw in (*_of_the_model(found), *_of_attention(found), *_of_features(found)):
        draw(folder / FIGURES_FOLDER / note.file)
        notes.append(note)
    return tuple(notes)


def _of_the_model(found: Findings) -> Iterator[tuple[FigureNote, Draw]]:
    filters, positions = found.report.filters, found.report.positions
    if filters is not None:
        of = found.arrays[filters.array]
        yield (
            _note("filters", _FILTER_TITLES[filters.what], _filters_caption(found.report, len(of))),
            lambda path: pictures.draw_filters(path, of, ratios=filters.explained_ratios),
        )
    if positions is not None:
        rows, columns = positions.grid
        caption = (
            f"Cosine similarity of the position embedding of a patch with those of all "
            f"{rows} x {columns} patches, for {len(positions.shown)} patches, each marked by a "
            "square in its own map."
        )
        if positions.every_layer:
            caption += " Every layer has its own positions; these are the first layer's."
        yield (
            _note("positions", "Similarity of position embeddings", caption),
            lambda path: pictures.draw_positions(
                path, found.arrays[positions.array], positions.shown
            ),
        )


_FILTER_TITLES = {
    "components": "Principal components of the patch projection",
    "kernels": "Kernels of the first convolution",
}


def _filters_caption(report: InterpretReport, drawn: int) -> str:
    filters = report.filters
    assert filters is not None  # noqa: S101 - asked by who has it
    scaled = "Each tile is scaled to its own range; grey is zero."
    if filters.what == "kernels":
        return f"The {drawn} strongest of {filters.count} kernels, strongest first. {scaled}"
    return (
        f"The first {drawn} components of the {filters.count} kernels, each with its share of "
        f"their variance, together {sum(filters.explained_ratios):.0%}. {scaled}"
    )


def _of_attention(found: Findings) -> Iterator[tuple[FigureNote, Draw]]:
    attention, looks = found.report.attention, found.report.looks
    if attention is not None:
        yield (
            _note(
                "attention_distance", "Attention distance by depth", _distance_caption(attention)
            ),
            lambda path: charts.draw_distances(path, attention),
        )
        yield (
            _note("attention_entropy", "How sharply heads look", _entropy_caption(attention)),
            lambda path: charts.draw_sharpness(path, attention),
        )
    if looks is not None:
        names = [image.label for image in found.report.shown]
        maps = [
            ("last attention", found.arrays[looks.last]),
            ("rollout", found.arrays[looks.rollout]),
        ]
        yield (
            _note("looks", "Where the model looks", _looks_caption(looks)),
            lambda path: pictures.draw_looks(path, found.shown_MHWC, maps, names=names),
        )
        yield (
            _note("heads", "Heads of the last attention", _HEADS_CAPTION),
            lambda path: pictures.draw_heads(
                path, found.shown_MHWC, found.arrays[looks.heads], names=names
            ),
        )


def _distance_caption(attention: Attention) -> str:
    return (
        "Distance between the centre of a patch and those of all patches, weighted by its "
        f"attention, mean over all patches of {attention.images} images: a dot for each head. "
        f"A patch is {attention.patch_px[0]:g} x {attention.patch_px[1]:g} px. Class tokens and "
        "registers are left out and what goes to patches counts as the whole. The dashed line is "
        "attention to all patches alike."
    )


def _entropy_caption(attention: Attention) -> str:
    return (
        f"Attention of patches over all tokens, mean over {attention.images} images: a dot for "
        "each head. Entropy is divided by the logarithm of the number of tokens."
    )


def _looks_caption(looks: Looks) -> str:
    whose = {
        "class token": "of the class token",
        "pooling query": "of the query that pools the tokens",
        "mean over patches": "of all patches, on average, as the model pools them",
    }[looks.reads]
    return (
        f"Attention {whose}: of the last layer, mean over its heads, and followed through all "
        "layers (rollout: heads averaged, the residual counted half). Brighter patches get more; "
        "each map has its own scale."
    )


_HEADS_CAPTION = "The last attention of the first images, head by head; each map has its own scale."


def _of_features(found: Findings) -> Iterator[tuple[FigureNote, Draw]]:
    maps, near, layers = (
        found.report.feature_maps,
        found.report.neighbourhood,
        found.report.layers,
    )
    if maps is not None:
        names = [image.label for image in found.report.shown]
        caption = (
            "The first three principal components of the features of patches, over all these "
            "images at once, as red, green and blue: patches of one colour are alike. They hold "
            f"{sum(maps.explained_ratios):.0%} of the variance."
        )
        yield (
            _note("feature_maps", "Features of patches", caption),
            lambda path: pictures.draw_feature_maps(
                path, found.shown_MHWC, found.arrays[maps.array], names=names
            ),
        )
    if near is not None:
        caption = (
            f"{near.method} of the features of {near.images} images, perplexity "
            f"{near.perplexity:.0f}, trustworthiness {near.trustworthiness:.2f}. Of the nearest "
            f"images among the features themselves, {near.same_class_ratio:.0%} have the same "
            f"class; by chance it would be {near.same_class_chance:.0%}. Distances between groups "
            "say little."
        )
        yield (
            _note("neighbourhood", "Map of the features", caption),
            lambda path: charts.draw_neighbourhood(
                path, near, found.arrays[near.array], found.report.class_names
            ),
        )
    if layers is not None:
        caption = (
            f"Linear CKA, unbiased, between the means over patches of any two layers, over "
            f"{layers.images} images."
        )
        yield (
            _note("layers", "Which layers are alike", caption),
            lambda path: charts.draw_layers(path, layers),
        )


def _note(name: str, title: str, caption: str) -> FigureNote:
    return FigureNote(file=f"{name}.png", title=title, caption=caption)
