from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.store_documents import attempt_of
from infra.store_gc import GcPolicy, collect, garbage
from schemas.artifacts import StageResult
from schemas.errors import UsageError
from schemas.store import Garbage
from tests.support.artifacts import KIND, make_artifact, stage_record, write_files
from tests.support.stores import Place


def policy(*, keep: float = 0, trash: float = 7, later_days: float = 0) -> GcPolicy:
    return GcPolicy(keep, trash, datetime.now(UTC) + timedelta(days=later_days))


def made_from(store: Any, number: int, source: StageResult) -> StageResult:
    record = stage_record(number).revise(input_artifacts={"data": source.artifact})
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path, str(number))
    return store.commit(attempt, record, known_sha256={})


def told(found: list[Garbage]) -> set[tuple[str, str, str]]:
    return {(it.artifact, it.part, it.sweep) for it in found}


def test_a_dry_collection_changes_nothing_and_says_what_a_real_one_does(place: Place) -> None:
    store = place.open()
    result = make_artifact(store)
    before = place.names()
    said = list(garbage(store, policy()))
    assert place.names() == before
    assert told(said) == {(result.artifact, "result", "trash")}
    assert said[0].size_bytes > 7000
    assert list(collect(store, policy())) == said
    assert store.named(result.artifact) is None


def test_what_is_needed_stays_with_all_it_was_made_from(place: Place) -> None:
    store = place.open()
    source = make_artifact(store, 0)
    referred, pinned, idle = (made_from(store, number, source) for number in (1, 2, 3))
    store.set_ref("tests", "accuracy", referred)
    store.pin(pinned.artifact)
    found = list(collect(store, policy()))
    assert told(found) == {(idle.artifact, "result", "trash")}
    store.unpin(pinned.artifact)
    assert told(list(collect(store, policy()))) == {
        (pinned.artifact, "result", "trash"),
        (idle.artifact, "result", "in the trash"),
    }
    assert store.verify(source) is None
    assert store.verify(referred) is None


def test_young_results_and_registered_models_stay(place: Place) -> None:
    store = place.open()
    young = make_artifact(store, 0)
    assert list(garbage(store, policy(keep=14))) == []
    assert len(list(garbage(store, policy(keep=14, later_days=15)))) == 1
    record = stage_record(1).revise(spec={"kind": KIND, "register_as": "pets"})
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path)
    store.commit(attempt, record, known_sha256={})
    assert {it.artifact for it in garbage(store, policy())} == {young.artifact}


def test_what_lies_in_the_trash_can_be_taken_back_and_is_by_who_needs_it(place: Place) -> None:
    said: list[str] = []
    store = place.open(say=said.append)
    result = make_artifact(store)
    list(collect(store, policy()))
    assert store.take_back(result.artifact) == result
    list(collect(store, policy()))
    assert store.lookup(KIND, result.key) == result
    assert "is taken back" in said[-1]
    list(collect(store, policy()))
    store.set_ref("tests", "accuracy", result)
    assert {it.sweep for it in collect(store, policy())} == {"take back"}
    assert store.named(result.artifact) == result
    assert store.trash(result.artifact) == {}
    assert store.verify(result) is None


def test_trash_goes_when_its_days_are_over_and_nothing_of_it_is_left(place: Place) -> None:
    store = place.open()
    result = make_artifact(store)
    list(collect(store, policy()))
    assert {it.sweep for it in collect(store, policy(later_days=6))} == {"in the trash"}
    assert {it.sweep for it in collect(store, policy(later_days=8))} == {"delete"}
    assert place.names("artifacts") + place.names("trash") == []
    assert store.take_back(result.artifact) is None
    assert store.lookup(KIND, result.key) is None
    assert make_artifact(store).attempt != result.attempt


def test_nobody_touches_what_somebody_works_on_or_reads_for_it(place: Place) -> None:
    store = place.open()
    source = make_artifact(store, 0)
    key = stage_record(1).key
    with store.hold(KIND, key, reads=[source.artifact]):
        attempt = store.begin(KIND, key)
        write_files(attempt.path)
        other = place.open()
        assert list(collect(other, policy())) == []
        assert store.named(source.artifact) == source
    assert source.artifact in {it.artifact for it in garbage(store, policy())}


def test_a_commit_takes_back_the_inputs_that_went_into_the_trash_meanwhile(place: Place) -> None:
    store = place.open()
    source = make_artifact(store, 0)
    record = stage_record(1).revise(input_artifacts={"data": source.artifact})
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path)
    list(collect(store, policy(keep=0)))
    assert store.named(source.artifact) is None
    attempt.path.mkdir(parents=True, exist_ok=True)
    store.commit(attempt, record, known_sha256={})
    assert store.named(source.artifact) == source


def test_progress_and_tries_that_came_to_nothing_go(tmp_path: Path) -> None:
    store = Place(str(tmp_path), tmp_path).open()
    left = store.begin(KIND, stage_record(0).key)
    write_files(left.path)
    (left.progress / "step").write_text("7")
    done = make_artifact(store, 1)
    store.set_ref("tests", "accuracy", done)
    (store.progress(done.artifact) / "points").write_text("x" * 100)
    remains = tmp_path / "artifacts" / done.artifact / ".result.json.1.tmp"
    remains.write_text("{")
    found = {(it.part, it.sweep, it.size_bytes > 0) for it in collect(store, policy(keep=14))}
    assert found == {
        ("attempt", "trash", True),
        ("progress", "delete", True),
        ("remains", "delete", True),
    }
    assert (left.progress / "step").exists(), "an interrupted stage goes on from it"
    assert not remains.exists()
    assert {it.part for it in garbage(store, policy(keep=14, later_days=15))} >= {"progress"}


def test_a_discarded_result_goes_after_its_days(place: Place) -> None:
    store = place.open()
    first = make_artifact(store)
    store.discard(first, "damaged")
    second = make_artifact(store)
    store.set_ref("tests", "accuracy", second)
    assert list(garbage(store, policy(keep=14))) == []
    found = list(garbage(store, policy(keep=14, later_days=15)))
    assert [(it.name, it.reason) for it in found] == [(first.attempt, "it was discarded")]
    assert attempt_of(second).endswith(second.attempt)


def test_pins_name_what_is_there(place: Place) -> None:
    store = place.open()
    with pytest.raises(UsageError, match="there is no artifact"):
        store.pin("evaluate-000000000000")
    with pytest.raises(UsageError, match="is not pinned"):
        store.unpin("evaluate-000000000000")
