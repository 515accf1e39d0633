"""Raw images for the benchmarks of ingest: somebody's own, or generated ones of many kinds."""

import io
import itertools
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CLOTHING = Path(__file__).resolve().parents[2] / "shared" / "data" / "clothing.tar"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_FORMS: tuple[tuple[str, str, dict[str, object]], ...] = (
    (".jpg", "JPEG", {"quality": 90}),
    (".jpg", "JPEG", {"quality": 75, "subsampling": 1}),
    (".jpg", "JPEG", {"quality": 85, "progressive": True}),
    (".png", "PNG", {"compress_level": 1}),
    (".webp", "WEBP", {"quality": 80, "method": 0}),
    (".bmp", "BMP", {}),
)
_CLASSES = 5


def raw_images(corpus: Path | None, count: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` pairs of (file name, bytes) or fewer: of a folder or tar, else generated."""
    if corpus is None:
        return generated(count, seed=seed)
    found = _in_tar(corpus) if corpus.is_file() else _in_folder(corpus)
    return itertools.islice(found, count)


def generated(count: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """Smooth random pictures of many sizes, in the usual formats."""
    rng = np.random.Generator(np.random.PCG64(seed))
    for index in range(count):
        width, height = (int(side) for side in rng.integers(40, 160, 2))
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        suffix, form, options = _FORMS[index % len(_FORMS)]
        yield f"{index:05d}{suffix}", encoded(image, form, **options)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of a file."""
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def write_classes(
    folder: Path,
    images: Iterator[tuple[str, bytes]],
    *,
    classes: int = _CLASSES,
    name: Callable[[int, str], str] = lambda _, own: own,
) -> int:
    """Deal images out to class folders, one after the other; returns how many there are."""
    for number in range(classes):
        (folder / f"class{number}").mkdir(parents=True)
    count = -1
    for count, (own, data) in enumerate(images):
        (folder / f"class{count % classes}" / name(count, own)).write_bytes(data)
    return count + 1


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(_SUFFIXES):
                yield name, Path(root, name).read_bytes()


def _in_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None and member.name.lower().endswith(_SUFFIXES):
                yield Path(member.name).name, content.read()
