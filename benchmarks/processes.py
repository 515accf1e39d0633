"""A command with its children: how long it takes, and how much memory all of them hold at most."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_SAMPLE_SECONDS = 0.5
VITRAIL = str(Path(sys.executable).with_name("vitrail"))


def one_torch_thread() -> None:
    """Let torch compute in one thread, in this process and those that it starts.

    Contenders that have a process or thread for each core would get in each other's way.
    """
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Measured:
    """One command, run to its end."""

    code: int
    seconds: float
    peak_bytes: int
    """Largest sum of the processes' proportional set sizes: shared pages count once."""
    stdout: str


def measure(*command: str, cwd: Path) -> Measured:
    """Run a command; its stderr goes on to ours."""
    began, peak = time.monotonic(), 0
    with (cwd / "stdout.txt").open("w+") as stdout:
        process = subprocess.Popen(command, cwd=cwd, stdout=stdout)
        family = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _memory(family))
            time.sleep(_SAMPLE_SECONDS)
    return Measured(
        code=process.returncode,
        seconds=time.monotonic() - began,
        peak_bytes=peak,
        stdout=(cwd / "stdout.txt").read_text(),
    )


def _memory(family: psutil.Process) -> int:
    total = 0
    try:
        processes = [family, *family.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total
