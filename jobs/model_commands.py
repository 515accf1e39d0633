"""What `vitrail model` does: import, export, info."""

from pathlib import Path

from pydantic import ValidationError

from jobs.console import print_document, stderr, stdout
from jobs.import_weights import remarks, saved_model
from jobs.model_names import ModelName
from pipeline.cost import model_flops, model_parameters
from pipeline.dag.yaml_text import read_yaml
from pipeline.model.building import unfilled
from pipeline.model.interchange import Loaded, load, save
from pipeline.model.interchange_files import digests
from pipeline.model.saved import load_saved, load_weights, save_model
from schemas.backbones import BackboneSpec, HFSpec, ResNetSpec, TimmSpec
from schemas.errors import UsageError
from schemas.interchange import Assumptions, ExportLayout, Layout
from schemas.model import ViTSpec
from schemas.model_documents import ExportedModel, ModelDocument
from schemas.spec import canonical_json

_GIGA = 1e9
_CLASSES_SHOWN = 8


def import_model(
    source: Path, *, layout: Layout | None, out: Path | None, assume: list[str], output: str
) -> None:
    """Read weights and write our folder; prints what was made of them."""
    target = out or Path(f"{source.name.removesuffix(source.suffix)}-model")
    if target.exists():
        raise UsageError(f"{target} exists and stays as it is; name a new folder with --out")
    found = load(source, layout, assume=assumptions(assume))
    save_model(target, found.weights, saved_model(found, key=None))
    document = _document(found, target)
    if output == "json":
        print_document(document)
        return
    _print_model(document)
    console = stdout()
    console.print(f"wrote {target}", markup=False)
    console.print(f"next: vitrail predict {target} IMAGE...", markup=False)


def assumptions(texts: list[str]) -> Assumptions:
    """The `--set NAME=VALUE` options of a command.

    Raises:
        UsageError: If one is no assignment, or nothing that can be assumed of a file.
    """
    given = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in Assumptions.model_fields:
            raise UsageError(
                f"--set {text} is not understood; write NAME=VALUE with one of "
                f"{', '.join(Assumptions.model_fields)}"
            )
        given[name] = read_yaml(value, name=f"--set {text}").data
    try:
        return Assumptions.parse(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise UsageError(f"--set {field}={given[field]}: {first['msg'].lower()}") from None


def export_model(name: ModelName, *, layout: ExportLayout, out: Path, output: str) -> None:
    """Write a model in another layout; prints what that does not carry."""
    folder = name.folder()
    weights, saved = load_weights(folder)
    notes = save(
        out,
        layout,
        saved.spec,
        weights,
        class_names=saved.class_names,
        probabilities=saved.probabilities,
    )
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    document = ExportedModel(
        location=str(folder), layout=layout, out=str(out), files=digests(files), notes=notes
    )
    if output == "json":
        print_document(document)
        return
    console = stdout()
    for note in notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"wrote {out} in the layout {layout}", markup=False)


def show_model(name: ModelName, *, layout: Layout | None, assume: list[str], output: str) -> None:
    """Print what a model is, ours or a stranger's."""
    folder = name.folder_or_none()
    if folder is not None and layout is None:
        document = own_document(folder)
    else:
        path = Path(name.text).expanduser()
        document = _document(load(path, layout, assume=assumptions(assume)), path)
    if output == "json":
        print_document(document)
    else:
        _print_model(document)


def own_document(folder: Path) -> ModelDocument:
    """What a model of ours says of itself; its weights are not read."""
    saved = load_saved(folder)
    return ModelDocument(
        location=str(folder),
        layout="safetensors",
        spec=saved.spec,
        parameters=_parameters(saved.spec),
        flops=model_flops(saved.spec),
        class_names=saved.class_names,
        probabilities=saved.probabilities,
        trained_steps=saved.trained_steps,
        key=saved.key,
        data_digest=saved.data_digest,
        init_digest=saved.init_digest,
        origin=saved.origin,
    )


def _document(found: Loaded, path: Path) -> ModelDocument:
    return ModelDocument(
        location=str(path),
        layout=found.origin.layout,
        spec=found.spec,
        parameters=_parameters(found.spec),
        flops=model_flops(found.spec),
        class_names=found.class_names,
        probabilities=found.probabilities,
        origin=found.origin,
    )


def _parameters(spec: BackboneSpec) -> int:
    """Of a library's model only the model itself knows."""
    counted = model_parameters(spec)
    if counted is not None:
        return counted
    return sum(parameter.numel() for parameter in unfilled(spec).parameters())


def _print_model(document: ModelDocument) -> None:
    console = stdout()
    console.print(document.location, markup=False)
    for name, value in facts(document):
        console.print(f"{name:<18} {value}", markup=False)
    if document.origin is not None:
        for line in remarks(document.origin):
            stderr().print(f"note: {line}", markup=False)


def facts(document: ModelDocument) -> list[tuple[str, str]]:
    """Name and value of everything that a person asks about a model."""
    spec = document.spec
    height, width = spec.image_px
    flops = document.flops
    patches = f", {_patches(spec)}" if isinstance(spec, ViTSpec) else ""
    rows = [
        ("size", _size(spec)),
        ("input", f"{height} x {width} px{patches}"),
        ("parameters", f"{document.parameters:,}"),
        ("FLOPs", "not known" if flops is None else f"{flops / _GIGA:.3g} G for one image"),
        *(_vit_facts(spec) if isinstance(spec, ViTSpec) else ()),
        ("pixels", f"mean {_numbers(spec.pixel_mean)}, deviation {_numbers(spec.pixel_std)}"),
        ("head", _head(document)),
    ]
    if isinstance(spec, ViTSpec) and (parts := _parts(spec)):
        rows.append(("parts", ", ".join(parts)))
    return rows + _history(document)


def _vit_facts(spec: ViTSpec) -> list[tuple[str, str]]:
    return [
        ("pooling", _pooling(spec)),
        ("positions", f"{spec.position} at {spec.position_at}, resized as {spec.position_resize}"),
        ("conventions", _conventions(spec)),
    ]


def _size(spec: BackboneSpec) -> str:
    if isinstance(spec, ResNetSpec):
        return f"ResNet, units {list(spec.blocks)}, width {spec.width}"
    if isinstance(spec, TimmSpec | HFSpec):
        name = spec.name if isinstance(spec, TimmSpec) else spec.model_type
        options = "".join(f", {it} {canonical_json(value)}" for it, value in spec.options.items())
        return f"{name} of {'timm' if isinstance(spec, TimmSpec) else 'transformers'}{options}"
    return f"width {spec.width}, depth {spec.depth}, {spec.num_heads} heads, MLP {spec.mlp_dim}"


def _patches(spec: ViTSpec) -> str:
    rows, columns = spec.grid
    stem = "" if spec.stem is None else f" behind a ResNet stem {list(spec.stem.blocks)}"
    return f"{rows} x {columns} patches of {spec.patch_px} px{stem}"


def _pooling(spec: ViTSpec) -> str:
    words = {"cls": "class token", "gap": "mean of patches", "map": "attention pooling"}
    return f"{words[spec.pool]}, last norm on {spec.norm_at}"


def _conventions(spec: ViTSpec) -> str:
    return f"GELU {spec.gelu}, LayerNorm eps {spec.layer_norm_eps:g}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _head(document: ModelDocument) -> str:
    count, names = document.spec.num_classes, document.class_names
    if not count:
        return "none"
    shown = ", ".join(names[:_CLASSES_SHOWN]) + (", ..." if len(names) > _CLASSES_SHOWN else "")
    each = ", a sigmoid for each" if document.probabilities == "sigmoid" else ""
    return f"{count:,} classes{': ' + shown if names else ', not named'}{each}"


def _parts(spec: ViTSpec) -> list[str]:
    """What not every ViT has."""
    has = {
        f"{spec.registers} registers": spec.registers > 0,
        "distillation token": spec.distillation_token,
        "LayerScale": spec.layer_scale is not None,
        "norms of queries and keys": spec.qk_norm,
        "axial blocks": spec.axial,
        "tanh layer before the head": spec.hidden_head,
        "class token without a position": not spec.class_position,
    }
    return [name for name, is_there in has.items() if is_there]


def _history(document: ModelDocument) -> list[tuple[str, str]]:
    rows = []
    if document.trained_steps:
        rows.append(("trained", f"{document.trained_steps:,} steps"))
    rows += [("data", document.data_digest)] if document.data_digest else []
    rows += [("started from", document.init_digest)] if document.init_digest else []
    for name, file in (document.origin.files if document.origin else {}).items():
        rows.append((name, f"{file.size_bytes:,} bytes, sha256 {file.sha256}"))
    return rows
