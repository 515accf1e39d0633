import json
import shutil
from pathlib import Path

import pytest

from jobs import append as append_job
from jobs import features as features_job
from jobs import filter as filter_job
from jobs import ingest as ingest_job
from jobs import remove as remove_job
from pipeline.data.images.decode import decode
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import sha256_of
from schemas.curation import AppendSpec, FilterSpec, RemoveSpec
from schemas.errors import DataError
from schemas.manifest import DATASET_FOLDER
from schemas.probing import FeaturesSpec
from schemas.report import TEST_COPIES_FILE, TestCopiesReport
from tests.support.corpora import encode, picture, write_folder
from tests.support.datasets import ingest_spec
from tests.support.models import saved_model
from tests.support.stages import StageRun, run_stage

SPLITS = {"train": "train", "test": "test"}


def dataset(run: StageRun) -> ShardSet:
    return ShardSet.open(run.path / DATASET_FOLDER)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    """With one copy of a test image in `train`, and one near copy of a train image."""
    root = tmp_path_factory.mktemp("curation")
    folder = write_folder(root / "raw", per_class=6, splits=("train", "test"))
    shutil.copy(folder / "test" / "wave" / "001.jpg", folder / "train" / "wave" / "copy.jpg")
    (folder / "train" / "circle" / "twin.jpg").write_bytes(encode(picture(0, 2), quality=60))
    return run_stage(ingest_job.run, ingest_spec(folder, splits=SPLITS), root / "corpus")


def test_a_filter_tells_what_each_rule_and_each_test_split_removed(
    corpus: StageRun, tmp_path: Path
) -> None:
    clean = run_stage(
        filter_job.run,
        FilterSpec(data="corpus", against=("corpus@test",), near_duplicates="keep_first"),
        tmp_path / "clean",
        inputs={"data": corpus.at("train"), "against[0]": corpus.at("test")},
    )
    assert clean.output.metrics == {
        "filter/removed_count": 2,
        "filter/removed_exact_copy_count": 1,
        "filter/removed_near_duplicate_count": 1,
        "filter/not_comparable_count": 0,
        "filter/train_count": 18,
        "filter/corpus.test_removed_count": 1,
        "filter/corpus.test_found_count": 1,
    }
    (row,) = TestCopiesReport.model_validate_json(
        (clean.path / TEST_COPIES_FILE).read_bytes()
    ).tests
    assert (row.test_set, row.found, row.images, row.removed) == ("corpus@test", 1, 18, 1)
    assert decode((clean.path / "figures" / "pairs.png").read_bytes()).ndim == 3
    assert "1 of 18 images of corpus@test had a copy" in clean.said[-1]
    matched = {pair["reason"]: pair["matched_set"] for pair in _pairs(clean)}
    assert matched == {"exact_copy": "corpus@test", "near_duplicate": "corpus@train"}


def test_a_filter_compares_features_of_the_very_sets(corpus: StageRun, tmp_path: Path) -> None:
    model = saved_model(tmp_path, ("circle", "stripes", "wave"))
    spec = FeaturesSpec(data="corpus", model="model")
    inputs = {"data": corpus.at(None), "model": model}
    found = run_stage(features_job.run, spec, tmp_path / "found", inputs=inputs)
    fields = {"data": "corpus", "against": ["corpus@test"], "near_duplicates": "keep_first"}
    alike = FilterSpec.parse({**fields, "features": ["found"], "min_cosine": 0.9})
    inputs = {
        "data": corpus.at("train"),
        "against[0]": corpus.at("test"),
        "features[0]": found.at(None),
    }
    clean = run_stage(filter_job.run, alike, tmp_path / "clean", inputs=inputs)
    reasons = {pair["reason"] for pair in _pairs(clean)}
    assert {"exact_copy", "alike_copy"} <= reasons, "random features tell few pictures apart"
    cosines = [pair["cosine"] for pair in _pairs(clean) if pair["reason"].startswith("alike")]
    assert min(cosines) >= 0.9
    with pytest.raises(DataError, match="found have no features of clean@train as it is now"):
        run_stage(
            filter_job.run, alike, tmp_path / "again", inputs={**inputs, "data": clean.at("train")}
        )
    other = saved_model(tmp_path / "other", ("circle", "stripes", "wave"), seed=2).revise(
        digest="o"
    )
    inputs["features[1]"] = run_stage(
        features_job.run, spec, tmp_path / "f2", inputs={"data": corpus.at(None), "model": other}
    ).at(None)
    with pytest.raises(DataError, match="features of found, f2 are of several models"):
        run_stage(filter_job.run, alike, tmp_path / "two", inputs=inputs)


def _pairs(clean: StageRun) -> list[dict[str, str]]:
    pairs: list[dict[str, str]] = json.loads((clean.path / "pairs.json").read_bytes())
    return pairs


def test_an_append_makes_one_set_of_both(corpus: StageRun, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "more", per_class=4, seed=3, splits=("train",))
    fields = ingest_spec(folder, splits={"train": "train"}).dump()
    spec = AppendSpec.parse({**fields, "kind": "append", "to": "corpus"})
    grown = run_stage(append_job.run, spec, tmp_path / "grown", inputs={"to": corpus.at(None)})
    assert grown.output.metrics["append/added_count"] == 12
    assert grown.output.metrics["append/train_count"] == 32
    assert dataset(grown).manifest.parents == (dataset(corpus).digest,)
    assert "added 12 images in 1 shards to corpus" in grown.said[-1]
    for path, sha256 in grown.output.known_sha256.items():
        assert sha256_of(grown.path / path) == sha256
    kept = {path.name for path in (tmp_path / "grown" / "progress").iterdir()}
    assert kept <= set(grown.output.spent)


def test_a_removal_makes_a_set_without_the_images(corpus: StageRun, tmp_path: Path) -> None:
    spec = RemoveSpec(data="corpus", sources=("train/wave/003.jpg",), note="request 17")
    left = run_stage(remove_job.run, spec, tmp_path / "left", inputs={"data": corpus.at(None)})
    assert left.output.metrics == {
        "remove/removed_count": 1,
        "remove/removed_before_count": 0,
        "remove/missing_count": 0,
        "remove/train_count": 19,
        "remove/test_count": 18,
    }
    assert left.said[-1] == "took 1 images out of corpus"
    assert not (left.path / "figures").exists(), "what was taken out is not shown"
    assert dataset(left).split("train").num_rows == 19
