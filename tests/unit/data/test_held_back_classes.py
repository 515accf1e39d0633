import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.ingest.build import resolve_classes
from schemas.data import HoldBackSpec, SelectSpec
from schemas.errors import SpecError

NAMES = st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=20)


def drawn(names: set[str], count: int, keep: str, seed: int = 0) -> tuple[str, ...]:
    spec = HoldBackSpec.parse({"num_classes": count, "keep": keep, "seed": seed})
    return resolve_classes(SelectSpec(hold_back=spec), names)


@given(NAMES, st.data())
def test_upstream_and_downstream_share_no_class_and_miss_none(
    names: set[str], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(names) - 1))
    held, others = drawn(names, count, "held_back"), drawn(names, count, "others")
    assert len(held) == count
    assert set(held) | set(others) == names
    assert not set(held) & set(others)


def test_the_draw_depends_on_names_and_seed_alone() -> None:
    names = {"shirt", "shoes", "hat", "dress", "pants"}
    assert drawn(names, 2, "held_back") == drawn(names, 2, "held_back")
    assert len({drawn(names, 2, "held_back", seed) for seed in range(20)}) > 1


def test_holding_back_everything_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one must be left"):
        drawn({"a", "b"}, 2, "held_back")
