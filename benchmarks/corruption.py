"""[corruption] Twelve kinds of odd and broken files among good ones: each kept or refused rightly.

1,000 files are planted among 5,000 good ones; with --corpus, one for every five images of it. What
is odd but whole (CMYK, 16 bits, a palette, a GIF, a broken EXIF block, no end marker, a wrong
suffix, 24 megapixels) must be kept, the rest refused with its own reason.
"""

import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.raw_corpora import encoded, raw_images, write_classes
from schemas.manifest import REJECTIONS_FILE

_GOOD, _PLANTED_SHARE = 5000, 0.2
_MIN_RIGHT_RATIO = 0.999
_HUGE_PX = (6000, 4000)
_ATTEMPTS = 3
"""A build whose process dies is counted as a crash, and taken up again."""

Plant = Callable[[Image.Image, random.Random], bytes]


def main() -> int:
    """Plant, build in a process of its own, compare the rejections with what was planted."""
    options = arguments(__doc__)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "raw")
        found = raw_images(options.corpus, _GOOD, seed=options.seed)
        good = write_classes(folder, found, name=lambda n, own: f"good{n}{Path(own).suffix}")
        expected = _plant(folder, round(_PLANTED_SHARE * good), rng)
        crashes = _build(folder, Path(scratch))
        refused = _refused(Path(scratch, "out", REJECTIONS_FILE))
    verdicts = {path: refused.get(path, "kept") for path in expected}
    wrong = {path: verdicts[path] for path in expected if verdicts[path] != expected[path]}
    lost = [path for path in refused if "/good" in path and refused[path] != "duplicate"]
    ratio = 1 - len(wrong) / len(expected)
    return conclude(
        Figure(
            name="corruption",
            figure=round(ratio, 5),
            unit="of the planted files kept or refused with the right reason",
            goal="at least 0.999 right; 0 good images lost; 0 crashes",
            holds=ratio >= _MIN_RIGHT_RATIO and not lost and not crashes,
            conditions=conditions(
                corpus=options.corpus.name if options.corpus else "generated",
                good=good,
                planted=len(expected),
                seed=options.seed,
            ),
            details={
                "good_lost": len(lost),
                "crashes": crashes,
                "planted_of_kind": dict(Counter(Path(it).stem.split("-")[0] for it in expected)),
                "wrong": dict(list(wrong.items())[:20]),
                "good_lost_examples": {path: refused[path] for path in lost[:20]},
            },
        )
    )


def _plant(folder: Path, count: int, rng: random.Random) -> dict[str, str]:
    """Make files of good ones, all kinds in turn; returns path -> reason, or `kept`."""
    paths = sorted(folder.rglob("good*"))
    expected = {}
    for number in range(count):
        kind = list(_KINDS)[number % len(_KINDS)]
        suffix, reason, make = _KINDS[kind]
        with Image.open(rng.choice(paths)) as image:
            base = image.convert("RGB")
        # No two planted files are the same, or one would be refused as the other's duplicate.
        base.putpixel((0, 0), (number % 256, number // 256, rng.randrange(256)))
        path = folder / f"class{number % 5}" / f"{kind}-{number}{suffix}"
        path.write_bytes(make(base, rng))
        expected[str(path.relative_to(folder))] = reason
    return expected


def _build(folder: Path, scratch: Path) -> int:
    """Build until it is done; returns how often the process died."""
    code = (
        "import sys; from pathlib import Path\n"
        "from schemas.data import IngestSpec\n"
        "from tests.support.datasets import build\n"
        "build(IngestSpec.parse(__import__('json').loads(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    source = {"type": "image_folder", "uri": str(folder)}
    spec = json.dumps({"source": source, "max_rejected_ratio": 1.0})
    for died in range(_ATTEMPTS):
        command = [sys.executable, "-c", code, spec, str(scratch)]
        if subprocess.run(command, check=False).returncode == 0:
            return died
    return _ATTEMPTS


def _refused(path: Path) -> dict[str, str]:
    table = pa.ipc.open_file(str(path)).read_all()
    return dict(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))


def _jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def _truncated(image: Image.Image, rng: random.Random) -> bytes:
    whole = _jpeg(image)
    begin = whole.rindex(b"\xff\xda") + 14
    return whole[: rng.randrange(begin, max(begin + 1, len(whole) - 40))]


def _html(_: Image.Image, rng: random.Random) -> bytes:
    return f"<!DOCTYPE html><html><h1>404</h1>{rng.random()}</html>".encode()


def _zero_denominator(image: Image.Image, _: random.Random) -> bytes:
    """EXIF with a resolution of 0 / 0."""
    entry = struct.pack("<HHII", 0x011A, 5, 1, 26)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(12)
    whole = _jpeg(image)
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]


def _deep_png(image: Image.Image, _: random.Random) -> bytes:
    return encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


def _bomb(_: Image.Image, rng: random.Random) -> bytes:
    """A small PNG, BMP or TIFF whose header promises gigapixels."""
    side = rng.randrange(20_000, 60_000)
    form = rng.randrange(3)
    if form == 0:
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
        return data + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    if form == 1:
        sizes = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IIII", 99, 0, 54, 0)[:12] + sizes + bytes(40)
    small = io.BytesIO()
    Image.new("L", (4, 4)).save(small, "TIFF")
    entry, large = struct.pack("<HHI", 256, 4, 1), struct.pack("<I", side)
    data = small.getvalue().replace(entry + struct.pack("<I", 4), entry + large)
    entry = struct.pack("<HHI", 257, 4, 1)
    return data.replace(entry + struct.pack("<I", 4), entry + large) + rng.randbytes(4)


def _wrong_suffix(image: Image.Image, rng: random.Random) -> bytes:
    return encoded(image, rng.choice(("PNG", "WEBP", "BMP", "GIF")))


def _huge(image: Image.Image, _: random.Random) -> bytes:
    return _jpeg(image.resize(_HUGE_PX, Image.Resampling.NEAREST), 75)


_KINDS: dict[str, tuple[str, str, Plant]] = {
    "zero_byte": (".jpg", "zero_byte", lambda *_: b""),
    "html": (".jpg", "not_image", _html),
    "truncated": (".jpg", "truncated", _truncated),
    "cmyk": (".jpg", "kept", lambda image, _: _jpeg(image.convert("CMYK"))),
    "png16": (".png", "kept", _deep_png),
    "exif": (".jpg", "kept", _zero_denominator),
    "gif": (".gif", "kept", lambda image, _: encoded(image, "GIF")),
    "bomb": (".png", "too_many_pixels", _bomb),
    "no_end": (".jpg", "kept", lambda image, _: _jpeg(image)[:-2]),
    "suffix": (".jpg", "kept", _wrong_suffix),
    "palette": (".png", "kept", lambda image, _: encoded(image.convert("P"), "PNG")),
    "huge": (".jpg", "kept", _huge),
}
"""Kind -> suffix, what must become of it, and how it is made of a good image."""


if __name__ == "__main__":
    sys.exit(main())
