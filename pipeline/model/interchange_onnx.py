"""A model as an ONNX graph: normalised pixels in, logits out, any number of images at once."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.model.building import unfilled
from schemas.backbones import BackboneSpec
from schemas.errors import SpecError, UsageError
from schemas.objectives import Probabilities
from schemas.spec import canonical_json

OPSET = 18
INPUT = "pixels"
_MOST_BYTES = 2**31 - 2**24
"""A file is one message of Protocol Buffers; some of it is the graph itself."""


def export(
    path: Path,
    spec: BackboneSpec,
    weights: Mapping[str, Tensor],
    class_names: tuple[str, ...],
    probabilities: Probabilities,
) -> tuple[str, ...]:
    """Write the graph; what a prediction needs besides is in its properties.

    These are the spec, how pixels are normalised, the classes, and what makes probabilities of the
    logits.

    The input `pixels` is [batch, 3, H, W], normalised; the output is `logits` [batch, K], or
    `features` [batch, D] of a model without a head.

    Raises:
        SpecError: If the weights are too many for one file.
        UsageError: If the optional libraries are not installed.
    """
    size = sum(4 * weight.numel() for weight in weights.values())
    if size > _MOST_BYTES:
        raise SpecError(
            f"an ONNX file holds at most 2 GiB, and these weights take {size / 2**30:.1f} GiB",
            hint="--layout safetensors",
        )
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch's exporter writes the graph with
    except ImportError as error:
        raise UsageError(
            f"ONNX needs the package {error.name}, which is not installed",
            hint="pip install 'vitrail[onnx]'",
        ) from error
    model = unfilled(spec)
    model.load_state_dict(dict(weights), assign=True)
    example = torch.zeros(2, 3, *spec.image_px)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (example,),
            input_names=[INPUT],
            output_names=["logits" if spec.num_classes else "features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
        )
    assert program is not None  # noqa: S101  # only the old exporter gives nothing
    proto = program.model_proto
    properties = {
        "vitrail_spec": canonical_json(spec.dump()),
        "pixel_mean": json.dumps(spec.pixel_mean),
        "pixel_std": json.dumps(spec.pixel_std),
        "class_names": json.dumps(class_names),
        "probabilities": probabilities,
    }
    onnx.helper.set_model_props(proto, properties)
    part = path.with_name(path.name + ".part")
    onnx.save(proto, part)
    part.rename(path)
    return (f"pixels must come as {spec.image_px[0]} x {spec.image_px[1]}, normalised",)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its remarks on its own insides from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
