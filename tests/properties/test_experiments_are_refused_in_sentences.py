import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dag.experiment_file import parse_experiment
from pipeline.dag.yaml_text import read_yaml
from schemas.errors import SpecError
from schemas.experiment import ExperimentSpec
from tests.support.dag import TEXT

DATA = read_yaml(TEXT, name="run.yaml").data


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in plain data but its root."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if type(value) is list
        else ()
    )
    return [place for key, item in items for place in ((*at, key), *paths(item, (*at, key)))]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["pets", "pets@test", "corpus", "pretrain", "", "${corpus.source}", "a b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "type", "pretrain", "steps", "x", "pets.seed"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def accepted_or_refused(text: str, overrides: list[str]) -> None:
    with contextlib.suppress(SpecError):
        experiment = parse_experiment(text, name_of_file="run.yaml", overrides=overrides)
        assert isinstance(experiment, ExperimentSpec)


@given(st.sampled_from(paths(DATA)), JSON_VALUES, st.booleans())
@settings(deadline=None)
def test_any_value_anywhere_is_accepted_or_refused(
    place: tuple[str | int, ...], value: Any, remove: bool
) -> None:
    data = json.loads(json.dumps(DATA))
    *above, last = place
    here = data
    for key in above:
        here = here[key]
    if remove:
        del here[last]
    else:
        here[last] = value
    accepted_or_refused(json.dumps(data), [])


@given(st.integers(0, len(TEXT)), st.integers(0, 30), st.text(max_size=5))
@settings(deadline=None)
def test_any_slip_of_the_keyboard_is_accepted_or_refused(
    start: int, length: int, typed: str
) -> None:
    accepted_or_refused(TEXT[:start] + typed + TEXT[start + length :], [])


@given(
    st.sampled_from(["seed", "matrix", "name", "matrix.seed", "matrix.free"])
    | st.sampled_from(
        [place[1:] for place in paths(DATA) if place[0] == "stages" and place[1:]]
    ).map(lambda place: ".".join(map(str, place))),
    JSON_VALUES,
)
@settings(deadline=None)
def test_any_override_is_accepted_or_refused(dotted: str, value: Any) -> None:
    accepted_or_refused(TEXT, [f"{dotted}={json.dumps(value)}"])
