from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.storage import LocalStore
from jobs.data_sets import SetName
from pipeline.dag.experiment_file import load_experiment
from pipeline.data.feed.loader import TrainLoader
from pipeline.data.shards.shard_set import ShardSet
from schemas.errors import DataError, SpecError, UsageError
from schemas.inspection import (
    ExportDocument,
    ImageDocument,
    SetDocument,
    StepDocument,
    VerifyDocument,
)
from schemas.manifest import DATASET_FOLDER, MANIFEST_FILE, SHARD_TABLE_FILE
from schemas.spec import Spec
from schemas.training import FinetuneSpec
from tests.support.commands import answer, document, vitrail
from tests.support.datasets import small_set
from tests.support.workspaces import keep

TEXT = """\
name: asked
seed: 5
stages:
  corpus:
    kind: ingest
    source: {type: image_folder, uri: /nowhere, splits: {train: train, test: test}}
  train:
    kind: finetune
    data: corpus
    init: null
    model: {width: 24, depth: 1, num_heads: 3, mlp_dim: 32, patch_px: 4, image_px: 8}
    optim: {peak_lr: 1.0e-3}
    batch: {global_samples: 8}
    duration: {steps: 13}
    resources: {engine: torch}
"""


@dataclass(frozen=True)
class Asked:
    """A workspace with one shard set, and the spec it was made from."""

    root: Path
    data: ShardSet
    artifact: str

    def run(self, *words: str) -> str:
        """stdout of `vitrail data ...`."""
        return answer("data", *words, "--workspace", str(self.root))

    def document(self, schema: type[Spec], *words: str) -> Any:
        """The document of `vitrail data ...`."""
        return document(schema, "data", *words, "--workspace", str(self.root))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    root = tmp_path_factory.mktemp("workspace")
    data = small_set(root / "made")
    files = root / "prepared"
    files.mkdir()
    (files / DATASET_FOLDER).symlink_to(data.folder)
    (root / "run.yaml").write_text(TEXT)
    spec = load_experiment(root / "run.yaml", profile=None, overrides=()).stages["corpus"]
    made = keep(root, files, experiment="asked", stage="corpus", spec=spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield Asked(root, data, made.artifact)


def test_a_set_is_found_by_stage_artifact_folder_and_uri(asked: Asked) -> None:
    store = LocalStore(asked.root / "store")
    made = store.get_ref("asked", "corpus")
    assert made is not None
    attempt = store.path(made)
    names = [
        ("run.yaml", "corpus"),
        (asked.artifact,),
        (str(attempt / DATASET_FOLDER),),
        (str(attempt),),
        (str(attempt.parent),),
        (str(attempt.parents[2]),),
        (f"file://{attempt / DATASET_FOLDER}",),
    ]
    for name in names:
        assert asked.document(SetDocument, "inspect", *name).digest == asked.data.digest


def test_inspect_tells_splits_and_classes(asked: Asked) -> None:
    found = asked.document(SetDocument, "inspect", asked.artifact)
    assert {it.split: it.rows for it in found.splits} == {"train": 36, "test": 36}
    assert found.splits[0].images_of_class == dict.fromkeys(asked.data.class_names, 12)
    assert sum(it.bytes for it in found.splits) == asked.data.manifest.num_bytes
    text = asked.run("inspect", "run.yaml", "corpus")
    assert "digest " + asked.data.digest in text
    assert "refused: none" in text


def test_inspect_draws_figures_where_asked(asked: Asked, tmp_path: Path) -> None:
    words = ("inspect", asked.artifact, "--figures", str(tmp_path / "drawn"))
    drawn = {Path(path).name for path in asked.document(SetDocument, *words).figures}
    assert drawn == {"quality.png", "classes.png", "contact_sheet.png"}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == drawn


def test_what_names_no_set_is_told_with_what_would(asked: Asked) -> None:
    with pytest.raises(UsageError, match="'corpsu' names no shard set; name a folder"):
        asked.run("inspect", "corpsu")
    with pytest.raises(SpecError, match=r"'corpsu'.*'corpus'"):
        asked.run("inspect", "run.yaml", "corpsu")
    with pytest.raises(UsageError, match=r"train is of kind finetune .* these do: corpus"):
        asked.run("inspect", "run.yaml", "train")
    with pytest.raises(DataError, match=f"holds no shard set: {MANIFEST_FILE} is missing"):
        asked.run("inspect", str(asked.root))
    elsewhere = SetName("run.yaml", "corpus", asked.root / "other")
    with pytest.raises(UsageError, match="was never made"):
        elsewhere.location()


def test_verify_accepts_a_whole_set(asked: Asked) -> None:
    found = asked.document(VerifyDocument, "verify", asked.artifact)
    assert found.faults == ()
    assert found.shards == asked.data.manifest.num_shards


def test_verify_names_every_damaged_file_and_exits_6(tmp_path: Path) -> None:
    data = small_set(tmp_path / "set", per_class=6)
    first, second = data.split("train").shard_names[:2]
    for name in (first, second):
        path = data.shards_folder / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    told = vitrail("data", "verify", str(data.folder), "--output", "json", cwd=tmp_path)
    assert told.code == 6
    document = VerifyDocument.parse(told.document)
    assert [fault for name in (first, second) for fault in document.faults if name in fault]
    assert len(document.faults) == 2
    assert first in told.stderr
    (data.folder / SHARD_TABLE_FILE).write_bytes(b"")
    told = vitrail("data", "verify", str(data.folder), cwd=tmp_path)
    assert told.code == 6
    assert SHARD_TABLE_FILE in told.stderr


def test_export_writes_the_chosen_splits(asked: Asked, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("export", "run.yaml", "corpus", "--to", "parquet", "--split", "test")
    found = asked.document(ExportDocument, *words, "--out", str(out))
    assert (found.images, found.splits) == (36, ("test",))
    assert pq.read_table(out / "test-00000.parquet").num_rows == 36
    with pytest.raises(UsageError, match="exists and stays"):
        asked.run(*words, "--out", str(out))


def loader_uids(asked: Asked, *, seed: int, samples: int, steps: int) -> list[list[str]]:
    """What training would read, by its own loader."""
    spec = FinetuneSpec.parse(
        load_experiment(asked.root / "run.yaml", profile=None, overrides=()).stages["train"].dump()
    )
    loader = TrainLoader(
        asked.data.split("train"),
        augment=spec.augment,
        image_px=(8, 8),
        batch=spec.batch.revise(global_samples=samples),
        seed=seed,
        rank=0,
        world_size=1,
        micro_batch=samples,
        threads=1,
    )
    with loader:
        batches = loader.batches(0)
        return [[bytes(uid).hex() for uid in next(batches)[0].uid_B] for _ in range(steps)]


def test_which_step_is_what_the_loader_reads(asked: Asked) -> None:
    read = loader_uids(asked, seed=5, samples=8, steps=13)
    for step in (0, 3, 4, 12):
        found = asked.document(StepDocument, "which", "run.yaml", "train", "--step", str(step))
        assert [image.uid for image in found.images] == read[step]
        assert {image.epoch for image in found.images} == {step // 4}
        assert {image.data for image in found.images} == {"corpus@train"}
    assert read[12][0] in asked.run("which", "run.yaml", "train", "--step", "12")


def test_which_uid_is_the_inverse(asked: Asked) -> None:
    read = loader_uids(asked, seed=5, samples=8, steps=13)
    rows = [asked.data.split("train").row(index) for index in range(36)]
    for row in rows[::5]:
        found = asked.document(ImageDocument, "which", "run.yaml", "train", "--uid", row.uid.hex())
        (image,) = found.found
        assert image.source == row.source
        assert list(image.steps) == [step for step in range(13) if row.uid.hex() in read[step]]
    text = asked.run("which", "run.yaml", "train", "--uid", "0" * 32)
    assert text.startswith("0" * 32 + " does not stand in corpus@train")


def test_a_trained_stage_is_answered_for_as_it_was_trained(asked: Asked, tmp_path: Path) -> None:
    stages = load_experiment(asked.root / "run.yaml", profile=None, overrides=()).stages
    spec = stages["train"].revise(batch={"global_samples": 6})
    corpus = LocalStore(asked.root / "store").get_ref("asked", "corpus")
    assert corpus is not None
    (asked.root / "other.yaml").write_text(TEXT.replace("  train:", "  trained:"))
    (tmp_path / "model").write_text("weights")
    keep(
        asked.root,
        tmp_path,
        experiment="asked",
        stage="trained",
        spec=spec,
        seed=9,
        inputs={"data": corpus},
    )
    found = asked.document(StepDocument, "which", "other.yaml", "trained", "--step", "2")
    read = loader_uids(asked, seed=9, samples=6, steps=3)
    assert [image.uid for image in found.images] == read[2]


def test_what_which_cannot_answer_is_told(asked: Asked) -> None:
    with pytest.raises(UsageError, match=r"train has the steps 0 to 12; --step is 13"):
        asked.run("which", "run.yaml", "train", "--step", "13")
    with pytest.raises(UsageError, match="exactly one of --step and --uid"):
        asked.run("which", "run.yaml", "train")
    with pytest.raises(UsageError, match="32 of the digits"):
        asked.run("which", "run.yaml", "train", "--uid", "xyz")
    with pytest.raises(UsageError, match=r"corpus is of kind ingest .* these stages do: train"):
        asked.run("which", "run.yaml", "corpus", "--step", "0")
