from pathlib import Path

import pyarrow as pa
import pytest

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.staging import (
    BuildTools,
    Progress,
    committing,
    disk_guard,
    read_table,
    write_bytes,
    write_table,
)
from schemas.errors import DiskFullError


def test_a_full_disk_is_one_sentence_with_path_and_bytes() -> None:
    with (
        pytest.raises(DiskFullError, match=r"no space is left for /dev/full, 4,096 bytes,"),
        disk_guard(Path("/dev/full"), needed_bytes=4096),
    ):
        Path("/dev/full").write_bytes(bytes(4096))


def test_arrow_says_the_same_of_a_full_disk() -> None:
    table = pa.table({"a": [b"x" * 10_000]})
    with (
        pytest.raises(DiskFullError),
        disk_guard(Path("/dev/full")),
        pa.OSFile("/dev/full", "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def test_other_faults_of_the_system_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), disk_guard(Path("/tmp/x")):
        Path("/nowhere/at/all").read_bytes()


def test_nothing_bears_the_name_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "piece"

    def torn() -> None:
        with committing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torn()
    assert list(path.parent.iterdir()) == []
    write_bytes(path, b"whole")
    assert [file.name for file in path.parent.iterdir()] == ["piece"]


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(1000))})
    write_table(tmp_path / "t.arrow", table, rows_per_batch=256)
    reader = pa.ipc.open_file(str(tmp_path / "t.arrow"))
    assert [reader.get_batch(i).num_rows for i in range(4)] == [256, 256, 256, 232]
    assert read_table(tmp_path / "t.arrow").equals(table)


def test_progress_says_when_it_is_done(tmp_path: Path) -> None:
    said: list[str] = []
    progress = Progress(BuildTools(SerialPool(), tmp_path, NeverStop(), said.append), "cutting", 2)
    progress.finished(600)
    progress.finished(500)
    assert said[-1].startswith("cutting: 2 of 2, 1,100 images, ")
