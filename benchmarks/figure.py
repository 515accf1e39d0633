"""What every benchmark prints: one figure, its goal, and the conditions it was measured under."""

import argparse
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field

from schemas.spec import Semantic, Spec


class Figure(Spec):
    """The last line on stdout of a benchmark."""

    name: Semantic[str]
    figure: Semantic[float]
    unit: Semantic[str]
    goal: Semantic[str]
    holds: Semantic[bool]
    conditions: Semantic[dict[str, Any]]
    details: Semantic[dict[str, Any]] = Field(default_factory=dict)


def arguments(
    description: str | None, *, trials: int = 1, flags: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """The options that every benchmark takes; `trials` is what it does unless told otherwise.

    `flags` are switches of its own, by name, with what they are for.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--corpus", type=Path, help="images that the benchmark has not seen")
    parser.add_argument("--seed", type=int, default=17, help="changes every random choice")
    parser.add_argument("--trials", type=int, default=trials, help="repetitions; the median counts")
    parser.add_argument("--output", choices=["json"], default="json")
    for name, purpose in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=purpose)
    return parser.parse_args()


def conditions(**more: Any) -> dict[str, Any]:
    """Machine, versions and date, and what the benchmark adds."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray", "deepspeed", "mlflow")},
        **more,
    }


def conclude(figure: Figure) -> int:
    """Print the document; returns the exit code."""
    print(json.dumps(figure.dump()), flush=True)
    return 0 if figure.holds else 1
