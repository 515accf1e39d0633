"""Contact sheets: many small pictures in one."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.images.codec import Pixels, encode_png, scaled


def tile(pictures: Sequence[tuple[Pixels, str]], *, columns: int, cell_px: int = 112) -> bytes:
    """PNG of a grid of pictures, row by row, each with a caption below it."""
    caption_px = 14
    rows = max(1, math.ceil(len(pictures) / columns))
    sheet = Image.new("RGB", (columns * cell_px, rows * (cell_px + caption_px)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(pictures):
        left, top = index % columns * cell_px, index // columns * (cell_px + caption_px)
        picture = Image.fromarray(pixels)
        scale = (cell_px - 4) / max(picture.size)
        shown = picture.resize(scaled(picture.size, scale), Image.Resampling.BILINEAR)
        sheet.paste(shown, (left + 2, top + 2))
        text = caption.encode("ascii", "replace").decode()[: cell_px // 6]
        draw.text((left + 2, top + cell_px), text, fill="black")
    return encode_png(np.asarray(sheet))
