"""Reads files of tensors from strangers: nothing in them is run, and what is torn is said so."""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.model.interchange_names import Tensors
from schemas.checkpoint import CheckpointFile
from schemas.errors import IntegrityError, SpecError, UsageError

PICKLES = (".pth", ".pt", ".bin")
WRAPPERS = ("model", "state_dict", "teacher")
"""Keys under which training code keeps the weights among other things."""
_GLOBAL = re.compile(r"GLOBAL (\S+)")
"""How torch names what it refuses to make."""
_BF16 = np.dtype("V2")
"""How NumPy stores JAX's bfloat16, which it does not know."""


def read_npz(path: Path) -> Tensors:
    """The arrays of an `.npz`; raw two-byte values are taken as bfloat16."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _tensor(archive[name], name, path) for name in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError, zipfile.LargeZipFile) as error:
        raise _torn(path, "a NumPy archive", error) from None
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise _holds_code(path, "objects") from None
        raise _torn(path, "a NumPy archive", error) from None


def _tensor(array: "np.ndarray[Any, Any]", name: str, path: Path) -> Tensor:
    if array.dtype == _BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiu":
        raise SpecError(f"{path.name}: {name} holds {array.dtype} and no numbers of a model")
    return torch.from_numpy(array)


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file, and the texts of its header."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _torn(path, "a safetensors file", error) from None


def read_pickle(path: Path) -> tuple[Tensors, str | None]:
    """The state dict of a torch file, and the key it was kept under, if it was under one.

    Only tensors and plain containers are admitted: torch refuses everything else before running it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unusual pickles; it then refuses them
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        if named is not None:
            raise _holds_code(path, named[1]) from None
        raise IntegrityError(
            f"{path} is no file of tensors, or is damaged; nothing of it was run"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise _torn(path, "a torch file", error) from None
    return _state_dict(found, path)


def _state_dict(found: Any, path: Path) -> tuple[Tensors, str | None]:
    wrapper = None
    if isinstance(found, Mapping) and not any(isinstance(it, Tensor) for it in found.values()):
        wrapper = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        found = found[wrapper] if wrapper else found
    is_plain = isinstance(found, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    )
    if not is_plain or not found:
        raise SpecError(
            f"{path.name} holds no state dict: names with a tensor each, or these under one of "
            f"{', '.join(WRAPPERS)}"
        )
    return dict(found), wrapper


def read_json(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _torn(path, "a JSON file", error) from None
    if not isinstance(found, dict):
        raise SpecError(f"{path.name} holds no mapping")
    return found


def read_any(path: Path) -> tuple[Tensors, dict[str, str], str | None]:
    """Tensors, texts of the header and the wrapping key of a safetensors or torch file."""
    if path.suffix in PICKLES:
        tensors, wrapper = read_pickle(path)
        return tensors, {}, wrapper
    if path.suffix == ".safetensors":
        tensors, texts = read_safetensors(path)
        return tensors, texts, None
    raise UsageError(
        f"{path.name} is of no kind that is read; give {', '.join(PICKLES)} or .safetensors"
    )


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a Hugging Face or timm folder, shards in order of their names.

    Raises:
        UsageError: If there is none, or one that the index names is missing.
    """
    for name in ("model.safetensors", "pytorch_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in shards if not _is_beside(folder, name)]
        if missing or not shards:
            raise UsageError(f"{index} names shards that are not there: {', '.join(missing)}")
        return [folder / name for name in shards]
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    raise UsageError(f"{folder} holds no model.safetensors and no pytorch_model.bin")


def _is_beside(folder: Path, name: str) -> bool:
    return re.fullmatch(r"[\w.-]+", name) is not None and (folder / name).is_file()


def digests(files: Iterable[Path]) -> dict[str, CheckpointFile]:
    """Name -> size and sha256."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = CheckpointFile(size_bytes=path.stat().st_size, sha256=sha256)
    return found


def _torn(path: Path, kind: str, error: Exception) -> IntegrityError:
    reason = " ".join(str(error).split())[:200]
    return IntegrityError(f"{path} cannot be read as {kind}; it is cut off or damaged ({reason})")


def _holds_code(path: Path, what: str) -> SpecError:
    return SpecError(
        f"{path} holds {what}, which is more than tensors, so nothing of it was run",
        hint="save the state dict alone, as safetensors",
    )
