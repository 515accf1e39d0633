"""Which layer of a model a parameter belongs to: what layer-wise learning rates go by."""

import re
from collections.abc import Iterable


def number_layers(names: Iterable[str], trunk: re.Pattern[str]) -> dict[str, int]:
    """Parameter -> number of its layer, from 0.

    0 is what comes before the first block: patches or root, positions, tokens. Then each block has
    its own, from 1; and L + 1 is what comes after the last of L blocks: the last norm and the head.

    Args:
        names: In the model's order.
        trunk: Finds in the name of a parameter what names its block, such as `blocks.3.`.
    """
    blocks: dict[str, int] = {}
    places: list[tuple[str, int | None]] = []
    for name in names:
        found = trunk.search(name)
        if found:
            places.append((name, blocks.setdefault(found.group(), len(blocks) + 1)))
        else:
            places.append((name, None if blocks else 0))
    return {name: len(blocks) + 1 if place is None else place for name, place in places}
