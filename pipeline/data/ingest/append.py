"""Adds images to a shard set: new shards behind the old ones, which get a second name, no more.

The new images are built as a set of their own that continues the labels of the old one and knows
its images; then both tables of shards follow each other. Old rows keep their shards, their places
and their labels. The order of training is keyed by the table of shards, so it is another one from
the first epoch on: a run that was under way on the old set goes on with the old set.

Costs. As a build of the new images, and one look at the uids of the old ones; a link and about 200
bytes of memory for each old shard.
"""

from pathlib import Path

import pyarrow as pa

from pipeline.data.ingest.build import BuildResult, build_shard_set
from pipeline.data.ingest.rejections import merge_rejections
from pipeline.data.ingest.seal import place
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.shards.tombstones import DerivedSet, shard_files
from pipeline.data.staging import (
    BUILD_PIECES,
    BuildTools,
    sha256_of,
    write_canonical,
    write_table,
)
from schemas.curation import AppendSpec
from schemas.data import ImageSpec
from schemas.errors import SpecError
from schemas.manifest import (
    MANIFEST_FILE,
    REJECTIONS_FILE,
    SHARD_TABLE_FILE,
    TOMBSTONES_FILE,
    ShardSetManifest,
    SplitEntry,
)
from schemas.records import SHARD_TABLE
from schemas.spec import digest_of, semantic_fields

_NEW = "new"
"""Folder of the new images' own set, below the progress folder."""
APPEND_PIECES = (*BUILD_PIECES, "known", _NEW)
"""All that an append keeps below its progress folder."""


def append_images(
    old: ShardSet, spec: AppendSpec, *, fingerprint: str, tools: BuildTools, out: Path
) -> tuple[DerivedSet, BuildResult]:
    """Write a shard set of the old images and those of the spec's source.

    Args:
        old: The set to add to.
        spec: What to add.
        fingerprint: Of the source, as `pipeline.data.sources.fingerprint` gives it.
        tools: Pool, progress folder, stop signal and voice.
        out: Folder of the new shard set.

    Returns:
        The whole set, and the new images as a set of their own.

    Raises:
        SpecError: If the set stores its images in another form, or as `build_shard_set`.
        DataError: As `build_shard_set`.
        DiskFullError: If no space is left.
        PausedError: If a stop was requested; the next call goes on.
    """
    _check_form(old.manifest, spec.image)
    folder = tools.progress / _NEW
    made = build_shard_set(
        spec.new_images(), fingerprint=fingerprint, tools=tools, out=folder, onto=old
    )
    return _together(old, ShardSet.open(folder), out=out, scratch=tools.progress), made


def _check_form(old: ShardSetManifest, image: ImageSpec) -> None:
    if old.transform["image"] != digest_of(semantic_fields(image)):
        raise SpecError(
            "the set to add to stores its images in another form than image says; a set has one",
            where="image",
            hint="image: ${STAGE.image}, with the ingest stage that made the set",
        )


def _together(old: ShardSet, new: ShardSet, *, out: Path, scratch: Path) -> DerivedSet:
    known = shard_files(old) | shard_files(new)
    for path in known:
        place((old.folder if (old.folder / path).is_file() else new.folder) / path, out / path)
    table = pa.concat_tables([old.table, new.table]).cast(SHARD_TABLE)
    write_table(out / SHARD_TABLE_FILE, table)
    known[SHARD_TABLE_FILE] = sha256_of(out / SHARD_TABLE_FILE)
    known[REJECTIONS_FILE] = merge_rejections(
        [it.folder / REJECTIONS_FILE for it in (old, new)], out / REJECTIONS_FILE, scratch=scratch
    )
    if old.manifest.tombstones is not None:
        place(old.folder / TOMBSTONES_FILE, out / TOMBSTONES_FILE)
        known[TOMBSTONES_FILE] = old.manifest.tombstones.sha256
    manifest = _manifest(old, new.manifest, known)
    digest = write_canonical(out / MANIFEST_FILE, manifest.dump())
    return DerivedSet(manifest, digest, {**known, MANIFEST_FILE: digest})


def _manifest(old: ShardSet, new: ShardSetManifest, known: dict[str, str]) -> ShardSetManifest:
    before = old.manifest
    return before.revise(
        transform=_joined(before.transform, new.transform),
        class_names=new.class_names,
        splits=_added(before.splits, new.splits),
        num_shards=before.num_shards + new.num_shards,
        num_rows=before.num_rows + new.num_rows,
        num_bytes=before.num_bytes + new.num_bytes,
        shard_table_sha256=known[SHARD_TABLE_FILE],
        rejections={
            reason: before.rejections.get(reason, 0) + new.rejections.get(reason, 0)
            for reason in sorted(before.rejections.keys() | new.rejections.keys())
        },
        rejections_sha256=known[REJECTIONS_FILE],
        parents=(old.digest,),
    )


def _added(old: dict[str, SplitEntry], new: dict[str, SplitEntry]) -> dict[str, SplitEntry]:
    none = SplitEntry(rows=0, shards=0)
    pairs = {name: (old.get(name, none), new.get(name, none)) for name in sorted({*old, *new})}
    return {
        name: SplitEntry(rows=before.rows + more.rows, shards=before.shards + more.shards)
        for name, (before, more) in pairs.items()
    }


def _joined(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Versions of the codecs that made the images; of several, all are named."""
    joined = dict(old)
    for name, version in new.items():
        before = old.get(name)
        if before is None or version not in before.split(", "):
            joined[name] = version if before is None else f"{before}, {version}"
    return joined
