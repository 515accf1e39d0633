"""`MetricLog` in a file: points are appended where the stage runs, and mirrored from elsewhere."""

import json
import time
from pathlib import Path

from pydantic import ValidationError

from infra.atomic_files import JsonLines, read_lines
from schemas.errors import IntegrityError
from schemas.runs import MetricPoint


class SegmentLog:
    """Fulfils `pipeline.ports.MetricLog`; one process writes at a time.

    A stage that resumes does again the steps since its checkpoint: their points stand already and
    are not written twice.
    """

    def __init__(self, path: Path) -> None:
        """Go on with the file at `path`, or begin it; a torn last line is cut off."""
        self._lines = JsonLines(path)
        self._last: dict[str, int] = {}
        for point in read_points(path, 0)[0]:
            self._last[point.key] = max(point.step, self._last.get(point.key, -1))

    def log(self, points: dict[str, float], *, step: int) -> None:
        """Append one point for each key that has none at `step` or later."""
        fresh = {key: value for key, value in points.items() if step > self._last.get(key, -1)}
        if not fresh:
            return
        at_ms = time.time_ns() // 1_000_000
        # Not through pydantic: it writes the NaN of a diverged run as null.
        self._lines.append(
            [
                json.dumps({"key": key, "value": float(value), "step": step, "at_ms": at_ms})
                for key, value in fresh.items()
            ]
        )
        self._last |= dict.fromkeys(fresh, step)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_points(path: Path, offset: int) -> tuple[list[MetricPoint], int]:
    """Points from byte `offset` on, and the offset after them; a torn last line waits.

    A file that was begun anew since, so that no line starts at `offset`, is read from its start.

    Raises:
        IntegrityError: If a whole line is not a point.
    """
    offset = offset if _line_starts(path, offset) else 0
    lines = read_lines(path, offset)
    try:
        points = [MetricPoint.model_validate_json(line) for line, _ in lines]
    except ValidationError as error:
        raise IntegrityError(f"{path} holds a line that is not a metric point: {error}") from error
    return points, lines[-1][1] if lines else offset


def _line_starts(path: Path, offset: int) -> bool:
    if offset == 0:
        return True
    try:
        with path.open("rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"
    except FileNotFoundError:
        return True
