"""Tools for builds inside a benchmark's own process."""

from pathlib import Path

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.staging import BuildTools


def serial_tools(progress: Path) -> BuildTools:
    """What a quiet build in this process works with."""
    return BuildTools(SerialPool(), progress, NeverStop(), lambda _line: None)
