"""One pass over a split: something is done with every image once, and becomes an Arrow table.

A split is cut into batches (batch k is the rows from k x `batch_samples` on), and these into pieces
of whole batches, by the number of rows and the size of a batch alone. A batch is the same whoever
works on it, so the bytes of the table are the same for any number of workers and after any
interruption. Finished pieces stay in the progress of the stage; a later attempt goes on from them.

What is done is a `Work`. A model's logits need no more than this; features of images, or answers
under many manipulations of each, differ in the columns and in what the call does:

    @dataclass(frozen=True)
    class Classify:
        model: Path

        def load(self, device: torch.device) -> "Classifier":
            return Classifier(load_model(self.model)[0].to(device))

    @dataclass
    class Classifier:
        model: Backbone
        columns = pa.schema([pa.field("logits", pa.list_(pa.float32()), nullable=False)])

        @property
        def image_px(self) -> tuple[int, int]:
            return self.model.spec.image_px

        @torch.inference_mode()
        def __call__(self, batch: Batch) -> list[pa.Array]:
            logits_BK = self.model(pixels_of(batch, self.model))
            return [list_column(logits_BK.float().cpu().numpy())]

Randomness in it has to be keyed by the uids in the batch. `jobs/passes.py` runs it in a stage.

Axes: B batch, F numbers of one image, N images, H W pixels, C channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.feed.loader import Batch, numbered_batches
from pipeline.data.shards.shard_set import AnySplit, ShardSet
from pipeline.data.staging import BuildTools, Progress, committing, read_table
from pipeline.model.backbone import Backbone, normalise
from schemas.errors import DataError, IntegrityError
from schemas.spec import digest_of

PASSES_FOLDER = "passes"
"""Folder of a stage's progress that holds the pieces of its passes."""
PIECE_IMAGES = 256
"""About what one task does between two looks at the stop signal, and what a kill costs."""
MOST_SMALL_PIECES = 16
"""A split with fewer than so many batches is cut into single ones."""
KEYS = (
    pa.field("uid", pa.binary(16), nullable=False),
    pa.field("label", pa.int32(), nullable=False),
)
"""The first columns of every pass."""


class Loaded(Protocol):
    """A work that is ready to be done."""

    @property
    def image_px(self) -> tuple[int, int]:
        """Height and width of the images that it wants."""
        ...

    @property
    def columns(self) -> pa.Schema:
        """What it finds of each image; metadata goes along."""
        ...

    def __call__(self, batch: Batch) -> list[pa.Array]:
        """The columns, a value for each image of the batch, in order."""
        ...


class Work(Protocol):
    """What is done with each batch: a frozen dataclass of plain values.

    It is sent to other processes, and its `repr` tells pieces of the same work from others.
    """

    def load(self, device: torch.device) -> Loaded:
        """What takes long and is done once in a process, such as reading a model."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Pass:
    """A work on a split; small and picklable."""

    dataset: Path
    """Folder of the shard set."""
    split: str
    work: Work
    batch_samples: int
    threads: int
    """Of each process: so many decode, and as many compute; fixed, as it shapes the last bits."""
    gpus: float = 0
    """Of each task; 0: it works on the CPU."""
    images: int | None = None
    """Only the first so many; storage order is shuffled, so they are a sample."""

    def open(self) -> AnySplit:
        """The images.

        Raises:
            DataError: If there is no split of this name, or it is empty.
        """
        split = ShardSet.open(self.dataset).split(self.split)
        if split.num_rows == 0:
            raise DataError(f"split {self.split!r} has no images to measure a model on")
        if self.images is None or self.images >= split.num_rows:
            return split
        return split.subset(np.arange(self.images))


class Piece(NamedTuple):
    """Some whole batches of a pass, and the file that their results go to."""

    of: Pass
    numbers: range
    file: Path


def run_pass(task: Pass, out: Path, *, tools: BuildTools, label: str, at_once: int = 1) -> pa.Table:
    """Do the work on every image; the table, memory-mapped, has a row for each in storage order.

    Memory is that of a few batches in each process, and 32 bytes for each image at the end; the
    disk holds the results twice until the stage forgets its pieces.

    Args:
        task: What is done.
        out: The table's file: Arrow IPC, a record batch for each batch.
        tools: The pool does the pieces, and its progress keeps them.
        label: For lines of progress, such as `classifying`.
        at_once: Pieces that are done at the same time, at most.

    Raises:
        DataError: If the split is unknown or empty.
        IntegrityError: If an image was given twice or left out.
        PausedError: If a stop was requested; the next call goes on from there.
    """
    split = task.open()
    folder = tools.progress / PASSES_FOLDER / _digest(task, split)
    parts = [
        Piece(task, numbers, folder / f"{numbers.start:08d}.arrow")
        for numbers in cut(split.num_rows, task.batch_samples)
    ]
    due = [piece for piece in parts if not piece.file.is_file()]
    progress = Progress(tools, label, len(due))
    try:
        done = tools.pool.map(do_piece, due, label=label, gpus=task.gpus, at_once=at_once)
        for _, images in done:
            progress.finished(images)
    finally:
        _load.cache_clear()  # the model of the pieces that this process did itself
    _join([piece.file for piece in parts], out)
    return _checked(read_table(out), split)


def cut(rows: int, batch_samples: int) -> list[range]:
    """Numbers of the batches of each piece, in order: every batch in one."""
    batches = -(-rows // batch_samples)
    length = max(1, min(PIECE_IMAGES // batch_samples, batches // MOST_SMALL_PIECES))
    return [range(at, min(at + length, batches)) for at in range(0, batches, length)]


def do_piece(piece: Piece) -> int:
    """Do the work on some batches, one after the other, and commit their results; counts images."""
    task = piece.of
    work = _load(task.work, "cuda" if task.gpus else "cpu")
    schema = pa.schema([*KEYS, *work.columns], metadata=work.columns.metadata)
    batches = numbered_batches(
        task.open(),
        piece.numbers,
        image_px=work.image_px,
        batch_samples=task.batch_samples,
        threads=task.threads,
    )
    images = 0
    with (
        committing(piece.file) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        torch_threads(task.threads),
    ):
        for batch in batches:
            writer.write_batch(pa.record_batch(_keys(batch) + work(batch), schema=schema))
            images += len(batch)
    return images


def pixels_of(batch: Batch, model: Backbone) -> Tensor:
    """The images of a batch as the model wants them, on its device: [B, C, H, W], normalised."""
    device = next(model.parameters()).device
    return normalise(torch.from_numpy(batch.pixels_BHWC).to(device), model.spec)


def uids_of(table: pa.Table) -> NDArray[np.bytes_]:
    """The uids of a table as an array of 16 bytes each; copies them."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], "S16", count=len(chunk), offset=16 * chunk.offset)
        for chunk in table["uid"].chunks
    ]
    return np.concatenate([np.empty(0, "S16"), *chunks])


def list_column(values_BF: Float[np.ndarray, "B F"]) -> pa.Array:
    """A row of numbers for each image as a column of lists."""
    batch, each = values_BF.shape
    offsets = pa.array(np.arange(batch + 1, dtype=np.int32) * each)
    return pa.ListArray.from_arrays(offsets, pa.array(values_BF.ravel()))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads compute, for the length of a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _load(work: Work, device: str) -> Loaded:
    """The work, loaded once for all pieces that a process does after each other."""
    return work.load(torch.device(device))


def _keys(batch: Batch) -> list[pa.Array]:
    uids = [None, pa.py_buffer(batch.uid_B.tobytes())]
    return [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(batch), uids),
        pa.array(batch.label_B, pa.int32()),
    ]


def _digest(task: Pass, split: AnySplit) -> str:
    """Tells the pieces of one pass from those of another, or of the same in other batches."""
    said = [task.split, split.order_digest, split.num_rows, repr(task.work)]
    shaped = [task.batch_samples, task.threads, bool(task.gpus), task.images]
    return digest_of([*said, *shaped])[:16]


def _join(files: list[Path], out: Path) -> None:
    """Put the record batches of several files into one, one batch in memory at a time."""
    with (
        committing(out) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, pa.ipc.open_file(pa.memory_map(str(files[0]))).schema) as writer,
    ):
        for file in files:
            with pa.memory_map(str(file)) as source:
                reader = pa.ipc.open_file(source)
                for number in range(reader.num_record_batches):
                    writer.write_batch(reader.get_batch(number))


def _checked(table: pa.Table, split: AnySplit) -> pa.Table:
    given, distinct = len(table), len(np.unique(uids_of(table)))
    if given != split.num_rows or distinct != given:
        raise IntegrityError(
            f"split {split.name!r} has {split.num_rows} images but the pass gave {given}, "
            f"{distinct} of them distinct; what is said of a split needs each exactly once"
        )
    return table
