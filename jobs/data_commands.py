"""What `vitrail data` does: inspect, verify, export, which."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.compute as pc

from infra.serial_pool import NeverStop, SerialPool
from jobs.console import print_document, stderr, stdout, table
from jobs.data_sets import SetName
from jobs.target import Target
from jobs.training_traces import Traced, trace_of
from pipeline.data.feed.tracing import standings
from pipeline.data.shards.shard_set import ShardSet, Split
from schemas.errors import IntegrityError, UsageError
from schemas.inspection import (
    ExportDocument,
    ImageDocument,
    ImageSteps,
    SetDocument,
    SplitFacts,
    StepDocument,
    TakenImage,
    VerifyDocument,
)
from schemas.manifest import ShardSetManifest

_UID = re.compile(r"[0-9a-f]{32}")
_CLASSES_SHOWN = 20
_STEPS_SHOWN = 50


def inspect_set(name: SetName, figures: Path | None, output: str) -> None:
    """Print what a shard set holds; draw its figures into a folder where asked."""
    data = name.open()
    drawn = () if figures is None else _draw(data, figures)
    document = _set_document(data, drawn)
    if output == "json":
        print_document(document)
    else:
        _print_set(document, data.manifest)


def _set_document(data: ShardSet, figures: tuple[str, ...]) -> SetDocument:
    removed: Counter[str] = Counter()
    for batch in () if data.tombstones is None else data.tombstones.to_batches():
        removed.update(batch["reason"].to_pylist())
    manifest = data.manifest
    return SetDocument(
        location=data.place.location,
        digest=data.digest,
        record_version=manifest.record_version,
        order_version=manifest.order_version,
        class_names=data.class_names,
        splits=tuple(_split_facts(data, split) for split in sorted(manifest.splits)),
        rejections=manifest.rejections,
        removed=dict(sorted(removed.items())),
        parents=manifest.parents,
        transform=manifest.transform,
        figures=figures,
    )


def _split_facts(data: ShardSet, name: str) -> SplitFacts:
    split = data.split(name)
    counts = split.images_of_class()
    return SplitFacts(
        split=name,
        rows=split.num_rows,
        removed=len(split.removed.shard),
        shards=len(split.shard_names),
        bytes=int(
            pc.sum(data.table.filter(pc.equal(data.table["split"], name))["bytes"]).as_py() or 0
        ),
        images_of_class=dict(zip(data.class_names, counts.tolist(), strict=True)),
    )


def _print_set(document: SetDocument, manifest: ShardSetManifest) -> None:
    console = stdout()
    console.print(f"{document.location}", markup=False)
    console.print(f"digest {document.digest}, {len(document.class_names):,} classes", markup=False)
    rows = [
        (it.split, f"{it.rows:,}", f"{it.removed:,}", f"{it.shards:,}", f"{it.bytes:,}")
        for it in document.splits
    ]
    console.print(table(("split", ">images", ">removed", ">shards", ">bytes"), rows))
    console.print()
    console.print(_class_table(document))
    if len(document.class_names) > _CLASSES_SHOWN:
        more = len(document.class_names) - _CLASSES_SHOWN
        console.print(f"and {more:,} more classes; --output json has them all")
    for title, counts in (("refused", manifest.rejections), ("removed", document.removed)):
        said = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        console.print(f"{title}: {said or 'none'}", markup=False)
    for path in document.figures:
        console.print(f"wrote {path}", markup=False)


def _class_table(document: SetDocument) -> object:
    splits = document.splits
    rows = [
        (name, *(f"{it.images_of_class[name]:,}" for it in splits))
        for name in document.class_names[:_CLASSES_SHOWN]
    ]
    return table(("class", *(f">{it.split}" for it in splits)), rows)


def _draw(data: ShardSet, folder: Path) -> tuple[str, ...]:
    from jobs.quality import write_sheet
    from pipeline.data.shards.quality import measure
    from pipeline.data.staging import BuildTools
    from pipeline.evaluation.corpus_figures import draw_corpus

    console = stderr()
    say: Callable[[str], None] = lambda line: console.print(line, markup=False)  # noqa: E731
    report = measure(data, BuildTools(SerialPool(), folder, NeverStop(), say))
    return tuple(str(path) for path in (*draw_corpus(folder, report), write_sheet(folder, data)))


def verify_set(name: SetName, output: str) -> int:
    """Read every byte of a shard set; prints each fault and returns the exit code."""
    location = name.location()
    data, faults = None, []
    try:
        data = name.open()
    except IntegrityError as error:
        faults.append(error.what)
        stderr().print(error.what, markup=False)
    else:
        for fault in data.faults():
            stderr().print(fault, markup=False)
            faults.append(fault)
    document = VerifyDocument(
        location=location,
        digest=data.digest if data else None,
        shards=data.manifest.num_shards if data else 0,
        bytes=data.manifest.num_bytes if data else 0,
        faults=tuple(faults),
    )
    if output == "json":
        print_document(document)
    elif faults:
        stdout().print(f"damaged files: {len(faults):,}, named above", markup=False)
    else:
        text = f"{location} is whole; shards: {document.shards:,}, bytes: {document.bytes:,}"
        stdout().print(text, markup=False)
    return IntegrityError.exit_code if faults else 0


def export_set(name: SetName, *, form: str, out: Path, splits: list[str], output: str) -> None:
    """Write a shard set, or some splits of it, in a form that other tools read."""
    from pipeline.data.shards.exporting import export

    data = name.open()
    chosen = splits or sorted(data.manifest.splits)
    console = stderr()
    images = export(
        [data.split(split) for split in chosen],
        form,
        out,
        say=lambda line: console.print(line, markup=False),
    )
    document = ExportDocument(
        location=data.place.location,
        digest=data.digest,
        form=form,
        out=str(out),
        splits=tuple(chosen),
        images=images,
    )
    if output == "json":
        print_document(document)
    else:
        stdout().print(f"wrote {images:,} images to {out} as {form}", markup=False)


def which_images(target: Target, stage: str, *, step: int, output: str) -> None:
    """Print the images that a training stage takes in a step."""
    traced = trace_of(target, stage)
    if not 0 <= step < traced.total_steps:
        raise UsageError(
            f"{traced.stage} has the steps 0 to {traced.total_steps - 1}; --step is {step}"
        )
    document = StepDocument(
        stage=traced.stage,
        step=step,
        steps=traced.total_steps,
        images=tuple(_taken(traced, step)),
    )
    if output == "json":
        print_document(document)
        return
    rows = [
        (it.uid, it.class_name, it.source, it.data, str(it.epoch), str(it.position))
        for it in document.images
    ]
    columns = ("uid", "class", "source", "of", ">epoch", ">position")
    stdout().print(table(columns, rows))


def _taken(traced: Traced, step: int) -> Iterator[TakenImage]:
    for sample in traced.trace.step(step):
        split, reference = traced.splits[sample.source], traced.names[sample.source]
        facts = split.facts(sample.shard, sample.row)
        yield TakenImage(
            uid=facts.uid.hex(),
            class_name=_class_name(split, facts.label),
            source=facts.source,
            data=reference,
            epoch=sample.epoch,
            position=sample.position,
        )


def which_steps(target: Target, stage: str, *, uid: str, output: str) -> None:
    """Print the steps in which a training stage takes an image."""
    if not _UID.fullmatch(uid):
        raise UsageError(f"--uid is {uid!r}; a uid has 32 of the digits 0-9 and a-f")
    traced = trace_of(target, stage)
    document = ImageDocument(
        stage=traced.stage,
        uid=uid,
        steps=traced.total_steps,
        found=tuple(_standings(traced, bytes.fromhex(uid))),
    )
    if output == "json":
        print_document(document)
        return
    if not document.found:
        sets = ", ".join(traced.names)
        stdout().print(f"{uid} does not stand in {sets}: no step takes it", markup=False)
    for found in document.found:
        stdout().print(_sentence(found, traced.total_steps), markup=False)


def _standings(traced: Traced, uid: bytes) -> Iterator[ImageSteps]:
    for image in standings(traced.splits, uid):
        split = traced.splits[image.source]
        facts = split.facts(image.shard, image.row)
        yield ImageSteps(
            data=traced.names[image.source],
            class_name=_class_name(split, facts.label),
            source=facts.source,
            removed=image.removed,
            steps=tuple(traced.trace.steps_of(image, traced.total_steps)),
        )


def _sentence(found: ImageSteps, total: int) -> str:
    where = f"{found.source} ({found.class_name}) of {found.data}"
    if found.removed:
        return f"{where} was removed: no step takes it"
    if not found.steps:
        return f"{where} is in none of the {total:,} steps"
    shown = ", ".join(map(str, found.steps[:_STEPS_SHOWN]))
    more = len(found.steps) - _STEPS_SHOWN
    return f"{where} is in {len(found.steps):,} of {total:,} steps: {shown}" + (
        f" and {more:,} more" if more > 0 else ""
    )


def _class_name(split: Split, label: int) -> str:
    return split.class_names[label]
