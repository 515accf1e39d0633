"""What people load images with today, each as its documentation says, over the same JPEG bytes.

Every peer gives batches of (index, pixels); what turns bytes into pixels is handed in, so that the
decoder can be exchanged. All run their worker processes in torch's DataLoader, or in their own.
"""

import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.data.images.render import render

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
BATCH = 64


@dataclass(frozen=True)
class Setting:
    """A choice that the documentation of torch's DataLoader speaks of."""

    workers: int
    prefetch: int

    def options(self) -> dict[str, Any]:
        """Arguments of a DataLoader."""
        return {
            "batch_size": BATCH,
            "num_workers": self.workers,
            "prefetch_factor": self.prefetch,
            "persistent_workers": True,
        }


@dataclass(frozen=True)
class Crops:
    """Cuts image `index` as it was drawn for it, and resizes; `decoder` says by what."""

    boxes: tuple[Box, ...]
    size_hw: tuple[int, int]
    decoder: str
    """`shipped`: Pillow; `ours`: our decoder, Pillow's crop and resize; `render`: all ours."""

    def __call__(self, index: int, data: bytes) -> tuple[int, Pixels]:
        """Index and pixels_HWC of an image's bytes."""
        if self.decoder == "render":
            out = np.empty((*self.size_hw, 3), np.uint8)
            render(data, self.boxes[index], out)
            return index, out
        if self.decoder == "ours":
            left, top, right, bottom = self.boxes[index]
            pixels = simplejpeg.decode_jpeg(data, strict=False)
            return index, self._resized(Image.fromarray(pixels[top:bottom, left:right]))
        with Image.open(io.BytesIO(data)) as image:
            return self.picture(index, image)

    def picture(self, index: int, image: Image.Image) -> tuple[int, Pixels]:
        """Likewise of what a peer has opened itself."""
        return index, self._resized(image.convert("RGB").crop(self.boxes[index]))

    def _resized(self, image: Image.Image) -> Pixels:
        size = (self.size_hw[1], self.size_hw[0])
        return np.array(image.resize(size, Image.Resampling.BILINEAR))


Batches = Iterable[Any]
"""Of (indices, pixels_BHWC), again and again: one pass for each `iter`."""
Opener = Callable[[Path, Crops, Setting], Batches]


class _Files(Dataset[tuple[int, Pixels]]):
    """ImageFolder: files in folders of classes, opened one by one."""

    def __init__(self, folder: Path, crops: Crops) -> None:
        self._paths = sorted(folder.rglob("*.jpg"))
        self._crops = crops

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, Pixels]:
        path = self._paths[index]
        return self._crops(int(path.stem), path.read_bytes())


def image_folder(images: list[bytes], folder: Path) -> Opener:
    """`torchvision.datasets.ImageFolder`, written out: torchvision does not import here."""
    for index, data in enumerate(images):
        place = folder / f"{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:06d}.jpg").write_bytes(data)
    return lambda where, crops, setting: DataLoader(_Files(where, crops), **setting.options())


def webdataset(images: list[bytes], folder: Path) -> Opener:
    """Tar files, read as streams; WebLoader over worker processes."""
    import webdataset as wds

    folder.mkdir()
    with wds.ShardWriter(str(folder / "%03d.tar"), maxcount=-(-len(images) // 8), verbose=0) as out:
        for index, data in enumerate(images):
            out.write({"__key__": f"{index:06d}", "jpg": data})

    def opened(where: Path, crops: Crops, setting: Setting) -> Batches:
        shards = sorted(str(path) for path in where.glob("*.tar"))
        dataset = wds.WebDataset(shards, shardshuffle=False, empty_check=False).map(
            lambda sample: crops(int(sample["__key__"]), sample["jpg"])
        )
        made: Batches = wds.WebLoader(dataset, **setting.options())
        return made

    return opened


def mosaic(images: list[bytes], folder: Path) -> Opener:
    """MDS shards of mosaicml-streaming; its dataset under torch's DataLoader, as it advises."""
    _define_missing_operators()
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    columns = {"index": "int", "image": "bytes"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=4 * 2**20) as out:
        for index, data in enumerate(images):
            out.write({"index": index, "image": data})

    class Streamed(StreamingDataset):  # type: ignore[misc]  # it has no types
        crops: Crops

        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return self.crops(sample["index"], sample["image"])

    def opened(where: Path, crops: Crops, setting: Setting) -> Batches:
        clean_stale_shared_memory()
        dataset = Streamed(local=str(where), shuffle=False, batch_size=BATCH)
        dataset.crops = crops
        made: Batches = StreamingDataLoader(dataset, **setting.options())
        return made

    return opened


def litdata(images: list[bytes], folder: Path) -> Opener:
    """Chunks of litdata's optimize, and its streaming dataset and loader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.cache import Cache

    folder.mkdir()
    cache = Cache(str(folder), chunk_bytes=4 * 2**20)
    for index, data in enumerate(images):
        cache[index] = {"index": index, "image": data}
    cache.done()
    cache.merge()

    class Streamed(StreamingDataset):  # type: ignore[misc]  # it has no types
        crops: Crops

        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return self.crops(sample["index"], sample["image"])

    def opened(where: Path, crops: Crops, setting: Setting) -> Batches:
        dataset = Streamed(str(where), shuffle=False, drop_last=False)
        dataset.crops = crops
        made: Batches = StreamingDataLoader(dataset, **setting.options())
        return made

    return opened


def huggingface(images: list[bytes], folder: Path) -> Opener:
    """A `datasets` directory of pictures; `set_transform` under torch's DataLoader."""
    import datasets

    features = datasets.Features(
        {"index": datasets.Value("int64"), "image": datasets.Image(decode=True)}
    )
    rows = {
        "index": list(range(len(images))),
        "image": [{"bytes": data, "path": None} for data in images],
    }
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))

    def opened(where: Path, crops: Crops, setting: Setting) -> Batches:
        dataset = datasets.load_from_disk(str(where))
        if crops.decoder != "shipped":
            dataset = dataset.cast_column("image", datasets.Image(decode=False))

        def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            pairs = zip(rows["index"], rows["image"], strict=True)
            done = [
                crops.picture(index, image)
                if crops.decoder == "shipped"
                else crops(index, image["bytes"])
                for index, image in pairs
            ]
            return {"index": [index for index, _ in done], "pixels": [it for _, it in done]}

        dataset.set_transform(transform)
        return _Pairs(DataLoader(dataset, **setting.options()))

    return opened


@dataclass(frozen=True)
class _Pairs:
    """Batches of dictionaries as those of pairs."""

    loader: DataLoader[Any]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch["index"], batch["pixels"]


def _define_missing_operators() -> None:
    """What lets a torchvision without its compiled part import beside a CPU build of torch."""
    for name in ("nms", "qnms"):
        try:
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor"
            )
        except RuntimeError:  # it is there
            return


PEERS: dict[str, Callable[[list[bytes], Path], Opener]] = {
    "torch ImageFolder": image_folder,
    "webdataset": webdataset,
    "mosaicml-streaming": mosaic,
    "litdata": litdata,
    "HF datasets": huggingface,
}


def opened_peers(
    images: list[bytes], folder: Path
) -> tuple[dict[str, tuple[Path, Opener]], dict[str, str]]:
    """Every peer that can be imported, its copy of the images written; and why others cannot."""
    found: dict[str, tuple[Path, Opener]] = {}
    missing: dict[str, str] = {}
    for name, make in PEERS.items():
        place = folder / name.replace(" ", "-")
        try:
            found[name] = place, make(images, place)
        except ImportError as error:
            missing[name] = str(error)
            shutil.rmtree(place, ignore_errors=True)
    return found, missing
