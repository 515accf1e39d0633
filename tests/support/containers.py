"""One folder of class folders, written again in every other form that images come in."""

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def images_below(folder: Path) -> list[tuple[str, str, bytes]]:
    """Class, path and bytes of each file, sorted."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [
        (
            str(file.relative_to(folder)).split("/", maxsplit=1)[0],
            str(file.relative_to(folder)),
            file.read_bytes(),
        )
        for file in files
    ]


def write_shards(target: Path, folder: Path, *, per_shard: int = 5, label: str = "cls") -> Path:
    """`NNNNNN.tar` of WebDataset samples `CLASS/NAME.{jpg,cls}`; the images keep their names."""
    target.mkdir()
    images = images_below(folder)
    for number, first in enumerate(range(0, len(images), per_shard)):
        with tarfile.open(target / f"{number:06d}.tar", "w") as tar:
            for class_name, path, data in images[first : first + per_shard]:
                text = json.dumps({"label": class_name}) if label == "json" else class_name
                add_member(tar, path, data)
                add_member(tar, f"{path.rsplit('.', 1)[0]}.{label}", text.encode())
    return target


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """One plain file."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_parquet(target: Path, folder: Path, *, rows_per_group: int = 4, **columns: Any) -> Path:
    """`image` as struct, `label` as text; `columns` replace these or come beside them."""
    images = images_below(folder)
    table = {
        "image": [{"bytes": data, "path": path} for _, path, data in images],
        "label": [class_name for class_name, _, _ in images],
        **columns,
    }
    pq.write_table(pa.table(table), target, row_group_size=rows_per_group)
    return target


def write_csv(target: Path, rows: list[tuple[str, ...]], *, delimiter: str = ",") -> Path:
    """Rows of text, the header first."""
    with target.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return target


def write_idx(target: Path, array: np.ndarray) -> Path:
    """An IDX file of bytes; packed where the name says so."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    target.write_bytes(gzip.compress(data) if target.suffix == ".gz" else data)
    return target


def scans(count: int, *, seed: int = 0, shape: tuple[int, ...] = (28, 28)) -> np.ndarray:
    """Noise: `count` arrays of the shape."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def write_cifar(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Two images in each batch, labelled 0 and 1; file -> its images_NHWC."""
    files = ["train", "test"]
    names = ["fine_label_names.txt", "coarse_label_names.txt"]
    if name == "cifar10":
        files = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
        names = ["batches.meta.txt"]
    for number, file in enumerate(names):
        (folder / file).write_text(f"cat{number}\ndog{number}\n\n")
    batches = {}
    for number, file in enumerate(files):
        batches[file] = scans(2, seed=number, shape=(32, 32, 3))
        planes = batches[file].transpose(0, 3, 1, 2).reshape(2, -1)
        labels = np.array([[0], [1]]) if name == "cifar10" else np.array([[1, 0], [0, 1]])
        records = np.concatenate([labels.astype(np.uint8), planes], axis=1)
        (folder / f"{file}.bin").write_bytes(records.tobytes())
    return batches
