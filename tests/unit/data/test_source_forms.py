"""The same images in every form that they come in."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.data.shards.shard_set import ShardSet
from tests.support.containers import (
    images_below,
    write_csv,
    write_parquet,
    write_shards,
)
from tests.support.corpora import CLASSES, write_folder, write_tar
from tests.support.datasets import build_from

Rows = dict[bytes, tuple[str, str, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("forms") / "raw", per_class=6)


def built(source: dict[str, Any], where: Path, **fields: Any) -> ShardSet:
    build_from(source, where, **fields)
    return ShardSet.open(where / "out")


def rows_of(data: ShardSet) -> Rows:
    """uid -> split, class and stored image."""
    found: Rows = {}
    for name in data.manifest.splits:
        split = data.split(name)
        for index in range(split.num_rows):
            row = split.row(index)
            found[row.uid] = (name, data.class_names[row.label], row.image)
    return found


def saved_by_datasets(where: Path, folder: Path) -> Path:
    import datasets

    images = images_below(folder)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    columns = {
        "image": [{"bytes": data, "path": path} for _, path, data in images],
        "label": [CLASSES.index(name) for name, _, _ in images],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(where))
    return where


def test_every_form_gives_the_same_shards_where_the_names_agree(
    folder: Path, tmp_path: Path
) -> None:
    tar = write_tar(tmp_path / "raw.tar", folder)
    table = write_parquet(tmp_path / "raw.parquet", folder)
    rows = [("file", "kind"), *((path, name) for name, path, _ in images_below(folder))]
    labels = write_csv(tmp_path / "labels.csv", rows, delimiter=";")
    named = {"file": str(labels), "image_column": "file", "label_column": "kind"}
    sources: dict[str, dict[str, Any]] = {
        "folder": {"type": "image_folder", "uri": str(folder)},
        "tar": {"type": "tar", "uri": str(tar)},
        "parquet": {"type": "parquet", "uri": str(table)},
        "labels": {"type": "image_folder", "uri": str(folder), "labels": named},
    }
    sets = {name: built(source, tmp_path / f"from-{name}") for name, source in sources.items()}
    assert len({data.digest for data in sets.values()}) == 1
    assert sets["folder"].manifest.num_rows == 18
    again = built({"type": "arrow", "uri": str(tmp_path / "from-tar" / "out")}, tmp_path / "again")
    assert rows_of(again) == rows_of(sets["folder"])
    saved = saved_by_datasets(tmp_path / "saved", folder)  # keeps the last part of names alone
    from_saved = built({"type": "hf", "uri": str(saved)}, tmp_path / "from-saved")
    assert rows_of(from_saved) == rows_of(sets["folder"])


@pytest.mark.parametrize("label", ["cls", "json", "txt"])
def test_webdataset_shards_hold_what_their_folder_holds(
    folder: Path, tmp_path: Path, label: str
) -> None:
    write_shards(tmp_path / "shards", folder, label=label)
    source = {"type": "webdataset", "uri": str(tmp_path / "shards"), "label": label}
    from_shards = built(source, tmp_path / "a")
    from_folder = built({"type": "image_folder", "uri": str(folder)}, tmp_path / "b")
    assert rows_of(from_shards) == rows_of(from_folder)
    assert from_shards.class_names == from_folder.class_names
    assert from_shards.split("train").row(0).source.startswith("00000")
