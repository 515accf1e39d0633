"""[torn_checkpoint] Checkpoints damaged in every way, and training killed while it writes them.

On disk: of the newest checkpoint, written by two ranks, only the first files are there (in the
order of writing), a file is missing, is cut at a random length, or has one other bit; each time the
one before must be taken, and the line that says so must name the damaged file. Then training that
checkpoints at every step is killed with SIGKILL, again and again, often in mid-write: what stood as
committed must still be there and load, and the last weights must be those of an undisturbed run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from benchmarks.figure import Figure, arguments, conclude, conditions
from pipeline.training import checkpoint
from pipeline.training.engine import TorchEngine
from pipeline.training.keeper import CheckpointKeeper, RunIdentity
from pipeline.training.loop import Watch, train
from schemas.checkpoint import CHECKPOINT_MANIFEST, CHECKPOINT_STATE, CheckpointState
from schemas.model import ViTSpec
from schemas.resources import CheckpointSpec
from tests.support.training import KEY, OPTIM, FakeLoader, engine_spec, model

_KILLS = 20
_PLACES_IN_A_FILE = 25
"""Random lengths that each file is cut to, and random bits that turn in each."""
_STEPS = 60
_SPEC = ViTSpec(
    width=192,
    depth=4,
    num_heads=3,
    mlp_dim=768,
    patch_px=4,
    image_px=(8, 8),
    num_classes=5,
)
"""Some 20 MB of state: written for long enough to be killed meanwhile."""


def main() -> int:
    """Damage, kill, compare."""
    if len(sys.argv) == 3 and sys.argv[1] == "--train":
        _train(Path(sys.argv[2]))
        return 0
    options = arguments(__doc__, trials=_KILLS)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        damaged, fell_back, named = _damage(Path(folder) / "damaged", rng)
        kills = _kill(Path(folder) / "killed", options.trials, rng)
    good = fell_back == named == damaged
    holds = good and not kills["lost"] and kills["ends_equal"] == kills["runs"]
    return conclude(
        Figure(
            name="torn_checkpoint",
            figure=round(min(fell_back, named) / damaged, 6),
            unit="share of damaged checkpoints that were passed over, and their damage named",
            goal="1, and kill -9 while it writes loses nothing committed",
            holds=holds,
            conditions=conditions(seed=options.seed, kills=options.trials),
            details={"damaged": damaged, "fell_back": fell_back, "named": named, **kills},
        )
    )


def _identity() -> RunIdentity:
    return RunIdentity(key=KEY, data_digest="d", global_samples=16, model=_SPEC, versions={})


def _damage(root: Path, rng: random.Random) -> tuple[int, int, int]:
    """How many damages were done, how often the one before was taken, and how often named."""
    for step in (5, 10):
        _write_by_two(root, step)
    whole = root.with_name("whole")
    newest = root / checkpoint.step_folder(10)
    shutil.copytree(newest, whole)
    shares = sorted(path.name for path in whole.iterdir() if path.suffix == ".safetensors")
    order = [*shares, CHECKPOINT_STATE, CHECKPOINT_MANIFEST]
    counts: Counter[str] = Counter()

    def check(culprit: str) -> None:
        said: list[str] = []
        found = checkpoint.newest_complete(root, KEY, said.append)
        counts["damaged"] += 1
        counts["fell_back"] += found is not None and found[1].step == 5
        counts["named"] += len(said) == 1 and culprit in said[0]

    for written in range(len(order)):  # torn between two files
        _restore(whole, newest)
        for name in order[written:]:
            (newest / name).unlink()
        check(CHECKPOINT_MANIFEST)
    for name in order:
        _restore(whole, newest)
        (newest / name).unlink()
        check(name)
        data = (whole / name).read_bytes()
        # The last byte of the manifest is a line's end: without it, it is still whole.
        longest = len(data) - (2 if name == CHECKPOINT_MANIFEST else 1)
        for length in {0, longest, *(rng.randrange(longest) for _ in range(_PLACES_IN_A_FILE))}:
            _restore(whole, newest)
            (newest / name).write_bytes(data[:length])
            check(name)
        for _ in range(_PLACES_IN_A_FILE):
            _restore(whole, newest)
            place, bit = rng.randrange(len(data) - 1), 1 << rng.randrange(8)
            torn = bytearray(data)
            torn[place] ^= bit
            (newest / name).write_bytes(torn)
            check(name)
    return counts["damaged"], counts["fell_back"], counts["named"]


def _restore(whole: Path, newest: Path) -> None:
    shutil.rmtree(newest)
    shutil.copytree(whole, newest)


def _write_by_two(root: Path, step: int) -> None:
    """A checkpoint as two ranks write it."""
    engine = TorchEngine(model(_SPEC), engine_spec(_SPEC))
    tensors = engine.share()
    working = checkpoint.begin(root, step)
    for rank in (0, 1):
        own = {name: tensors[name] for name in sorted(tensors)[rank::2]}
        checkpoint.write_share(working, rank, own)
    checkpoint.commit(
        root,
        CheckpointState(
            step=step,
            updates=step,
            **_identity().__dict__,
            world_size=2,
            engine="deepspeed-zero1",
            train_loss=1.0,
            probe_loss=1.0,
        ),
    )


def _kill(folder: Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Train, killed at random moments, until that many kills are made and the run has ended."""
    _train(folder / "undisturbed")
    expected = _last_weights(folder / "undisturbed")
    counts = {"kills": 0, "kills_while_writing": 0, "lost": 0, "runs": 0, "ends_equal": 0}
    while counts["kills"] < kills:
        root = folder / f"run-{counts['runs']}"
        counts["runs"] += 1
        while not _ends_or_is_killed(root, rng, counts):
            pass
        found = _last_weights(root)
        counts["ends_equal"] += all(torch.equal(found[name], expected[name]) for name in expected)
        shutil.rmtree(root)
    return counts


def _ends_or_is_killed(root: Path, rng: random.Random, counts: dict[str, int]) -> bool:
    """Whether the training ended before the moment to kill it came."""
    before = _committed(root)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.torn_checkpoint", "--train", str(root)],
        start_new_session=True,
    )
    while process.poll() is None and _committed(root) == before:
        time.sleep(0.005)
    moment = time.monotonic() + rng.uniform(0.0, 1.0)
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.001)
    if process.poll() is not None:
        if process.returncode:
            raise RuntimeError("a training run did not go on from its checkpoints")
        return True
    committed = _committed(root)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    counts["kills"] += 1
    counts["kills_while_writing"] += any(root.glob(".writing-*"))
    newest = checkpoint.newest_complete(root, KEY, print)
    counts["lost"] += newest is None or newest[1].step < committed
    return False


def _committed(root: Path) -> int:
    """Step of the newest checkpoint that has its name; 0 without any."""
    steps = [int(path.name.removeprefix("step-")) for path in root.glob("step-*")]
    return max(steps, default=0)


def _last_weights(root: Path) -> dict[str, torch.Tensor]:
    return {
        name: state.weight
        for name, state in checkpoint.read_parameters(root / checkpoint.step_folder(_STEPS))
    }


def _train(root: Path) -> None:
    """The whole run, or what is left of it, with a checkpoint at every step."""
    torch.set_num_threads(1)
    loader = FakeLoader(_SPEC)
    train(
        TorchEngine(model(_SPEC), engine_spec(_SPEC)),
        loader,
        optim=OPTIM,
        total_steps=_STEPS,
        keeper=CheckpointKeeper(
            root,
            identity=_identity(),
            when=CheckpointSpec(every_steps=1),
            probe=loader.rows(np.arange(4)),
            say=lambda _line: None,
        ),
        watch=Watch(),
    )


if __name__ == "__main__":
    sys.exit(main())
