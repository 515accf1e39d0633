"""Stage `probe`: simple methods on frozen features, learned on `train`, measured elsewhere."""

from pathlib import Path

from jobs.stage import StageOutput, StageTools
from pipeline.evaluation.features import document_path, open_features
from pipeline.evaluation.figures import write_notes
from pipeline.evaluation.probes.figure import SHOTS_FIGURE, draw_shots
from pipeline.evaluation.probes.probing import ProbeData, probe
from pipeline.evaluation.tables import read_document
from schemas.errors import DataError
from schemas.probing import PROBE_FILE, FeaturesDocument, ProbeReport, ProbeSpec
from schemas.report import FIGURES_FOLDER
from schemas.runs import InputArtifact, StageRequest
from schemas.spec import canonical_json

_TRAIN = "train"


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Measure each method of the spec; write `probe.json` and the figure into the attempt."""
    spec = ProbeSpec.parse(request.spec)
    data = _open(request.inputs["features"], seed=request.seed)
    report = probe(spec, data, say=tools.say)
    out = tools.attempt.path
    (out / PROBE_FILE).write_text(canonical_json(report.dump()) + "\n")
    if report.few_shot:
        write_notes(out, draw_shots(out / FIGURES_FOLDER / SHOTS_FIGURE, report))
    tools.say(_sentence(report))
    return StageOutput(metrics=_metrics(report))


def _open(source: InputArtifact, *, seed: int) -> ProbeData:
    folder, split = Path(source.path), source.split or ProbeSpec.default_splits["features"]
    if split == _TRAIN:
        raise DataError(f"a probe learns from {_TRAIN}; measure it on another split of the set")
    document = read_document(document_path(folder), FeaturesDocument)
    return ProbeData(
        train=open_features(folder, document, _TRAIN),
        measured=open_features(folder, document, split),
        split=split,
        class_names=document.class_names,
        seed=seed,
    )


def _sentence(report: ProbeReport) -> str:
    means = [
        f"{mean.shots} shots {mean.mean_ratio:.1%} (mean of {mean.draws})"
        for mean in report.few_shot_means
    ]
    rest = [f"{it.method} {it.top1_ratio:.1%}" for it in report.accuracies]
    return f"top-1 of {sum(report.class_counts)} images: " + ", ".join(means + rest)


def _metrics(report: ProbeReport) -> dict[str, float]:
    """`SPLIT/METHOD_top1_ratio` of each method, few-shot as the mean of its draws."""
    metrics = {f"{report.split}/images_count": float(sum(report.class_counts))}
    for mean in report.few_shot_means:
        metrics[f"{report.split}/few_shot_{mean.shots}_top1_ratio"] = mean.mean_ratio
        if mean.std_ratio is not None:
            metrics[f"{report.split}/few_shot_{mean.shots}_top1_std"] = mean.std_ratio
    for found in report.accuracies:
        prefix = f"{report.split}/{found.method}"
        metrics |= {
            f"{prefix}_top1_ratio": found.top1_ratio,
            f"{prefix}_top1_low_ratio": found.low_ratio,
            f"{prefix}_top1_high_ratio": found.high_ratio,
        }
    return metrics
