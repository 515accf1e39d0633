"""YAML 1.2 into plain data, with the line of each value; nothing else a YAML file could ask for."""

import io
import math
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.dag.overrides import Path
from schemas.errors import SpecError

MAX_BYTES = 2**20
MAX_NODES = 100_000
"""After aliases are expanded: nine lines of YAML can otherwise stand for a billion values."""
MAX_DEPTH = 40

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = ("null", "bool", "int", "float", "str")
_AS_TEXT = ("timestamp", "value")
"""YAML 1.1 types that the library still recognises; in YAML 1.2 they are text."""


@dataclass(frozen=True)
class Document:
    """Plain data and where its parts stand."""

    data: Any
    lines: dict[Path, int]
    """Path -> line, from 1: of the key in a mapping, of the item in a list."""


def read_yaml(text: str, *, name: str) -> Document:
    """Parse one document; `name` is what errors call it.

    Raises:
        SpecError: On bad syntax, duplicate keys, tags, merge keys, numbers beyond 64 bits, or more
            than `MAX_BYTES`, `MAX_NODES`, `MAX_DEPTH`.
    """
    if len(text.encode()) > MAX_BYTES:
        raise SpecError(f"the text is longer than {MAX_BYTES:,} bytes", where=name)
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SpecError(f"not valid YAML: {error.problem}", where=f"{name}{line}") from error
    except (YAMLError, ValueError) as error:
        raise SpecError(f"not valid YAML: {error}", where=name) from error
    except RecursionError as error:
        raise SpecError(f"nested deeper than {MAX_DEPTH} levels", where=name) from error
    if yaml.resolver.processing_version != (1, 2):
        raise SpecError("only YAML 1.2 is read; remove the %YAML directive", where=f"{name}:1")
    reader = _Reader(yaml, name)
    return Document(reader.value(root, ()) if root else None, reader.lines)


def write_yaml(data: dict[str, Any]) -> str:
    """Plain data as a text that `read_yaml` reads back equal, mappings in their order."""
    stream = io.StringIO()
    yaml = YAML(pure=True)
    yaml.width = MAX_BYTES  # no line is broken
    yaml.dump(data, stream)
    return stream.getvalue()


@dataclass
class _Reader:
    yaml: YAML
    name: str
    lines: dict[Path, int] = field(default_factory=dict)
    nodes: int = 0

    def value(self, node: Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self._error(f"more than {MAX_NODES:,} values once aliases are expanded", node)
        if len(path) > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels", node)
        tag = str(node.tag).removeprefix(_PREFIX)
        if isinstance(node, MappingNode) and tag == "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and tag == "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and tag in (*_SCALARS, *_AS_TEXT):
            return self._scalar(node, tag)
        raise self._error(f"the tag {node.tag!r} is not allowed; write plain values", node)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in found:
                raise self._error(f"the key {key!r} is given twice", key_node)
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*path, key))
        return found

    def _key(self, node: Node) -> str:
        tag = str(node.tag).removeprefix(_PREFIX)
        if tag == "merge":
            raise self._error("merge keys (<<) are not part of YAML 1.2; write the fields", node)
        if not isinstance(node, ScalarNode) or tag not in (*_SCALARS, *_AS_TEXT):
            raise self._error("a key must be plain text", node)
        return str(node.value)

    def _scalar(self, node: ScalarNode, tag: str) -> Any:
        if tag in ("str", *_AS_TEXT):
            return str(node.value)
        try:
            value = self.yaml.constructor.construct_object(node)
        except (YAMLError, ValueError) as error:
            raise self._error(f"{node.value[:40]!r} cannot be read as {tag}", node) from error
        if isinstance(value, float):
            value = float(value)
            if not math.isfinite(value):
                raise self._error(f"{node.value[:40]!r} is not a finite number", node)
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise self._error(f"{node.value[:40]!r} does not fit in 64 bits", node)
        return value

    def _error(self, what: str, node: Node) -> SpecError:
        return SpecError(what, where=f"{self.name}:{node.start_mark.line + 1}")
