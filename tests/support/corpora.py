"""Tiny generated image corpora, the same bytes every time; some files are broken on purpose."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("circle", "stripes", "wave")


def picture(kind: int, seed: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth coloured pattern of one of three kinds, unlike that of any other seed."""
    rng = np.random.Generator(np.random.PCG64([kind, seed]))
    y, x = np.mgrid[0:height, 0:width] / 32.0
    a, b, c = rng.uniform(-3, 3, 3)
    fields = (
        np.hypot(x - 1 - a / 6, y - 0.7 - b / 6) * (3 + c),
        a * x + b * y + 4 * np.sin(c * x),
        np.sin(3 * x + a) + np.cos(b * y + c) + a * x * y,
    )
    phases = rng.uniform(0, 6, 3)
    waves = [np.sin(fields[kind] * (1 + 0.2 * channel) + phases[channel]) for channel in range(3)]
    return np.rint(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def encode(pixels: np.ndarray, form: str = "JPEG", **options: object) -> bytes:
    """The file's bytes."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **options)
    return sink.getvalue()


def write_folder(
    root: Path, *, per_class: int, splits: tuple[str, ...] = (), seed: int = 0
) -> Path:
    """`[SPLIT/]CLASS/NNN.jpg`, `per_class` images of each class and split."""
    for number, split in enumerate(splits or ("",)):
        for kind, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = picture(kind, seed * 10_000 + number * 1_000 + index)
                (folder / f"{index:03d}.jpg").write_bytes(encode(pixels, quality=92))
    return root


def write_tar(path: Path, folder: Path) -> Path:
    """The folder's files as one uncompressed tar, sorted, with fixed times."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*")):
            info = tar.gettarinfo(str(file), str(file.relative_to(folder)))
            info.mtime = 0
            if file.is_file():
                with file.open("rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)
    return path


def broken_files() -> dict[str, tuple[bytes, str]]:
    """File name -> (bytes, the reason for which it must be rejected)."""
    whole = encode(picture(0, 77), quality=92)
    png = encode(picture(0, 78), "PNG")
    return {
        "empty.jpg": (b"", "zero_byte"),
        "page.jpg": (b"<html>not found</html>", "not_image"),
        "half.jpg": (whole[: len(whole) // 2], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "torn.png": (_flip(png, len(png) // 2), "decode_error"),
        "bomb.png": (_huge_png(), "too_many_pixels"),
        "sliver.png": (encode(picture(0, 79, height=2, width=64), "PNG"), "too_small"),
        "notes.txt": (b"hello", "not_image"),
        "float.tif": (encode(np.ones((40, 40), np.float32), "TIFF"), "decode_error"),
    }


def odd_files() -> dict[str, bytes]:
    """File name -> bytes of images that are unusual and must be kept."""
    rgb = picture(1, 50)
    grey = rgb[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "progressive.jpg": encode(rgb, progressive=True),
        "turned.jpg": encode(rgb, quality=90, exif=exif),
        "grey.jpg": encode(grey),
        "cmyk.jpg": _converted(picture(1, 51), "CMYK", "JPEG"),
        "alpha.png": _converted(picture(1, 52), "RGBA", "PNG"),
        "palette.gif": _converted(picture(1, 53), "P", "GIF"),
        "deep.png": encode(picture(1, 54)[..., 0].astype(np.uint16) * 257, "PNG"),
        "lossless.webp": encode(picture(1, 55), "WEBP", lossless=True),
        "plain.bmp": encode(picture(1, 56), "BMP"),
        "wrong_suffix.PNG": encode(picture(1, 57), "JPEG"),
    }


def _converted(pixels: np.ndarray, mode: str, form: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(sink, form)
    return sink.getvalue()


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _huge_png() -> bytes:
    """A header that promises 100,000 x 100,000 px, and nothing behind it."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + _chunk(b"IDAT", zlib.compress(b""))
        + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
