"""What the commands on the store do: verify and gc."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.progress import Progress

from infra.store_documents import StoreDocuments
from infra.store_gc import GcPolicy, collect, garbage, needed
from jobs.console import amount, print_document, stderr, stdout, table
from jobs.target import Target
from jobs.wiring import store_at
from jobs.workspace import open_workspace
from pipeline.dag.graph import expand
from schemas.artifacts import StageResult
from schemas.errors import UsageError
from schemas.store import FileFault, Garbage, GcDocument, PinDocument, VerifyDocument

_INTEGRITY = 6


@dataclass
class _Read:
    """What a verification has read."""

    artifacts: int = 0
    files: int = 0
    size_bytes: int = 0
    faults: list[FileFault] = field(default_factory=list)

    def seen(self, size_bytes: int) -> None:
        self.files += 1
        self.size_bytes += size_bytes


def verify_store(names: list[str], folder: Path | None, output: str) -> int:
    """Read every byte of committed artifacts; prints what is wrong and returns the exit code."""
    place = open_workspace(folder).store
    store, read = store_at(place), _Read()
    results = _all(store) if not names else _named(store, names, folder)
    with Progress(console=stderr(), transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        for result in results:
            bar.update(task, description=result.artifact)
            read.artifacts += 1
            read.faults += store.faults(result, read_all=True, seen=read.seen)
    document = VerifyDocument(
        store=place.uri,
        artifacts=read.artifacts,
        files=read.files,
        size_bytes=read.size_bytes,
        faults=tuple(read.faults),
    )
    if output == "json":
        print_document(document)
    else:
        _print_verified(document)
    return _INTEGRITY if document.faults else 0


def _print_verified(document: VerifyDocument) -> None:
    console = stdout()
    if document.faults:
        rows = [(it.artifact, it.file, it.expected, it.found) for it in document.faults]
        console.print(table(("artifact", "file", "expected", "found"), rows))
    what = f"{document.artifacts} artifacts, {document.files} files, {document.size_bytes:,} bytes"
    told = f"{len(document.faults)} are not what was written" if document.faults else "all whole"
    console.print(f"{what}: {told}", markup=False)
    if document.faults:
        console.print("next: vitrail run SPEC, which makes them again", markup=False)


def _all(store: StoreDocuments) -> Iterator[StageResult]:
    for artifact in store.artifacts():
        result = store.named(artifact)
        if result is not None:
            yield result


def _named(
    store: StoreDocuments, names: Iterable[str], folder: Path | None
) -> Iterator[StageResult]:
    """Results of artifacts, and of the stages of specs as they were made last."""
    for name in names:
        result = store.named(name)
        if result is not None:
            yield result
            continue
        experiment = Target(name, folder, None, ()).experiment()
        made = [store.get_ref(experiment.name, node.name) for node in expand(experiment).nodes]
        yield from (found for found in made if found is not None)


def collect_garbage(
    policy: tuple[float, float], folder: Path | None, *, apply: bool, output: str
) -> None:
    """Print what nobody needs; with `apply`, take it out of sight, or delete it."""
    keep_days, trash_days = policy
    place = open_workspace(folder).store
    store = store_at(place)
    rules = GcPolicy(keep_days=keep_days, trash_days=trash_days, now=datetime.now(UTC))
    found = tuple((collect if apply else garbage)(store, rules))
    document = GcDocument(
        store=place.uri,
        applied=apply,
        kept_artifacts=len(needed(store, rules)),
        garbage=found,
    )
    if output == "json":
        print_document(document)
        return
    console = stdout()
    console.print(table(("kind", "part", "why", "what", ">parts", ">disk"), _rows(found)))
    console.print(f"{document.kept_artifacts} artifacts are needed", markup=False)
    if found and not apply:
        console.print("nothing was changed; next: vitrail gc --apply", markup=False)


def _rows(found: tuple[Garbage, ...]) -> list[tuple[str, ...]]:
    sums: dict[tuple[str, str, str, str], list[int]] = {}
    for it in found:
        sums.setdefault((it.kind, it.part, it.reason, it.sweep), []).append(it.size_bytes)
    return [(*key, str(len(sizes)), amount(sum(sizes), "B")) for key, sizes in sorted(sums.items())]


def pin_artifact(
    names: tuple[str | None, str | None, str | None], folder: Path | None
) -> PinDocument:
    """Pin, unpin or restore an artifact, whichever is named."""
    pin, unpin, restore = names
    store = store_at(open_workspace(folder).store)
    if pin is not None:
        return store.pin(pin)
    if unpin is not None:
        return store.unpin(unpin)
    name = restore or ""
    if store.take_back(name) is None:
        raise UsageError(
            f"{name!r} does not lie in the trash of {open_workspace(folder).store.uri}",
            hint="vitrail gc",
        )
    return PinDocument(artifact=name, done="restored", at=datetime.now(UTC).isoformat())
