"""Which samples a step takes: tails of an epoch, and mixtures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.feed.course import Course, Mixture, Passes, Places, turns
from schemas.samples import BatchSpec, MixturePhase

WEIGHTS = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)


def read(course: Course, steps: range, *, world: int = 1) -> list[list[tuple[int, int, int]]]:
    """(set, epoch, position) of every sample of some steps, the ranks' shares joined."""
    found = []
    for step in steps:
        own = [course.places(range(step, step + 1), rank=r, world_size=world) for r in range(world)]
        found.append([place for each in own for place in listed(each)])
    return found


def listed(places: Places) -> list[tuple[int, int, int]]:
    columns = (places.source, places.epoch, places.position)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@settings(deadline=None, max_examples=60)
@given(WEIGHTS)
def test_no_set_is_ever_a_turn_off_its_share(weights: list[int]) -> None:
    order = turns(weights)
    given_so_far = np.cumsum(order[:, None] == np.arange(len(weights)), axis=0)
    assert given_so_far[-1].tolist() == weights
    ideal = np.arange(1, len(order) + 1)[:, None] * np.array(weights) / sum(weights)
    assert (np.abs(given_so_far - ideal) < 1).all()


@settings(deadline=None, max_examples=40)
@given(WEIGHTS, WEIGHTS, st.integers(1, 9), st.sampled_from([(4, 1), (4, 2), (12, 3), (12, 4)]))
def test_a_mixture_reads_every_set_in_order_and_by_its_weights(
    first: list[int], second: list[int], change: int, sizes: tuple[int, int]
) -> None:
    samples, world = sizes
    sets = max(len(first), len(second))
    weights = [[*each, *[0] * (sets - len(each))] for each in (first, second)]
    rows = [3 + index for index in range(sets)]
    phases = [
        MixturePhase(from_step=0, weights=tuple(weights[0])),
        MixturePhase(from_step=change, weights=tuple(weights[1])),
    ]
    course = Mixture(rows, phases, global_samples=samples)
    taken = [place for step in read(course, range(14), world=world) for place in step]
    for source in range(sets):
        mine = [(epoch, at) for place, epoch, at in taken if place == source]
        assert mine == [divmod(index, rows[source]) for index in range(len(mine))]
    for own, begin, end in ((0, 0, change * samples), (1, change * samples, len(taken))):
        counts = np.bincount([place[0] for place in taken[begin:end]], minlength=sets)
        ideal = (end - begin) * np.array(weights[own]) / sum(weights[own])
        assert (np.abs(counts - ideal) < 1).all()


def test_a_change_of_weights_leaves_the_steps_before_it_as_they_were() -> None:
    before = MixturePhase(from_step=0, weights=(3, 1))
    plain = Mixture([10, 7], [before], global_samples=6)
    later = MixturePhase(from_step=5, weights=(0, 1))
    changed = Mixture([10, 7], [before, later], global_samples=6)
    assert read(changed, range(5)) == read(plain, range(5))
    assert {place[0] for step in read(changed, range(5, 9)) for place in step} == {1}


def test_steps_can_be_asked_for_together_or_alone() -> None:
    phases = [
        MixturePhase(from_step=0, weights=(2, 1)),
        MixturePhase(from_step=3, weights=(1, 4)),
    ]
    mixture = Mixture([5, 9], phases, global_samples=4)
    for course in (mixture, Passes(19, BatchSpec(global_samples=4, tail="exact"))):
        together = course.places(range(1, 8), rank=1, world_size=2)
        alone = [course.places(range(s, s + 1), rank=1, world_size=2) for s in range(1, 8)]
        assert listed(together) == [place for each in alone for place in listed(each)]
        if together.weight is not None:
            weights = [each.weight for each in alone if each.weight is not None]
            np.testing.assert_array_equal(together.weight, np.concatenate(weights))


def test_a_late_step_of_a_mixture_needs_nothing_of_those_before() -> None:
    course = Mixture([10**9, 7], [MixturePhase(from_step=0, weights=(999, 1))], global_samples=10)
    assert read(course, range(10**12, 10**12 + 1))[0][0] == (0, 9990, 0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_tail_of_an_epoch_is_dropped_padded_or_weighed(world: int) -> None:
    dropped = Passes(10, BatchSpec(global_samples=4))
    assert (dropped.steps_per_epoch, dropped.repeated_per_epoch) == (2, 0)
    assert read(dropped, range(3), world=world)[2] == [(0, 1, at) for at in range(4)]
    padded = Passes(10, BatchSpec(global_samples=4, tail="pad"))
    assert (padded.steps_per_epoch, padded.repeated_per_epoch) == (3, 2)
    assert read(padded, range(3), world=world)[2] == [(0, 0, at) for at in range(8, 12)]
    exact = Passes(10, BatchSpec(global_samples=4, tail="exact"))
    own = [exact.places(range(2, 4), rank=rank, world_size=world) for rank in range(world)]
    weights = np.stack([each.weight for each in own]).reshape(world, 2, -1)
    assert weights[:, 0].ravel().tolist() == [2.0, 2.0, 0.0, 0.0]
    assert weights[:, 1].ravel().tolist() == [1.0] * 4
