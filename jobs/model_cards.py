"""`vitrail model card`: what a model is, what it was made from and how it was measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.storage import open_store
from infra.store_documents import StoreDocuments
from jobs.console import print_document
from jobs.import_weights import remarks
from jobs.model_commands import facts, own_document
from jobs.model_names import ModelName
from schemas.artifacts import FILES_FOLDER, StageRecord
from schemas.model_documents import CardArtifact, CardMeasurement, ModelCard

_CLASSES_SHOWN = 100


def show_card(name: ModelName, output: str) -> None:
    """Print the card of a model, as Markdown or as a document."""
    card = model_card(name.folder())
    if output == "json":
        print_document(card)
    else:
        print("\n".join(markdown(card)))  # noqa: T201  # data, which must not meet Rich's markup


def model_card(folder: Path) -> ModelCard:
    """Everything that the folder of a model, and the store it lies in, say of it."""
    document = own_document(folder)
    made = _Made.of(folder)
    if made is None:
        return ModelCard(
            model=document, lineage=(), training={}, metrics={}, measured=(), environment={}
        )
    record = made.record
    return ModelCard(
        model=document,
        lineage=tuple(made.lineage()),
        training=dict(_flat("", record.spec)),
        metrics=record.metrics,
        measured=tuple(made.measurements()),
        environment={
            "python": record.environment.python,
            "platform": record.environment.platform,
            "cpu": record.environment.cpu,
            "code": record.environment.code_digest,
            "commit": record.environment.git_commit or "unknown",
            **record.key_record.libraries,
        },
    )


@dataclass(frozen=True)
class _Made:
    """A model's artifact in a store."""

    store: StoreDocuments
    artifacts: Path
    """Folder of all artifacts in it."""
    name: str
    record: StageRecord

    @classmethod
    def of(cls, folder: Path) -> "_Made | None":
        """The artifact around the folder of a model; None where it lies by itself."""
        files = folder.resolve().parent
        artifact = files.parent.parent.parent
        if files.name != FILES_FOLDER or not (artifact / "result.json").is_file():
            return None
        store = open_store(str(artifact.parent.parent))
        result = store.named(artifact.name)
        return (
            None
            if result is None
            else cls(store, artifact.parent, result.artifact, store.record(result))
        )

    def lineage(self) -> Iterator[CardArtifact]:
        """This artifact and all that it was made from, each once."""
        waiting, told = [self.name], set()
        while waiting:
            name = waiting.pop(0)
            if name in told:
                continue
            told.add(name)
            result = self.store.named(name)
            if result is None:
                yield CardArtifact(artifact=name, stage="", kind="", digest=None, reads={})
                continue
            record = self.store.record(result)
            waiting += record.input_artifacts.values()
            yield CardArtifact(
                artifact=name,
                stage=record.stage,
                kind=result.kind,
                digest=result.digest,
                reads=record.input_artifacts,
            )

    def measurements(self) -> Iterator[CardMeasurement]:
        """Figures of every stage that read the model and made none itself."""
        for path in sorted(self.artifacts.glob("*/result.json")):
            result = self.store.named(path.parent.name)
            if result is None or result.kind not in ("evaluate", "probe", "robustness"):
                continue
            record = self.store.record(result)
            if record.input_artifacts.get("model") == self.name:
                data = record.input_artifacts.get("data", "")
                yield CardMeasurement(
                    artifact=path.parent.name,
                    stage=record.stage,
                    data=data,
                    metrics=record.metrics,
                )


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Dotted names of the settings that are set."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, item)
    elif value is not None and value not in ([], ""):
        yield prefix, str(value)


def markdown(card: ModelCard) -> Iterator[str]:
    """The lines of the card."""
    document = card.model
    own = card.lineage[0] if card.lineage else None
    yield f"# {own.stage if own else Path(document.location).name}"
    yield ""
    yield from _table(("", ""), facts(document))
    if document.origin is not None:
        yield from ("", "## Origin", "")
        yield f"Imported from the layout {document.origin.layout}."
        yield from (f"- {line}" for line in remarks(document.origin))
    if card.measured or card.metrics:
        yield from ("", "## Figures", "")
        yield from _table(("stage", "data", "figure", "value"), list(_figures(card)))
    if card.lineage:
        yield from ("", "## Lineage", "")
        rows = [(it.stage, it.artifact, _reads(it), it.digest or "gone") for it in card.lineage]
        yield from _table(("stage", "artifact", "made from", "digest of its content"), rows)
    if card.training:
        yield from ("", "## Settings", "")
        yield from _table(("field", "value"), list(card.training.items()))
    if document.class_names:
        yield from ("", "## Classes", "")
        yield _classes(document.class_names)
    if card.environment:
        yield from ("", "## Made with", "")
        yield from _table(("", ""), list(card.environment.items()))


def _figures(card: ModelCard) -> Iterator[tuple[str, ...]]:
    for it in card.measured:
        for name, value in it.metrics.items():
            yield it.stage, it.data, name, f"{value:.6g}"
    for name, value in card.metrics.items():
        yield card.lineage[0].stage, "", name, f"{value:.6g}"


def _reads(artifact: CardArtifact) -> str:
    return ", ".join(f"{port}: {name}" for port, name in artifact.reads.items())


def _classes(names: tuple[str, ...]) -> str:
    more = len(names) - _CLASSES_SHOWN
    return ", ".join(names[:_CLASSES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join('---' for _ in columns)}|"
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        yield f"| {' | '.join(cells)} |"
