"""Writes a split in the forms that other tools read; the way out to Hugging Face `datasets`.

Every image is compared with its checksum on the way, removed rows are left out, and samples come in
storage order, which is random. A form is written beside its place and gets its name when it is
whole.

Costs. One record batch of samples in memory, whatever the size of the split; the form `datasets`
needs its space on disk twice while it is made, since the library writes a cache first.
"""

import io
import json
import shutil
import tarfile
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.images.codec import encode_png
from pipeline.data.images.decode import decode
from pipeline.data.shards.shard_set import Row, Split
from pipeline.data.staging import disk_guard
from schemas.errors import DataError, UsageError
from schemas.records import ROWS_PER_BATCH
from schemas.spec import canonical_json

_SUFFIXES = {"jpeg": "jpg", "png": "png"}
_TAR_BYTES = 512 * 2**20
"""About this many image bytes go into one tar or Parquet file."""


@dataclass(frozen=True)
class Sample:
    """A row as others see it."""

    row: Row
    class_name: str
    image: bytes
    """JPEG or PNG."""
    suffix: str

    def columns(self) -> dict[str, Any]:
        """What tables hold of it."""
        return {
            "image": {"bytes": self.image, "path": f"{self.row.uid.hex()}.{self.suffix}"},
            "label": self.row.label,
            "uid": self.row.uid.hex(),
            "source": self.row.source,
        }


Export = Callable[[Split, Path], None]


def export(splits: list[Split], form: str, out: Path, *, say: Callable[[str], None]) -> int:
    """Write splits in one of `FORMS` to a new folder; returns the number of images.

    Raises:
        UsageError: If the form is unknown, or something stands at `out`.
        DataError: If `datasets` is needed and not installed.
        IntegrityError: If a row is not what was written; nothing is left at `out` then.
        DiskFullError: If no space is left.
    """
    if form not in FORMS:
        raise UsageError(f"there is no form {form!r}; the forms are {', '.join(FORMS)}")
    if out.exists():
        raise UsageError(f"{out} exists and stays as it is; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        target = Path(folder) / out.name
        target.mkdir()
        with disk_guard(out):
            for split in splits:
                say(f"writing {split.num_rows:,} images of {split.name}")
                FORMS[form](split, target)
            if form == "datasets":
                names = [split.name for split in splits]
                (target / "dataset_dict.json").write_text(json.dumps({"splits": names}))
        target.replace(out)
    return sum(split.num_rows for split in splits)


def _samples(split: Split) -> Iterator[Sample]:
    for shard in range(len(split.shard_names)):
        for row in split.live_rows(shard).tolist():
            yield _sample(split, split.read(shard, row))


def _sample(split: Split, row: Row) -> Sample:
    name = split.class_names[row.label]
    if row.encoding in _SUFFIXES:
        return Sample(row, name, row.image, _SUFFIXES[row.encoding])
    return Sample(row, name, encode_png(decode(row.image)), "png")


def _parquet(split: Split, out: Path) -> None:
    """`SPLIT-00000.parquet` and so on, which `datasets` shows with pictures and class names."""
    schema = _schema(split)
    samples = _samples(split)
    for number, first in enumerate(samples):
        path = out / f"{split.name}-{number:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="none") as writer:
            part = _part(first, samples)
            while columns := [sample.columns() for sample in islice(part, ROWS_PER_BATCH)]:
                writer.write_table(pa.Table.from_pylist(columns, schema=schema))


def _part(first: Sample, rest: Iterator[Sample]) -> Iterator[Sample]:
    """The first sample and as many of the rest as make up one file."""
    size = len(first.image)
    yield first
    while size < _TAR_BYTES:
        sample = next(rest, None)
        if sample is None:
            return
        size += len(sample.image)
        yield sample


def _schema(split: Split) -> pa.Schema:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(split.class_names), "_type": "ClassLabel"},
        "uid": {"dtype": "string", "_type": "Value"},
        "source": {"dtype": "string", "_type": "Value"},
    }
    note = canonical_json({"info": {"features": features}})
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("uid", pa.string()),
            ("source", pa.string()),
        ],
        metadata={"huggingface": note},
    )


def _webdataset(split: Split, out: Path) -> None:
    """`SPLIT-000000.tar` and so on: for each image its bytes, `.cls` and `.json`."""
    samples = _samples(split)
    for number, first in enumerate(samples):
        with tarfile.open(out / f"{split.name}-{number:06d}.tar", "w") as tar:
            for sample in _part(first, samples):
                key = sample.row.uid.hex()
                facts = {
                    "class": sample.class_name,
                    "label": sample.row.label,
                    "source": sample.row.source,
                }
                _add(tar, f"{key}.{sample.suffix}", sample.image)
                _add(tar, f"{key}.cls", str(sample.row.label).encode())
                _add(tar, f"{key}.json", json.dumps(facts).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time: equal sets make equal tars
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _image_folder(split: Split, out: Path) -> None:
    """`SPLIT/CLASS/UID.jpg`; characters that a file name cannot have are written as `%2F`."""
    folders = [out / split.name / folder_name(name) for name in split.class_names]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for sample in _samples(split):
        name = f"{sample.row.uid.hex()}.{sample.suffix}"
        (folders[sample.row.label] / name).write_bytes(sample.image)


def folder_name(class_name: str) -> str:
    """A folder for a class, another one for each name."""
    quoted = urllib.parse.quote(class_name, safe=" !#$&'()+,;=@[]{}~")
    # Hidden folders are skipped by many tools, and `..` leads elsewhere.
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted or "%"


def _datasets(split: Split, out: Path) -> None:
    """A folder for `datasets.load_from_disk`."""
    try:
        from datasets import Dataset, Features, disable_progress_bars
        from datasets.exceptions import DatasetGenerationError
    except ImportError as error:
        raise DataError(
            "the form datasets needs the library of that name", hint="pip install 'vitrail[hf]'"
        ) from error

    disable_progress_bars()
    cache = out.with_name("cache")
    try:
        made = Dataset.from_generator(
            lambda: (sample.columns() for sample in _samples(split)),
            features=Features.from_arrow_schema(_schema(split)),
            cache_dir=str(cache),
            # The library would hash what it cannot: the split and its mapped files.
            fingerprint=f"{split.order_digest[:16]}{len(split.removed.shard):x}",
            writer_batch_size=ROWS_PER_BATCH,
        )
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None  # what our own samples raised
    made.save_to_disk(str(out / split.name))
    shutil.rmtree(cache, ignore_errors=True)


FORMS: Mapping[str, Export] = {
    "datasets": _datasets,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "image_folder": _image_folder,
}
"""Name -> what writes one split into a folder."""
