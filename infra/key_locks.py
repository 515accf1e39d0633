"""One worker at a time on a key: a file lock that dies with its process, and names its holder."""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from infra.atomic_files import disk_errors, write_atomic
from schemas.errors import PausedError

_TURN_SECONDS = 0.5
"""How often somebody who waits looks whether to stop."""


class KeyLock:
    """Fulfils `pipeline.ports.Hold`. Spares work that is done twice; nothing else relies on it."""

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None],
        stop: Callable[[], bool] | None = None,
        reads: Collection[str] = (),
    ) -> None:
        """Guard a folder.

        Args:
            folder: Of an artifact.
            reads: Artifacts that the holder reads meanwhile, for who asks `reads_of_holder`.
            say: Gets one line when somebody else holds the lock.
            stop: Asked several times a second while somebody else holds it; True ends the wait.
        """
        self._folder = folder
        self._say = say
        self._stop = stop
        self._reads = sorted(reads)
        self._name = folder / "holder.json"
        self._lock = FileLock(folder / "lock", thread_local=False)

    def __enter__(self) -> None:
        with disk_errors("lock an artifact", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                self._say(f"{self._folder.name}: waiting for {self._holder()}, who is making it")
                self._wait()
            self._write_name()

    def _wait(self) -> None:
        while True:
            try:
                self._lock.acquire(timeout=_TURN_SECONDS, poll_interval=0.2)
            except Timeout:
                if self._stop is None or not self._stop():
                    continue
                raise PausedError(
                    f"stopped on request while {self._holder()} was making {self._folder.name}"
                ) from None
            return

    def try_once(self) -> bool:
        """Take the key if it is free; does not wait."""
        with disk_errors("lock an artifact", self._folder):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                return False
            self._write_name()
        return True

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._name.unlink()
        self._lock.release()

    def _write_name(self) -> None:
        me = {"pid": os.getpid(), "host": socket.gethostname(), "reads": self._reads}
        try:
            write_atomic(self._name, json.dumps(me) + "\n")
        except OSError:
            self._lock.release()
            raise

    def _holder(self) -> str:
        try:
            holder = json.loads(self._name.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError):
            return "another process"  # it has the lock, and writes its name a moment later


def reads_of_holder(folder: Path) -> tuple[str, ...] | None:
    """What the holder of a key reads; None where nobody holds it."""
    if not (folder / "lock").exists():
        return None
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        with lock.acquire(timeout=0):
            return None
    except Timeout:
        pass
    try:
        return tuple(json.loads((folder / "holder.json").read_text(encoding="utf-8"))["reads"])
    except (OSError, ValueError, KeyError):
        return ()


@contextlib.contextmanager
def seized(folder: Path) -> Iterator[bool]:
    """A key for the length of a `with` block if it is free; yields whether it was."""
    lock = KeyLock(folder, say=lambda _line: None)
    mine = lock.try_once()
    try:
        yield mine
    finally:
        if mine:
            lock.__exit__()
