"""The command line as a user meets it: in real processes, or in this one where that is enough."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from jsonschema import validate
from typer.testing import CliRunner

from schemas.spec import Spec

VITRAIL = str(Path(sys.executable).with_name("vitrail"))

TINY = (
    "pretrain.model={width: 32, depth: 1, num_heads: 2, mlp_dim: 32, patch_px: 4, image_px: 8}",
    "pretrain.duration={steps: 6}",
    "pretrain.optim.warmup_steps=1",
    "transfer.model.image_px=12",
    "transfer.duration={steps: 4}",
    "transfer.optim.warmup_steps=1",
    "scratch.model={width: 32, depth: 1, num_heads: 2, mlp_dim: 32, patch_px: 4, image_px: 12}",
    "scratch.duration={steps: 4}",
    "scratch.optim.warmup_steps=1",
)
"""Overrides that make the recipe `digits` train in seconds."""


@dataclass(frozen=True)
class Finished:
    """What a command printed and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout as JSON."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def sets(overrides: tuple[str, ...] = TINY) -> list[str]:
    """The overrides as options."""
    return [word for override in overrides for word in ("--set", override)]


def environment(folder: Path) -> dict[str, str]:
    """Of a command that must leave nothing in the user's home."""
    return {**os.environ, "XDG_STATE_HOME": str(folder / "state")}


def answer(*words: str) -> str:
    """stdout of a command that runs in this process; raises what the command raises."""
    from jobs.cli import app

    told = CliRunner().invoke(app, list(words), standalone_mode=False)
    if told.exception is not None:
        raise told.exception
    return told.stdout


def document(schema: type[Spec], *words: str) -> Any:
    """The JSON document of such a command, validated against its published schema."""
    found = json.loads(answer(*words, "--output", "json"))
    validate(found, schema.model_json_schema())
    return schema.parse(found)


def vitrail(*words: str, cwd: Path, timeout_seconds: float = 300) -> Finished:
    """Run a command to its end."""
    done = subprocess.run(
        [VITRAIL, *words],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def interrupted(
    *words: str, cwd: Path, when: str, signals: tuple[signal.Signals, ...] = (signal.SIGINT,)
) -> tuple[Finished, list[str]]:
    """Run a command, send it signals once it has printed `when`; also what it left running."""
    with (cwd / "stderr.txt").open("w+") as stderr:
        process = subprocess.Popen(
            [VITRAIL, *words],
            cwd=cwd,
            env=environment(cwd),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        _await_text(cwd / "stderr.txt", when, process)
        family = psutil.Process(process.pid).children(recursive=True)
        for index, number in enumerate(signals):
            if index:  # two that come too close together are one
                _await_text(cwd / "stderr.txt", "once more kills", process)
            # As terminals, service managers and batch systems do: to every process at once.
            os.killpg(process.pid, number)
            time.sleep(0.3)
        stdout, _ = process.communicate(timeout=120)
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert len(gone) + len(alive) == len(family)
    text = (cwd / "stderr.txt").read_text()
    return Finished(process.returncode, stdout, text), [str(child) for child in alive]


def _await_text(path: Path, when: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while when not in path.read_text():
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.1)
