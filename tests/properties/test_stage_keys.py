from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dag.graph import StageNode
from pipeline.dag.keys import diff, key_record
from schemas.artifacts import KeyRecord
from schemas.experiment import STAGE_KINDS
from schemas.spec import Spec, Tag, canonical_json, semantic_fields, tag_of
from schemas.stage import StageSpec
from tests.support.dag import CURATED, experiment, graph_of

GRAPH = graph_of()
FOREIGN = "  foreign: {kind: import, source: {layout: hf, uri: /weights}}\n"
LOOKING = """\
  found: {kind: features, data: pets, model: transfer}
  probed: {kind: probe, features: found}
  compared: {kind: compare, of: [accuracy, accuracy]}
  pictured: {kind: interpret, data: pets, model: transfer}
  tried: {kind: robustness, data: pets, model: transfer}
"""
EVERY_KIND = CURATED.replace("  clean:", f"{FOREIGN}{LOOKING}  clean:")
STAGE = st.sampled_from([node.name for node in GRAPH.nodes])
DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)


def record_of(node: StageNode, **changes: Any) -> KeyRecord:
    facts: dict[str, Any] = {
        "input_digests": dict.fromkeys(node.inputs, "a" * 64),
        "fingerprint": "f" * 64 if node.kind == "ingest" else None,
        "libraries": dict.fromkeys(node.spec.libraries, "1.0"),
        **changes,
    }
    return key_record(node, facts.pop("input_digests"), **facts)


def with_spec(node: StageNode, spec: StageSpec) -> StageNode:
    return StageNode(node.name, node.base_name, spec, node.seed, node.inputs)


def leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def shuffled(value: Any, draw: st.DrawFn) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw(st.permutations(list(value)))}
    return value


@given(st.data())
def test_a_key_does_not_depend_on_the_order_of_anything(data: st.DataObject) -> None:
    node = GRAPH.node(data.draw(STAGE))
    record = record_of(node)
    again = KeyRecord.parse(shuffled(record.dump(), data.draw))
    assert again.key() == record.key()
    assert diff(record, again) == ()


@given(st.data())
def test_any_change_of_a_semantic_field_changes_the_key_and_is_named_alone(
    data: st.DataObject,
) -> None:
    node = GRAPH.node(data.draw(STAGE))
    record = record_of(node)
    dotted = data.draw(st.sampled_from([*leaves(record.fields)]).filter(lambda n: n != "kind"))
    fields = record.dump()["fields"]
    *above, last = dotted.split(".")
    here = fields
    for name in above:
        here = here[name]
    before = here[last]
    here[last] = data.draw(st.integers() | st.text() | st.lists(st.integers(), min_size=1))
    changed = record.revise(fields=fields)
    if canonical_json(here[last]) == canonical_json(before):  # False is not 0 in a key
        assert changed.key() == record.key()
        return
    assert changed.key() != record.key()
    (change,) = diff(record, changed)
    assert (change.field, change.before, change.after) == (dotted, before, here[last])


@given(STAGE, st.data())
def test_inputs_versions_revision_and_seed_are_in_the_key_by_name(
    stage: str, data: st.DataObject
) -> None:
    record = record_of(GRAPH.node(stage))
    names = [f"inputs.{port}" for port in record.inputs]
    names += [f"libraries.{name}" for name in record.libraries]
    name = data.draw(st.sampled_from([*names, "revision", "seed"]))
    part, _, rest = name.partition(".")
    value: Any = {**getattr(record, part), rest: "another"} if rest else 99
    changed = record.revise(**{part: value})
    assert changed.key() != record.key()
    assert [change.field for change in diff(record, changed)] == [name]


@given(STAGE, st.integers(0, 2**32))
def test_the_seed_counts_only_for_kinds_that_draw(stage: str, seed: int) -> None:
    node = GRAPH.node(stage)
    other = StageNode(node.name, node.base_name, node.spec, seed, node.inputs)
    same = record_of(node).key() == record_of(other).key()
    assert same == (not node.spec.uses_seed or seed == node.seed)


@given(
    workers=st.sampled_from([1, 2, 4, 8]),
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    threads=st.integers(1, 64),
    every_steps=st.integers(1, 10_000),
    register_as=st.none() | st.text(min_size=1),
)
def test_execution_fields_never_change_a_key(
    workers: int, zero_stage: int, threads: int, every_steps: int, register_as: str | None
) -> None:
    node = GRAPH.node("transfer")
    resources = {"workers": workers, "zero_stage": zero_stage, "threads": threads}
    spec = type(node.spec).parse(
        {
            **node.spec.dump(),
            "resources": resources,
            "checkpoint": {"every_steps": every_steps},
            "register_as": register_as,
        }
    )
    assert record_of(with_spec(node, spec)).key() == record_of(node).key()


@given(DIGEST, st.sampled_from([None, "train", "test"]))
def test_the_split_that_is_read_is_part_of_the_key(digest: str, split: str | None) -> None:
    reference = "pets" if split is None else f"pets@{split}"
    node = graph_of(f"accuracy.data={reference}").node("accuracy")
    record = record_of(node, input_digests={"data": digest, "model": "b" * 64})
    assert record.inputs == {"data": f"{digest}@{split or 'test'}", "model": "b" * 64}


@pytest.mark.parametrize("kind", sorted(STAGE_KINDS))
def test_a_key_holds_exactly_the_semantic_fields(kind: str) -> None:
    stages = experiment(text=EVERY_KIND).stages
    spec = next(spec for spec in stages.values() if spec.kind == kind)
    tags = {name: tag_of(field) for name, field in type(spec).model_fields.items()}
    keyed = {name for name, tag in tags.items() if tag is Tag.SEMANTIC}
    node = next(node for node in graph_of(text=EVERY_KIND).nodes if node.kind == kind)
    assert set(record_of(node).fields) == keyed


def test_names_of_stages_and_places_are_not_in_any_key() -> None:
    node = GRAPH.node("corpus")
    moved = node.spec.revise(source=node.spec.source.revise(uri="/elsewhere"))
    renamed = StageNode("photos", "photos", moved, node.seed, node.inputs)
    assert record_of(renamed).key() == record_of(node).key()


def test_a_part_that_appears_is_told_field_by_field() -> None:
    node = GRAPH.node("corpus")
    split = type(node.spec).parse({**node.spec.dump(), "split": {"test_ratio": 0.2}})
    changes = diff(record_of(node), record_of(with_spec(node, split)))
    assert [str(change) for change in changes] == [
        "split.test_ratio nothing -> 0.2",
        "split.seed nothing -> 0",
    ]


def test_the_key_of_a_stage_does_not_drift() -> None:
    """A golden value: if it changes, every artifact of every user is made again."""
    record = KeyRecord(
        kind="pretrain",
        revision=1,
        fields={"optim": {"peak_lr": 1e-3, "clip_norm": None}, "name": "é"},
        inputs={"data": "ab" * 32 + "@train"},
        libraries={"torch": "2.13.0"},
        seed=17,
    )
    assert record.key() == "4007f5bcd44bc3ead61cfad0a7aada6a1b60688f1db6b362cfd095958f824dc6"


def test_only_plain_values_are_keyed() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or isinstance(value, str | int | float)

    for node in GRAPH.nodes:
        assert isinstance(node.spec, Spec)
        assert plain(semantic_fields(node.spec))
