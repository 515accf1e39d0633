import difflib

import pytest

from pipeline.dag.experiment_file import parse_experiment
from pipeline.dag.graph import expand
from pipeline.dag.spec_edits import Edited, Removal, insert_removal
from schemas.errors import SpecError
from tests.support.dag import TEXT

UID = "00000000000000000000000000000e17"
REMOVAL = Removal("pets-kept", "pets", {UID: "test/cat/1.jpg", "f" * 32: "b.jpg"}, 'said "no"')


def edit(text: str = TEXT, removal: Removal = REMOVAL) -> Edited:
    return insert_removal(text, parse_experiment(text, name_of_file="run.yaml"), removal)


def lines(before: str, after: str) -> list[str]:
    """What was added and taken away."""
    both = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in both if line[0] in "+-"]


def test_the_stage_follows_the_one_that_made_the_set_and_its_readers_follow_it() -> None:
    edited = edit()
    assert [line for line in lines(TEXT, edited.text) if line.startswith("+")] == [
        "+   pets-kept:",
        "+     kind: remove",
        "+     data: pets",
        '+     note: "said \\"no\\""',
        "+     uids:",
        f'+       - "{UID}"  # test/cat/1.jpg',
        f'+       - "{"f" * 32}"  # b.jpg',
        "+   clean: {kind: filter, data: corpus, against: [pets-kept@test]}",
        "+     data: pets-kept",
        "+   accuracy: {kind: evaluate, data: pets-kept, model: transfer}",
        "+   pixels: {kind: baseline, data: pets-kept, image_px: 8}",
    ]
    assert edited.changed == (
        "stages.clean.against[0]",
        "stages.transfer.data",
        "stages.accuracy.data",
        "stages.pixels.data",
    )
    assert edited.left == ()


def test_what_was_edited_is_a_valid_experiment() -> None:
    graph = expand(parse_experiment(edit().text, name_of_file="run.yaml"))
    assert graph.node("pets-kept").spec.uids == (UID, "f" * 32)
    assert "pets" not in graph.node("transfer").reads
    assert graph.node("pets-kept").reads == ("pets",)


def test_a_second_removal_comes_in_between() -> None:
    again = Removal("pets-kept-2", "pets-kept", {"a" * 32: "c.jpg"}, "")
    graph = expand(parse_experiment(edit(edit().text, again).text, name_of_file="run.yaml"))
    assert graph.node("transfer").reads == ("pets-kept-2", "pretrain")
    assert graph.node("pets-kept-2").reads == ("pets-kept",)


@pytest.mark.parametrize("ending", ["", "\n", "\n\n# the end\n"])
def test_the_last_stage_can_be_the_one(ending: str) -> None:
    text = (
        "name: a\nseed: 1\nstages:\n    pets:\n        kind: ingest\n"
        "        source: {type: sklearn} # digits" + ending
    )
    edited = edit(text)
    assert edited.text.startswith(text.removesuffix(ending))
    assert "\n    pets-kept:\n        kind: remove\n" not in text
    assert "# digits\n    pets-kept:\n      kind: remove\n" in edited.text
    assert expand(parse_experiment(edited.text, name_of_file="run.yaml")).node("pets-kept")


def test_references_that_are_not_written_out_are_left_and_told() -> None:
    text = TEXT.replace("pixels: {kind: baseline, data: pets,", "pixels: {kind: baseline, data: X,")
    text = text.replace("data: X", "data: '${accuracy.data}'")
    edited = edit(text)
    assert edited.left == ("stages.pixels.data",)
    assert "'${accuracy.data}'" in edited.text


def test_stages_on_one_line_are_refused_with_what_to_write() -> None:
    text = "{name: a, seed: 1, stages: {pets: {kind: ingest, source: {type: sklearn}}}}"
    with pytest.raises(SpecError, match="written on one line") as caught:
        edit(text)
    assert "kind: remove" in str(caught.value.hint)
