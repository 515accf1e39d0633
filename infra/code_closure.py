"""Which files of ours a module uses: what it imports, read from the source, nothing executed."""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

from infra.code_archive import ROOMS, SUFFIXES

_ROOM = rf"\b(?:{'|'.join(ROOMS)})\b"
_IN_BRACKETS = r"\((?:#[^\n]*|[^)#])*\)"
_STATEMENT = re.compile(
    rf"^[ \t]*(import[ \t][^\n]*{_ROOM}[^\n]*"
    rf"|from[ \t]+(?:\.|{_ROOM})[\w.]*[ \t]+import[ \t]*(?:{_IN_BRACKETS}|[^\n]+))",
    re.MULTILINE,
)
"""An import that begins a line, late ones inside functions too. Cutting these out and parsing them
alone is ten times quicker than parsing whole files, and planning waits for it."""

_DATA = "|".join(suffix.removeprefix(".") for suffix in sorted(SUFFIXES - {".py"}))
_DATA_NAME = re.compile(rf"""["']([\w.-]+\.(?:{_DATA}))["']""")


def code_closure(root: Path, module: str) -> frozenset[str]:
    """The first-party files that importing `module` can reach, relative to `root`.

    These are its own file, the modules it imports at any depth (at the top, inside functions, or
    for types alone), the `__init__.py` of every package on the way, and the data files that one of
    them names and that lie beside it. An import by a computed name is not seen.
    """
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for name in _with_packages(waiting.pop()):
            holder = name.rpartition(".")[0].replace(".", "/")
            if name in seen or f"{holder}.py" in found:
                continue  # known, or a function or class of a module that is known
            seen.add(name)
            for file in _files_of(root, name):
                source = (root / file).read_text(encoding="utf-8")
                folder = file.rpartition("/")[0]
                found |= {file, *_data_beside(root / folder, folder, source)}
                waiting += _imported(source, folder.replace("/", "."))
    return frozenset(found)


def _with_packages(name: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c` for `a.b.c`: importing a module imports its packages first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _files_of(root: Path, name: str) -> list[str]:
    """The file of a module or package; none for what is no module of ours, such as a function."""
    path = name.replace(".", "/")
    return [file for file in (f"{path}.py", f"{path}/__init__.py") if (root / file).is_file()]


@cache
def _imported(source: str, package: str) -> frozenset[str]:
    """Every name of ours that a file of `package` imports, modules and what they hold alike."""
    names: set[str] = set()
    for match in _STATEMENT.finditer(source):
        # A line of a docstring may begin like an import and be none.
        with suppress(SyntaxError, ImportError):
            for statement in ast.parse(match[1]).body:
                names.update(_named(statement, package))
    return frozenset(name for name in names if name.split(".")[0] in ROOMS)


def _named(statement: ast.stmt, package: str) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    if isinstance(statement, ast.ImportFrom):
        base = resolve_name("." * statement.level + (statement.module or ""), package)
        yield base
        yield from (f"{base}.{alias.name}" for alias in statement.names)


def _data_beside(path: Path, folder: str, source: str) -> Iterator[str]:
    """The data files in the folder at `path` that a module of it names."""
    return (f"{folder}/{name}" for name in _data_named(source) if (path / name).is_file())


@cache
def _data_named(source: str) -> frozenset[str]:
    return frozenset(_DATA_NAME.findall(source))
