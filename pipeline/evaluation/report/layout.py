"""Places the stages of a DAG in layers, so that few lines cross; pure, in units of a node's place.

The method is Sugiyama's: longest paths give layers, lines that pass a layer take a place in it,
sweeps order each layer by the means of its neighbours, and least squares under the order give the
places (pooled adjacent violators).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

_SWEEPS = 12
_LINE_ROOM = 0.3
"""Room of a line that passes a layer, where a node takes 1."""

Place = tuple[int, float]
"""(Layer, position in it)."""


@dataclass(frozen=True)
class Layout:
    """Where nodes stand, and by which places the lines between them go."""

    nodes: Mapping[str, Place]
    lines: Mapping[tuple[str, str], tuple[Place, ...]]
    """(From, to) -> places from end to end."""
    num_layers: int
    breadth: float
    """Room that the broadest layer takes."""


def lay_out(reads: Mapping[str, Sequence[str]]) -> Layout:
    """Lay out the nodes of `reads`, which names for each node those that it reads.

    Every node that is read must be a node, each after all that it reads.
    """
    layer = _layers(reads)
    chains = {
        (source, node): _chain(source, node, layer)
        for node, sources in reads.items()
        for source in dict.fromkeys(sources)
    }
    links = [link for chain in chains.values() for link in pairwise(chain)]
    for chain in chains.values():
        layer |= {it: layer[chain[0]] + place for place, it in enumerate(chain)}
    layers: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for name, index in layer.items():
        layers[index].append(name)
    neighbours = _Neighbours(links)
    best = _fewest_crossings(layers, neighbours)
    room: Callable[[str], float] = lambda name: 1.0 if name in reads else _LINE_ROOM  # noqa: E731
    at = _places(best, neighbours, room)
    return Layout(
        nodes={name: (layer[name], at[name]) for name in reads},
        lines={ends: tuple((layer[it], at[it]) for it in chain) for ends, chain in chains.items()},
        num_layers=len(best),
        breadth=max((place + room(name) / 2 for name, place in at.items()), default=0.0),
    )


def _layers(reads: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Longest path from a node that reads nothing."""
    found: dict[str, int] = {}
    for node, sources in reads.items():
        found[node] = 1 + max((found[it] for it in sources), default=-1)
    return found


def _chain(source: str, node: str, layer: Mapping[str, int]) -> list[str]:
    """The ends of a line and the places that it takes in the layers between."""
    passed = range(layer[source] + 1, layer[node])
    return [source, *(f"{source}\0{node}\0{it}" for it in passed), node]


class _Neighbours:
    """Who is linked to whom, in the layer before and in the layer after."""

    def __init__(self, links: Sequence[tuple[str, str]]) -> None:
        self.before: dict[str, list[str]] = {}
        self.after: dict[str, list[str]] = {}
        for first, second in links:
            self.after.setdefault(first, []).append(second)
            self.before.setdefault(second, []).append(first)

    def of(self, name: str) -> list[str]:
        return self.before.get(name, []) + self.after.get(name, [])


def _fewest_crossings(layers: list[list[str]], neighbours: _Neighbours) -> list[list[str]]:
    best, fewest = layers, _crossings(layers, neighbours)
    current = [list(names) for names in layers]
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        linked = neighbours.before if down else neighbours.after
        order = range(1, len(current)) if down else range(len(current) - 2, -1, -1)
        for index in order:
            fixed = {it: at for at, it in enumerate(current[index - 1 if down else index + 1])}
            current[index] = _sorted_by_means(current[index], linked, fixed)
        crossings = _crossings(current, neighbours)
        if crossings < fewest:
            best, fewest = [list(names) for names in current], crossings
    return best


def _sorted_by_means(
    names: Sequence[str], linked: Mapping[str, Sequence[str]], fixed: Mapping[str, int]
) -> list[str]:
    """By the mean place of what they are linked to; the others stay where they are."""

    def wanted(at: int) -> float:
        places = [fixed[it] for it in linked.get(names[at], ())]
        return sum(places) / len(places) if places else float(at)

    return [names[at] for at in sorted(range(len(names)), key=lambda at: (wanted(at), at))]


def _crossings(layers: Sequence[Sequence[str]], neighbours: _Neighbours) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        at = {name: place for place, name in enumerate(lower)}
        ends = [sorted(at[it] for it in neighbours.after.get(name, ())) for name in upper]
        flat = [place for places in ends for place in places]
        count += sum(
            1 for i, first in enumerate(flat) for second in flat[i + 1 :] if second < first
        )
    return count


def _places(
    layers: Sequence[Sequence[str]], neighbours: _Neighbours, room: Callable[[str], float]
) -> dict[str, float]:
    """Positions near the mean of the neighbours', the order and the room of each kept."""
    at = {name: 0.0 for names in layers for name in names}
    for names in layers:
        at |= _spread(names, [0.0] * len(names), room)
    for sweep in range(_SWEEPS):
        for names in layers if sweep % 2 == 0 else reversed(layers):
            wanted = []
            for name in names:
                places = [at[it] for it in neighbours.of(name)]
                wanted.append(sum(places) / len(places) if places else at[name])
            at |= _spread(names, wanted, room)
    left = min((at[name] - room(name) / 2 for names in layers for name in names), default=0.0)
    return {name: place - left for name, place in at.items()}


def _spread(
    names: Sequence[str], wanted: Sequence[float], room: Callable[[str], float]
) -> dict[str, float]:
    """The positions in this order that are nearest to the wanted ones and leave each its room."""
    offsets, total = [], 0.0
    for name, before in zip(names, ["", *names], strict=False):
        total += (room(name) + (room(before) if before else 0.0)) / 2
        offsets.append(total)
    blocks: list[tuple[float, int]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        mean, size = place - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    free = [mean for mean, size in blocks for _ in range(size)]
    return {name: at + offset for name, at, offset in zip(names, free, offsets, strict=True)}
