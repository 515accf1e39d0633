"""On PYTHONPATH, a Pillow whose GIF decoder dies or hangs where the file's comment says so."""

import ctypes
import re
from typing import Any

from PIL import GifImagePlugin

_load_prepare = GifImagePlugin.GifImageFile.load_prepare


def _broken(self: Any) -> None:
    comment = self.info.get("comment")
    if comment == b"crash":
        ctypes.string_at(0)
    if comment == b"hang":
        re.match(r"(a+)+$", "a" * 60 + "b")  # holds Python's lock for longer than anybody lives
    _load_prepare(self)


GifImagePlugin.GifImageFile.load_prepare = _broken
