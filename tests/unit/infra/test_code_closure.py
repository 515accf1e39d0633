import ast
from collections.abc import Callable
from importlib.util import resolve_name
from pathlib import Path

import pytest

from infra.code_archive import ROOMS
from infra.code_closure import code_closure
from jobs.wiring import ENTRY_MODULES

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a checkout of the files given as text."""

    def write_all(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write_all


@pytest.mark.parametrize(
    "statement",
    [
        "import pipeline.b",
        "import pipeline.b as other",
        "from pipeline import b",
        "from pipeline import (\n    c,  # (first)\n    b,\n)",
        "from pipeline.b import function",
        "from pipeline.b import *",
        "from . import b",
        "from .b import function",
        "def run():\n    from pipeline.b import function",
        "if True:\n\timport pipeline.b",
    ],
)
def test_every_form_of_import_is_followed(statement: str, write: Write) -> None:
    root = write({"pipeline/a.py": f"import os\n{statement}\n", "pipeline/b.py": ""})
    assert code_closure(root, "pipeline.a") == {"pipeline/a.py", "pipeline/b.py"}


def test_packages_count_with_what_they_import(write: Write) -> None:
    root = write(
        {
            "jobs/a.py": "from pipeline.inner.deep import b\n",
            "pipeline/__init__.py": "",
            "pipeline/inner/__init__.py": "import schemas.c\n",
            "pipeline/inner/deep/b.py": "",
            "pipeline/inner/unused.py": "",
            "schemas/c.py": "from ..jobs import unused\n",
            "jobs/unused.py": "",
        }
    )
    assert code_closure(root, "jobs.a") == {
        "jobs/a.py",
        "pipeline/__init__.py",
        "pipeline/inner/__init__.py",
        "pipeline/inner/deep/b.py",
        "schemas/c.py",
    }


def test_a_circle_of_imports_ends(write: Write) -> None:
    root = write({"jobs/a.py": "import jobs.b\n", "jobs/b.py": "import jobs.a\n"})
    assert code_closure(root, "jobs.b") == {"jobs/a.py", "jobs/b.py"}


def test_prose_and_other_libraries_are_no_imports_of_ours(write: Write) -> None:
    text = '"""Text\nimport pipeline into your heart\n"""\nimport torch.nn\nfrom torch import b\n'
    root = write({"pipeline/a.py": text, "pipeline/b.py": "", "torch/b.py": ""})
    assert code_closure(root, "pipeline.a") == {"pipeline/a.py"}


def test_a_data_file_counts_with_the_module_beside_it_that_names_it(write: Write) -> None:
    root = write(
        {
            "pipeline/a.py": 'TEMPLATE = "page.html.j2"\nELSEWHERE = "spec.yaml"\n',
            "pipeline/b.py": "",
            "pipeline/page.html.j2": "",
            "pipeline/README.md": "",
            "schemas/spec.yaml": "",
        }
    )
    assert code_closure(root, "pipeline.a") == {"pipeline/a.py", "pipeline/page.html.j2"}
    assert code_closure(root, "pipeline.b") == {"pipeline/b.py"}


def test_evaluation_rests_on_the_model_and_not_on_training_or_commands(checkout: Path) -> None:
    used = code_closure(checkout, "jobs.evaluate")
    assert {
        "jobs/evaluate.py",
        "pipeline/model/vit.py",
        "pipeline/evaluation/classify.py",
        "pipeline/evaluation/figures.py",
        "schemas/spec.py",
    } <= used
    assert not used & {"jobs/cli.py", "jobs/stage_task.py", "infra/storage.py"}
    assert not [file for file in used if file.startswith(("pipeline/training/", "pipeline/dag/"))]


def test_training_rests_on_what_its_workers_import_late(checkout: Path) -> None:
    used = code_closure(checkout, "jobs.train")
    assert {"pipeline/training/zero.py", "jobs/train_worker.py", "infra/worker_gang.py"} <= used


def test_the_report_rests_on_its_templates(checkout: Path) -> None:
    templates = (checkout / "pipeline/evaluation/report").glob("*.j2")
    named = {f"pipeline/evaluation/report/{path.name}" for path in templates}
    assert named
    assert named <= code_closure(checkout, "jobs.report")


@pytest.mark.parametrize("module", sorted(set(ENTRY_MODULES.values())))
def test_the_quick_look_sees_every_import_that_the_parser_sees(module: str, checkout: Path) -> None:
    used = code_closure(checkout, module)
    sources = [file for file in used if file.endswith(".py")]
    assert set(sources) >= {found for file in sources for found in imports(checkout, file)}


def imports(checkout: Path, file: str) -> set[str]:
    """The files of ours that a file imports, from its whole syntax tree."""
    package = file.rpartition("/")[0].replace("/", ".")
    names: set[str] = set()
    for node in ast.walk(ast.parse((checkout / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    paths = (name.replace(".", "/") for name in names if name.split(".")[0] in ROOMS)
    files = (file for path in paths for file in (f"{path}.py", f"{path}/__init__.py"))
    return {file for file in files if (checkout / file).is_file()}
