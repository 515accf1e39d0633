"""[kill_resume] SIGKILL of a rank, of the stage's Ray worker, of the driver; a rank gone silent.

`vitrail run` of a small pipeline with two training processes, in ZeRO stages 0 to 3, with
augmentation, mixup, drop-path and averaged weights on. At a random step one process is killed, or
stopped (SIGSTOP); where that was the driver, the same command is given again. Compared with an
undisturbed run of the same stage, bit by bit: every point of the curves in MLflow, which also shows
that no step is missing or doubled, so that no sample was skipped or seen again; the model, which
is the average; weights, optimizer state and averages in the last checkpoint. And nothing of the
lost processes may live on.

`--trials` is the number of disturbed runs; 16 cover every stage with every victim.
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.processes import VITRAIL
from infra.metric_segments import read_points
from schemas.checkpoint import CHECKPOINT_MANIFEST, CheckpointManifest

_TRIALS = 3
_VICTIMS = ("rank", "worker", "driver", "silent rank")
_STEPS, _EVERY = 200, 20
_CURVES = ("train/loss", "train/grad_norm", "train/learning_rate")
_LONGEST_SILENCE_SECONDS = 60.0
_PATIENCE_SECONDS = 400.0


@dataclass(frozen=True)
class Ended:
    """What a run left."""

    bits: dict[str, str]
    """sha256 of the model and of the files of the last checkpoint."""
    curves: dict[str, list[tuple[int, float]]]
    """As MLflow has them."""


@dataclass
class Trial:
    """One disturbed run."""

    stage: int
    victim: str
    step: int
    """Of the last point before the signal."""
    lives_on: list[str] = field(default_factory=list)
    """Training processes and stage's worker of a first start, 20 s after its loss was noticed."""
    noticed_seconds: float | None = None
    """From the signal to the line in the log that says so."""
    differs: list[str] = field(default_factory=list)
    """What is not as in the undisturbed run."""


def main() -> int:
    """Disturb runs at random steps; compare each with its undisturbed twin."""
    options = arguments(__doc__, trials=_TRIALS)
    rng = random.Random(options.seed)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), options.corpus, seed=options.seed)
        for stage, victim in islice(_pairs(rng), options.trials):
            trials.append(bench.disturb(stage, victim, rng))
            print(json.dumps(vars(trials[-1])), file=sys.stderr, flush=True)
    equal = [not (trial.differs or trial.lives_on) for trial in trials]
    silences = [t.noticed_seconds or 0.0 for t in trials if t.victim == "silent rank"]
    return conclude(
        Figure(
            name="kill_resume",
            figure=round(statistics.mean(equal), 6),
            unit="share of disturbed runs that end bitwise equal to the undisturbed one",
            goal="1; curves without gaps or doubles, nothing lives on, silence found within 60 s",
            holds=all(equal) and all(each <= _LONGEST_SILENCE_SECONDS for each in silences),
            conditions=conditions(
                seed=options.seed, trials=options.trials, workers=2, steps=_STEPS,
                checkpoint_every_steps=_EVERY,
            ),
            details={"runs": [vars(trial) for trial in trials]},
        )
    )  # fmt: skip


def _pairs(rng: random.Random) -> Iterator[tuple[int, str]]:
    """ZeRO stages and victims in random order: all victims of a stage, then the next stage."""
    while True:
        for stage in rng.sample(range(4), 4):
            for victim in rng.sample(_VICTIMS, len(_VICTIMS)):
                yield stage, victim


def _spec(images: Path | None, seed: int) -> dict[str, Any]:
    source = (
        {"type": "image_folder", "uri": str(images)}
        if images
        else {"type": "sklearn", "name": "digits"}
    )
    image = {"max_side_px": 64, "encoding": "png"}
    pretrain = {
        "kind": "pretrain",
        "data": "corpus",
        "augment": {"crop": "inception", "flip": True, "mixup_alpha": 0.2},
        "model": {"width": 48, "depth": 2, "num_heads": 3, "mlp_dim": 96, "patch_px": 4,
                  "image_px": 16, "drop_path": 0.2},
        "optim": {"peak_lr": 1e-3, "warmup_steps": 10, "weight_decay": 0.1, "ema_decay": 0.9},
        "batch": {"global_samples": 16},
        "duration": {"steps": _STEPS},
        "checkpoint": {"every_steps": _EVERY},
    }  # fmt: skip
    corpus = {
        "kind": "ingest",
        "source": source,
        "image": image,
        "select": {"per_class": {"train": 40}},
    }
    return {"name": "kill", "seed": seed, "stages": {"corpus": corpus, "pretrain": pretrain}}


class _Bench:
    """Workspaces that begin with the corpus made, one for each run."""

    def __init__(self, folder: Path, images: Path | None, *, seed: int) -> None:
        self.folder = folder
        self.spec = folder / "spec.yaml"
        self.spec.write_text(json.dumps(_spec(images, seed)))
        self.twins: dict[int, Ended] = {}
        self.runs = 0
        made = _Run(self.command(0, "--until", "corpus"), self._workspace())
        assert made.wait() == 0, made.stderr.read_text()
        self.made = made.cwd

    def command(self, stage: int, *more: str) -> list[str]:
        """`vitrail run` of the spec; the ZeRO stage is no part of any key."""
        stage_set = ("--set", f"pretrain.resources={{workers: 2, zero_stage: {stage}}}")
        return [VITRAIL, "run", str(self.spec), *stage_set, *more]

    def _workspace(self) -> Path:
        self.runs += 1
        cwd = self.folder / f"run-{self.runs}"
        if self.runs == 1:
            cwd.mkdir()
        else:
            shutil.copytree(self.made, cwd)
        return cwd

    def _twin(self, stage: int) -> Ended:
        if stage not in self.twins:
            run = _Run(self.command(stage), self._workspace())
            with run.last_checkpoint_kept():
                assert run.wait() == 0, run.stderr.read_text()
            self.twins[stage] = run.ended()
        return self.twins[stage]

    def disturb(self, stage: int, victim: str, rng: random.Random) -> Trial:
        """One run with a loss in it, to its end."""
        twin, command = self._twin(stage), self.command(stage)
        run = _Run(command, self._workspace())
        with run.last_checkpoint_kept():
            trial = Trial(stage, victim, run.reach(rng.randint(_EVERY // 2, _STEPS - _EVERY)))
            gang, worker = run.processes("RayTrainWorker"), run.processes("ray::pretrain")
            assert len(gang) == 2, f"{len(gang)} training processes"
            driver = psutil.Process(run.process.pid)
            lost = {"worker": worker[0], "driver": driver}.get(victim) or rng.choice(gang)
            lost.send_signal(signal.SIGSTOP if victim == "silent rank" else signal.SIGKILL)
            began = time.monotonic()
            if victim == "driver":
                run.wait()
            else:
                words = "to be tried again" if victim == "worker" else "a training process was lost"
                trial.noticed_seconds = round(run.says(words) - began, 1)
            ended = gang if "rank" in victim else [*gang, *worker]
            trial.lives_on += [str(each) for each in psutil.wait_procs(ended, timeout=20)[1]]
            last = _Run(command, run.cwd) if victim == "driver" else run
            assert last.wait() == 0, last.stderr.read_text()
        trial.differs += _differences(twin, run.ended())
        shutil.rmtree(run.cwd)
        return trial


def _differences(twin: Ended, found: Ended) -> list[str]:
    keys = twin.bits.keys() | found.bits.keys()
    bits = [key for key in sorted(keys) if twin.bits.get(key) != found.bits.get(key)]
    return bits + [key for key in _CURVES if twin.curves[key] != found.curves[key]]


class _Run:
    """One `vitrail run`, in a workspace below `cwd`."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.cwd = cwd
        self.store = cwd / ".vitrail" / "store" / "artifacts"
        self.kept = cwd / "last"
        self.stderr = cwd / f"stderr-{time.time_ns()}.txt"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=stderr
            )

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(_PATIENCE_SECONDS)

    def processes(self, title: str) -> list[psutil.Process]:
        """Those of this run that Ray has given a title with these words."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in family if title in " ".join(each.cmdline())]

    def reach(self, step: int) -> int:
        """Wait until a point of this step or a later one stands; the step of the last one."""
        for _ in self._moments():
            files = list(self.store.glob("pretrain-*/progress/metrics.jsonl"))
            points = read_points(files[0], 0)[0] if files else []
            if points and points[-1].step >= step:
                return points[-1].step
        raise AssertionError("no such step")

    def says(self, words: str) -> float:
        """Wait until the run's log says so; the time of the clock."""
        for _ in self._moments():
            logs = (self.cwd / ".vitrail" / "runs").glob("*/log.txt")
            if any(words in log.read_text() for log in logs) or words in self.stderr.read_text():
                return time.monotonic()
        raise AssertionError("it never said so")

    def _moments(self) -> Iterator[None]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.stderr.read_text()
            yield
            time.sleep(0.005)

    def last_checkpoint_kept(self) -> "_Keeping":
        """Keeps the last checkpoint of a stage that removes it when it has made its model."""
        return _Keeping(self.store, self.kept)

    def ended(self) -> Ended:
        """What stands when all is done."""
        manifest = (self.kept / CHECKPOINT_MANIFEST).read_text()
        files = CheckpointManifest.model_validate_json(manifest).files
        bits = {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}
        (model,) = self.store.glob("pretrain-*/attempts/*/files/model/model.safetensors")
        bits["model"] = sha256(model.read_bytes()).hexdigest()
        return Ended(bits, _curves(self.cwd / ".vitrail" / "mlflow.db"))


class _Keeping:
    """A thread that links the files of the last checkpoint to another place once it stands."""

    def __init__(self, store: Path, kept: Path) -> None:
        self._store, self._kept = store, kept
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            for last in self._store.glob(f"pretrain-*/progress/checkpoints/step-{_STEPS:08d}"):
                shutil.copytree(last, self._kept, copy_function=os.link)
                return


def _curves(database: Path) -> dict[str, list[tuple[int, float]]]:
    """Of the stage that trained, in the newest run that has it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`vitrail.stage` = 'pretrain'")
    newest = max(runs, key=lambda run: run.info.start_time)
    return {
        key: [(p.step, p.value) for p in client.get_metric_history(newest.info.run_id, key)]
        for key in _CURVES
    }


if __name__ == "__main__":
    sys.exit(main())
