"""Sources and files behind URIs, against a real S3 server."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.remote_files import FsspecFiles
from pipeline.data.sources import corpus_of, fingerprint, source_bytes
from pipeline.ports import FileStatus
from schemas.data import IngestSpec
from schemas.errors import DataError, SpecError
from schemas.sources import SourceSpec
from tests.support.containers import write_cifar, write_csv, write_idx, write_parquet, write_shards
from tests.support.corpora import write_folder, write_tar
from tests.support.datasets import build_from
from tests.support.s3_server import put, upload
from tests.support.sources import names_of, one_unit, read_all

FILES = FsspecFiles()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("s3") / "raw", per_class=3)


def source_of(fields: dict[str, Any]) -> SourceSpec:
    return IngestSpec.parse({"source": fields}).source


def same_in_the_bucket(local: dict[str, Any], uri: str) -> SourceSpec:
    """Assert that a source reads the same from the bucket as from the disk."""
    here, there = source_of(local), source_of({**local, "uri": uri})
    files = pickle.loads(pickle.dumps(FILES))
    assert read_all(there, files) == read_all(here)
    assert source_bytes(there, files) == source_bytes(here)
    assert fingerprint(there, files) == fingerprint(there, FILES)
    return there


def test_a_folder_behind_a_uri(bucket: str, folder: Path) -> None:
    upload(folder, f"{bucket}/folder")
    there = same_in_the_bucket({"type": "image_folder", "uri": str(folder)}, f"{bucket}/folder")
    before = fingerprint(there, FILES)
    put("folder/wave/000.jpg", b"other")
    assert fingerprint(there, FILES) != before


def test_a_tar_behind_a_uri(bucket: str, folder: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "raw.tar", folder)
    uri = upload(tar, f"{bucket}/tars/raw.tar")
    there = same_in_the_bucket({"type": "tar", "uri": str(tar)}, uri)
    unit = one_unit(there, FILES)
    upload(write_tar(tmp_path / "raw.tar", folder / "wave"), uri)
    with pytest.raises(DataError, match="let the corpus rest"):
        list(corpus_of(there, FILES).read(unit))


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{000000..000001}.tar"])
def test_webdataset_shards_behind_a_uri(
    bucket: str, folder: Path, tmp_path: Path, pattern: str
) -> None:
    shards = write_shards(tmp_path / "wds", folder)
    uri = upload(shards, f"{bucket}/wds")
    same_in_the_bucket({"type": "webdataset", "uri": f"{shards}{pattern}"}, f"{uri}{pattern}")


def test_parquet_behind_a_uri(bucket: str, folder: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", folder)
    upload(tmp_path, f"{bucket}/parquet")
    local = {"type": "parquet", "uri": str(tmp_path), "splits": {"test": "*.parquet"}}
    same_in_the_bucket(local, f"{bucket}/parquet")


def test_a_label_file_and_its_images_behind_uris(bucket: str, folder: Path, tmp_path: Path) -> None:
    rows = [("name", "kind"), ("wave/001", "a"), ("circle/002", "b"), ("gone", "a")]
    upload(write_csv(tmp_path / "labels.csv", rows, delimiter="\t"), f"{bucket}/labels.csv")
    upload(folder, f"{bucket}/labelled")
    labels = {"image_column": "name", "label_column": "kind", "image_suffix": ".jpg"}
    local = {**labels, "file": str(tmp_path / "labels.csv")}
    remote = {**labels, "file": f"{bucket}/labels.csv"}
    here = source_of({"type": "image_folder", "uri": str(folder), "labels": local})
    there = source_of({"type": "image_folder", "uri": f"{bucket}/labelled", "labels": remote})
    assert names_of(there, FILES) == names_of(here)
    assert [file.reason for file in one_unit(there, FILES).refused] == ["missing_file"]


def test_idx_files_behind_a_uri(bucket: str, tmp_path: Path) -> None:
    scans = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    write_idx(tmp_path / "images.gz", scans)
    write_idx(tmp_path / "labels", np.array([2, 0, 1]))
    splits = {"train": {"images": "images", "labels": "labels"}}
    upload(tmp_path, f"{bucket}/idx")
    same_in_the_bucket({"type": "idx", "uri": str(tmp_path), "splits": splits}, f"{bucket}/idx")


def test_cifar_batches_behind_a_uri(bucket: str, tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar100")
    upload(tmp_path, f"{bucket}/cifar")
    local = {"type": "cifar", "uri": str(tmp_path), "name": "cifar100"}
    same_in_the_bucket(local, f"{bucket}/cifar")


def test_a_shard_set_behind_a_uri_is_ingested_again(
    bucket: str, folder: Path, tmp_path: Path
) -> None:
    build_from({"type": "image_folder", "uri": str(folder)}, tmp_path)
    uri = upload(tmp_path / "out", f"{bucket}/set")
    same_in_the_bucket({"type": "arrow", "uri": str(tmp_path / "out")}, uri)
    again = build_from({"type": "arrow", "uri": uri}, tmp_path / "again", files=FILES)
    assert again.manifest.num_rows == 9


def test_a_listing_of_several_pages_is_whole_and_in_order(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    keys = [f"many/{number % 7}/{number:04d}.jpg" for number in range(53)]
    for key in [*keys, "many/mark/"]:
        put(key, b"x")
    found = [status.path for status in FILES.walk(f"{bucket}/many")]
    assert found == sorted(key.removeprefix("many/") for key in keys)


def test_a_reader_seeks_and_reads_as_a_file_does(bucket: str, tmp_path: Path) -> None:
    data = np.random.Generator(np.random.PCG64(1)).bytes(5 * 2**20)
    uri = put("blob", data)
    with FILES.open(uri) as stream:
        assert stream.read(10) == data[:10]
        assert stream.seek(-5, io.SEEK_END) == len(data) - 5
        assert stream.read() == data[-5:]
        stream.seek(4_300_000)
        assert stream.read(100) == data[4_300_000:4_300_100]
        assert stream.read(0) == b""
    assert FILES.read(uri, start=7, size=3) == data[7:10]
    assert FILES.read(uri, start=len(data) - 2) == data[-2:]
    FILES.fetch(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    status = FILES.status(uri)
    assert isinstance(status, FileStatus)
    assert (status.path, status.size) == ("blob", len(data))
    assert status.version
    assert FILES.status(f"{bucket}/many") is None
    assert FILES.status(f"{bucket}/nothing") is None


def test_what_is_not_there_is_said(bucket: str) -> None:
    for action in (
        lambda: list(FILES.walk(f"{bucket}/nothing")),
        lambda: FILES.open(f"{bucket}/nothing"),
        lambda: FILES.read(f"{bucket}/nothing"),
    ):
        with pytest.raises(DataError, match="does not exist"):
            action()
    with pytest.raises(DataError, match="does not exist"):
        list(FILES.walk("s3://no-such-bucket/x"))
    with pytest.raises(SpecError, match="'carrier-pigeon' names no store"):
        FILES.status("carrier-pigeon://x/y")


PROBE = """
import sys
from infra.remote_files import FsspecFiles
from schemas.errors import VitrailError
try:
    list(FsspecFiles().walk(sys.argv[1]))
except VitrailError as error:
    print(error.exit_code, error)
"""


def said_in_a_process_of_its_own(uri: str, *, before: str = "", **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    missing = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", before + PROBE, uri],
        env={**kept, **missing, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_store_that_does_not_answer_is_unreachable_and_keeps_its_secrets() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "kkkk", "AWS_SECRET_ACCESS_KEY": "ssss", "AWS_MAX_ATTEMPTS": "1"}
    said = said_in_a_process_of_its_own(
        "s3://photos/raw", AWS_ENDPOINT_URL="http://127.0.0.1:9", **keys
    )
    assert said.startswith("4 s3://photos/raw cannot be reached")
    assert "ssss" not in said


def test_missing_credentials_are_named(bucket: str) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    said = said_in_a_process_of_its_own("s3://photos/raw", AWS_ENDPOINT_URL=endpoint)
    assert said.startswith("4 s3://photos/raw needs credentials")
    assert "AWS_ACCESS_KEY_ID" in said


def test_a_library_that_is_missing_is_named_with_its_extra() -> None:
    hidden = "import sys; sys.modules['s3fs'] = None\n"
    said = said_in_a_process_of_its_own("s3://photos/raw", before=hidden)
    assert said.startswith("4 s3://photos/raw needs a library that is not installed")
    assert "pip install 'vitrail[s3]'" in said
