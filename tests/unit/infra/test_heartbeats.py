"""Who works on a key of a bucket, over machines that share nothing else."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import heartbeats
from schemas.errors import PausedError
from tests.support.artifacts import KIND, stage_record
from tests.support.s3_server import s3_server
from tests.support.stores import Place

KEY = stage_record().key


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with s3_server() as uri:
        yield Place(f"{uri}/heartbeats", tmp_path_factory.mktemp("local"))


def test_another_machine_waits_and_can_be_stopped(place: Place, tmp_path: Path) -> None:
    said: list[str] = []
    other = place.open(local=tmp_path, say=said.append)
    with place.open().hold(KIND, KEY, reads=["ingest-0"]):
        assert other.readers(f"{KIND}-{KEY[:12]}") == ("ingest-0",)
        with other.seized(f"{KIND}-{KEY[:12]}") as mine:
            assert not mine
        with pytest.raises(PausedError, match="stopped on request"):
            other.hold(KIND, KEY, stop=lambda: bool(said)).__enter__()
    assert "who is making it" in said[0]
    with other.hold(KIND, KEY):
        pass
    assert not place.names("artifacts")


def test_a_dead_holder_runs_out_and_a_live_one_does_not(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"artifacts/{KIND}-{KEY[:12]}/holder.json"
    place.write(name, b'{"pid": 1, "host": "gone", "token": "x"}')
    # A server tells whole seconds, so that two may be taken for three.
    monkeypatch.setattr(heartbeats, "LIFETIME_SECONDS", 4.0)
    monkeypatch.setattr(heartbeats, "_BEAT_SECONDS", 0.5)
    store, other = place.open(), place.open(local=tmp_path)
    with store.hold(KIND, KEY):
        assert b"gone" not in (place.read(name) or b"")
        time.sleep(5.0)
        assert other.readers(f"{KIND}-{KEY[:12]}") == (), "it beats on"
    assert place.read(name) is None
