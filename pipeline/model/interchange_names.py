"""The strict translation of weights between names, driven by tables of rules.

A rule says how one tensor of a file corresponds to one of ours, or to several that the file keeps
in one. The expected shapes of a file are those that the rules make of our parameters, so that a
table alone says everything. Letters: D width, C channels, P patch side on the grid that the patches
are cut from, A heads, E width of a head.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.model.positions import crossed, sincos_2d
from pipeline.model.vit import ViT
from schemas.backbones import BackboneSpec
from schemas.errors import SpecError
from schemas.interchange import Assumptions
from schemas.model import ResNetStemSpec, ViTSpec
from schemas.spec import Spec

SHOWN_NAMES = 12
"""Names that an error lists of each fault; the rest are counted."""

Tensors = dict[str, Tensor]
Fields = dict[str, Any]
"""Fields of a `ViTSpec`."""


class Read(NamedTuple):
    """What the tensors of a file are to us."""

    spec: BackboneSpec
    weights: Tensors
    class_names: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    """What the file does not say, as `name value`."""
    dropped: tuple[str, ...] = ()
    """Names of tensors that are no part of the model."""
    notes: tuple[str, ...] = ()


class Written(NamedTuple):
    """A model as the tensors of a file, with the texts that go beside them."""

    tensors: Tensors
    notes: tuple[str, ...] = ()
    documents: Mapping[str, Fields] = MappingProxyType({})
    """File name -> its content, for layouts that are folders."""


class Form(NamedTuple):
    """How tensors of ours lie in a file: `read` takes them out, `write` undoes it."""

    read: Callable[[Tensor, ViTSpec], Sequence[Tensor]]
    write: Callable[[Sequence[Tensor], ViTSpec], Tensor]


class Rule(NamedTuple):
    """One tensor of a file and what it is of ours."""

    theirs: str
    ours: tuple[str, ...]
    form: Form


Row = tuple[str, str, Form]
"""Their name, our names separated by spaces, and the form; a line of a table."""


def expand(rows: Iterable[Row], theirs: str = "", ours: str = "") -> list[Rule]:
    """The rules of a table, its names behind these prefixes."""
    return [
        Rule(theirs + name, tuple(ours + part for part in names.split()), form)
        for name, names, form in rows
    ]


def pairs(*names: tuple[str, str], form: "Form | None" = None) -> tuple[Row, ...]:
    """A line for weight and bias of each layer: their name, and ours separated by spaces."""
    return tuple(
        (f"{theirs}.{part}", " ".join(f"{our}.{part}" for our in ours.split()), form or SAME)
        for theirs, ours in names
        for part in ("weight", "bias")
    )


def _one(read: Callable[[Tensor], Tensor], write: Callable[[Tensor], Tensor]) -> Form:
    return Form(lambda found, _: (read(found),), lambda ours, _: write(ours[0]))


def _patch_shape(spec: ViTSpec) -> tuple[int, int, int]:
    """[C, P, P] of the patch projection."""
    side = spec.patch_side
    return spec.patch_values // side**2, side, side


def _head_shape(spec: ViTSpec) -> tuple[int, int]:
    return spec.num_heads, spec.width // spec.num_heads


SAME = _one(lambda t: t, lambda t: t)
KERNEL = _one(lambda t: t.T, lambda t: t.T)
"""A dense kernel, [in, out] in JAX and [out, in] here."""
ROWS = _one(lambda t: t[0], lambda t: t[None])
"""[1, N, D] of a table of N rows."""
ROW = _one(lambda t: t[0, 0], lambda t: t[None, None])
"""[1, 1, D] of a vector."""
CONV_HWIO = _one(lambda t: t.permute(3, 2, 0, 1), lambda t: t.permute(2, 3, 1, 0))
PATCH_OIHW = Form(
    lambda t, _: (t.flatten(1),), lambda ours, spec: torch.unflatten(ours[0], 1, _patch_shape(spec))
)
PATCH_HWIO = Form(
    lambda t, _: (t.permute(3, 2, 0, 1).flatten(1),),
    lambda ours, spec: torch.unflatten(ours[0], 1, _patch_shape(spec)).permute(2, 3, 1, 0),
)
HEADS_IN = Form(
    lambda t, _: (t.flatten(1).T,),
    lambda ours, spec: torch.unflatten(ours[0].T, 1, _head_shape(spec)),
)
"""[D, A, E] of a query, key or value kernel."""
HEADS_BIAS = Form(
    lambda t, _: (t.flatten(),), lambda ours, spec: torch.unflatten(ours[0], 0, _head_shape(spec))
)
HEADS_OUT = Form(
    lambda t, _: (t.flatten(0, 1).T,),
    lambda ours, spec: torch.unflatten(ours[0].T, 0, _head_shape(spec)),
)
"""[A, E, D] of the kernel behind the heads."""
THREE = Form(lambda t, _: t.chunk(3), lambda ours, _: torch.cat(list(ours)))
"""Query, key and value one below the other."""
TWO = Form(lambda t, _: t.chunk(2), lambda ours, _: torch.cat(list(ours)))
BESIDE_ZEROS = Form(
    lambda t, spec: (t[:, : spec.width],),
    lambda ours, _: torch.cat([ours[0], torch.zeros_like(ours[0])], dim=1),
)
"""The first half of the columns; the other half is zero."""


def parameter_shapes(spec: ViTSpec) -> Tensors:
    """Our parameters by name, without memory."""
    with torch.device("meta"):
        return dict(ViT(spec).named_parameters())


def read_weights(
    found: Mapping[str, Tensor], rules: Sequence[Rule], spec: ViTSpec, *, layout: str
) -> Tensors:
    """Tensors of a file as our float32 parameters.

    Raises:
        SpecError: With every missing, unexpected and misshapen tensor of the file.
    """
    ours = parameter_shapes(spec)
    expected = {rule.theirs: _write(rule, ours, spec).shape for rule in rules}
    check_names(found, expected, layout=layout, of=_in_words(spec))
    weights: Tensors = {}
    for rule in rules:
        parts = rule.form.read(found[rule.theirs], spec)
        weights.update(zip(rule.ours, parts, strict=True))
    return {name: weights[name].to(torch.float32, copy=True).contiguous() for name in ours}


def write_weights(weights: Mapping[str, Tensor], rules: Sequence[Rule], spec: ViTSpec) -> Tensors:
    """Our parameters as the tensors of a file."""
    told = [name for rule in rules for name in rule.ours]
    assert sorted(told) == sorted(weights), "a layout's table must tell every parameter once"  # noqa: S101
    return {rule.theirs: _write(rule, weights, spec).contiguous() for rule in rules}


def _write(rule: Rule, weights: Mapping[str, Tensor], spec: ViTSpec) -> Tensor:
    return rule.form.write([weights[name].detach() for name in rule.ours], spec)


def _in_words(spec: ViTSpec) -> str:
    rows, columns = spec.grid
    return (
        f"a ViT of width {spec.width}, depth {spec.depth}, {spec.num_heads} heads and "
        f"{rows} x {columns} patches of {spec.patch_px} px"
    )


def check_names(
    found: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, layout: str, of: str
) -> None:
    """Compare names and shapes of a file with what there should be.

    Raises:
        SpecError: With every missing, unexpected and misshapen tensor.
    """
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name].shape) != tuple(shape)
        ],
    }
    told = "; ".join(f"{what}: {_listed(names)}" for what, names in faults.items() if names)
    if told:
        raise SpecError(f"the tensors are not those of {of} in the layout {layout} ({told})")


def require(found: Mapping[str, Tensor], axes: Mapping[str, int], *, layout: str) -> None:
    """Refuse what cannot be a ViT of this layout at all.

    Args:
        found: Tensors of the file.
        axes: Names that every such file has, and how many axes each tensor has.
        layout: For errors.

    Raises:
        SpecError: If one of the names is missing, or has another number of axes.
    """
    missing = [name for name in axes if name not in found]
    if missing:
        raise SpecError(
            f"this is no ViT in the layout {layout}: it lacks {_listed(missing)}; "
            f"it has {_listed(sorted(found)) or 'no tensor at all'}"
        )
    wrong = [
        f"{name} {list(found[name].shape)} instead of {count} axes"
        for name, count in axes.items()
        if found[name].ndim != count
    ]
    if wrong:
        raise SpecError(f"this is no ViT in the layout {layout}: {_listed(wrong)}")


def first_axis(found: Mapping[str, Tensor], name: str) -> int:
    """Length of a tensor's first axis; 0 where there is no such tensor, or no axis."""
    tensor = found.get(name)
    return tensor.shape[0] if tensor is not None and tensor.ndim else 0


def stem_of(blocks: Mapping[int, int], width: int, conventions: Fields) -> ResNetStemSpec:
    """The stem of so many blocks in each stage.

    Raises:
        SpecError: If ours cannot be so.
    """
    counts = tuple(blocks.get(index, 0) for index in range(len(blocks)))
    try:
        return ResNetStemSpec(blocks=counts, width=width, **conventions)
    except ValidationError as error:
        raise SpecError(f"no stem of ours is like this: {error.errors()[0]['msg']}") from None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def resolve(
    known: Fields, defaults: Fields, assume: Assumptions, *, layout: str
) -> tuple[ViTSpec, tuple[str, ...]]:
    """The spec of a file, and what of it the file does not say.

    Args:
        known: Fields that the file says.
        defaults: Fields that the layout leaves open, as its code bases have them.
        assume: Fields that the user says.
        layout: For errors.

    Raises:
        SpecError: If user and file disagree, or if no ViT of ours can be so.
    """
    given = assume.given()
    for name, value in given.items():
        if name in known and known[name] != value:
            raise SpecError(f"{name} is given as {value}, but the file says {known[name]}")
    try:
        spec = ViTSpec.model_validate({**defaults, **given, **known})
    except ValidationError as error:
        told = "; ".join(f"{_place(it['loc'])}{it['msg']}" for it in error.errors())
        raise SpecError(
            f"this file in the layout {layout} is no ViT that we know: {told}"
        ) from None
    silent = {it: defaults[it] for it in defaults if it not in given and it not in known}
    return spec, in_words(silent)


def in_words(fields: Fields, prefix: str = "") -> tuple[str, ...]:
    """`name value` of each field."""
    return tuple(f"{prefix}{name} {_plain(value)}" for name, value in fields.items())


def _place(location: tuple[int | str, ...]) -> str:
    return "".join(f"{part}: " for part in location)


def _plain(value: Any) -> str:
    return " x ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value}"


def square_side(tokens: int) -> int | None:
    """The side of a square grid of so many patches; None if there is none."""
    side = round(tokens**0.5)
    return side if side * side == tokens and side > 0 else None


def image_of_tokens(tokens: int, patch_px: int, assume: Assumptions) -> tuple[int, int]:
    """Height and width in pixels of the input whose patches a table of positions has.

    Raises:
        SpecError: If the user's size has another number of patches, or if there is none from the
            user and the number is no square.
    """
    given = assume.given().get("image_px")
    if given is not None:
        height, width = given
        if height % patch_px or width % patch_px or tokens * patch_px**2 != height * width:
            raise SpecError(
                f"image_px is given as {height} x {width}, but the file has positions for {tokens} "
                f"patches of {patch_px} px"
            )
        return height, width
    side = square_side(tokens)
    if side is None:
        raise SpecError(
            f"the file has positions for {tokens} patches, which is no square grid; say of which "
            "height and width in pixels",
            hint="--set image_px=[HEIGHT,WIDTH]",
        )
    return side * patch_px, side * patch_px


def with_table(
    spec: ViTSpec, weights: Mapping[str, Tensor], *, kept: Sequence[str]
) -> tuple[ViTSpec, Mapping[str, Tensor], tuple[str, ...]]:
    """The same function with one table of positions at the stem, where a layout knows no others.

    Args:
        spec: The model.
        weights: Its parameters.
        kept: Kinds of positions that the layout knows.

    Returns:
        Spec and weights that compute the same, and what was done, in a sentence.
    """
    if spec.position in (*kept, "relative") or spec.position_at != "stem":
        return spec, weights, ()
    table = _table(spec, weights)
    others = {name: it for name, it in weights.items() if not name.startswith("position_")}
    notes = (f"positions {spec.position} are written out as a table for {spec.patches} patches",)
    return spec.revise(position="learned_1d"), others | {"position": table}, notes


def _table(spec: ViTSpec, weights: Mapping[str, Tensor]) -> Tensor:
    """[S + N, D] of a model with positions at the stem."""
    if spec.position == "none":
        return torch.zeros(spec.slots + spec.patches, spec.width)
    if spec.position == "sincos_2d":
        return sincos_2d(spec)
    table = crossed(weights["position_rows"], weights["position_columns"])
    return torch.cat([weights["position_slots"], table]) if spec.slots else table


def check_expressible(spec: ViTSpec, limits: Mapping[str, tuple[Any, ...]], *, layout: str) -> None:
    """Refuse to write what a layout has no words for.

    Raises:
        SpecError: With every field, and what the layout knows instead.
    """
    told = [
        f"{name} {getattr(spec, name)} (only {' or '.join(map(str, allowed))})"
        for name, allowed in limits.items()
        if getattr(spec, name) not in allowed
    ]
    if told:
        raise SpecError(f"the layout {layout} cannot express {', '.join(told)}")


def unsaid(spec: Spec, taken: Mapping[str, Any], *, layout: str) -> tuple[str, ...]:
    """A sentence for each convention that readers of a layout would take otherwise."""
    return tuple(
        f"{name} is {getattr(spec, name)}; the layout {layout} does not say it, and its readers "
        f"take {value}"
        for name, value in taken.items()
        if getattr(spec, name) != value
    )
