"""Changes to the text of an experiment that leave all else as its author wrote it.

One change: a stage that takes images out of a shard set, put behind the stage that makes the set,
and every stage that read the set reading the new one instead.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.dag.overrides import Path, spec_path
from pipeline.dag.splits import port_field, port_path
from schemas.errors import SpecError
from schemas.experiment import ExperimentSpec


@dataclass(frozen=True)
class Removal:
    """What the new stage says."""

    name: str
    data: str
    """The stage that made the set."""
    images: Mapping[str, str]
    """uid, 32 hex digits -> the source's name, which becomes a comment."""
    note: str


@dataclass(frozen=True)
class Edited:
    """The new text, and what became of the readers."""

    text: str
    changed: tuple[str, ...]
    """Paths of the references that name the new stage now."""
    left: tuple[str, ...]
    """Paths of the references that are not written out, and were left alone."""


def insert_removal(text: str, experiment: ExperimentSpec, removal: Removal) -> Edited:
    """The text with one more stage, read by all that read its data; reports stay as they are.

    Args:
        text: Of the experiment, as its author wrote it.
        experiment: What the text says, without overrides.
        removal: The new stage.

    Raises:
        SpecError: If the stages are written on one line, so that no stage fits between them.
    """
    root: Node = YAML(typ="safe", pure=True).compose(io.StringIO(text))
    stages = _at(root, ("stages",))
    key, value = _entry(stages, removal.data)
    if stages.flow_style:
        raise SpecError(
            "the stages are written on one line, where no stage can be put between them",
            hint=f"add by hand:\n{_stanza(removal, indent=2)}",
        )
    place = text.find("\n", _end(value)) + 1 or len(text)
    newline = "" if text[:place].endswith("\n") else "\n"
    edits = [(place, place, newline + _stanza(removal, indent=key.start_mark.column))]
    changed, left = [], []
    for path, reference in _readers(experiment, removal):
        node = _at(root, path)
        if node.value == reference:
            renamed = removal.name + reference[len(removal.data) :]
            edits.append((node.start_mark.index, node.end_mark.index, renamed))
            changed.append(spec_path(path))
        else:
            left.append(spec_path(path))
    for start, stop, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[stop:]
    return Edited(text, tuple(changed), tuple(left))


def _readers(experiment: ExperimentSpec, removal: Removal) -> Iterator[tuple[Path, str]]:
    for name, spec in experiment.stages.items():
        for port in spec.inputs() if spec.kind != "report" else ():
            path = port_path(name, spec, port)
            value = getattr(spec, port_field(port))
            reference = value if isinstance(value, str) else value[path[3]]
            if reference.partition("@")[0] == removal.data:
                yield path, reference


def _stanza(removal: Removal, *, indent: int) -> str:
    fields = [
        f"{removal.name}:",
        "  kind: remove",
        f"  data: {removal.data}",
        *([f"  note: {json.dumps(removal.note, ensure_ascii=False)}"] if removal.note else []),
        "  uids:",
        # Quoted: some uids look like numbers.
        *(f'    - "{uid}"  # {source}' for uid, source in sorted(removal.images.items())),
    ]
    return "".join(f"{' ' * indent}{line}\n" for line in fields)


def _at(node: Any, path: Path) -> Any:
    """The node at a path that the experiment has; an alias or `${...}` stands for what is below."""
    for segment in path:
        if isinstance(node, SequenceNode):
            node = node.value[segment]
        elif isinstance(node, MappingNode):
            node = _entry(node, str(segment))[1]
    return node


def _entry(node: MappingNode, name: str) -> tuple[Any, Any]:
    key, value = next(entry for entry in node.value if entry[0].value == name)
    return key, value


def _end(node: Node) -> int:
    """One past the last character of a value; the mark of a block is where the next one begins."""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
