import random
from pathlib import Path

import pytest

from benchmarks.bitrot import in_cache, in_remote, in_shards
from pipeline.data.shards.shard_set import ShardSet
from schemas.errors import IntegrityError
from schemas.manifest import MANIFEST_FILE, REJECTIONS_FILE
from tests.support.datasets import small_set


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("rot"), per_class=4, shard_bytes=8000)


def test_no_flipped_bit_of_a_local_set_goes_undetected(data: ShardSet) -> None:
    outcome = in_shards(data, random.Random(1), 80)
    assert outcome.undetected == []
    assert outcome.kinds.total() == 80


def test_no_flipped_bit_of_a_remote_set_goes_undetected(data: ShardSet, tmp_path: Path) -> None:
    outcome = in_remote(data, tmp_path, random.Random(2), 40)
    assert outcome.undetected == []


def test_a_flipped_bit_in_a_cache_is_mended_or_changes_no_sample(
    data: ShardSet, tmp_path: Path
) -> None:
    outcome = in_cache(data, tmp_path, random.Random(3), 60)
    assert outcome.undetected == []
    assert set(outcome.kinds) <= {"mended", "right"}


@pytest.mark.parametrize("bit", range(0, 8, 3))
def test_any_byte_of_a_manifest_counts(data: ShardSet, tmp_path: Path, bit: int) -> None:
    for path in data.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    manifest = tmp_path / MANIFEST_FILE
    whole = manifest.read_bytes()
    for place in range(len(whole)):
        manifest.unlink()
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(IntegrityError, match=f"{MANIFEST_FILE} of .* is not what was written"):
            ShardSet.open(tmp_path)


def test_every_fault_is_told(data: ShardSet, tmp_path: Path) -> None:
    for path in data.folder.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(data.folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    opened = ShardSet.open(tmp_path)
    assert list(opened.faults()) == []
    first, second = opened.split("train").shard_names[:2]
    (opened.shards_folder / first).unlink()
    (opened.shards_folder / second).write_bytes(b"short")
    (tmp_path / REJECTIONS_FILE).write_bytes(b"")
    told = list(opened.faults())
    assert len(told) == 3
    assert any(first in fault and "is missing" in fault for fault in told)
    with pytest.raises(IntegrityError):
        opened.verify()
