"""What several tests of stages start from."""

import pytest

from schemas.manifest import DATASET_FOLDER
from schemas.runs import InputArtifact
from tests.support.datasets import small_set


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> InputArtifact:
    """Split `train` of a shard set: eight images of each of three classes."""
    folder = tmp_path_factory.mktemp("corpus")
    shards = small_set(folder, per_class=8)
    (folder / "out").rename(folder / DATASET_FOLDER)
    return InputArtifact(
        stage="corpus",
        kind="ingest",
        artifact="ingest-1",
        digest=shards.digest,
        path=str(folder),
        split="train",
        metrics={},
    )
