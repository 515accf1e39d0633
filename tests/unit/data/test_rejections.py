import random
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.ingest.rejections import Tally, merge_rejections, write_rejections
from schemas.records import REJECTIONS


def test_merged_files_are_one_sorted_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.ingest.rejections._FILES_AT_ONCE", 3)
    monkeypatch.setattr("pipeline.data.ingest.rejections._ROWS_PER_BATCH", 5)
    rng = random.Random(3)
    rows = [(f"class/{rng.random()}.jpg", rng.choice("ab"), "a sentence") for _ in range(200)]
    files, tally = [], Tally()
    for number in range(20):
        files.append(tmp_path / f"{number}.arrow")
        tally.merge(write_rejections(files[-1], rows[number * 10 : number * 10 + 10]))
    digest = merge_rejections(files, tmp_path / "all.arrow", scratch=tmp_path)
    table = pa.ipc.open_file(str(tmp_path / "all.arrow")).read_all()
    assert table.schema == REJECTIONS
    columns = [column.to_pylist() for column in table.columns]
    assert list(zip(*columns, strict=True)) == sorted(rows)
    assert tally.counts == {reason: sum(row[1] == reason for row in rows) for reason in "ab"}
    assert tally.examples["a"] == min(source for source, reason, _ in rows if reason == "a")
    assert {file.name for file in tmp_path.iterdir()} == {
        *(file.name for file in files),
        "all.arrow",
    }
    rng.shuffle(files)
    assert merge_rejections(files, tmp_path / "again.arrow", scratch=tmp_path) == digest


def test_pieces_without_rejections_leave_no_file(tmp_path: Path) -> None:
    assert write_rejections(tmp_path / "none.arrow", []) == {}
    assert list(tmp_path.iterdir()) == []
    merge_rejections([tmp_path / "none.arrow"], tmp_path / "all.arrow", scratch=tmp_path)
    assert pa.ipc.open_file(str(tmp_path / "all.arrow")).read_all().num_rows == 0
