"""The one form of a checkpoint on disk: tensors by name, `state.json`, `MANIFEST.json` last.

    step-00000100/
        rank-0000.safetensors ...   weight/NAME, moment1/NAME, moment2/NAME, average/NAME, all fp32;
                                    of rank 0 also buffer/NAME: running statistics and the like
        state.json                  step, key, digests, versions, probe loss
        MANIFEST.json               size and sha256 of every other file: the commit

Nothing in it depends on the world size or the ZeRO stage that wrote it. While it is written, every
rank leaves `rank-0000.written` beside its file, with size and sha256: so the rank that commits
knows when all are there, and reads nothing again.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from schemas.checkpoint import (
    CHECKPOINT_MANIFEST,
    CHECKPOINT_STATE,
    CheckpointFile,
    CheckpointManifest,
    CheckpointState,
)
from schemas.errors import DiskFullError, IntegrityError
from schemas.resources import CheckpointSpec
from schemas.spec import canonical_json

_NAME = re.compile(r"^step-(\d{8})$")
_SHARE, _MARK = ".safetensors", ".written"


@dataclass(frozen=True)
class ParameterState:
    """One parameter with its optimizer state, whole and in fp32, on the CPU."""

    weight: Tensor
    moments: tuple[Tensor, ...]
    """First and, where the optimizer has one, second moment."""
    average: Tensor | None = None
    """The moving average of the weight, where the run keeps one."""

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """All that the optimizer keeps for the weight, in the order of `state_names`."""
        return self.moments if self.average is None else (*self.moments, self.average)


def step_folder(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"step-{step:08d}"


def named_tensors(
    states: Iterable[tuple[str, ParameterState]], *, buffers: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Parameters and buffers under the names that they have in a file."""
    tensors = {f"buffer/{name}": tensor for name, tensor in (buffers or {}).items()}
    for name, state in states:
        tensors[f"weight/{name}"] = state.weight
        for index, moment in enumerate(state.moments, start=1):
            tensors[f"moment{index}/{name}"] = moment
        if state.average is not None:
            tensors[f"average/{name}"] = state.average
    return tensors


def write_share(folder: Path, rank: int, tensors: dict[str, Tensor]) -> None:
    """Write one rank's share, durably, and the mark that it is there; an empty one makes no file.

    Args:
        folder: A working folder, as `begin` makes it.
        rank: Of this process.
        tensors: As `named_tensors` names them.
    """
    path = folder / f"rank-{rank:04d}{_SHARE}"
    described: dict[str, CheckpointFile] = {}
    with _full_disk_is_a_sentence(folder):
        if tensors:
            save_file(tensors, path)
            _fsync(path)
            described[path.name] = _describe(path)
        mark = path.with_suffix(_MARK)
        text = canonical_json(CheckpointManifest.of(described).dump())
        # Renamed into place: whoever sees the mark sees all of it.
        draft = mark.with_suffix(".draft")
        draft.write_text(text)
        draft.rename(mark)


def all_written(folder: Path, world_size: int) -> bool:
    """Whether every rank of a world has written its share."""
    return sum(path.suffix == _MARK for path in folder.iterdir()) == world_size


def read_parameters(folder: Path) -> Iterator[tuple[str, ParameterState]]:
    """Every parameter of a checkpoint, one at a time, whatever world wrote it.

    Raises:
        IntegrityError: If a file of tensors cannot be read.
    """
    manifest = (folder / CHECKPOINT_MANIFEST).read_text()
    for name in sorted(CheckpointManifest.model_validate_json(manifest).files):
        if name.endswith(_SHARE):
            yield from _read_share(folder / name)


def read_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a checkpoint would be as a model: averaged weights where there are any, and buffers.

    Raises:
        IntegrityError: If it is damaged.
    """
    fault = damage(folder)
    if fault is not None:
        raise IntegrityError(
            f"checkpoint {folder}, the best of the run, is damaged: {fault}",
            hint=f"remove {folder.parent}; the stage then trains from its beginning",
        )
    weights = {
        name: state.weight if state.average is None else state.average
        for name, state in read_parameters(folder)
    }
    return weights, read_buffers(folder)


def read_buffers(folder: Path) -> dict[str, Tensor]:
    """What the model of a checkpoint keeps beside its parameters: rank 0's.

    Raises:
        IntegrityError: If a file of tensors cannot be read.
    """
    path = folder / "rank-0000.safetensors"
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            names = [key for key in file.keys() if key.startswith("buffer/")]  # noqa: SIM118
            return {name.removeprefix("buffer/"): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise IntegrityError(f"checkpoint file {path} cannot be read: {error}") from error


def _read_share(path: Path) -> Iterator[tuple[str, ParameterState]]:
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            for name in sorted(key[7:] for key in present if key.startswith("weight/")):
                keys = [f"moment{i}/{name}" for i in (1, 2) if f"moment{i}/{name}" in present]
                moments = tuple(file.get_tensor(key) for key in keys)
                kept = f"average/{name}"
                average = file.get_tensor(kept) if kept in present else None
                yield name, ParameterState(file.get_tensor(f"weight/{name}"), moments, average)
    except SafetensorError as error:
        raise IntegrityError(f"checkpoint file {path} cannot be read: {error}") from error


def begin(root: Path, step: int) -> Path:
    """A private folder for the checkpoint of `step`; remains of earlier tries are removed."""
    working = working_folder(root, step)
    for remains in root.glob(".writing-*"):
        shutil.rmtree(remains, ignore_errors=True)
    with _full_disk_is_a_sentence(root):
        working.mkdir(parents=True)
    return working


def working_folder(root: Path, step: int) -> Path:
    """Where the ranks write before the commit."""
    return root / f".writing-{step_folder(step)}"


def commit(root: Path, state: CheckpointState) -> Path:
    """Make the written files of `state.step` a checkpoint: state, manifest, rename, in that order.

    Called by one rank when all shares are written.
    """
    working, final = working_folder(root, state.step), root / step_folder(state.step)
    with _full_disk_is_a_sentence(root):
        files: dict[str, CheckpointFile] = {}
        for mark in sorted(working.glob(f"*{_MARK}")):
            files |= CheckpointManifest.model_validate_json(mark.read_text()).files
            mark.unlink()
        _write(working / CHECKPOINT_STATE, canonical_json(state.dump()))
        files[CHECKPOINT_STATE] = _describe(working / CHECKPOINT_STATE)
        manifest = CheckpointManifest.of(files)
        _write(working / CHECKPOINT_MANIFEST, canonical_json(manifest.dump()))
        _fsync(working)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one that was passed over
        working.rename(final)
        _fsync(root)
    return final


def newest_step(root: Path) -> int:
    """The highest step that was committed, whole or damaged since; 0 if none was."""
    return max(map(_step_of, _checkpoints(root)), default=0)


def newest_complete(
    root: Path, key: str | None, say: Callable[[str], None], *, until: int | None = None
) -> tuple[Path, CheckpointState] | None:
    """The newest checkpoint whose files all are what its manifest says; damaged ones are named.

    Args:
        root: Folder of all checkpoints of one stage key; need not exist.
        key: Key of the stage that goes on; None goes on from another stage's.
        say: Told which file made it pass over a checkpoint.
        until: Later steps do not count; None: all do.

    Raises:
        IntegrityError: If a whole checkpoint belongs to another stage key.
    """
    for folder in sorted(_checkpoints(root), reverse=True):
        if until is not None and _step_of(folder) > until:
            continue
        fault = damage(folder)
        if fault is not None:
            say(f"checkpoint {folder.name} is passed over: {fault}")
            continue
        state = CheckpointState.model_validate_json((folder / CHECKPOINT_STATE).read_text())
        if key is not None and state.key != key:
            raise IntegrityError(
                f"checkpoint {folder} was written by stage key {state.key[:12]}, not {key[:12]}",
                hint=f"remove {root}",
            )
        return folder, state
    return None


def damage(folder: Path) -> str | None:
    """None if every file is present with its size and sha256; else the first fault, with its file.

    Files beyond the manifest do no harm: nothing reads them.
    """
    try:
        text = (folder / CHECKPOINT_MANIFEST).read_text()
        manifest = CheckpointManifest.model_validate_json(text)
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, OSError) else "cannot be read"
        return f"{CHECKPOINT_MANIFEST} {reason}"
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.size_bytes:
            return f"{name} has {path.stat().st_size} bytes instead of {expected.size_bytes}"
        if _describe(path) != expected:
            return f"{name} has the right size but other bytes (sha256 differs)"
    return None if CHECKPOINT_STATE in manifest.files else f"{CHECKPOINT_STATE} is not listed"


def keep(root: Path, target: Path, *, newest: int, when: CheckpointSpec) -> None:
    """Put the checkpoint of step `newest`, and those that `when` keeps for good, below `target`.

    As second names of the same files, where the file system has such.
    """
    for folder in _checkpoints(root):
        step = _step_of(folder)
        every = when.keep_every_steps
        if step != newest and (every is None or step % every):
            continue
        shutil.rmtree(target / folder.name, ignore_errors=True)
        with _full_disk_is_a_sentence(target):
            shutil.copytree(folder, target / folder.name, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def prune(root: Path, when: CheckpointSpec, *, kept: Container[int] = ()) -> None:
    """Remove all but what `when` keeps: the newest, and those at whole multiples of a step.

    Args:
        root: Folder of all checkpoints of one stage key.
        when: What to keep.
        kept: Steps that are kept besides.
    """
    for folder in sorted(_checkpoints(root))[: -when.keep_last]:
        step = _step_of(folder)
        every = when.keep_every_steps
        if step not in kept and (every is None or step % every):
            shutil.rmtree(folder, ignore_errors=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _checkpoints(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if _NAME.match(path.name)] if root.is_dir() else []


def _describe(path: Path) -> CheckpointFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return CheckpointFile(size_bytes=path.stat().st_size, sha256=digest)


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n")
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_is_a_sentence(folder: Path) -> Iterator[None]:
    """Turn "no space left" into the error that a user understands."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "os error 28" in str(error):  # safetensors wraps the number in its text
            raise DiskFullError(
                f"no space left for a checkpoint in {folder}; the one before it is untouched",
                hint="free some space and run again; training goes on from the last checkpoint",
            ) from error
        raise
