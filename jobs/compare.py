"""Stage `compare`: which of several models is better, from their answers on the same images."""

from pathlib import Path

from jobs.stage import StageOutput, StageTools
from pipeline.evaluation.accuracy import PREDICTIONS_FILE
from pipeline.evaluation.compare import Answers, Resampling, compare, read_answers
from pipeline.evaluation.compare_figure import DIFFERENCES_FIGURE, draw_differences
from pipeline.evaluation.figures import write_notes
from pipeline.evaluation.tables import ACCURACY_FILE, read_document
from schemas.comparison import COMPARISON_FILE, ComparedPair, CompareSpec, ComparisonReport
from schemas.evaluation import AccuracyReport
from schemas.report import FIGURES_FOLDER
from schemas.runs import StageRequest
from schemas.spec import canonical_json


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Compare every two models; write `comparison.json` and the figure into the attempt."""
    spec = CompareSpec.parse(request.spec)
    sources = [request.inputs[f"of[{number}]"] for number in range(len(spec.of))]
    report = compare(
        [answers_of(Path(source.path), source.stage) for source in sources],
        Resampling(spec.resamples, request.seed),
    )
    out = tools.attempt.path
    (out / COMPARISON_FILE).write_text(canonical_json(report.dump()) + "\n")
    write_notes(out, draw_differences(out / FIGURES_FOLDER / DIFFERENCES_FIGURE, report))
    for pair in report.pairs:
        tools.say(_sentence(pair))
    return StageOutput(metrics=_metrics(report))


def answers_of(folder: Path, name: str) -> Answers:
    """What the model of an `evaluate` artifact answered."""
    classes = read_document(folder / ACCURACY_FILE, AccuracyReport).class_names
    return read_answers(folder / PREDICTIONS_FILE, name, classes)


def _sentence(pair: ComparedPair) -> str:
    """A pair as people say it."""
    low, high = 100 * pair.low_ratio, 100 * pair.high_ratio
    return (
        f"{pair.first} less {pair.second}: {100 * pair.difference_ratio:+.1f} points "
        f"({low:+.1f} to {high:+.1f}), p {pair.holm_p:.2g} by McNemar"
    )


def _metrics(report: ComparisonReport) -> dict[str, float]:
    """Counts, and the accuracy of the best less that of the second best."""
    ratios = sorted((model.top1_ratio for model in report.models), reverse=True)
    return {
        "compare/images_count": float(report.images),
        "compare/pairs_count": float(len(report.pairs)),
        "compare/lead_ratio": ratios[0] - ratios[1],
    }
