"""Which stages a command is about: `--only`, `--from`, `--until`, `--force`."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.dag.graph import Graph
from schemas.errors import UsageError


@dataclass(frozen=True)
class Selection:
    """What the user asked for; the name of a stage means all its variants."""

    only: tuple[str, ...] = ()
    """Just these; what they read must be made already."""
    from_: tuple[str, ...] = ()
    """These and everything downstream."""
    until: tuple[str, ...] = ()
    """These and everything upstream; with `from_`, what lies between."""
    force: tuple[str, ...] = ()
    """These are made again although they are made."""


@dataclass(frozen=True)
class Chosen:
    """A selection resolved against a graph, as names of nodes."""

    names: frozenset[str]
    forced: frozenset[str]


def choose(graph: Graph, selection: Selection) -> Chosen:
    """Resolve a selection.

    Raises:
        SpecError: If a word names no stage of the graph; tells the nearest right word.
        UsageError: If `only` comes with `from_` or `until`, or a forced stage is not selected.
    """
    if selection.only and (selection.from_ or selection.until):
        raise UsageError("--only excludes --from and --until; give one of them")
    names = frozenset(graph.by_name)
    if selection.only:
        names = _resolve(graph, selection.only)
    if selection.from_:
        names &= graph.downstream(_resolve(graph, selection.from_))
    if selection.until:
        names &= graph.upstream(_resolve(graph, selection.until))
    forced = _resolve(graph, selection.force)
    if not forced <= names:
        left_out = ", ".join(node.name for node in graph.nodes if node.name in forced - names)
        raise UsageError(f"--force names {left_out}, which the other options leave out")
    return Chosen(names, forced)


def _resolve(graph: Graph, words: Iterable[str]) -> frozenset[str]:
    return frozenset(name for word in words for name in graph.matching(word))
