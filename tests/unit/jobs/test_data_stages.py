import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import filter as filter_job
from jobs import ingest as ingest_job
from pipeline.data.images.decode import decode
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BUILD_PIECES
from schemas.artifacts import LOGS_FOLDER
from schemas.curation import FilterSpec
from schemas.manifest import DATASET_FOLDER
from schemas.quality import QUALITY_FILE, QualityReport
from tests.support.corpora import write_folder
from tests.support.datasets import ingest_spec
from tests.support.stages import StageRun, run_stage


def dataset(run: StageRun) -> ShardSet:
    return ShardSet.open(run.path / DATASET_FOLDER)


@pytest.fixture
def corpus(tmp_path: Path) -> StageRun:
    folder = write_folder(tmp_path / "raw", per_class=6, splits=("train", "test"))
    shutil.copy(folder / "test" / "wave" / "001.jpg", folder / "train" / "wave" / "copy.jpg")
    (folder / "train" / "wave" / "empty.jpg").touch()
    spec = ingest_spec(folder, splits={"train": "train", "test": "test"}, max_rejected_ratio=0.1)
    return run_stage(ingest_job.run, spec, tmp_path / "corpus")


def test_ingest_leaves_a_shard_set_its_figures_and_a_sheet(corpus: StageRun) -> None:
    assert corpus.output.metrics["corpus/images_count"] == 37
    assert corpus.output.metrics["corpus/train_count"] == 19
    assert corpus.output.metrics["corpus/test_count"] == 18
    assert corpus.output.metrics["corpus/rejected_count"] == 1
    assert corpus.output.metrics["corpus/rejected_zero_byte_count"] == 1
    dataset(corpus).verify()
    summary = json.loads((corpus.path / "summary.json").read_bytes())
    assert summary["images_of_class"]["train"] == {"circle": 6, "stripes": 6, "wave": 7}
    assert decode((corpus.path / "figures" / "contact_sheet.png").read_bytes()).ndim == 3
    quality = QualityReport.model_validate_json((corpus.path / QUALITY_FILE).read_bytes())
    assert {it.split: it.images for it in quality.splits} == {"train": 19, "test": 18}
    assert [row.reason for row in quality.rejected] == ["zero_byte"]
    for name in ("quality.png", "classes.png", "rejections.png"):
        assert decode((corpus.path / LOGS_FOLDER / "figures" / name).read_bytes()).ndim == 3
    assert "rejected: 1 zero_byte" in corpus.said[-1]


def test_what_a_build_keeps_in_its_progress_is_spent(corpus: StageRun, tmp_path: Path) -> None:
    kept = {path.name for path in (tmp_path / "corpus" / "progress").iterdir()}
    assert kept == set(corpus.output.spent) == set(BUILD_PIECES)


def test_images_too_small_for_a_hash_are_counted_and_told(tmp_path: Path) -> None:
    spec = ingest_spec(write_folder(tmp_path / "raw", per_class=4), image={"max_side_px": 16})
    small = run_stage(ingest_job.run, spec, tmp_path / "small")
    other = run_stage(
        ingest_job.run,
        ingest_spec(write_folder(tmp_path / "more", per_class=2, seed=3)),
        tmp_path / "other",
    )
    clean = run_stage(
        filter_job.run,
        FilterSpec(data="small", against=("other",)),
        tmp_path / "clean",
        inputs={"data": small.at("train"), "against[0]": other.at(None)},
    )
    assert clean.output.metrics["filter/not_comparable_count"] == 12
    assert "12 images too small for the near search" in clean.said[-1]
    assert {path.name for path in (tmp_path / "clean" / "progress").iterdir()} <= set(
        clean.output.spent
    )


def test_hashes_given_to_the_store_are_those_of_the_files(corpus: StageRun) -> None:
    from pipeline.data.staging import sha256_of

    known = corpus.output.known_sha256
    assert {path for path in known if path.startswith(f"{DATASET_FOLDER}/shards/")}
    for path, sha256 in known.items():
        assert sha256_of(corpus.path / path) == sha256


def test_filter_lists_what_it_removed_beside_its_match(corpus: StageRun, tmp_path: Path) -> None:
    spec = FilterSpec(data="corpus", against=("corpus@test",))
    clean = run_stage(
        filter_job.run,
        spec,
        tmp_path / "clean",
        inputs={"data": corpus.at("train"), "against[0]": corpus.at("test")},
    )
    assert clean.output.metrics["filter/removed_count"] == 1
    assert clean.output.metrics["filter/train_count"] == 18
    (pair,) = json.loads((clean.path / "pairs.json").read_bytes())
    assert pair["source"] == "train/wave/copy.jpg"
    assert pair["matched_source"] == "test/wave/001.jpg"
    assert pair["matched_set"] == "corpus@test"
    assert decode((clean.path / "figures" / "pairs.png").read_bytes()).ndim == 3
    assert dataset(clean).split("train").num_rows == 18
    again = run_stage(
        filter_job.run,
        spec,
        tmp_path / "again",
        inputs={"data": clean.at("train"), "against[0]": corpus.at("test")},
    )
    assert again.output.metrics["filter/removed_count"] == 0
    assert dataset(again).split("train").num_rows == 18
    assert not (again.path / "figures").exists()


def test_against_a_whole_set_means_all_of_its_splits(corpus: StageRun, tmp_path: Path) -> None:
    other = run_stage(
        ingest_job.run,
        ingest_spec(write_folder(tmp_path / "more", per_class=4, seed=3)),
        tmp_path / "other",
    )
    clean = run_stage(
        filter_job.run,
        FilterSpec(data="corpus@test", against=("corpus@train", "other")),
        tmp_path / "clean",
        inputs={
            "data": corpus.at("test"),
            "against[0]": corpus.at("train"),
            "against[1]": other.at(None),
        },
    )
    assert clean.output.metrics["filter/removed_count"] == 1
    table = dataset(clean).tombstones
    assert isinstance(table, pa.Table)
    assert table["source"].to_pylist() == ["test/wave/001.jpg"]
