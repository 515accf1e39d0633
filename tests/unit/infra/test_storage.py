import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.file_digests import file_fault
from infra.storage import LocalStore, open_store
from infra.store_documents import attempt_of
from schemas.artifacts import ArtifactFile, StageResult
from schemas.errors import DiskFullError, IntegrityError, SpecError, UnreachableError
from schemas.runs import InputArtifact
from tests.support.artifacts import KIND, make_artifact, stage_record, write_files
from tests.support.stores import Place


@pytest.fixture
def disk(tmp_path: Path) -> LocalStore:
    """For what only a disk can suffer."""
    return LocalStore(tmp_path / "store")


def test_looking_into_a_store_that_does_not_exist_makes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "deep" / "store")
    assert store.lookup(KIND, stage_record().key) is None
    assert store.get_ref("tests", "accuracy") is None
    assert not list(tmp_path.iterdir())


def test_a_commit_is_seen_by_another_store_at_the_same_place(place: Place, tmp_path: Path) -> None:
    result = make_artifact(place.open())
    other = place.open(local=tmp_path / "elsewhere")
    assert other.lookup(KIND, result.key) == result
    assert other.record(result) == stage_record()
    assert (other.local(result) / "report.json").read_text() == "content"
    assert (other.local(result) / "logs" / "log.txt").read_text() == "said"
    assert other.present(result) is None
    assert other.verify(result) is None
    assert result.metrics == {"test/top1_ratio": 0.5}


def test_an_attempt_is_not_seen_before_its_commit(store: Any) -> None:
    record = stage_record()
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path)
    assert store.lookup(KIND, record.key) is None


def test_the_content_digest_leaves_out_logs_documents_and_time(store: Any, tmp_path: Path) -> None:
    first = make_artifact(store)
    other = LocalStore(tmp_path / "other")
    attempt = other.begin(KIND, first.key)
    write_files(attempt.path)
    (attempt.path / "logs" / "more.txt").write_text("more")
    second = other.commit(attempt, stage_record().revise(seconds=9.0), known_sha256={})
    assert first.digest == second.digest
    assert first.attempt != second.attempt


def test_a_stage_may_write_files_with_the_names_of_the_stores_documents(store: Any) -> None:
    record = stage_record()
    attempt = store.begin(KIND, record.key)
    (attempt.path / "manifest.json").write_text("the stage's own")
    result = store.commit(attempt, record, known_sha256={})
    assert (store.path(result) / "manifest.json").read_text() == "the stage's own"
    assert store.record(result) == record


def test_the_first_commit_wins(store: Any) -> None:
    first = make_artifact(store, content="first")
    assert make_artifact(store, content="second") == first
    assert (store.path(first) / "report.json").read_text() == "first"


def test_progress_is_shared_by_the_attempts_at_a_key(store: Any) -> None:
    key = stage_record().key
    (store.begin(KIND, key).progress / "step").write_text("7")
    assert (store.begin(KIND, key).progress / "step").read_text() == "7"


def test_known_digests_are_taken_and_must_name_files(store: Any) -> None:
    record = stage_record()
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path)
    with pytest.raises(IntegrityError, match=r"nothing\.bin"):
        store.commit(attempt, record, known_sha256={"nothing.bin": "0" * 64})
    result = store.commit(attempt, record, known_sha256={"report.json": "0" * 64})
    assert "report.json has other bytes" in (store.verify(result) or "")


def test_a_link_is_no_part_of_an_artifact(store: Any, tmp_path: Path) -> None:
    record = stage_record()
    attempt = store.begin(KIND, record.key)
    (attempt.path / "link").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="link is not a plain file"):
        store.commit(attempt, record, known_sha256={})
    assert store.lookup(KIND, record.key) is None


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def _weights(result: StageResult) -> str:
    return f"{attempt_of(result)}/files/inner/weights.bin"


@pytest.mark.parametrize(("change", "words"), [(None, "missing"), (1, "bytes, not")])
def test_presence_sees_what_happened_to_a_file(place: Place, change, words) -> None:
    store = place.open()
    result, whole = make_artifact(store), place.read(_weights(make_artifact(store)))
    assert whole is not None
    if change is None:
        place.remove(_weights(result))
    else:
        place.write(_weights(result), whole + b"x")
    fault = store.present(result)
    assert fault is not None
    assert words in fault
    assert "weights.bin" in fault
    assert store.verify(result) == fault


def test_verifying_sees_bytes_that_presence_cannot_see(place: Place) -> None:
    store = place.open()
    result = make_artifact(store)
    path = Path(store.path(result), "inner", "weights.bin")
    before = path.stat()
    place.write(_weights(result), bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.present(result) is None
    assert "weights.bin has other bytes" in (store.verify(result) or "")
    (fault,) = store.faults(result, read_all=True)
    assert fault.artifact == result.artifact
    assert fault.expected.startswith("sha256 ")
    assert fault.found.startswith("sha256 ")
    assert fault.expected != fault.found


def test_presence_on_a_disk_sees_other_bytes_of_the_same_size(disk: LocalStore) -> None:
    result = make_artifact(disk)
    path = disk.path(result) / "inner" / "weights.bin"
    path.write_bytes(bytes(path.stat().st_size))
    assert "weights.bin has other bytes" in (disk.present(result) or "")


def test_a_touched_file_is_well_if_its_bytes_are(store: Any) -> None:
    result = make_artifact(store)
    _touch(store.path(result) / "report.json")
    assert store.present(result) is None
    assert store.verify(result) is None


@pytest.mark.parametrize("name", ["manifest.json", "record.json"])
def test_a_lost_document_is_noticed(place: Place, name: str) -> None:
    store = place.open()
    result = make_artifact(store)
    place.remove(f"{attempt_of(result)}/{name}")
    if name == "manifest.json":
        assert "manifest.json is missing" in (store.present(result) or "")
    else:
        with pytest.raises(IntegrityError, match="record"):
            store.record(result)


def test_a_changed_manifest_is_noticed(place: Place) -> None:
    store = place.open()
    result = make_artifact(store)
    name = f"{attempt_of(result)}/manifest.json"
    place.write(name, (place.read(name) or b"").replace(b"report", b"repart"))
    assert "not the manifest that was committed" in (store.present(result) or "")


def test_a_torn_result_counts_as_absent_and_is_kept_aside(place: Place) -> None:
    said: list[str] = []
    store = place.open(say=said.append)
    result = make_artifact(store)
    name = f"artifacts/{result.artifact}/result.json"
    place.write(name, (place.read(name) or b"")[:50])
    assert store.lookup(KIND, result.key) is None
    assert len(place.names(f"{name}.torn-")) == 1
    assert "damaged" in said[0]
    assert make_artifact(store).attempt != result.attempt


def test_two_keys_that_begin_alike_are_told_apart(store: Any) -> None:
    result = make_artifact(store)
    with pytest.raises(IntegrityError, match="both begin alike"):
        store.lookup(KIND, result.key[:12] + "0" * 52)


def test_a_discarded_result_makes_room_for_another(place: Place) -> None:
    store = place.open()
    first = make_artifact(store, content="first")
    store.discard(first, "its shards were damaged")
    assert store.lookup(KIND, first.key) is None
    note = place.read(f"discarded/{first.artifact}/{first.attempt}.json")
    assert b"its shards were damaged" in (note or b"")
    assert place.read(_weights(first)) is not None
    second = make_artifact(store, content="second")
    store.discard(first, "somebody noticed late")
    assert store.lookup(KIND, first.key) == second


def test_the_progress_of_a_discarded_result_goes_with_it(store: Any) -> None:
    record = stage_record()
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path)
    (attempt.progress / "metrics.jsonl").write_text("points")
    result = store.commit(attempt, record, known_sha256={})
    store.discard(result, "forced")
    again = store.begin(KIND, record.key)
    assert not list(again.progress.iterdir())
    (again.progress / "step").touch()
    store.discard(result, "somebody noticed late")
    assert (again.progress / "step").exists()


def as_input(store: Any, result: StageResult) -> InputArtifact:
    return InputArtifact(
        stage="accuracy",
        kind=result.kind,
        artifact=result.artifact,
        digest=result.digest,
        path=str(store.path(result)),
        split=None,
        metrics={},
    )


def test_an_input_is_read_once_and_again_when_a_file_was_touched(
    disk: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make_artifact(disk)
    found = as_input(disk, result)
    report = disk.path(result) / "report.json"
    reads: list[str] = []

    def count(folder: Path, file: ArtifactFile, *, read_all: bool) -> Any:
        reads.append(file.path)
        return file_fault(folder, file, read_all=read_all)

    monkeypatch.setattr("infra.first_reads.file_fault", count)
    for _ in range(2):
        assert disk.check_input(found) is None
        assert len(reads) == 2
    _touch(report)
    assert disk.check_input(found) is None
    assert len(reads) == 4
    report.write_bytes(bytes(report.stat().st_size))
    for _ in range(2):
        assert "report.json has other bytes" in (disk.check_input(found) or "")
    report.unlink()
    assert "report.json is missing" in (disk.check_input(found) or "")
    assert disk.present(result) is not None


@pytest.mark.parametrize("text", [None, "{}", '{"files": []}'])
def test_an_input_whose_manifest_is_not_the_committed_one_is_refused(
    disk: LocalStore, text: str | None
) -> None:
    result = make_artifact(disk)
    manifest = disk.path(result).parent / "manifest.json"
    if text is None:
        manifest.unlink()
    else:
        manifest.write_text(text)
    assert "the manifest of" in (disk.check_input(as_input(disk, result)) or "")


def test_a_ref_remembers_the_last_result_of_a_stage_of_any_name(store: Any) -> None:
    stage = f"pretrain[source.uri=/a/../b 'é', {'x' * 300}]"
    for number in (0, 1):
        result = make_artifact(store, number)
        store.set_ref("tests", stage, result)
    assert store.get_ref("tests", stage) == result
    assert store.get_ref("tests", "other") is None


def test_a_uri_names_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    result = make_artifact(open_store(str(folder)))
    assert open_store(open_store(str(folder)).uri).lookup(KIND, result.key) == result


@pytest.mark.parametrize(
    "uri", ["gs://bucket/store", "s3://", "s3://me:secret@bucket/x", "s3://b/p?x=1"]
)
def test_other_uris_are_refused_with_what_is_allowed(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="s3://BUCKET/PREFIX") as caught:
        open_store(uri, local=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_store_of_another_layout_is_refused(place: Place) -> None:
    place.write("format.json", b'{"format": "vitrail-store/9"}')
    with pytest.raises(UnreachableError, match="another layout"):
        place.open()


def test_a_place_that_cannot_be_written_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = LocalStore(tmp_path / "file" / "store")
    with pytest.raises(UnreachableError, match="Not a directory"):
        store.begin(KIND, stage_record().key)


def test_without_hard_links_the_first_commit_wins_all_the_same(
    disk: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    first = make_artifact(disk, content="first")
    assert make_artifact(disk, content="second") == first
    assert disk.verify(first) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_nothing_is_published(
    disk: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    record = stage_record()
    attempt = disk.begin(KIND, record.key)
    write_files(attempt.path)

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="the disk or its quota is full") as caught:
            disk.commit(attempt, record, known_sha256={})
    assert "bytes are left" in caught.value.what
    assert "vitrail plan" in str(caught.value.hint)
    assert disk.lookup(KIND, record.key) is None
    assert disk.commit(attempt, record, known_sha256={}).attempt == attempt.path.parent.name


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = shutil.which("mount") or "mount"
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_no_result(tiny_disk: Path) -> None:
    store = LocalStore(tiny_disk)
    record = stage_record()
    attempt = store.begin(KIND, record.key)
    ballast = attempt.path / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"x" * 2**20)
    with pytest.raises(DiskFullError):
        store.commit(attempt, record, known_sha256={})
    assert store.lookup(KIND, record.key) is None
    ballast.unlink()
    write_files(attempt.path, "c")
    assert store.verify(store.commit(attempt, record, known_sha256={})) is None


def test_a_key_can_be_held_again_after_its_release(store: Any) -> None:
    for _ in range(2):
        with store.hold(KIND, stage_record().key):
            pass
