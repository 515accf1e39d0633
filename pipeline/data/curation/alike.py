"""Alike images by the cosine of features that a model gave them: all pairs above a bound, exactly.

Features lie in tables that a stage wrote, a row for each live row of a split (`Blocks.features`);
nothing here knows a model. Compared is by scikit-learn, in float64, so which pairs are found does
not depend on an index, its seed or a number of threads.

Costs. 2 x keepers x rows x width operations, 12 to 20 thousand million a second on a core: of width
384, a million images against 10,000 test images take a core 10 minutes; the images among
themselves, 10^6 of them 7 hours, 10^7 a month, 10^8 ten years, divided by the cores. Against test
splits 10^8 images are 15 core-hours; among themselves more than 10^7 are out of reach. A task
takes 300 MB, however many images are alike, and reads the features from disk.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import cosine_similarity

from pipeline.data.curation.blocks import Block
from pipeline.data.curation.matching import Pairs, Skip

_KEEPERS_AT_ONCE = 1024
_ROWS_AT_ONCE = 8192
"""A multiple of the keepers: where both sides are one block, pieces meet on the diagonal first."""


def alike_pairs(keepers: Block, rows: Block, min_cosine: float, *, skip: Skip) -> Iterator[Pairs]:
    """All pairs at least so alike, in pieces, except those that `skip` rules out.

    Keepers rise from piece to piece, and so do the rows of the same keepers; `skip` is asked again
    for every piece. Features of zeros are alike to nothing.
    """
    for first in range(0, len(keepers), _KEEPERS_AT_ONCE):
        some = _range(first, _KEEPERS_AT_ONCE, len(keepers))
        start = first // _ROWS_AT_ONCE * _ROWS_AT_ONCE if skip.within else 0
        for other in range(start, len(rows), _ROWS_AT_ONCE):
            others = _range(other, _ROWS_AT_ONCE, len(rows))
            pairs = _pairs(keepers, rows, (some, others), min_cosine)
            allowed = pairs.take(np.flatnonzero(skip.allowed(pairs.keeper, pairs.row)))
            if len(allowed.row):
                yield allowed


def _pairs(keepers: Block, rows: Block, pieces: tuple[range, range], min_cosine: float) -> Pairs:
    """Sorted by keeper, then row."""
    ours, theirs = keepers.features(pieces[0]), rows.features(pieces[1])
    cosine: NDArray[np.float64] = cosine_similarity(ours, theirs)
    keeper, row = np.nonzero(cosine >= min_cosine)
    return Pairs(
        keeper=keeper + pieces[0].start,
        row=row + pieces[1].start,
        hamming_bits=np.full(len(row), -1, np.int64),
        difference=np.full(len(row), np.nan, np.float32),
        cosine=cosine[keeper, row].astype(np.float32),
    )


def _range(first: int, count: int, end: int) -> range:
    return range(first, min(first + count, end))
