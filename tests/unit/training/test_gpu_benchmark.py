"""The benchmark for a GPU runs to its end on a CPU where it is asked to, and else says no."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_case import Case, Outcome
from benchmarks.loading import made_up, shard_set

TINY = Case("Ti", 32, 4, 2, zero_stage=None, shards=None, on_gpu=False, seed=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_a_sentence(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=checkout, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no GPU here that torch can use\n  try: ")


def test_one_of_its_cases_runs_on_a_cpu_with_images_from_shards(
    checkout: Path, tmp_path: Path
) -> None:
    pictures = made_up(tmp_path / "raw", classes=2, per_class=4)
    shards = shard_set({"type": "image_folder", "uri": str(pictures)}, tmp_path / "set").folder
    case = {**asdict(TINY), "shards": str(shards)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_case", json.dumps(case)],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = Outcome(**json.loads(done.stdout.splitlines()[-1]))
    assert outcome.images_per_second > 0
    assert outcome.mfu_ratio is not None
    assert outcome.peak_bytes is None
    assert outcome.estimated_bytes > 12 * outcome.parameters, "weights and both moments"


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    (outcomes,) = json.loads(done.stdout.splitlines()[-1])["details"].values()
    assert sorted(outcomes) == ["loader", "torch", "zero1", "zero2", "zero3"]
