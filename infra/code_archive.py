"""The first-party code as a folder that can be shipped: an allow-list, about a megabyte."""

import shutil
from pathlib import Path

ROOMS = ("schemas", "pipeline", "infra", "jobs")
SUFFIXES = {".py", ".yaml", ".j2"}


def checkout_root() -> Path:
    """The folder that holds the rooms which this process has imported."""
    return Path(__file__).resolve().parents[1]


def copy_code(destination: Path) -> Path:
    """Copy our packages, and nothing else, into `destination`; returns it."""
    root = checkout_root()
    for room in ROOMS:
        for source in sorted((root / room).rglob("*")):
            if source.suffix in SUFFIXES and source.is_file():
                target = destination / source.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return destination
