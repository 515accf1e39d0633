"""Validation errors as sentences: what was given, what is allowed, the nearest right word."""

import inspect
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.dag.overrides import Path
from schemas.backbones import DEFAULT_TYPE
from schemas.errors import SpecError
from schemas.spec import Spec
from schemas.words import nearest

SHOWN = 5
"""Problems that one message tells; the rest are counted."""

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    tuple: "a list",
    dict: "a mapping",
}


def as_spec_error(
    error: ValidationError, *, root: type[Spec], data: Any, place: Callable[[Path], str]
) -> SpecError:
    """All problems of a validation as one error.

    `data` is what was validated against `root`; `place` tells where a path of it was written.
    """
    found = [(_data_path(it, data), it) for it in error.errors(include_url=False)]
    problems: dict[Path, str] = {}
    for path, details in found:
        if details["type"] == "too_short" and any(_is_below(path, other) for other, _ in found):
            continue  # only because what is wrong in the list was not counted
        problems.setdefault(path, _sentence(details, path=path, root=root, data=data))
    if len(problems) == 1:
        ((path, sentence),) = problems.items()
        return SpecError(sentence, where=place(path))
    lines = [f"the experiment has {len(problems)} problems"]
    for path, sentence in list(problems.items())[:SHOWN]:
        lines += [f"  - {sentence}", f"    where: {place(path)}"]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    return SpecError("\n".join(lines))


def _is_below(path: Path, other: Path) -> bool:
    return len(other) > len(path) and other[: len(path)] == path


def _data_path(details: ErrorDetails, data: Any) -> Path:
    """The location of a problem, without what is not in the data: tags and members of unions."""
    path: list[str | int] = []
    here, tag_seen = data, False
    location = details["loc"]
    names_a_key = details["type"] in ("missing", "extra_forbidden")
    for index, segment in enumerate(location):
        last = names_a_key and index == len(location) - 1
        if not (tag_seen or last) and _is_tag(here, segment):
            tag_seen = True
            continue
        if not (last or _holds(here, segment)):
            break  # the label of a member of a union: the field as a whole is wrong
        path.append(segment)
        here, tag_seen = None if last else here[segment], False
    return tuple(path)


def _is_tag(data: Any, segment: str | int) -> bool:
    tag = _tag(data)
    if isinstance(data, dict) and tag is None:
        return segment == DEFAULT_TYPE and segment not in data  # a stage may bear that name
    return bool(segment == tag)


def _tag(data: Any) -> Any:
    return data.get("kind", data.get("type")) if isinstance(data, dict) else None


def _holds(data: Any, segment: str | int) -> bool:
    if isinstance(data, list | tuple):
        return isinstance(segment, int) and segment < len(data)
    return isinstance(data, dict) and segment in data


def _sentence(details: ErrorDetails, *, path: Path, root: type[Spec], data: Any) -> str:
    kind = details["type"]
    if kind in ("extra_forbidden", "missing"):
        *above, name = path
        return _about_key(kind, str(name), _spec_at(root, data, tuple(above)))
    if kind == "value_error":
        return str(details["ctx"]["error"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _about_tag(details["ctx"])
    given = _value_at(data, path)
    if kind.endswith("_type") or kind == "literal_error":
        annotation = _annotation_at(root, data, path)
        return f"{_shown(given)} was given; allowed is {_in_words(annotation)}" + _meant(
            given, [word for word in _literals(annotation) if isinstance(word, str)]
        )
    allowed = details["msg"].replace("Input should be ", "")
    return f"{_shown(given)} was given; allowed is: {allowed[0].lower()}{allowed[1:]}"


def _about_key(kind: str, name: str, spec: type[Spec] | None) -> str:
    fields = dict(spec.model_fields) if spec else {}
    if kind == "missing":
        what = fields[name].description if name in fields else None
        return f"the field {name!r} must be given" + (f": {_first_line(what)}" if what else "")
    return f"unknown field {name!r}{_meant(name, list(fields))}; allowed are {', '.join(fields)}"


def _first_line(text: str) -> str:
    return inspect.cleandoc(text).splitlines()[0]


def _about_tag(context: dict[str, Any]) -> str:
    name = context["discriminator"]
    name = "type" if name.endswith("()") else name  # a function, of its own name
    if "tag" not in context:
        return f"the field {name} must be given: it says which fields there are"
    words = [word.strip("' ") for word in context["expected_tags"].split(",")]
    meant = _meant(context["tag"], words)
    return f"{context['tag']!r} was given as {name}{meant}; allowed are {', '.join(words)}"


def _meant(given: Any, allowed: list[str]) -> str:
    word = nearest(given, allowed) if isinstance(given, str) else None
    return f" (did you mean {word!r}?)" if word else ""


def _shown(value: Any) -> str:
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_flag(value) else None
    text = text or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _value_at(data: Any, path: Path) -> Any:
    for segment in path:
        data = data[segment]
    return data


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself; wrappers taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin is None or origin in (Literal, tuple, dict):
        yield annotation
    else:
        for member in get_args(annotation):
            yield from _options(member)


def _annotation_at(root: type[Spec], data: Any, path: Path) -> Any:
    """What the schema says of the value at `path`; `Any` where it says nothing."""
    annotation: Any = root
    for segment in path:
        annotation = _below(annotation, data, segment)
        data = data[segment] if _holds(data, segment) else None
    return annotation


def _below(annotation: Any, data: Any, segment: str | int) -> Any:
    for option in _options(annotation):
        if _is_spec(option):
            if _fits(option, data) and segment in option.model_fields:
                return option.model_fields[str(segment)].annotation
        elif get_origin(option) is dict:
            return get_args(option)[1]
        elif get_origin(option) is tuple and isinstance(segment, int):
            return get_args(option)[0]  # our lists hold one kind of thing
    return Any


def _spec_at(root: type[Spec], data: Any, path: Path) -> type[Spec] | None:
    """The spec class whose fields stand at `path`, chosen by its tag among several."""
    options = _options(_annotation_at(root, data, path))
    here = _value_at(data, path)
    return next((option for option in options if _is_spec(option) and _fits(option, here)), None)


def _is_spec(option: Any) -> bool:
    return inspect.isclass(option) and issubclass(option, Spec)


def _fits(option: type[Spec], data: Any) -> bool:
    tag = option.model_fields.get("kind") or option.model_fields.get("type")
    return tag is None or _tag(data) in (None, *_literals(tag.annotation))


def _literals(annotation: Any) -> list[Any]:
    return [
        word
        for option in _options(annotation)
        if get_origin(option) is Literal
        for word in get_args(option)
    ]


def _in_words(annotation: Any) -> str:
    return " or ".join(_option_in_words(option) for option in _options(annotation))


def _option_in_words(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(repr(word) for word in get_args(option))
    if _is_spec(option):
        return f"a mapping with some of {', '.join(option.model_fields)}"
    arguments = get_args(option)
    if get_origin(option) is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)}"
    return _WORDS.get(get_origin(option) or option, "another type")
