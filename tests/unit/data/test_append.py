import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.curation.filter import NamedSplit, filter_split
from pipeline.data.curation.removing import remove_images
from pipeline.data.ingest.append import append_images
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.shards.tombstones import DerivedSet
from pipeline.data.sources import fingerprint
from pipeline.data.staging import BuildTools, sha256_of
from pipeline.ports import TaskPool
from schemas.curation import AppendSpec, FilterSpec, RemoveSpec
from schemas.errors import DataError, SpecError
from tests.support.corpora import encode, picture, write_folder
from tests.support.datasets import build, ingest_spec, uids
from tests.support.pools import ChaosPool, DyingPool, KilledError

SPLITS = {"train": "train", "test": "test"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A cleaned set: `copy.jpg` went because it stands in `test`, `stripes/002.jpg` by name."""
    root = tmp_path_factory.mktemp("old")
    folder = write_folder(root / "raw", per_class=8, splits=("train", "test"))
    shutil.copy(folder / "test" / "wave" / "001.jpg", folder / "train" / "wave" / "copy.jpg")
    build(ingest_spec(folder, splits=SPLITS, shard_bytes=20_000), root)
    whole = ShardSet.open(root / "out")
    train, test = (NamedSplit(f"old@{name}", whole, name) for name in ("train", "test"))
    tools = BuildTools(SerialPool(), root / "progress", NeverStop(), [].append)
    spec = FilterSpec(data="old", against=("old@test",))
    filter_split(train, [test], spec, tools=tools, out=root / "clean")
    clean = ShardSet.open(root / "clean")
    gone = RemoveSpec(data="clean", sources=("train/stripes/002.jpg",))
    remove_images(clean, gone, tools=tools, out=root / "out2")
    return ShardSet.open(root / "out2")


def more_images(folder: Path, old: ShardSet) -> Path:
    """New images of an old and of a new class, copies of old ones, and a contradiction."""
    write_folder(folder, per_class=6, seed=9, splits=("train",))
    (folder / "train" / "circle").rename(folder / "train" / "aardvark")
    raw = old.folder.parent / "raw"
    shutil.copy(raw / "train" / "wave" / "003.jpg", folder / "train" / "wave" / "same.jpg")
    shutil.copy(raw / "test" / "wave" / "004.jpg", folder / "train" / "wave" / "tested.jpg")
    shutil.copy(raw / "train" / "stripes" / "002.jpg", folder / "train" / "stripes" / "gone.jpg")
    shutil.copy(raw / "train" / "circle" / "000.jpg", folder / "train" / "wave" / "other.jpg")
    return folder


def append_spec(folder: Path, **fields: Any) -> AppendSpec:
    ingest = ingest_spec(folder, splits={"train": "train"}, shard_bytes=20_000).dump()
    return AppendSpec.parse({**ingest, "kind": "append", "to": "old", **fields})


def append(
    old: ShardSet, spec: AppendSpec, where: Path, *, pool: TaskPool | None = None
) -> DerivedSet:
    tools = BuildTools(pool or SerialPool(), where / "progress", NeverStop(), [].append)
    state = fingerprint(spec.source)
    whole, _ = append_images(old, spec, fingerprint=state, tools=tools, out=where / "out")
    return whole


@pytest.fixture(scope="module")
def grown(old: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    root = tmp_path_factory.mktemp("grown")
    append(old, append_spec(more_images(root / "raw", old)), root)
    return ShardSet.open(root / "out")


def test_old_shards_are_the_same_files(old: ShardSet, grown: ShardSet) -> None:
    names = old.table["name"].to_pylist()
    assert grown.table["name"].to_pylist()[: len(names)] == names
    assert len(grown.table) > len(names)
    for name in names:
        assert (grown.shards_folder / name).samefile(old.shards_folder / name)
        assert sha256_of(grown.shards_folder / name) == Path(name).stem
    grown.verify()


def test_old_rows_keep_their_order_and_labels_and_new_ones_follow(
    old: ShardSet, grown: ShardSet
) -> None:
    for name in ("train", "test"):
        before, after = old.split(name), grown.split(name)
        assert uids(after)[: before.num_rows] == uids(before)
        assert after.labels()[: before.num_rows].tolist() == before.labels().tolist()
    assert grown.split("test").num_rows == old.split("test").num_rows
    assert grown.split("train").num_rows == old.split("train").num_rows + 18


def test_new_classes_come_behind_the_old_ones(old: ShardSet, grown: ShardSet) -> None:
    assert grown.class_names == (*old.class_names, "aardvark")
    split = grown.split("train")
    added = [split.row(index) for index in range(old.split("train").num_rows, split.num_rows)]
    assert {row.source.split("/")[1]: row.label for row in added} == {
        "aardvark": 3,
        "stripes": 1,
        "wave": 2,
    }


def test_what_the_set_has_or_had_is_rejected(old: ShardSet, grown: ShardSet) -> None:
    found = {row["source"]: row for row in grown.rejections.to_pylist()}
    assert {source: row["reason"] for source, row in found.items()} == {
        "train/wave/same.jpg": "duplicate",
        "train/wave/tested.jpg": "duplicate",
        "train/stripes/gone.jpg": "duplicate",
        "train/wave/other.jpg": "label_conflict",
    }
    assert grown.manifest.rejections == {"duplicate": 3, "label_conflict": 1}
    assert "split test" in found["train/wave/tested.jpg"]["message"]
    assert "taken_out" in found["train/stripes/gone.jpg"]["message"]


def test_the_manifest_tells_both_parts(old: ShardSet, grown: ShardSet) -> None:
    manifest, before = grown.manifest, old.manifest
    assert manifest.parents == (old.digest,)
    assert manifest.tombstones == before.tombstones
    assert manifest.num_rows == before.num_rows + 18
    assert (
        manifest.num_shards
        == len(grown.table)
        == sum(entry.shards for entry in manifest.splits.values())
    )
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {
        name: grown.split(name).num_rows for name in ("train", "test")
    }
    assert manifest.transform == before.transform
    assert grown.order_digest != old.order_digest


def test_the_digest_does_not_depend_on_the_pool_or_on_a_kill(
    old: ShardSet, grown: ShardSet, tmp_path: Path
) -> None:
    spec = append_spec(grown.folder.parent / "raw")
    chaos = append(old, spec, tmp_path / "chaos", pool=ChaosPool(workers=3, seed=2))
    assert chaos.digest == grown.digest
    for survives in (0, 2, 5):
        where = tmp_path / f"killed-{survives}"
        with pytest.raises(KilledError):
            append(old, spec, where, pool=DyingPool(survives))
        assert append(old, spec, where).digest == grown.digest


def test_appending_twice_adds_nothing(grown: ShardSet, tmp_path: Path) -> None:
    again = append(grown, append_spec(grown.folder.parent / "raw"), tmp_path)
    assert again.manifest.num_rows == grown.manifest.num_rows
    assert again.manifest.num_shards == grown.manifest.num_shards
    assert ShardSet.open(tmp_path / "out").order_digest == grown.order_digest


def test_a_new_split_can_be_added(old: ShardSet, tmp_path: Path) -> None:
    write_folder(tmp_path / "raw", per_class=3, seed=12, splits=("extra",))
    spec = append_spec(tmp_path / "raw")
    source = {**spec.source.dump(), "splits": {"extra": "extra"}}
    append(old, AppendSpec.parse({**spec.dump(), "source": source}), tmp_path)
    data = ShardSet.open(tmp_path / "out")
    assert data.split("extra").num_rows == 9
    assert uids(data.split("train")) == uids(old.split("train"))


def test_select_counts_new_images_alone(old: ShardSet, tmp_path: Path) -> None:
    folder = more_images(tmp_path / "raw", old)
    select = {"exclude_classes": ["aardvark"], "per_class": {"train": 4}}
    whole = append(old, append_spec(folder, select=select), tmp_path)
    assert whole.manifest.class_names == old.class_names
    assert whole.manifest.num_rows == old.manifest.num_rows + 8


def test_a_set_has_one_form_of_image(old: ShardSet, tmp_path: Path) -> None:
    spec = append_spec(more_images(tmp_path / "raw", old), image={"max_side_px": 32})
    with pytest.raises(SpecError, match="in another form"):
        append(old, spec, tmp_path)


def test_a_new_class_without_an_image_is_an_error(old: ShardSet, tmp_path: Path) -> None:
    folder = more_images(tmp_path / "raw", old)
    shutil.rmtree(folder / "train" / "aardvark")
    (folder / "train" / "zebra").mkdir()
    shutil.copy(
        old.folder.parent / "raw" / "train" / "wave" / "003.jpg", folder / "train" / "zebra"
    )
    with pytest.raises(DataError, match="no image is left in 1 of 1 classes: zebra"):
        append(old, append_spec(folder), tmp_path)


def test_a_filter_cleans_what_was_appended(grown: ShardSet, tmp_path: Path) -> None:
    twin = encode(picture(1, 90_000), quality=60)
    folder = write_folder(tmp_path / "raw", per_class=2, seed=20, splits=("train",))
    (folder / "train" / "stripes" / "twin.jpg").write_bytes(twin)
    append(grown, append_spec(folder), tmp_path)
    data = ShardSet.open(tmp_path / "out")
    tools = BuildTools(SerialPool(), tmp_path / "filter", NeverStop(), [].append)
    result = filter_split(
        NamedSplit("grown@train", data, "train"),
        [],
        FilterSpec(data="grown", near_duplicates="keep_first"),
        tools=tools,
        out=tmp_path / "clean",
    )
    assert result.removals["source"].to_pylist() == ["train/stripes/twin.jpg"], "the later one goes"
    clean = ShardSet.open(tmp_path / "clean")
    assert clean.tombstones is not None
    assert set(clean.tombstones["reason"].to_pylist()) == {
        "exact_copy",
        "near_duplicate",
        "taken_out",
    }
    assert np.array_equal(
        clean.split("train").labels(), np.delete(data.split("train").labels(), _place(data))
    )


def _place(data: ShardSet) -> int:
    split = data.split("train")
    sources = [split.row(index).source for index in range(split.num_rows)]
    return sources.index("train/stripes/twin.jpg")
