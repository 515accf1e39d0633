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
