"""`verify` and `gc` as a person types them."""

import json
import os
import sys
from pathlib import Path

import pytest

from infra.storage import LocalStore
from jobs.cli import main
from jobs.workspace import open_workspace
from schemas.errors import UsageError
from schemas.store import GcDocument, PinDocument, VerifyDocument
from tests.support.artifacts import make_artifact


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    monkeypatch.setenv("VITRAIL_WORKSPACE", str(tmp_path / "work"))
    monkeypatch.delenv("VITRAIL_STORE", raising=False)
    return LocalStore(tmp_path / "work" / "store")


def vitrail(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vitrail", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_verify_names_file_expected_and_found_and_exits_6(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = make_artifact(store, 0), make_artifact(store, 1)
    assert vitrail(monkeypatch, "verify", "--output", "json") == 0
    found = VerifyDocument.model_validate_json(capsys.readouterr().out)
    assert (found.artifacts, found.files, found.faults) == (2, 4, ())
    path = store.path(damaged) / "report.json"
    before = path.stat()
    path.write_text("CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert vitrail(monkeypatch, "verify", "--output", "json") == 6
    (fault,) = VerifyDocument.model_validate_json(capsys.readouterr().out).faults
    assert (fault.artifact, fault.file) == (damaged.artifact, str(path))
    assert fault.expected.startswith("sha256 ")
    assert vitrail(monkeypatch, "verify", whole.artifact) == 0
    assert vitrail(monkeypatch, "verify", damaged.artifact) == 6
    assert "report.json" in capsys.readouterr().out


def test_gc_is_dry_by_default_and_what_it_takes_can_be_restored(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = make_artifact(store)
    words = ("gc", "--keep-days", "0", "--output", "json")
    assert vitrail(monkeypatch, *words) == 0
    dry = GcDocument.model_validate_json(capsys.readouterr().out)
    assert store.named(result.artifact) == result
    assert vitrail(monkeypatch, *words, "--apply") == 0
    done = GcDocument.model_validate_json(capsys.readouterr().out)
    assert (dry.applied, done.applied) == (False, True)
    assert dry.garbage == done.garbage
    assert store.named(result.artifact) is None
    assert vitrail(monkeypatch, "gc", "--restore", result.artifact, "--output", "json") == 0
    told = PinDocument.model_validate_json(capsys.readouterr().out)
    assert (told.artifact, told.done) == (result.artifact, "restored")
    assert vitrail(monkeypatch, "gc", "--pin", result.artifact) == 0
    assert vitrail(monkeypatch, *words) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["garbage"] == []
    assert vitrail(monkeypatch, "gc", "--restore", "evaluate-0") == 2


def test_a_workspace_belongs_to_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITRAIL_STORE", raising=False)
    work = open_workspace(tmp_path / "work", "s3://bucket/store")
    assert not (tmp_path / "work").exists(), "planning writes nothing"
    work.require_writable()
    assert open_workspace(tmp_path / "work").store.uri == "s3://bucket/store"
    with pytest.raises(UsageError, match="keep their artifacts in s3://bucket/store"):
        open_workspace(tmp_path / "work", str(tmp_path))
    monkeypatch.setenv("VITRAIL_STORE", "s3://bucket/other")
    with pytest.raises(UsageError, match="another --workspace"):
        open_workspace(tmp_path / "work")
    assert open_workspace(tmp_path / "fresh").store.uri == "s3://bucket/other"
