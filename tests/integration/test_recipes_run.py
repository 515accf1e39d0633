"""A recipe at full scale by its profile `laptop`, from a tree of files to the report."""

from pathlib import Path

import pytest

from schemas.runs import RunDocument
from tests.conftest import RaySession
from tests.support.commands import sets, vitrail
from tests.support.corpora import write_folder

pytestmark = [
    pytest.mark.ray,
    # MLflow's own use of its libraries.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

SHORT = (
    "pretrain.duration={steps: 4}",
    "pretrain.optim.warmup_samples=32",
    "pretrain.resources={engine: torch}",
    "transfer.duration={steps: 4}",
    "transfer.optim.warmup_samples=32",
)


def test_mae_goes_from_files_to_the_report_on_a_laptop(
    ray_cluster: RaySession, tmp_path: Path
) -> None:
    tree = write_folder(tmp_path / "tree", per_class=30)
    words = ("run", "mae-b16-imagenet1k", "--profile", "laptop", "--output", "json")
    source = ("--set", f"corpus.source.uri={tree}", *sets(SHORT))
    done = vitrail(*words, *source, "--address", ray_cluster.address, cwd=tmp_path)
    assert done.code == 0, done.stderr
    run = RunDocument.model_validate_json(done.stdout)
    assert {stage.status for stage in run.stages} == {"ran"}
    assert [stage.name for stage in run.stages] == [
        "corpus", "clean", "pretrain", "transfer", "accuracy", "report",
    ]  # fmt: skip
    (accuracy,) = (stage for stage in run.stages if stage.name == "accuracy")
    assert "test/top1_ratio" in accuracy.metrics
    assert run.report is not None
    assert Path(run.report).is_file()
