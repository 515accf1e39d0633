"""`vitrail data remove`: takes images out of a shard set, in the spec and in the store.

The spec gets a stage of kind `remove`, and what read the set reads that stage; then the stage runs.
So the removal is in the file for everybody to see, later runs keep to it, and nothing is rewritten.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from infra.serial_pool import NeverStop, SerialPool
from jobs.commands import run_spec
from jobs.console import stderr
from jobs.data_sets import made_last, one_node
from jobs.recipes import find_spec, recipe_files
from jobs.target import Target
from jobs.wiring import open_shard_set, store_at
from jobs.workspace import open_workspace
from pipeline.dag.experiment_file import parse_experiment
from pipeline.dag.graph import expand
from pipeline.dag.spec_edits import Removal, insert_removal
from pipeline.data.curation.removing import find_images
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, write_bytes
from schemas.curation import RemoveSpec, is_uid
from schemas.errors import UsageError
from schemas.manifest import DATASET_FOLDER
from schemas.stage import SHARD_SETS, STAGE_NAME


@dataclass(frozen=True)
class Named:
    """The images that a person wants to be gone."""

    uids: tuple[str, ...]
    sources: tuple[str, ...]
    note: str


def named_images(words: list[str], sources: list[str], listed: Path | None, note: str) -> Named:
    """What the command line names; a list has a uid or a source's name in each line."""
    try:
        lines = listed.read_text().splitlines() if listed is not None else []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{listed} cannot be read: {error}") from error
    entries = [line.strip() for line in lines if line.strip()]
    uids = [*words, *filter(is_uid, entries)]
    names = [*sources, *(entry for entry in entries if not is_uid(entry))]
    found = Named(tuple(dict.fromkeys(uids)), tuple(dict.fromkeys(names)), note)
    if not found.uids and not found.sources:
        raise UsageError("no image is named; give UID..., --source NAME or --list FILE")
    bad = next((uid for uid in found.uids if not is_uid(uid)), None)
    if bad is not None:
        raise UsageError(f"{bad!r} is no uid; a uid has 32 digits, 0-9 and a-f")
    return found


def remove_from(target: Target, stage: str, named: Named, *, name: str | None, output: str) -> int:
    """Write the stage into the spec and run it; returns the exit code of the run.

    Raises:
        UsageError: If the spec is a recipe, or the stage makes no shard set or was never made.
        DataError: If an image is not in the set.
    """
    file = find_spec(target.spec)
    if file in recipe_files().values():
        raise UsageError(
            f"{target.spec} is a recipe, which stays as it is",
            hint=f"vitrail init run.yaml --recipe {target.spec}",
        )
    images = _images(_set_of(target, stage), named)
    text = file.read_text(encoding="utf-8-sig")
    plain = parse_experiment(text, name_of_file=str(file))
    new = _free_name(name or f"{stage}-kept", tuple(plain.stages), given=name is not None)
    edited = insert_removal(text, plain, Removal(new, stage, images, named.note))
    parse_experiment(edited.text, name_of_file=str(file))
    write_bytes(file, edited.text.encode())
    _tell(f"{file}: new stage {new}, which takes {len(images)} images out of {stage}")
    for path in edited.changed:
        _tell(f"{file}: {path} reads {new} now")
    for path in edited.left:
        _tell(f"{file}: {path} is not written out and still reads {stage}; change it by hand")
    return run_spec(
        target, selected=(new, None, None, None), places=(None, None, None), output=output
    )


def _set_of(target: Target, stage: str) -> ShardSet:
    experiment = target.experiment()
    node = one_node(experiment, expand(experiment), stage)
    if node.kind not in SHARD_SETS:
        raise UsageError(f"{stage} is of kind {node.kind} and makes no shard set")
    workspace = open_workspace(target.workspace)
    made = store_at(workspace.store).local(made_last(target, experiment, node.name))
    return open_shard_set(str(made / DATASET_FOLDER), workspace)


def _images(data: ShardSet, named: Named) -> dict[str, str]:
    """Uid -> source of every live image that is named."""
    spec = RemoveSpec(data="data", uids=named.uids, sources=named.sources)
    with TemporaryDirectory() as scratch:
        tools = BuildTools(SerialPool(), Path(scratch), NeverStop(), lambda _line: None)
        rows: pa.Table = find_images(data, spec, tools=tools).rows
    if not len(rows):
        raise UsageError("all of these images were taken out before")
    uids, sources = rows["uid"].to_pylist(), rows["source"].to_pylist()
    return {uid.hex(): source for uid, source in zip(uids, sources, strict=True)}


def _free_name(wanted: str, taken: tuple[str, ...], *, given: bool) -> str:
    if given and (wanted in taken or not STAGE_NAME.match(wanted)):
        raise UsageError(f"{wanted!r} cannot name the new stage: it is taken, or no plain name")
    numbered = [wanted, *(f"{wanted}-{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in numbered if name not in taken)


def _tell(line: str) -> None:
    stderr().print(line, markup=False)
