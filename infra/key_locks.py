"""One worker at a time on a key: a file lock that dies with its process, and names its holder."""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from infra.atomic_files import disk_errors, write_atomic


class KeyLock:
    """Fulfils `pipeline.ports.Hold`. Spares work that is done twice; nothing else relies on it."""

    def __init__(self, folder: Path, *, say: Callable[[str], None]) -> None:
        """Guard the folder of an artifact; `say` gets one line when somebody else holds it."""
        self._folder = folder
        self._say = say
        self._name = folder / "holder.json"
        self._lock = FileLock(folder / "lock", thread_local=False)

    def __enter__(self) -> None:
        with disk_errors("lock an artifact", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                self._say(f"{self._folder.name}: waiting for {self._holder()}, who is making it")
                self._lock.acquire(poll_interval=0.2)
            self._write_name()

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._name.unlink()
        self._lock.release()

    def _write_name(self) -> None:
        me = {"pid": os.getpid(), "host": socket.gethostname()}
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
