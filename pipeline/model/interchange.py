"""Weights that travel: to and from the files of Google, timm and Hugging Face; strict both ways.

`load` gives the spec and our parameters of a file, and says what the file left open; `save` writes
a model in a layout, or refuses in a sentence what the layout has no words for. Tables of names are
in the files beside this one. Nothing that is read is ever run.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.model import interchange_google, interchange_hf, interchange_timm
from pipeline.model.interchange_files import (
    PICKLES,
    digests,
    read_any,
    read_json,
    read_npz,
    read_safetensors,
    weight_files,
)
from pipeline.model.interchange_names import Read, Tensors, Written
from pipeline.model.saved import load_weights
from pipeline.model.transfer import check_weights
from schemas.backbones import BackboneSpec
from schemas.checkpoint import MODEL_FILE, WEIGHTS_FILE, ModelOrigin
from schemas.errors import IntegrityError, SpecError, UsageError
from schemas.interchange import Assumptions, ExportLayout, Layout
from schemas.model import ViTSpec
from schemas.objectives import Probabilities
from schemas.spec import Semantic, Spec, canonical_json

OWN_HEADER = "vitrail"
"""Key of the header of a safetensors file of ours that holds the model's description."""
CONFIG = "config.json"
_SUFFIXES = {"google": ".npz", "safetensors": ".safetensors", "onnx": ".onnx"}


class OwnHeader(Spec):
    """What a safetensors file of ours says of itself."""

    schema_version: Semantic[int] = 1
    spec: Semantic[BackboneSpec]
    class_names: Semantic[tuple[str, ...]] = ()
    probabilities: Semantic[Probabilities] = "softmax"


class Loaded(NamedTuple):
    """A model read from a file."""

    spec: BackboneSpec
    weights: Tensors
    """Our parameters by name, float32, and buffers where the model has some."""
    class_names: tuple[str, ...]
    """Empty where the file does not name its classes."""
    origin: ModelOrigin
    probabilities: Probabilities = "softmax"
    """What makes them of the logits; only files of ours can say that it is another."""


def load(path: Path, layout: Layout | None = None, *, assume: Assumptions | None = None) -> Loaded:
    """Read a model: an `.npz`, a state dict, a folder of `transformers` or timm, or one of ours.

    Args:
        path: File or folder.
        layout: Of the file; None recognises it.
        assume: What the file leaves open, such as the number of heads of a bare state dict.

    Raises:
        UsageError: If there is nothing, or nothing of a kind that is read.
        SpecError: If it is not the model that the layout promises; missing, unexpected and
            misshapen tensors are all listed. Also if it is a pickle that holds code.
        IntegrityError: If a file is torn.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}")
    found = layout or recognise(path)
    return _READERS[found](path, assume or Assumptions())


def recognise(path: Path) -> Layout:
    """The layout of a file or folder, by its name, its configuration or its tensors' names.

    Raises:
        UsageError: If it is of none that is known; the sentence says what to name.
    """
    if path.is_dir():
        if (path / MODEL_FILE).is_file():
            return "safetensors"
        if (path / CONFIG).is_file():
            return "timm" if "architecture" in read_json(path / CONFIG) else "hf"
        raise UsageError(f"{path} holds neither {MODEL_FILE} nor {CONFIG}; name a file in it")
    if path.suffix == ".npz":
        return "google"
    tensors, texts, _ = read_any(path)
    if OWN_HEADER in texts:
        return "safetensors"
    if "patch_embed.proj.weight" in tensors:
        return "timm"
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in tensors):
        return "hf"
    shown = ", ".join(sorted(tensors)[:5])
    raise SpecError(f"{path} is no Vision Transformer that is known: it has {shown}, ...")


def _load_google(path: Path, assume: Assumptions) -> Loaded:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a model in the layout google is an .npz file")
    tensors = read_npz(path)
    return _loaded("google", [path], interchange_google.read(tensors, assume), tensors)


def _load_timm(path: Path, assume: Assumptions) -> Loaded:
    config = (path if path.is_dir() else path.parent) / CONFIG
    said = read_json(config) if config.is_file() else {}
    is_theirs = "architecture" in said
    files = weight_files(path) if path.is_dir() else [path]
    tensors, wrapper = _tensors(files)
    read = interchange_timm.read(tensors, assume, said if is_theirs else None)
    return _loaded("timm", files + [config] * is_theirs, read, tensors, wrapper)


def _load_hf(path: Path, assume: Assumptions) -> Loaded:
    folder = path if path.is_dir() else path.parent
    config, preprocessor = folder / CONFIG, folder / interchange_hf.PREPROCESSOR
    if not config.is_file():
        raise UsageError(
            f"a model in the layout hf is a folder with {CONFIG}, which {folder} lacks"
        )
    files = weight_files(folder) if path.is_dir() else [path]
    tensors, wrapper = _tensors(files)
    shown = read_json(preprocessor) if preprocessor.is_file() else None
    read = interchange_hf.read(tensors, assume, read_json(config), shown)
    beside = [config] + [preprocessor] * (shown is not None)
    return _loaded("hf", files + beside, read, tensors, wrapper)


def _load_hf_backbone(path: Path, assume: Assumptions) -> Loaded:
    from pipeline.model.interchange_backbones import read_hf

    config, preprocessor = _said(path), path / interchange_hf.PREPROCESSOR
    shown = read_json(preprocessor) if preprocessor.is_file() else None
    read = read_hf(path, config, shown, assume)
    beside = [path / CONFIG] + [preprocessor] * (shown is not None)
    return _loaded("hf_backbone", weight_files(path) + beside, read, _floats(read.weights))


def _load_timm_backbone(path: Path, assume: Assumptions) -> Loaded:
    from pipeline.model.interchange_backbones import read_timm

    config, files = _said(path), weight_files(path)
    tensors, wrapper = _tensors(files)
    read = read_timm(tensors, config, assume)
    return _loaded("timm_backbone", [*files, path / CONFIG], read, _floats(tensors), wrapper)


def _floats(tensors: Tensors) -> Tensors:
    """Without counters, which stay whole numbers."""
    return {name: it for name, it in tensors.items() if it.is_floating_point()}


def _said(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        raise UsageError(f"a model of a library is a folder with {CONFIG}, which {path} is not")
    return read_json(path / CONFIG)


def _load_own(path: Path, assume: Assumptions) -> Loaded:
    if assume.given():
        raise UsageError("a file of ours says everything; there is nothing to assume about it")
    if path.is_dir():
        weights, saved = load_weights(path)
        files = [path / MODEL_FILE, path / WEIGHTS_FILE]
        origin = ModelOrigin(layout="safetensors", files=digests(files))
        return Loaded(saved.spec, weights, saved.class_names, origin, saved.probabilities)
    tensors, texts = read_safetensors(path)
    if OWN_HEADER not in texts:
        raise SpecError(f"the header of {path} does not say a spec; it is no file of ours")
    try:
        header = OwnHeader.model_validate_json(texts[OWN_HEADER])
    except ValidationError as error:
        raise IntegrityError(
            f"the header of {path} holds no description of ours ({error})"
        ) from None
    check_weights(tensors, header.spec)
    read = Read(header.spec, tensors, header.class_names)
    found = _loaded("safetensors", [path], read, tensors)
    return found._replace(probabilities=header.probabilities)


_READERS = {
    "google": _load_google,
    "timm": _load_timm,
    "hf": _load_hf,
    "timm_backbone": _load_timm_backbone,
    "hf_backbone": _load_hf_backbone,
    "safetensors": _load_own,
}


def _tensors(files: list[Path]) -> tuple[Tensors, str | None]:
    tensors: Tensors = {}
    wrapper = None
    for file in files:
        found, _, wrapper = read_any(file)
        tensors |= found
    return tensors, wrapper


def _loaded(
    layout: Layout,
    files: list[Path],
    read: Read,
    tensors: Mapping[str, Tensor],
    wrapper: str | None = None,
) -> Loaded:
    """Put together what was read and the sentences about it."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    notes = list(read.notes)
    if kinds != {"float32"}:
        notes.append(f"numbers were {' and '.join(sorted(kinds))}; they are float32 here")
    if wrapper is not None:
        notes.append(f"the weights were taken from {wrapper!r} in the file")
    origin = ModelOrigin(
        layout=layout,
        files=digests(files),
        assumed=read.assumed,
        dropped=read.dropped,
        notes=tuple(notes),
    )
    return Loaded(read.spec, read.weights, read.class_names, origin)


def save(
    path: Path,
    layout: ExportLayout,
    spec: BackboneSpec,
    weights: Mapping[str, Tensor],
    *,
    class_names: tuple[str, ...] = (),
    probabilities: Probabilities = "softmax",
) -> tuple[str, ...]:
    """Write a model in a layout.

    Args:
        path: A new file with the layout's suffix (`.npz`, `.safetensors`, `.onnx`), or for `hf` a
            new folder; for `timm` either a folder with its `config.json` or a bare `.safetensors`.
        layout: What to write.
        spec: The model.
        weights: Its parameters by our names.
        class_names: Of the head, where they are known.
        probabilities: What makes them of the logits.

    Returns:
        A sentence for each thing that the layout does not carry.

    Raises:
        UsageError: If `path` exists or has another suffix than the layout's.
        SpecError: If the layout cannot express the model, or if the weights are not its.
    """
    check_weights(weights, spec)
    _check_place(path, layout)
    if layout == "onnx":
        from pipeline.model.interchange_onnx import export

        return export(path, spec, weights, class_names, probabilities)
    if layout == "safetensors":
        header = OwnHeader(spec=spec, class_names=class_names, probabilities=probabilities)
        texts = {OWN_HEADER: canonical_json(header.dump())}
        _write_file(path, Written({name: it.contiguous() for name, it in weights.items()}), texts)
        return ()
    if not isinstance(spec, ViTSpec):
        raise SpecError(
            f"the layout {layout} is for ViTs here, and this is a model of type {spec.type}",
            hint="--layout safetensors or --layout onnx",
        )
    notes = _write_foreign(path, layout, spec, weights, class_names)
    if spec.num_classes and probabilities == "sigmoid":
        notes += (
            f"probabilities are sigmoids of the logits, which the layout {layout} does not say",
        )
    return notes


def _write_foreign(
    path: Path,
    layout: ExportLayout,
    spec: ViTSpec,
    weights: Mapping[str, Tensor],
    class_names: tuple[str, ...],
) -> tuple[str, ...]:
    if layout == "google":
        written = interchange_google.write(spec, weights)
        _write_npz(path, written)
        return written.notes
    writer = interchange_timm.write if layout == "timm" else interchange_hf.write
    written = writer(spec, weights, class_names)
    if path.suffix == ".safetensors":
        _write_file(path, written, {"format": "pt"})
        return written.notes + _unsaid_by_bare_file(spec)
    if not written.documents:
        raise SpecError(
            f"timm has no model with the stem {list(spec.stem.blocks) if spec.stem else []}; its "
            "state dict alone can be written",
            hint="--out NAME.safetensors",
        )
    _write_folder(path, written)
    return written.notes


def _unsaid_by_bare_file(spec: ViTSpec) -> tuple[str, ...]:
    sentence = (
        f"a bare state dict says neither num_heads {spec.num_heads} nor gelu {spec.gelu} nor how "
        "pixels are normalised; a folder does"
    )
    return (sentence,)


def _check_place(path: Path, layout: ExportLayout) -> None:
    if path.exists():
        raise UsageError(f"{path} exists and stays as it is; name a new place")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}")
    suffix = _SUFFIXES.get(layout)
    is_file = path.suffix in {*PICKLES, ".npz", ".safetensors", ".onnx"}
    if suffix is not None and path.suffix != suffix:
        raise UsageError(f"a file in the layout {layout} ends in {suffix}, not as {path.name}")
    if suffix is None and is_file and (layout, path.suffix) != ("timm", ".safetensors"):
        raise UsageError(f"the layout {layout} is a folder; {path.name} looks like a file")


def _write_file(path: Path, written: Written, texts: dict[str, str]) -> None:
    part = path.with_name(path.name + ".part")
    save_file(_plain(written.tensors), part, metadata=texts)
    part.rename(path)


def _write_npz(path: Path, written: Written) -> None:
    part = path.with_name(path.name + ".part")
    arrays: dict[str, Any] = {name: it.numpy() for name, it in _plain(written.tensors).items()}
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.rename(path)


def _write_folder(path: Path, written: Written) -> None:
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save_file(_plain(written.tensors), part / "model.safetensors", metadata={"format": "pt"})
    for name, document in written.documents.items():
        (part / name).write_text(json.dumps(document, indent=2) + "\n")
    part.rename(path)


def _plain(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors that share no memory: what the file formats want."""
    return {
        name: tensor.detach().cpu().to(torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
