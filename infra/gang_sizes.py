"""How many processes of a training world the living nodes can hold: numbers in, a number out."""

from collections.abc import Iterable, Mapping, Sequence

_ROUNDING = 1e-6
"""Shares of a core are sums of floats."""


def places(needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """Processes that fit; one lives on one node, so what is left over on several is no place.

    Args:
        needs: Resources of one process, none of them 0.
        nodes: The whole resources of every living node, busy or not.
    """
    return sum(
        min(
            (int(node.get(name, 0.0) / need + _ROUNDING) for name, need in needs.items()), default=0
        )
        for node in nodes
    )


def largest_that_fits(worlds: Sequence[int], room: int, *, busy: int) -> int | None:
    """The world to start, None if even the smallest does not fit.

    Args:
        worlds: Permitted sizes, the largest first.
        room: As `places` counts it.
        busy: Tries so far for which others held what the nodes have: each takes one size less.
    """
    fitting = [world for world in worlds if world <= room]
    return fitting[min(busy, len(fitting) - 1)] if fitting else None
