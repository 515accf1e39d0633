"""Workspaces whose store holds artifacts of stages, made in this process."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from infra.storage import LocalStore
from schemas.artifacts import KeyRecord, StageResult
from schemas.experiment import AnyStage
from schemas.spec import semantic_fields
from tests.support.artifacts import stage_record


def keep(
    workspace: Path,
    files: Path,
    *,
    experiment: str,
    stage: str,
    spec: AnyStage,
    seed: int = 0,
    inputs: Mapping[str, StageResult] | None = None,
) -> StageResult:
    """Commit the files as what a stage of an experiment made last."""
    store = LocalStore(workspace / "store")
    made = inputs or {}
    key = KeyRecord(
        kind=spec.kind,
        revision=spec.revision,
        fields=semantic_fields(spec),
        inputs={port: result.digest for port, result in made.items()},
        libraries={},
        seed=seed,
    )
    record = stage_record().revise(
        experiment=experiment,
        stage=stage,
        key=key.key(),
        key_record=key,
        spec=spec.dump(),
        input_artifacts={port: result.artifact for port, result in made.items()},
        metrics={},
    )
    attempt = store.begin(spec.kind, record.key)
    shutil.copytree(files, attempt.path, dirs_exist_ok=True)
    result = store.commit(attempt, record, known_sha256={})
    store.set_ref(experiment, stage, result)
    return result
