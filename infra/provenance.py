"""`Provenance` of a checkout: facts of the machine, the packages and our own source files."""

import hashlib
import importlib.metadata
import platform
import re
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from infra.code_closure import code_closure
from schemas.artifacts import Environment
from schemas.backbones import INSTALL
from schemas.errors import UnreachableError
from schemas.spec import digest_of

DISTRIBUTION = "vitrail"
_GIT_SECONDS = 30
"""A checkout on a slow disk goes without a commit id rather than hold up a stage."""


class LocalProvenance:
    """Fulfils `pipeline.ports.Provenance`; a file is hashed once, when it is first asked for."""

    def __init__(self, root: Path, entry_modules: Mapping[str, str]) -> None:
        """Describe the checkout (or the unpacked copy of it) at `root`.

        `entry_modules` maps a stage kind to the module that makes its artifact.
        """
        self._root = root
        self._entry_modules = entry_modules
        self._sha256: dict[str, str] = {}

    def environment(self, kind: str) -> Environment:
        """Everything that a record keeps; starts git, so planning does not ask for it."""
        commit = self._git("rev-parse", "HEAD")
        changes = self._git("status", "--porcelain") if commit else None
        code_files = self.code_files(kind)
        return Environment(
            python=platform.python_version(),
            platform=platform.platform(),
            cpu=_cpu_model(),
            hostname=socket.gethostname(),
            packages=self._packages,
            code_digest=digest_of(code_files),
            code_files=code_files,
            git_commit=commit,
            git_dirty=None if changes is None else bool(changes),
        )

    def code_files(self, kind: str) -> dict[str, str]:
        """First-party file that a stage of this kind uses, relative to the checkout -> sha256."""
        files = code_closure(self._root, self._entry_modules[kind])
        return {file: self._digest(file) for file in sorted(files)}

    def _digest(self, file: str) -> str:
        if file not in self._sha256:
            content = (self._root / file).read_bytes()
            self._sha256[file] = hashlib.sha256(content).hexdigest()
        return self._sha256[file]

    def library_versions(self, names: Sequence[str]) -> dict[str, str]:
        """Distribution -> installed version, without its local part.

        That names a build (`+cpu`): a laptop and a cluster must find the same artifacts.

        Raises:
            UnreachableError: If one is not installed.
        """
        return {name: _installed(name).partition("+")[0] for name in names}

    @cached_property
    def _packages(self) -> dict[str, str]:
        """Versions of our declared dependencies."""
        names = sorted({_distribution(line) for line in self._requirements()})
        return {name: version for name in names if (version := _version(name)) is not None}

    def _requirements(self) -> list[str]:
        """What we declare, without the extras: of this checkout, or else of what is installed."""
        declared = self._root / "pyproject.toml"
        if declared.is_file():
            project = tomllib.loads(declared.read_text(encoding="utf-8"))["project"]
            return list(project["dependencies"])
        lines = importlib.metadata.requires(DISTRIBUTION) or []
        return [line for line in lines if "extra ==" not in line]

    def _git(self, *arguments: str) -> str | None:
        """The answer of git, or None where there is no git, or no checkout of its own here."""
        git = shutil.which("git")
        if git is None or not (self._root / ".git").exists():
            return None
        try:
            answer = subprocess.run(  # noqa: S603 -- fixed arguments, no shell
                [git, "-C", str(self._root), *arguments],
                capture_output=True,
                text=True,
                timeout=_GIT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None


def _installed(name: str) -> str:
    version = _version(name)
    if version is None:
        raise UnreachableError(
            f"the library {name} is not installed, but this stage needs it",
            hint=INSTALL.get(name, "make setup"),
        )
    return version


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _distribution(requirement: str) -> str:
    """The name at the start of a requirement such as `ray[train]==2.60.*`."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _cpu_model() -> str:
    """The model's name where the system tells it, since results are equal on one kind of CPU."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
