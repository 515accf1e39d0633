"""`PaceLog` in a file: where a training stage stands, for whoever watches the run."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from schemas.runs import TrainingPace

_INTERVAL_SECONDS = 1.0
_FOLDER = "now"


def pace_path(run_folder: Path, stage: str) -> Path:
    """The file of a stage; names of variants hold characters that names of files may not."""
    return run_folder / _FOLDER / f"{quote(stage, safe='')}.json"


class PaceFile:
    """Fulfils `pipeline.ports.PaceLog`; one process writes, any number read."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `path`, at most once a second of `clock`."""
        self._path = path
        self._clock = clock
        self._next = -float("inf")

    def show(self, pace: TrainingPace) -> None:
        """Replace the file, but for the last step only if a second has passed.

        It is not forced to the disk, and a failure is passed over: a run must neither wait for
        nor end by what is only looked at.
        """
        now = self._clock()
        if now < self._next and pace.step < pace.total_steps:
            return
        self._next = now + _INTERVAL_SECONDS
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            part = self._path.with_suffix(f".{os.getpid()}.tmp")
            part.write_text(pace.model_dump_json())
            part.replace(self._path)


def read_pace(path: Path) -> TrainingPace | None:
    """What stands there; None if nothing does, or nothing that can be read."""
    try:
        return TrainingPace.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
