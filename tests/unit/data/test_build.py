import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.serial_pool import SerialPool
from pipeline.data.order import keyed_hash
from pipeline.data.shards.shard_set import ShardSet
from pipeline.ports import TaskPool
from schemas.data import IngestSpec
from schemas.errors import DataError, PausedError, SpecError
from schemas.manifest import REJECTIONS_FILE
from tests.support.corpora import (
    CLASSES,
    broken_files,
    encode,
    odd_files,
    picture,
    write_folder,
    write_tar,
)
from tests.support.datasets import build, ingest_spec, small_set
from tests.support.pools import ChaosPool, DyingPool, KilledError, StopAfter


def rejections(folder: Path) -> dict[str, str]:
    table = pa.ipc.open_file(str(folder / "out" / REJECTIONS_FILE)).read_all()
    assert table["source"].to_pylist() == sorted(table["source"].to_pylist())
    return dict(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of several units with broken, odd, doubled and contradicting files."""
    folder = write_folder(tmp_path_factory.mktemp("messy") / "raw", per_class=14)
    for name, (data, _) in broken_files().items():
        (folder / "wave" / name).write_bytes(data)
    for name, data in odd_files().items():
        (folder / "stripes" / name).write_bytes(data)
    for index in range(3):
        shutil.copy(folder / "circle" / f"{index:03d}.jpg", folder / "circle" / f"copy{index}.jpg")
    shutil.copy(folder / "circle" / "005.jpg", folder / "wave" / "contradiction.jpg")
    return folder


MESSY = {"image": {"min_side_px": 4}, "max_rejected_ratio": 0.5, "shard_bytes": 6_000}


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.units.FILES_PER_UNIT", 7)


@pytest.mark.usefixtures("small_units")
def test_the_bytes_do_not_depend_on_workers_order_or_failures(messy: Path, tmp_path: Path) -> None:
    spec = ingest_spec(messy, **MESSY)
    pools: dict[str, TaskPool] = {
        "serial": SerialPool(),
        **{f"chaos{n}": ChaosPool(workers=n, seed=n) for n in (1, 2, 5)},
    }
    digests = {name: build(spec, tmp_path / name, pool=pool).digest for name, pool in pools.items()}
    for survives in (0, 3, 9, 11):
        where = tmp_path / f"killed{survives}"
        with pytest.raises(KilledError):
            build(spec, where, pool=DyingPool(survives))
        digests[where.name] = build(spec, where).digest
    assert len(set(digests.values())) == 1, digests
    files = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "out").rglob("*.*")}
        for name in digests
    ]
    assert all(one == files[0] for one in files)
    assert len(files[0]) > 6, "several shards"


@pytest.mark.usefixtures("small_units")
def test_the_bytes_do_not_depend_on_how_the_corpus_is_cut(
    messy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ingest_spec(messy, **MESSY)
    first = build(spec, tmp_path / "7").digest
    monkeypatch.setattr("pipeline.data.units.FILES_PER_UNIT", 100)
    assert build(spec, tmp_path / "100").digest == first


@pytest.mark.usefixtures("small_units")
def test_a_second_attempt_redoes_nothing_that_was_committed(messy: Path, tmp_path: Path) -> None:
    spec = ingest_spec(messy, **MESSY)
    first = build(spec, tmp_path)
    shutil.rmtree(tmp_path / "out")
    again = build(spec, tmp_path, pool=DyingPool(0))
    assert again.digest == first.digest


@pytest.mark.usefixtures("small_units")
def test_progress_of_another_spec_is_thrown_away(messy: Path, tmp_path: Path) -> None:
    build(ingest_spec(messy, **MESSY), tmp_path)
    changed = {**MESSY, "shuffle_seed": 1}
    shutil.rmtree(tmp_path / "out")
    second = build(ingest_spec(messy, **changed), tmp_path)
    assert second.digest == build(ingest_spec(messy, **changed), tmp_path / "fresh").digest


@pytest.mark.usefixtures("small_units")
def test_a_request_to_stop_pauses_and_the_next_run_goes_on(messy: Path, tmp_path: Path) -> None:
    spec = ingest_spec(messy, **MESSY)
    with pytest.raises(PausedError, match="3 of"):
        build(spec, tmp_path, stop=StopAfter(2))
    said: list[str] = []
    build(spec, tmp_path, said=said)
    assert any(line.startswith("3 of") and "already" in line for line in said)


def test_every_broken_file_lands_in_the_rejections_with_its_reason(
    messy: Path, tmp_path: Path
) -> None:
    result = build(ingest_spec(messy, **MESSY), tmp_path)
    found = rejections(tmp_path)
    for name, (_, reason) in broken_files().items():
        assert found.pop(f"wave/{name}") == reason
    assert found == {
        **{f"circle/copy{index}.jpg": "duplicate" for index in range(3)},
        "circle/005.jpg": "label_conflict",
        "wave/contradiction.jpg": "label_conflict",
    }
    assert result.manifest.rejections["duplicate"] == 3
    assert result.manifest.num_rows == 3 * 14 - 1 + len(odd_files())


def test_rows_are_stored_by_keyed_hash_and_known_by_their_bytes(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    hashes = [
        keyed_hash("order", 0, uid)
        for name in data.split("train").shard_names
        for uid in pa.ipc.open_file(str(data.shards_folder / name)).read_all()["uid"].to_pylist()
    ]
    assert hashes == sorted(hashes)
    assert len(data.split("train").shard_names) > 1


def test_an_image_may_stand_in_two_splits(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=2, splits=("train", "test"))
    shutil.copy(folder / "train" / "wave" / "000.jpg", folder / "test" / "circle" / "same.jpg")
    spec = ingest_spec(folder, splits={"train": "train", "test": "test"})
    manifest = build(spec, tmp_path).manifest
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {"test": 7, "train": 6}


def test_a_split_by_hash_keeps_copies_together(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=60)
    for index in range(20):
        shutil.copy(folder / "wave" / f"{index:03d}.jpg", folder / "wave" / f"copy{index}.jpg")
    spec = ingest_spec(folder, split={"test_ratio": 0.3})
    manifest = build(spec, tmp_path).manifest
    assert manifest.num_rows == 180
    assert manifest.rejections == {"duplicate": 20}
    assert 30 <= manifest.splits["test"].rows <= 80


@pytest.mark.usefixtures("small_units")
def test_per_class_keeps_exactly_the_smallest_hashes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=13)
    for index in range(4):
        shutil.copy(folder / "wave" / f"{index:03d}.jpg", folder / "wave" / f"a{index}.jpg")
    spec = ingest_spec(folder, select={"per_class": {"train": 5}, "seed": 3}, shard_bytes=3_000)
    build(spec, tmp_path, pool=ChaosPool(workers=2, seed=1))
    split = ShardSet.open(tmp_path / "out").split("train")
    assert Counter(split.labels().tolist()) == {0: 5, 1: 5, 2: 5}
    build(ingest_spec(folder), tmp_path / "all")
    every = ShardSet.open(tmp_path / "all" / "out").split("train")
    rows = [every.row(index) for index in range(every.num_rows)]
    for label in range(3):
        uids = [row.uid for row in rows if row.label == label]
        smallest = sorted(uids, key=lambda uid: keyed_hash("select", 3, uid))[:5]
        kept = {split.row(i).uid for i in range(15) if split.row(i).label == label}
        assert kept == set(smallest)


def test_classes_are_labelled_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=2)
    (folder / "circle" / "notes.txt").write_text("not counted: its class is left out")
    build(ingest_spec(folder, select={"classes": ["wave", "stripes"]}), tmp_path)
    data = ShardSet.open(tmp_path / "out")
    assert data.class_names == ("wave", "stripes")
    split = data.split("train")
    for index in range(split.num_rows):
        row = split.row(index)
        assert row.source.startswith(data.class_names[row.label])
    assert data.manifest.rejections == {}


def test_an_unknown_class_or_split_is_named_with_the_nearest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    with pytest.raises(SpecError, match=r"circle, stripes, wave \(did you mean 'wave'\?\)"):
        build(ingest_spec(folder, select={"classes": ["wav"]}), tmp_path)
    with pytest.raises(SpecError, match="did you mean 'train'"):
        build(ingest_spec(folder, select={"per_class": {"trian": 1}}), tmp_path)


def test_too_many_rejections_stop_the_build_with_the_reasons(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=3)
    for index in range(3):
        (folder / "wave" / f"bad{index}.jpg").write_bytes(b"")
    shutil.copy(folder / "wave" / "000.jpg", folder / "wave" / "copy.jpg")
    with pytest.raises(DataError, match=r"3 of 13 files .* 3 zero_byte \(as wave/bad0.jpg\)"):
        build(ingest_spec(folder), tmp_path)
    allowed = build(ingest_spec(folder, max_rejected_ratio=0.25), tmp_path)
    assert allowed.manifest.rejections == {"duplicate": 1, "zero_byte": 3}


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=3)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no image is left in 1 of 4 classes: empty"):
        build(ingest_spec(folder), tmp_path)


def test_shards_are_hard_links_of_the_progress(tmp_path: Path) -> None:
    result = build(ingest_spec(write_folder(tmp_path / "raw", per_class=2)), tmp_path)
    for path in result.known_sha256:
        if path.startswith("shards/"):
            assert (tmp_path / "out" / path).stat().st_nlink == 2


def test_a_damaged_shard_in_the_progress_is_written_again(tmp_path: Path) -> None:
    spec = ingest_spec(write_folder(tmp_path / "raw", per_class=2))
    first = build(spec, tmp_path)
    (shard,) = (tmp_path / "progress" / "shards").iterdir()
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(b"damage")
    shutil.rmtree(tmp_path / "out")
    assert build(spec, tmp_path).digest == first.digest
    ShardSet.open(tmp_path / "out").verify()


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=2)

    class Meddler(SerialPool):
        def map(self, function, items, *, label, **more):  # type: ignore[no-untyped-def]
            yield from super().map(function, items, label=label)
            (folder / "wave" / "late.jpg").write_bytes(encode(picture(2, 99)))

    with pytest.raises(DataError, match="changed while it was read; run again"):
        build(ingest_spec(folder), tmp_path, pool=Meddler())
    assert not (tmp_path / "out").exists()
    assert build(ingest_spec(folder), tmp_path).manifest.num_rows == 7


@pytest.mark.parametrize("as_tar", [False, True])
def test_a_folder_around_the_classes_is_named_and_can_be_divided(
    tmp_path: Path, *, as_tar: bool
) -> None:
    folder = tmp_path / "raw"
    write_folder(folder / "photos", per_class=20)
    source: dict[str, object] = {"type": "image_folder", "uri": str(folder)}
    if as_tar:
        source = {"type": "tar", "uri": str(write_tar(tmp_path / "raw.tar", folder))}
    spec = {"kind": "ingest", "split": {"test_ratio": 0.3}}
    with pytest.raises(DataError, match="has one folder on top, photos") as caught:
        build(IngestSpec.parse({**spec, "source": source}), tmp_path)
    assert caught.value.hint is not None
    assert "source.splits: {train: photos}" in caught.value.hint
    source["splits"] = {"train": "photos"}
    manifest = build(IngestSpec.parse({**spec, "source": source}), tmp_path).manifest
    assert manifest.class_names == CLASSES
    assert set(manifest.splits) == {"train", "test"}
    assert manifest.num_rows == 60
    source["splits"] = {"train": "photos", "test": "more"}
    with pytest.raises(ValueError, match="split divides one"):
        IngestSpec.parse({**spec, "source": source})


def test_small_corpora_keep_their_facts(tmp_path: Path) -> None:
    result = build(ingest_spec(write_folder(tmp_path / "raw", per_class=2)), tmp_path)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["transform"]["pillow"]
    assert result.manifest.class_names == CLASSES
    row = ShardSet.open(tmp_path / "out").split("train").row(0)
    kind, number = CLASSES.index(row.source.split("/")[0]), int(row.source[-7:-4])
    assert row.image == encode(picture(kind, number), quality=92)
    assert np.array_equal([row.height_px, row.width_px], [48, 64])
