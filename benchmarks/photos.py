"""[photos] The recipe `photos` on a tree of class folders or a tar of it, in 10 minutes."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.processes import VITRAIL, measure
from benchmarks.raw_corpora import CLOTHING
from schemas.evaluation import AccuracyReport

_SECONDS = 600.0
_CLOTHING_SPLITS = "{train: clothing/train, test: clothing/test}"


def main() -> int:
    """Run the recipe once in a fresh workspace."""
    options = arguments(__doc__)
    corpus = options.corpus or CLOTHING
    with tempfile.TemporaryDirectory() as folder:
        command = (VITRAIL, "run", "photos", "--output", "json", "--set", f"seed={options.seed}")
        run = measure(*command, *_source(corpus), cwd=Path(folder))
        document = json.loads(run.stdout)
        accuracies = _accuracies(Path(folder) / ".vitrail")
    return conclude(
        Figure(
            name="photos",
            figure=round(run.seconds, 1),
            unit="seconds of the whole DAG",
            goal="at most 600 s on clothing.tar",
            holds=run.code == 0 and run.seconds <= _SECONDS,
            conditions=conditions(corpus=corpus.name, seed=options.seed),
            details={
                "peak_gib": round(run.peak_bytes / 2**30, 2),
                "stage_seconds": {it["name"]: round(it["seconds"], 1) for it in document["stages"]},
                "accuracies": accuracies,
            },
        )
    )


def _source(corpus: Path) -> list[str]:
    if corpus == CLOTHING:
        source = f"{{type: tar, uri: {corpus}, splits: {_CLOTHING_SPLITS}}}"
        return ["--set", f"corpus.source={source}", "--set", "corpus.split=null"]
    kind = "tar" if corpus.is_file() else "image_folder"
    return ["--set", f"corpus.source={{type: {kind}, uri: {corpus}}}"]


def _accuracies(workspace: Path) -> dict[str, str]:
    found = {}
    for path in sorted(workspace.glob("store/artifacts/*/attempts/*/files/accuracy.json")):
        record = json.loads((path.parents[1] / "record.json").read_text())
        for row in AccuracyReport.model_validate_json(path.read_bytes()).accuracies:
            interval = f"{100 * row.low_ratio:.1f} to {100 * row.high_ratio:.1f}"
            found[f"{record['stage']}: {row.method}"] = (
                f"{100 * row.top1_ratio:.1f} % [{interval}] of {row.total}"
            )
    return found


if __name__ == "__main__":
    sys.exit(main())
