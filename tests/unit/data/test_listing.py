"""The list step: numbering, resuming, and what a corpus must not do meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.ingest.listing import Listing, list_corpus, load_listing, save_listing
from pipeline.data.sources.webdataset import WebDatasetCorpus
from pipeline.data.staging import BuildTools, Staging
from pipeline.ports import TaskPool
from schemas.errors import DataError
from schemas.sources import SourceSpec, WebDatasetSource
from tests.support.containers import write_idx, write_parquet, write_shards
from tests.support.corpora import encode, picture, write_folder, write_tar
from tests.support.datasets import build, build_from, ingest_spec
from tests.support.pools import ChaosPool, DyingPool, KilledError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("listing")
    folder = write_folder(where / "raw", per_class=10)
    return write_shards(where / "wds", folder, per_shard=4)


def listed(source: SourceSpec, where: Path, pool: TaskPool) -> tuple[Listing, dict[str, bytes]]:
    staging = Staging(where)
    tools = BuildTools(pool, where, NeverStop(), [].append)
    found = list_corpus(source, staging, tools)
    save_listing(staging, found)
    return found, {file.name: file.read_bytes() for file in (where / "listing").iterdir()}


def test_units_are_numbered_alike_in_whatever_order_tasks_end(shards: Path, tmp_path: Path) -> None:
    source = WebDatasetSource(uri=str(shards))
    first = listed(source, tmp_path / "serial", SerialPool())
    for seed in (1, 2):
        pool = ChaosPool(workers=3, seed=seed)
        assert listed(source, tmp_path / str(seed), pool) == first
    found, files = first
    assert found.units == 8
    numbered = [f"{number:06d}.json" for number in range(8)]
    assert sorted(files) == [*numbered, "done.json", *(f"part-{n}.json" for n in range(8))]
    paths = [json.loads(files[f"{number:06d}.json"])["path"] for number in range(8)]
    assert paths == sorted(paths)
    assert load_listing(Staging(tmp_path / "serial")) == found


def test_a_listing_that_was_cut_short_goes_on_with_what_is_still_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "raw", per_class=4)
    source = WebDatasetSource(uri=str(write_shards(tmp_path / "wds", folder, per_shard=3)))
    with pytest.raises(KilledError):
        listed(source, tmp_path, DyingPool(2))
    assert load_listing(Staging(tmp_path)) is None
    (changed, *_) = sorted((tmp_path / "wds").iterdir())
    os.utime(changed, ns=(1, 1))
    read: list[str] = []
    units = WebDatasetCorpus.units
    monkeypatch.setattr(
        WebDatasetCorpus, "units", lambda self, part: read.append(part.path) or units(self, part)
    )
    found = listed(source, tmp_path, SerialPool())
    assert read == ["000000.tar", "000003.tar"]
    assert found == listed(source, tmp_path / "fresh", SerialPool())


def test_a_corpus_that_moved_is_gone_on_with(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=3)
    expected = build(ingest_spec(folder), tmp_path / "whole").digest
    with pytest.raises(KilledError):
        build(ingest_spec(folder), tmp_path, pool=DyingPool(4))
    moved = folder.rename(tmp_path / "moved")
    assert build(ingest_spec(moved), tmp_path).digest == expected


def test_a_file_that_came_and_went_while_listing_leaves_no_trace(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=3)
    late = folder / "wave" / "late.jpg"
    expected = build(ingest_spec(folder), tmp_path / "whole").digest

    class Meddler(SerialPool):
        def map(self, function, items, *, label):  # type: ignore[no-untyped-def]
            late.write_bytes(encode(picture(2, 99)))
            yield from super().map(function, items, label=label)

    with pytest.raises(DataError, match="changed while it was read"):
        build(ingest_spec(folder), tmp_path, pool=Meddler())
    late.unlink()
    assert build(ingest_spec(folder), tmp_path).digest == expected


def test_classes_can_be_chosen_and_held_back_in_every_form(shards: Path, tmp_path: Path) -> None:
    source = {"type": "webdataset", "uri": str(shards)}
    held = {"hold_back": {"num_classes": 1, "keep": "held_back"}}
    others = {"hold_back": {"num_classes": 1, "keep": "others"}}
    one = build_from(source, tmp_path / "held", select=held).manifest.class_names
    two = build_from(source, tmp_path / "others", select=others).manifest.class_names
    assert sorted((*one, *two)) == ["circle", "stripes", "wave"]
    chosen = {"classes": ["wave"], "per_class": {"train": 4}}
    assert build_from(source, tmp_path / "wave", select=chosen).manifest.num_rows == 4


def test_planning_reads_no_corpus_and_imports_nothing_for_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    write_tar(tmp_path / "a.tar", folder)
    write_shards(tmp_path / "wds", folder)
    write_parquet(tmp_path / "a.parquet", folder)
    write_idx(tmp_path / "images", picture(0, 0))
    build_from({"type": "image_folder", "uri": str(folder)}, tmp_path)
    (tmp_path / "labels.csv").write_text("a,b\n")
    (tmp_path / "test_batch.bin").write_bytes(b"")
    (tmp_path / "batches.meta.txt").write_bytes(b"")
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(b"")
    labels = {"file": str(tmp_path / "labels.csv"), "image_column": "x", "label_column": "y"}
    idx = {"train": {"images": "images", "labels": "images"}}
    sources = [
        {"type": "image_folder", "uri": str(folder)},
        {"type": "image_folder", "uri": str(folder), "labels": labels},
        {"type": "tar", "uri": str(tmp_path / "a.tar")},
        {"type": "webdataset", "uri": str(tmp_path / "wds")},
        {"type": "parquet", "uri": str(tmp_path / "a.parquet")},
        {"type": "hf", "uri": str(folder)},
        {"type": "hf", "uri": "someone/pets", "revision": "0" * 40},
        {"type": "arrow", "uri": str(tmp_path / "out")},
        {"type": "idx", "uri": str(tmp_path), "splits": idx},
        {"type": "cifar", "uri": str(tmp_path), "name": "cifar10"},
        {"type": "sklearn"},
    ]
    program = (
        "import json, sys\n"
        "from pydantic import TypeAdapter\n"
        "from infra.remote_files import FsspecFiles\n"
        "from pipeline.data.sources import fingerprint, source_bytes\n"
        "from schemas.sources import SourceSpec\n"
        "for source in TypeAdapter(list[SourceSpec]).validate_json(sys.argv[1]):\n"
        "    fingerprint(source, FsspecFiles()), source_bytes(source, FsspecFiles())\n"
        "heavy = {'PIL', 'numpy', 'pyarrow', 'sklearn', 'torch', 'datasets', 'fsspec'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(sources)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
