"""What a page says of a model in numbers, beside the pictures that explain it."""

from pipeline.evaluation.report.cells import (
    amounts,
    computed,
    main,
    numbers,
    row,
    text,
    words,
)
from pipeline.evaluation.report.sources import Document
from pipeline.evaluation.report.words import in_words
from schemas.interpret import INTERPRET_FILE, InterpretReport
from schemas.report_page import Cell, Row, Table, Unit
from schemas.runs import InputArtifact

INSIGHTS = (
    "Pictures of what a model has learned: its first filters, its positions, where and how far its "
    "heads look, and which images and layers it holds alike. The arrays behind them are in the "
    "artifact."
)


def insight_tables(source: InputArtifact) -> tuple[Table, ...]:
    """Attention by layer, the map of features, and what this model does not give."""
    report = Document.read(source, INTERPRET_FILE, InterpretReport)
    return (
        *_attention_table(source, report),
        *_map_table(source, report),
        *_absent_table(source, report),
    )


def _attention_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    found = report.at("attention")
    if found is None:
        return ()
    return (
        Table(
            title=f"{source.stage}: attention by layer",
            note="Means over the heads of a layer. Distance: from the patch that asks to what it "
            "looks at, in pixels of the model's input; uniform: the same if it looked at all "
            "patches alike. Entropy: 100 % is uniform. Leading: what goes to class tokens and "
            "registers.",
            columns=(
                *words("layer"),
                *main("distance"),
                *amounts("uniform", "entropy", "leading tokens"),
            ),
            rows=tuple(_layer_row(report, layer) for layer in range(len(found["layers"]))),
            folded=True,
        ),
    )


def _layer_row(report: Document, layer: int) -> Row:
    return row(
        [
            text(report.at("attention", "layers", layer)),
            _over_heads(report, "distances_px", layer, "plain"),
            numbers(report.number("attention", "uniform_distances_px", layer, unit="plain")),
            _over_heads(report, "entropies", layer, "ratio"),
            _over_heads(report, "leading_ratios", layer, "ratio"),
        ]
    )


def _over_heads(report: Document, name: str, layer: int, unit: Unit) -> Cell:
    place = ("attention", name, layer)
    heads = report.at(*place)
    mean = sum(heads) / len(heads)
    return numbers(computed(mean, unit, [report.trace(*place)], how="mean"))


def _map_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    if report.at("neighbourhood") is None:
        return ()
    figures: dict[str, Unit] = {
        "images": "count",
        "trustworthiness": "plain",
        "same_class_ratio": "ratio",
        "same_class_chance": "ratio",
    }
    head = ("images", "trustworthiness of the map", "neighbours of the same class", "by chance")
    return (
        Table(
            title=f"{source.stage}: map of the features",
            note="Neighbours are the ten nearest images by the cosine of their features.",
            columns=amounts(*head),
            rows=(
                row(
                    [
                        numbers(report.number("neighbourhood", name, unit=unit))
                        for name, unit in figures.items()
                    ]
                ),
            ),
        ),
    )


def _absent_table(source: InputArtifact, report: Document) -> tuple[Table, ...]:
    """Sections that the model does not give, with the reason."""
    rows = tuple(
        row([text(in_words(it["section"])), text(it["reason"])], source.artifact)
        for it in report.at("absent")
    )
    head = words("picture", "why there is none")
    return (Table(title=f"{source.stage}: not drawn", columns=head, rows=rows),) if rows else ()
