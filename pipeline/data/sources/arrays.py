"""What families of raw pixel arrays share: images become PNG, slices are large for small images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.data.files import printable
from pipeline.data.units import BYTES_PER_UNIT, Member, Part, RawImage, Unit

if TYPE_CHECKING:
    from pipeline.data.images.codec import Pixels

_IMAGES_PER_UNIT = 4_096
"""More than files: an array's images are tiny, and a packed file is unpacked by each unit."""


def cut_array(labels: Sequence[str], part: Part, *, image_bytes: int) -> Iterator[Unit]:
    """Slices of a file of equally large images, called `FILE/NUMBER`.

    Args:
        labels: Class name of each image.
        part: The file.
        image_bytes: Raw bytes of one image.
    """
    step = max(1, min(_IMAGES_PER_UNIT, BYTES_PER_UNIT // image_bytes))
    for start in range(0, len(labels), step):
        members = tuple(
            Member(part.split, label, f"{part.path}/{number:06d}", number, image_bytes)
            for number, label in enumerate(labels[start : start + step], start)
        )
        yield Unit(members, path=part.path, stamp=part.stamp)


def as_png(members: Iterable[Member], images: Iterable["Pixels"]) -> Iterator[RawImage]:
    """Each array as PNG: the form in which an image without a file has bytes of its own."""
    from pipeline.data.images.codec import encode_png

    for member, pixels in zip(members, images, strict=True):
        name = printable(member.path)
        yield RawImage(name, member.split, member.class_name, encode_png(pixels))
