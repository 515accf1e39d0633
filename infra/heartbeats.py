"""One worker at a time on a key of an object store, over machines that share nothing but it.

The holder writes `holder.json` and again every few seconds; who finds it older than
`LIFETIME_SECONDS`, by the clock of the server alone, counts its writer as dead and takes the key.
Two may take it in the same moment: that costs work done twice, since the commit decides.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection

from infra.key_locks import KeyLock
from infra.s3_shelf import S3Shelf
from schemas.errors import PausedError, UnreachableError

LIFETIME_SECONDS = 60.0
_BEAT_SECONDS = 15.0
_TURN_SECONDS = 1.0
"""How often somebody who waits looks again."""


class SharedHold:
    """Fulfils `pipeline.ports.Hold`: the lock of this machine first, then the heartbeat."""

    def __init__(
        self,
        here: KeyLock,
        shelf: S3Shelf,
        artifact: str,
        *,
        say: Callable[[str], None],
        stop: Callable[[], bool] | None,
        reads: Collection[str],
    ) -> None:
        """Guard an artifact; the arguments are those of `KeyLock`."""
        self._here = here
        self._shelf = shelf
        self._artifact = artifact
        self._name = _holder(artifact)
        self._say = say
        self._stop = stop
        self._token = secrets.token_hex(8)
        self._text = json.dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "reads": sorted(reads),
                "token": self._token,
            }
        )
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._here.__enter__()
        try:
            self._take()
        except BaseException:
            self._here.__exit__()
            raise
        self._beats.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._beats.join()
        try:
            with contextlib.suppress(UnreachableError):  # it runs out by itself
                if self._is_ours():
                    self._shelf.delete(self._name)
        finally:
            self._here.__exit__()

    def _take(self) -> None:
        told = False
        while not self._shelf.create(self._name, self._text):
            if not is_alive(self._shelf, self._artifact):
                self._shelf.delete(self._name)
                continue
            if not told:
                who = self._who()
                self._say(f"{self._artifact}: waiting for {who}, who is making it")
                told = True
            if self._stop is not None and self._stop():
                raise PausedError(f"stopped on request while another was making {self._artifact}")
            time.sleep(_TURN_SECONDS)

    def _who(self) -> str:
        try:
            holder = json.loads(self._shelf.read(self._name) or b"")
            return f"process {holder['pid']} on {holder['host']}"
        except (ValueError, KeyError):
            return "another process"

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            with contextlib.suppress(UnreachableError):
                if not self._is_ours():
                    return  # taken for dead, by a pause of this machine say; the commit decides
                self._shelf.write(self._name, self._text)

    def _is_ours(self) -> bool:
        return self._token.encode() in (self._shelf.read(self._name) or b"")


def is_alive(shelf: S3Shelf, artifact: str) -> bool:
    """Whether somebody works on an artifact, as far as its heartbeat tells."""
    age = shelf.age_seconds(_holder(artifact))
    return age is not None and age < LIFETIME_SECONDS


def reads_of_living(shelf: S3Shelf, artifact: str) -> tuple[str, ...] | None:
    """What the living holder of an artifact reads; None if there is none."""
    if not is_alive(shelf, artifact):
        return None
    try:
        return tuple(json.loads(shelf.read(_holder(artifact)) or b"")["reads"])
    except (ValueError, KeyError):
        return ()


def _holder(artifact: str) -> str:
    return f"artifacts/{artifact}/holder.json"
