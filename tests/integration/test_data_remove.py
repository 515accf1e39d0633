"""`vitrail data remove`, as somebody uses it who was asked to take an image out."""

from pathlib import Path

import pytest

from tests.support.commands import vitrail

SPEC = """\
name: tiny
seed: 1
stages:
  corpus:  # of scikit-learn
    kind: ingest
    source: {type: sklearn, name: digits}
    select: {classes: ["0", "1"], per_class: {train: 30}}
    split: {test_ratio: 0.3}
  clean: {kind: filter, data: corpus, against: [corpus@test]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the corpus was made."""
    folder = tmp_path_factory.mktemp("remove")
    (folder / "run.yaml").write_text(SPEC)
    assert vitrail("run", "run.yaml", "--only", "corpus", cwd=folder).code == 0
    return folder


def test_one_command_takes_an_image_out_of_the_spec_and_of_the_store(folder: Path) -> None:
    words = ("data", "remove", "run.yaml", "corpus", "--source", "digits/0000", "--note", "asked")
    done = vitrail(*words, "--output", "json", cwd=folder)
    assert done.code == 0, done.stderr
    made = {stage["name"]: stage for stage in done.document["stages"]}
    assert made["corpus-kept"]["status"] == "ran"
    assert made["corpus-kept"]["metrics"]["remove/removed_count"] == 1
    text = (folder / "run.yaml").read_text()
    assert "corpus:  # of scikit-learn\n" in text
    assert "# digits/0000\n" in text
    assert "data: corpus-kept, against: [corpus-kept@test]" in text
    planned = vitrail("plan", "run.yaml", "--output", "json", cwd=folder).document
    actions = {stage["stage"]: stage["action"] for stage in planned["stages"]}
    assert actions == {"corpus": "reuse", "corpus-kept": "reuse", "clean": "run"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run.yaml", "corpus"), 2, "no image is named"),
        (("run.yaml", "corpus", "12"), 2, "'12' is no uid"),
        (("run.yaml", "corpus", "--source", "digits/9999"), 1, "digits/9999"),
        (("run.yaml", "clean", "0" * 32), 2, "clean of tiny was never made"),
        (("digits", "corpus", "0" * 32), 2, "is a recipe, which stays as it is"),
        (("run.yaml", "corpus", "--list", "missing.txt"), 2, "missing.txt cannot be read"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    folder: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    before = (folder / "run.yaml").read_text()
    done = vitrail("data", "remove", *words, cwd=folder)
    assert (done.code, said in done.stderr.replace("\n", " ")) == (code, True), done.stderr
    assert (folder / "run.yaml").read_text() == before
