"""Who waits for a key can be stopped; who gets it is not asked."""

from pathlib import Path

import pytest

from infra.key_locks import KeyLock
from schemas.errors import PausedError


def test_a_stop_ends_the_wait_for_a_key(tmp_path: Path) -> None:
    said: list[str] = []
    waiting = KeyLock(tmp_path, say=said.append, stop=lambda: bool(said))
    with KeyLock(tmp_path, say=said.append), pytest.raises(PausedError, match="stopped on request"):
        waiting.__enter__()
    assert len(said) == 1
    with waiting:  # the key is free again, and the lock is whole
        assert (tmp_path / "holder.json").is_file()


def test_a_free_key_is_taken_without_asking(tmp_path: Path) -> None:
    with KeyLock(tmp_path, say=print, stop=lambda: True):
        assert (tmp_path / "holder.json").is_file()
