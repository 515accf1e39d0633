"""Stored bytes -> pixels, as fast as the codecs allow and equal to a whole decode, byte by byte.

Baseline JPEG goes through libjpeg-turbo without the detour over an image object, and only down to
the last row that is asked for: the height in the header is lowered, so the decoder stops there.
Everything else goes through the general codec.
"""

import numpy as np
import simplejpeg

from pipeline.data.images.codec import RAW_MAGIC, Pixels, open_image, raw_pixels

_JPEG_MAGIC = b"\xff\xd8"
_COLOURS = ("YCbCr", "RGB", "Gray")
_MARKER = 0xFF
_BASELINE_FRAMES = (0xC0, 0xC1)
_TABLES = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)
"""Huffman and quantisation tables, restart interval, application data, comments."""
_SCAN = 0xDA
_BLOCK_ROWS = 16
"""A multiple of the rows of every usual MCU."""


def decode(data: bytes) -> Pixels:
    """All pixels_HWC of stored bytes; raises whatever the decoder raises."""
    return decode_rows(data, None)


def decode_rows(data: bytes, rows: int | None) -> Pixels:
    """At least the first `rows` rows of pixels_HWC; all if None or if stopping is not possible."""
    if data.startswith(RAW_MAGIC):
        return raw_pixels(data)
    if data.startswith(_JPEG_MAGIC):
        try:
            return _decode_jpeg(data, rows)
        except ValueError:  # a kind of JPEG that only the general codec reads
            pass
    return _decode_any(data)


def _decode_jpeg(data: bytes, rows: int | None) -> Pixels:
    if simplejpeg.decode_jpeg_header(data, strict=False)[2] not in _COLOURS:
        raise ValueError("its colours are for print")
    if rows is not None:
        data = _shortened(data, rows)
    # Not strict: what can be decoded was decided when the image was stored, and its checksum says
    # that these are the bytes; the rows that are left over would be reported, too.
    pixels: Pixels = simplejpeg.decode_jpeg(data, strict=False)
    return pixels


def _decode_any(data: bytes) -> Pixels:
    with open_image(data) as image:
        image.load()
        # Converting to the mode that an image has would only copy it.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _shortened(data: bytes, rows: int) -> bytes:
    """The file with a lower height in its header; as it is where it has to be decoded whole."""
    # One row more than asked for, because smooth upsampling of colours looks at the next one.
    wanted = -(-(rows + 1) // _BLOCK_ROWS) * _BLOCK_ROWS
    place = _height_place(data)
    if place is None or wanted >= int.from_bytes(data[place : place + 2], "big"):
        return data
    return b"".join((data[:place], wanted.to_bytes(2, "big"), data[place + 2 :]))


def _height_place(data: bytes) -> int | None:
    """Where the height of a baseline JPEG with a single scan stands, or None."""
    place, frame = 2, None
    while place + 9 < len(data) and data[place] == _MARKER:
        marker = data[place + 1]
        if marker in _BASELINE_FRAMES:
            frame = place
        elif marker == _SCAN:
            # Of several scans each has all rows; the first then has fewer components.
            whole = frame is not None and data[place + 4] == data[frame + 9]
            return frame + 5 if whole and frame is not None else None
        elif marker not in _TABLES:
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
