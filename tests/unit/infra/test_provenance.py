import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from infra.provenance import LocalProvenance
from jobs.wiring import ENTRY_MODULES
from schemas.errors import UnreachableError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout of three source files, without git."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=2", "ruamel.yaml>=0.18", "not-installed-here"]\n'
    )
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "a.py").write_text("from pipeline import b\n")
    (tmp_path / "pipeline" / "b.py").write_text("b = 1\n")
    (tmp_path / "pipeline" / "other.py").write_text("")
    return tmp_path


def provenance(root: Path) -> LocalProvenance:
    """Of a checkout whose stages of kind `a` are made by `pipeline.a`."""
    return LocalProvenance(root, {"a": "pipeline.a", "other": "pipeline.other"})


def _git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def test_code_files_are_those_that_the_kind_uses(copy: Path) -> None:
    assert list(provenance(copy).code_files("a")) == ["pipeline/a.py", "pipeline/b.py"]
    assert list(provenance(copy).code_files("other")) == ["pipeline/other.py"]


def test_the_code_digest_follows_the_code_of_the_kind(copy: Path) -> None:
    before = provenance(copy).environment("a")
    (copy / "pipeline" / "other.py").write_text("changed = True\n")
    assert provenance(copy).environment("a") == before
    (copy / "pipeline" / "b.py").write_text("b = 2\n")
    after = provenance(copy).environment("a")
    assert after.code_digest != before.code_digest
    assert after.code_files["pipeline/a.py"] == before.code_files["pipeline/a.py"]
    assert after.code_files["pipeline/b.py"] != before.code_files["pipeline/b.py"]


def test_packages_are_the_declared_dependencies_that_are_installed(copy: Path) -> None:
    assert list(provenance(copy).environment("a").packages) == ["numpy", "ruamel.yaml"]


def test_this_checkout_knows_its_machine_and_packages(checkout: Path) -> None:
    found = LocalProvenance(checkout, ENTRY_MODULES).environment("evaluate")
    assert {"torch", "ray", "mlflow", "deepspeed"} <= set(found.packages)
    assert found.cpu
    assert found.hostname
    assert "pipeline/model/vit.py" in found.code_files


def test_without_a_checkout_of_its_own_there_is_no_commit(copy: Path) -> None:
    _git(copy, "init")
    found = provenance(copy / "pipeline").environment("a")
    assert (found.git_commit, found.git_dirty) == (None, None)


def test_a_commit_is_dirty_once_a_file_changed(copy: Path) -> None:
    _git(copy, "init")
    _git(copy, "add", ".")
    _git(copy, "commit", "-m", "a")
    clean = provenance(copy).environment("a")
    assert clean.git_commit is not None
    assert len(clean.git_commit) == 40
    assert clean.git_dirty is False
    (copy / "pipeline" / "other.py").write_text("changed = True\n")
    assert provenance(copy).environment("a").git_dirty is True


def test_a_library_that_is_missing_is_named(copy: Path) -> None:
    found = provenance(copy)
    assert list(found.library_versions(["numpy", "pillow"])) == ["numpy", "pillow"]
    with pytest.raises(UnreachableError, match="not-installed-here is not installed"):
        found.library_versions(["not-installed-here"])


def test_a_library_of_models_that_is_missing_is_named_with_how_to_install_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UnreachableError, match="timm is not installed") as refused:
        provenance(copy).library_versions(["timm"])
    assert "pip install --no-deps timm torchvision" in str(refused.value)


def test_store_runs_and_provenance_do_without_mlflow(checkout: Path) -> None:
    code = (
        "import sys, infra.storage, infra.provenance, infra.run_folder, infra.metric_segments, "
        "infra.mlflow_tracking, pipeline.dag.mirror; print('mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
