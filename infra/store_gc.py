"""What of a store nobody needs, and the two phases in which it goes.

Needed are results that a stage of any experiment made or reused last, that are pinned, that were
registered as a model, that are younger than `keep_days`, or that somebody reads who works on a key
now; and all that these were made from, through their records. What somebody works on is left alone.

Phase one puts a part into the trash: a note, then `result.json` goes. The bytes do not move, so
who reads them reads on, and whoever needs the artifact again (a run, a commit that was made from
it, a person with `vitrail gc --restore`) takes it back at no cost. Phase two, `trash_days` later,
deletes.
What holds nothing that could be wanted goes at once: the progress of a key that is committed, and
temporary files. Killed at any moment, the next collection goes on; several at once leave each
other's artifacts alone.

Memory: names of artifacts, and what is to be said of their parts; nothing for each file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from infra.store_documents import StoreDocuments
from schemas.artifacts import StageRecord, StageResult
from schemas.errors import IntegrityError
from schemas.store import Garbage, TrashNote


@dataclass(frozen=True)
class GcPolicy:
    """How long what nobody refers to is kept."""

    keep_days: float
    """Results and discarded results, since they were committed; progress, since it was written."""
    trash_days: float
    """What lies in the trash."""
    now: datetime
    """With a time zone."""

    def is_older(self, moment: str, days: float) -> bool:
        """Whether a time in ISO 8601 lies more than so many days back."""
        return datetime.fromisoformat(moment) <= self.now - timedelta(days=days)


def needed(store: StoreDocuments, policy: GcPolicy) -> set[str]:
    """Names of the artifacts that stay."""
    due = [*(result.artifact for result in store.references()), *store.pins()]
    for artifact in store.artifacts():
        read = store.readers(artifact)
        if read is not None:
            due += [artifact, *read]
        result = store.named(artifact)
        if result is not None and _stays_by_itself(store, result, policy):
            due.append(artifact)
    found: set[str] = set()
    while due:
        artifact = due.pop()
        if artifact not in found:
            found.add(artifact)
            due += _made_from(store, artifact)
    return found


def garbage(store: StoreDocuments, policy: GcPolicy) -> Iterator[Garbage]:
    """What a collection would do, artifact after artifact; changes nothing."""
    kept = needed(store, policy)
    for artifact in store.artifacts():
        if store.readers(artifact) is None:
            yield from _of_artifact(store, artifact, policy, is_needed=artifact in kept)


def collect(store: StoreDocuments, policy: GcPolicy) -> Iterator[Garbage]:
    """The same, done: what is yielded has happened."""
    kept = needed(store, policy)
    for artifact in store.artifacts():
        with store.seized(artifact) as mine:
            if not mine:
                continue
            found = list(_of_artifact(store, artifact, policy, is_needed=artifact in kept))
            for part in found:
                _sweep(store, part)
                yield part
            if not store.is_of_use(artifact):
                store.forget(artifact)


def _stays_by_itself(store: StoreDocuments, result: StageResult, policy: GcPolicy) -> bool:
    if not policy.is_older(result.committed_at, policy.keep_days):
        return True
    record = _record(store, result)
    return record is not None and record.spec.get("register_as") is not None


def _made_from(store: StoreDocuments, artifact: str) -> Iterator[str]:
    """What an artifact was made from, those of its results that lie in the trash included."""
    results = [store.named(artifact), *(note.result for note in store.trash(artifact).values())]
    for result in results:
        record = None if result is None else _record(store, result)
        if record is not None:
            yield from record.input_artifacts.values()


def _record(store: StoreDocuments, result: StageResult) -> StageRecord | None:
    try:
        return store.record(result)
    except IntegrityError:
        return None


def _of_artifact(
    store: StoreDocuments, artifact: str, policy: GcPolicy, *, is_needed: bool
) -> Iterator[Garbage]:
    current, notes = store.named(artifact), store.trash(artifact)
    for attempt in store.attempts(artifact):
        made = Garbage(
            artifact=artifact,
            part="attempt",
            name=attempt,
            reason="no try at it came to an end",
            sweep="trash",
            size_bytes=store.usage(f"artifacts/{artifact}/attempts/{attempt}").size_bytes,
        )
        if current is not None and current.attempt == attempt:
            if not is_needed:
                yield made.revise(part="result", reason="no stage of any experiment made it last")
        elif attempt in notes:
            yield _in_trash(made, notes[attempt], policy, is_needed=is_needed and current is None)
        elif not store.is_discarded(artifact, attempt):
            yield made
        elif policy.is_older(_time_of(store, artifact, attempt), policy.keep_days):
            yield made.revise(reason="it was discarded")
    yield from _progress(store, artifact, policy, is_done=current is not None)
    for name in store.remains(artifact):
        yield Garbage(
            artifact=artifact,
            part="remains",
            name=name,
            reason="a process was killed while it wrote",
            sweep="delete",
            size_bytes=store.usage(f"artifacts/{artifact}/{name}").size_bytes,
        )


def _in_trash(made: Garbage, note: TrashNote, policy: GcPolicy, *, is_needed: bool) -> Garbage:
    part = made.revise(part=note.part, reason=note.reason)
    if is_needed and note.result is not None:
        return part.revise(sweep="take back", reason="it is needed again")
    is_due = policy.is_older(note.at, policy.trash_days)
    return part.revise(sweep="delete" if is_due else "in the trash")


def _progress(
    store: StoreDocuments, artifact: str, policy: GcPolicy, *, is_done: bool
) -> Iterator[Garbage]:
    """Of a committed key at once; of one that never was committed when nobody went on from it."""
    used = store.progress_usage(artifact)
    last = datetime.fromtimestamp(used.changed_at, UTC).isoformat()
    if not used.size_bytes or not (is_done or policy.is_older(last, policy.keep_days)):
        return
    yield Garbage(
        artifact=artifact,
        part="progress",
        name="progress",
        reason="the stage is done" if is_done else "nobody went on from it",
        sweep="delete",
        size_bytes=used.size_bytes,
    )


def _time_of(store: StoreDocuments, artifact: str, attempt: str) -> str:
    changed_at = store.usage(f"discarded/{artifact}/{attempt}.json").changed_at
    return datetime.fromtimestamp(changed_at, UTC).isoformat()


def _sweep(store: StoreDocuments, part: Garbage) -> None:
    if part.sweep == "take back":
        store.take_back(part.artifact)
    elif part.part == "remains":
        store.delete_remains(part.artifact, part.name)
    elif part.part == "progress":
        store.drop_progress(part.artifact)
    elif part.sweep == "delete":
        store.delete_attempt(part.artifact, part.name)
    elif part.sweep == "trash":
        result = store.named(part.artifact) if part.part == "result" else None
        store.put_in_trash(part.artifact, part.part, part.name, reason=part.reason, result=result)
