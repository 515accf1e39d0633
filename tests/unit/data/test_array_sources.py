"""IDX and CIFAR: arrays whose pixels must come through unchanged."""

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.data import IngestSpec
from schemas.errors import DataError
from schemas.sources import CifarSource, IdxSource
from tests.support.containers import scans, write_cifar, write_idx
from tests.support.datasets import build_from
from tests.support.sources import all_units, names_of, one_unit, read_all


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_idx_files_plain_and_packed_hold_the_same_images(tmp_path: Path) -> None:
    images, labels = scans(9), np.arange(9) % 10
    for suffix in ("", ".gz"):
        folder = tmp_path / f"files{suffix}"
        folder.mkdir()
        for split in ("train", "t10k"):
            write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
            write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", labels)
    plain, packed = (IdxSource(uri=str(tmp_path / name)) for name in ("files", "files.gz"))
    found = read_all(plain)
    assert [(raw.split, raw.class_name) for raw in found[:9]] == [("test", str(n)) for n in labels]
    assert [raw.split for raw in found[9:]] == ["train"] * 9
    for raw, pixels in zip(found, [*images, *images], strict=True):
        assert np.array_equal(pixels_of(raw.data), pixels)
    assert [raw.data for raw in read_all(packed)] == [raw.data for raw in found]
    assert names_of(packed)[0][2] == "t10k-images-idx3-ubyte.gz/000000"


def test_idx_files_of_colour_are_read(tmp_path: Path) -> None:
    images = scans(2, shape=(4, 6, 3))
    write_idx(tmp_path / "i", images)
    write_idx(tmp_path / "l", np.array([1, 0]))
    source = idx_source(tmp_path)
    assert np.array_equal(pixels_of(read_all(source)[1].data), images[1])


def idx_source(folder: Path) -> IdxSource:
    return IdxSource.parse(
        {"uri": str(folder), "splits": {"train": {"images": "i", "labels": "l"}}}
    )


def test_large_idx_files_are_cut_into_bounded_units(tmp_path: Path) -> None:
    write_idx(tmp_path / "i.gz", np.zeros((9_000, 2, 2), np.uint8))
    write_idx(tmp_path / "l", np.zeros(9_000))
    assert [len(unit.members) for unit in all_units(idx_source(tmp_path))] == [4096, 4096, 808]


def test_idx_files_that_do_not_fit_or_are_torn_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "i", scans(3))
    write_idx(tmp_path / "l", np.zeros(4))
    with pytest.raises(DataError, match="holds 3 images and l 4 labels"):
        one_unit(idx_source(tmp_path))
    (tmp_path / "l").write_bytes(b"label,1\n")
    with pytest.raises(DataError, match="l is no IDX file"):
        one_unit(idx_source(tmp_path))
    (tmp_path / "l").unlink()
    with pytest.raises(DataError, match=r"an IDX file, or its \.gz"):
        one_unit(idx_source(tmp_path))
    whole = gzip.compress((tmp_path / "i").read_bytes())
    (tmp_path / "i").unlink()
    (tmp_path / "i.gz").write_bytes(whole[: len(whole) // 2])
    write_idx(tmp_path / "l", np.zeros(3))
    with pytest.raises(DataError, match=r"cannot be unpacked|ends too early"):
        read_all(idx_source(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_pixels_and_names_come_through(tmp_path: Path, name: str) -> None:
    batches = write_cifar(tmp_path, name)
    source = CifarSource.parse({"uri": str(tmp_path), "name": name})
    found = {raw.source: raw for raw in read_all(source)}
    assert len(found) == 2 * len(batches)
    for file, images in batches.items():
        for number, class_name in enumerate(("cat0", "dog0")):
            raw = found[f"{file}.bin/{number:06d}"]
            assert raw.class_name == class_name
            assert raw.split == ("test" if "test" in file else "train")
            assert np.array_equal(pixels_of(raw.data), images[number])


def test_cifar_100_has_superclasses(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar100")
    source = CifarSource(uri=str(tmp_path), name="cifar100", labels="coarse")
    assert [name for _, name, _ in names_of(source)][:2] == ["dog1", "cat1"]
    manifest = build_from(source.dump(), tmp_path / "set").manifest
    assert manifest.class_names == ("cat1", "dog1")
    with pytest.raises(ValueError, match="cifar10 has no coarse labels"):
        CifarSource(uri=str(tmp_path), name="cifar10", labels="coarse")


def test_the_python_version_of_cifar_is_never_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Trap(str(marker))))
    with pytest.raises(DataError, match="a pickle, which may run any code") as caught:
        one_unit(CifarSource(uri=str(tmp_path), name="cifar10"))
    assert "cifar-10-binary.tar.gz" in str(caught.value)
    assert not marker.exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path(self.path).touch, ())


def test_cifar_of_the_other_size_is_told(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar100")
    for number in range(1, 6):
        (tmp_path / "train.bin").rename(tmp_path / f"data_batch_{number}.bin")
        write_cifar(tmp_path, "cifar100")
    (tmp_path / "test.bin").rename(tmp_path / "test_batch.bin")
    (tmp_path / "batches.meta.txt").write_text("cat\n")
    with pytest.raises(DataError, match="no whole number of records"):
        one_unit(CifarSource(uri=str(tmp_path), name="cifar10"))


def test_whole_numbers_as_classes_are_ordered_by_value(tmp_path: Path) -> None:
    write_idx(tmp_path / "i", scans(12))
    write_idx(tmp_path / "l", np.arange(12))
    source = {"type": "idx", **idx_source(tmp_path).dump()}
    manifest = build_from(source, tmp_path / "set").manifest
    assert manifest.class_names == tuple(str(number) for number in range(12))
    assert IngestSpec.parse({"source": source}).source == idx_source(tmp_path)
