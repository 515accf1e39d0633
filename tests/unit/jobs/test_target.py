import json
from pathlib import Path

import pytest

from jobs.target import Target


def test_a_corpus_below_the_users_home_is_found_although_no_shell_expanded_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    target = Target("photos", None, None, ("corpus.source.uri=~/photos",))
    stages = target.experiment().stages
    assert stages["corpus"].source.uri == str(tmp_path / "photos")
    assert stages["downstream"].source.uri == str(tmp_path / "photos")


def test_a_relative_place_means_the_same_in_every_process() -> None:
    target = Target("photos", None, None, ("corpus.source.uri=photos/~old",))
    assert target.experiment().stages["corpus"].source.uri == str(Path.cwd() / "photos" / "~old")


@pytest.mark.parametrize("uri", ["s3://bucket/raw", "file:///data/raw"])
def test_a_uri_stays_what_it_is(uri: str) -> None:
    target = Target("photos", None, None, (f"corpus.source.uri={uri}",))
    assert target.experiment().stages["corpus"].source.uri == uri


def test_a_name_of_the_hub_is_no_path_unless_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"type": "hf", "uri": "someone/pets", "revision": "0" * 40}
    spec = tmp_path / "run.yaml"
    stages = {"corpus": {"kind": "ingest", "source": source}}
    spec.write_text(json.dumps({"name": "x", "seed": 1, "stages": stages}))
    target = Target(str(spec), None, None, ())
    assert target.experiment().stages["corpus"].source.uri == "someone/pets"
    (tmp_path / "someone" / "pets").mkdir(parents=True)
    assert target.experiment().stages["corpus"].source.uri == str(tmp_path / "someone" / "pets")
