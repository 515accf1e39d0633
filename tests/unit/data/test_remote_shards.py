from pathlib import Path

import fsspec
import numpy as np
import pytest

from infra.remote_files import FsspecFiles
from pipeline.data.feed.loader import TrainLoader, eval_batches
from pipeline.data.shards.cache import FETCH_TRIES, ShardCache
from pipeline.data.shards.shard_set import ShardSet, Split
from schemas.errors import DataError, IntegrityError
from schemas.manifest import MANIFEST_FILE, SHARD_TABLE_FILE, SHARDS_FOLDER
from schemas.samples import AugmentSpec, BatchSpec
from tests.support.datasets import small_set
from tests.support.remote import BASE, FolderFiles

URI = f"{BASE}out"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("origin"))


def remote(
    origin: ShardSet, cache: Path, *, limit_bytes: int = 10**9
) -> tuple[ShardSet, FolderFiles]:
    files = FolderFiles(origin.folder.parent)
    return ShardSet.open(URI, files=files, cache=ShardCache(cache, limit_bytes=limit_bytes)), files


def uids(split: Split) -> list[bytes]:
    return [split.row(index).uid for index in range(split.num_rows)]


def test_a_remote_set_is_the_local_one(origin: ShardSet, tmp_path: Path) -> None:
    data, files = remote(origin, tmp_path)
    assert data.digest == origin.digest
    assert uids(data.split("train")) == uids(origin.split("train"))
    assert data.split("test").labels().tolist() == origin.split("test").labels().tolist()
    assert len(files.fetched) == len(set(files.fetched)) == 1 + origin.manifest.num_shards
    data.verify()


def test_evaluation_batches_come_through_the_cache(origin: ShardSet, tmp_path: Path) -> None:
    data, _ = remote(origin, tmp_path)
    batches = [
        eval_batches(it.split("test"), image_px=(16, 16), batch_samples=8, threads=2)
        for it in (data, origin)
    ]
    for ours, theirs in zip(*batches, strict=True):
        assert np.array_equal(ours.pixels_BHWC, theirs.pixels_BHWC)
        assert np.array_equal(ours.uid_B, theirs.uid_B)


def test_a_second_process_finds_everything_in_the_cache(origin: ShardSet, tmp_path: Path) -> None:
    first, _ = remote(origin, tmp_path)
    uids(first.split("train"))
    again, files = remote(origin, tmp_path)
    assert uids(again.split("train")) == uids(origin.split("train"))
    assert files.fetched == []


def test_a_cache_smaller_than_the_set_is_enough(origin: ShardSet, tmp_path: Path) -> None:
    table_bytes = (origin.folder / SHARD_TABLE_FILE).stat().st_size
    sizes = origin.table["bytes"].to_pylist()
    limit = table_bytes + 2 * max(sizes)
    assert limit < sum(sizes)
    data, _ = remote(origin, tmp_path, limit_bytes=limit)
    for _ in range(2):
        assert uids(data.split("train")) == uids(origin.split("train"))
        held = [path.stat().st_size for path in tmp_path.iterdir() if path.is_file()]
        assert sum(held) <= limit


def test_a_cache_without_room_for_one_shard_is_refused(origin: ShardSet, tmp_path: Path) -> None:
    table_bytes = (origin.folder / SHARD_TABLE_FILE).stat().st_size
    data, _ = remote(origin, tmp_path, limit_bytes=table_bytes + 10)
    with pytest.raises(DataError, match="allow the cache more bytes"):
        data.split("train").row(0)


def test_a_shard_damaged_on_its_way_is_fetched_again(origin: ShardSet, tmp_path: Path) -> None:
    data, files = remote(origin, tmp_path)
    spoilt: set[str] = set()

    def damage(uri: str, content: bytes) -> bytes:
        if uri in spoilt:
            return content
        spoilt.add(uri)
        return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]

    files.damage = damage
    assert uids(data.split("train")) == uids(origin.split("train"))
    assert len(files.fetched) == 1 + 2 * len(spoilt)


def test_a_shard_damaged_at_its_origin_is_an_integrity_error(
    origin: ShardSet, tmp_path: Path
) -> None:
    data, files = remote(origin, tmp_path)
    files.damage = lambda _uri, content: content[:-1] + b"?"
    with pytest.raises(IntegrityError, match=rf"{SHARDS_FOLDER}/.* is not what was written"):
        data.split("train").row(0)
    assert len(files.fetched) == 1 + FETCH_TRIES


def test_a_cached_shard_that_decayed_is_refetched(origin: ShardSet, tmp_path: Path) -> None:
    whole = uids(origin.split("train"))
    first, _ = remote(origin, tmp_path)
    uids(first.split("train"))
    del first
    name = origin.split("train").shard_names[0]
    path = tmp_path / Path(name).stem
    content = bytearray(path.read_bytes())
    image = origin.split("train").row(0).image
    content[content.index(image) + 20] ^= 4
    path.write_bytes(content)
    data, files = remote(origin, tmp_path)
    split = data.split("train")
    with pytest.raises(IntegrityError, match="row 0 has another checksum"):
        split.row(0)
    split.refetch(0)
    assert uids(split) == whole
    assert len(files.fetched) == 1


def test_a_cached_table_that_decayed_is_refetched(origin: ShardSet, tmp_path: Path) -> None:
    remote(origin, tmp_path)
    path = tmp_path / origin.manifest.shard_table_sha256
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    data, files = remote(origin, tmp_path)
    assert len(files.fetched) == 1
    assert data.digest == origin.digest


def test_prefetched_shards_are_there_when_they_are_read(origin: ShardSet, tmp_path: Path) -> None:
    data, files = remote(origin, tmp_path)
    split = data.split("train")
    shards = range(len(split.shard_names))
    split.prefetch(shards)
    assert uids(split) == uids(origin.split("train"))
    assert len(files.fetched) == len(set(files.fetched)) == 1 + len(shards)


def test_a_missing_set_and_a_missing_cache_are_told(origin: ShardSet, tmp_path: Path) -> None:
    files = FolderFiles(origin.folder.parent)
    cache = ShardCache(tmp_path, limit_bytes=10**6)
    with pytest.raises(DataError, match=rf"nowhere holds no shard set: {MANIFEST_FILE}"):
        ShardSet.open(f"{BASE}nowhere", files=files, cache=cache)
    with pytest.raises(DataError, match="is read through a cache"):
        ShardSet.open(URI, files=files)
    data = ShardSet.open(URI, files=files, cache=cache)
    with pytest.raises(DataError, match="needs a local copy"):
        _ = data.shards_folder


def trained_on(split: Split, steps: int) -> tuple[list[bytes], int]:
    """Pixels of the first batches of training, and how many bad rows were replaced."""
    loader = TrainLoader(
        split,
        augment=AugmentSpec(crop="inception"),
        image_px=(16, 16),
        batch=BatchSpec(global_samples=12),
        seed=3,
        rank=0,
        world_size=1,
        micro_batch=12,
        threads=2,
    )
    with loader:
        batches = loader.batches(0)
        pixels = [next(batches)[0].pixels_BHWC.tobytes() for _ in range(steps)]
    return pixels, loader.replaced


def test_training_on_a_decayed_cache_sees_what_it_would_have_seen(
    origin: ShardSet, tmp_path: Path
) -> None:
    expected = trained_on(origin.split("train"), 6)
    first, _ = remote(origin, tmp_path)
    uids(first.split("train"))
    del first
    shards = {Path(name).stem for name in origin.split("train").shard_names}
    for path in (tmp_path / name for name in shards):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    data, files = remote(origin, tmp_path)
    assert trained_on(data.split("train"), 6) == expected
    assert expected[1] == 0
    assert files.fetched


def test_a_set_behind_fsspec_is_read_like_any_other(origin: ShardSet, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(str(origin.folder), "/remote-set", recursive=True)
    cache = ShardCache(tmp_path, limit_bytes=10**8)
    data = ShardSet.open("memory://remote-set", files=FsspecFiles(), cache=cache)
    assert uids(data.split("train")) == uids(origin.split("train"))
    assert list(data.faults()) == []
