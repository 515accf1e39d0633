"""[exact_evaluation] Splits of 1, 7, 50 and 101 images on 1, 2 and 3 workers: the same bytes.

A stage `evaluate` of a small ViT with random weights runs on each, at a second size of images, too.
One worker is the process itself, several are Ray tasks. Predictions and `accuracy.json` must be
equal to the byte for any number of workers, and so must metrics; and every image of the split must
stand in them once. Images are digits that scikit-learn carries, or those of `--corpus`, a tree of
class folders.
"""

import hashlib
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.datasets import load_digits

from benchmarks.figure import Figure, arguments, conclude, conditions
from infra.ray_cluster import cluster
from infra.ray_pool import RayPool
from jobs import evaluate
from jobs.stage import StageOutput, StageTools
from pipeline.data.images.codec import encode_png
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import sha256_of
from pipeline.model.saved import save_model
from pipeline.model.vit import build
from schemas.checkpoint import MODEL_FOLDER, SavedModel
from schemas.evaluation import EvaluateSpec
from schemas.manifest import DATASET_FOLDER
from schemas.model import ViTSpec
from schemas.runs import InputArtifact, StageRequest
from tests.support.datasets import build_from
from tests.support.stages import run_stage

SIZES = (1, 7, 50, 101)
WORKERS = (1, 2, 3)
_BATCH_SAMPLES = 8
_IMAGE_PX = 24


def main() -> int:
    """Evaluate, compare."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as scratch, cluster(None):
        root = Path(scratch)
        data = _data(root, options.corpus, options.seed)
        model = _model(root, data, options.seed)
        cases = {images: _case(root, data, model, images) for images in SIZES}
    good = sum(case["equal"] and case["exact"] for case in cases.values())
    return conclude(
        Figure(
            name="exact_evaluation",
            figure=float(good),
            unit=f"of {len(SIZES)} sizes with equal bytes, equal metrics and an exact count",
            goal=f"{len(SIZES)}",
            holds=good == len(SIZES),
            conditions=conditions(
                seed=options.seed,
                corpus=str(options.corpus or "digits"),
                workers=WORKERS,
                batch_samples=_BATCH_SAMPLES,
            ),
            details={str(images): case for images, case in cases.items()},
        )
    )


def _case(root: Path, data: InputArtifact, model: InputArtifact, images: int) -> dict[str, Any]:
    runs = [_evaluated(root / f"{images}-{it}", data, model, images, it) for it in WORKERS]
    split = ShardSet.open(Path(data.path) / DATASET_FOLDER).split(_split(images))
    stored = sorted(split.row(index).uid for index in range(split.num_rows))
    return {
        "equal": all(run == runs[0] for run in runs),
        "exact": split.num_rows == images and stored == runs[0][2],
        "digest": runs[0][0],
        "top1_ratio": runs[0][1][f"{split.name}/top1_ratio"],
    }


def _evaluated(
    folder: Path, data: InputArtifact, model: InputArtifact, images: int, workers: int
) -> tuple[str, dict[str, float], list[bytes]]:
    """Digest of all documents, the metrics, and the uids in the predictions."""
    spec = EvaluateSpec(
        data="data",
        model="model",
        batch_samples=_BATCH_SAMPLES,
        workers=workers,
        resolutions_px=(_IMAGE_PX // 2,),
    )

    def entry(request: StageRequest, tools: StageTools) -> StageOutput:
        return evaluate.run(request, replace(tools, pool=RayPool()))

    inputs = {"data": data.revise(split=_split(images)), "model": model}
    run = run_stage(entry, spec, folder, inputs=inputs)
    files = sorted([*run.path.glob("*.arrow"), run.path / "accuracy.json"])
    digest = hashlib.sha256("".join(f"{it.name} {sha256_of(it)}" for it in files).encode())
    table = pa.ipc.open_file(run.path / "predictions.arrow").read_all()
    return digest.hexdigest()[:16], run.output.metrics, sorted(table["uid"].to_pylist())


def _split(images: int) -> str:
    return f"of{images}"


def _data(root: Path, corpus: Path | None, seed: int) -> InputArtifact:
    """A shard set with a split for each size, no image in two of them."""
    raw = root / "raw"
    found = _digits(root / "digits") if corpus is None else corpus
    files = sorted(it for it in found.rglob("*") if it.suffix.lower() in {".png", ".jpg", ".jpeg"})
    random.Random(seed).shuffle(files)
    for images in SIZES:
        for file in files[:images]:
            target = raw / _split(images) / file.relative_to(found)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        del files[:images]
    splits = {_split(images): _split(images) for images in SIZES}
    source = {"type": "image_folder", "uri": str(raw), "splits": splits}
    build_from(source, root, shard_bytes=40_000)
    (root / "out").rename(root / DATASET_FOLDER)
    return _artifact("data", "ingest", root)


def _digits(folder: Path) -> Path:
    images, labels = load_digits(return_X_y=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.repeat((image.reshape(8, 8, 1) * 15).astype(np.uint8), 3, axis=2)
        path.write_bytes(encode_png(pixels))
    return folder


def _model(root: Path, data: InputArtifact, seed: int) -> InputArtifact:
    classes = ShardSet.open(Path(data.path) / DATASET_FOLDER).class_names
    spec = ViTSpec(
        width=64,
        depth=2,
        num_heads=4,
        mlp_dim=128,
        patch_px=4,
        image_px=(_IMAGE_PX, _IMAGE_PX),
        num_classes=len(classes),
    )
    weights = {name: it.clone() for name, it in build(spec, seed=seed).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    weights["head.weight"] = torch.randn(len(classes), 64, generator=generator)
    saved = SavedModel(spec=spec, class_names=classes, trained_steps=0, key=None)
    save_model(root / "model" / MODEL_FOLDER, weights, saved)
    return _artifact("model", "import", root / "model")


def _artifact(stage: str, kind: str, path: Path) -> InputArtifact:
    return InputArtifact(
        stage=stage,
        kind=kind,
        artifact=f"{kind}-{stage}",
        digest=stage,
        path=str(path),
        split=None,
        metrics={},
    )


if __name__ == "__main__":
    raise SystemExit(main())
