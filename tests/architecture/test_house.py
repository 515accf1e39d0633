import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ("schemas", "pipeline", "infra", "jobs")
HEAVY = ("torch", "ray", "mlflow", "deepspeed", "sklearn", "matplotlib", "PIL", "pandas")
RAY_DOORS = {
    "infra/ray_cluster.py",
    "infra/ray_gang_failures.py",
    "infra/ray_jobs.py",
    "infra/ray_leftovers.py",
    "infra/ray_pool.py",
    "infra/ray_stages.py",
    "infra/worker_gang.py",
}


def imported_after(checkout: Path, code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=checkout, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("room", ROOMS)
def test_each_root_resolves_inside_this_checkout(room: str, checkout: Path) -> None:
    module = importlib.import_module(room)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == checkout / room / "__init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_has_a_readme_of_its_own(room: str, checkout: Path) -> None:
    text = (checkout / room / "README.md").read_text()
    assert len(text.splitlines()) >= 5


def test_import_contracts_hold(checkout: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_help_imports_no_heavy_library(checkout: Path) -> None:
    code = (
        "from jobs.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "import sys; sys.stdout.write('\\n')"
    )
    probe = f"{code}\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]


def test_planning_imports_no_heavy_library(checkout: Path) -> None:
    modules = ("pipeline.dag.plan", "pipeline.dag.experiment_file", "pipeline.cost")
    assert imported_after(checkout, f"import {', '.join(modules)}") == set()


def test_ray_is_imported_at_its_doors_alone(checkout: Path) -> None:
    found = set()
    for room in ROOMS:
        for path in (checkout / room).rglob("*.py"):
            if any("ray" in _roots(node) for node in ast.walk(ast.parse(path.read_text()))):
                found.add(str(path.relative_to(checkout)))
    assert {path for path in found if not path.startswith("jobs/")} <= RAY_DOORS


def _roots(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {name.name.split(".")[0] for name in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {node.module.split(".")[0]}
    return set()


def test_no_module_is_named_after_a_library(checkout: Path) -> None:
    names = {path.stem for room in ROOMS for path in (checkout / room).rglob("*.py")}
    assert not names & {*HEAVY, "json", "typing", "logging", "random", "datasets"}
