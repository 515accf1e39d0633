"""`vitrail doctor`: what of this machine would trouble a run, and the fix for each."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pydantic import Field

from infra.code_archive import ROOMS, checkout_root
from infra.ray_cluster import node_cpus
from jobs.console import print_document, stderr, stdout, table
from jobs.workspace import Workspace, open_workspace
from schemas.spec import Semantic, Spec

_PINNED = ("torch", "ray", "deepspeed", "mlflow")
_LOW_DISK_BYTES = 5 * 10**9
_LOW_SHARED_MEMORY_BYTES = 512 * 2**20
_GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Ray puts its object store


class Finding(Spec):
    """One check: what was looked at, whether it is well, and what to do if not."""

    check: Semantic[str]
    ok: Semantic[bool]
    found: Semantic[str]
    fix: Semantic[str | None] = None


class Diagnosis(Spec):
    """`vitrail doctor --output json`."""

    schema_version: Semantic[int] = 1
    findings: Semantic[tuple[Finding, ...]] = Field(min_length=1)


def examine(folder: Path | None, output: str) -> bool:
    """Print every check; True if any of them needs attention."""
    workspace = open_workspace(folder)
    findings = tuple(_checks(workspace))
    if output == "json":
        print_document(Diagnosis(findings=findings))
    else:
        rows = [(("ok" if item.ok else "fix"), item.check, item.found) for item in findings]
        stdout().print(table(("state", "check", "found"), rows))
        for item in findings:
            if not item.ok and item.fix:
                stderr().print(f"{item.check}: {item.fix}", markup=False)
    return not all(item.ok for item in findings)


def _checks(workspace: Workspace) -> Iterator[Finding]:
    yield _python()
    yield _rooms()
    yield from _versions()
    yield _accelerator()
    yield _workspace(workspace)
    yield _disk(workspace)
    yield _shared_memory()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        check="python",
        ok=(3, 11) <= sys.version_info[:2] < (3, 13),
        found=f"{found}, {node_cpus()} cores",
        fix="make a virtual environment with Python 3.11 or 3.12: make setup PYTHON=python3.11",
    )


def _rooms() -> Finding:
    """The generic names of our packages must resolve to one checkout."""
    root = checkout_root()
    strays = [room for room in ROOMS if not (root / room / "__init__.py").is_file()]
    return Finding(
        check="packages",
        ok=not strays,
        found=f"{', '.join(strays)} not in {root}" if strays else str(root),
        fix="another distribution took one of our package names; reinstall with make setup",
    )


def _versions() -> Iterator[Finding]:
    wanted = {
        line.split("==")[0].strip().lower(): line.split("==")[1].split(";")[0].strip(" \"'")
        for line in metadata.requires("vitrail") or ()
        if "==" in line and "extra" not in line
    }
    for name in _PINNED:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        pin = next((value for key, value in wanted.items() if key.startswith(name)), "")
        yield Finding(
            check=name,
            ok=found.startswith(pin.rstrip("*")),
            found=found,
            fix=f"pip install {name}=={pin}",
        )


def _accelerator() -> Finding:
    import torch

    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    driver = Path("/proc/driver/nvidia/version").exists()
    return Finding(
        check="accelerator",
        ok=bool(count) or not driver,
        found=", ".join(names) or "none; training runs on the CPU",
        fix="an NVIDIA driver is loaded but torch sees no GPU: install the CUDA build of torch",
    )


def _workspace(workspace: Workspace) -> Finding:
    existing = next(path for path in (workspace.root, *workspace.root.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return Finding(
        check="workspace",
        ok=writable,
        found=f"{workspace.root}{'' if writable else ' is not writable'}",
        fix="name another folder with --workspace or VITRAIL_WORKSPACE",
    )


def _disk(workspace: Workspace) -> Finding:
    existing = next(path for path in (workspace.root, *workspace.root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Finding(
        check="disk",
        ok=free >= _LOW_DISK_BYTES,
        found=f"{free / _GIB:.1f} GiB free",
        fix="free some space or move the workspace; `vitrail plan` prints the bytes needed",
    )


def _shared_memory() -> Finding:
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.exists() else 0
    return Finding(
        check="shared memory",
        ok=free >= _LOW_SHARED_MEMORY_BYTES,
        found=f"{free / _GIB:.1f} GiB free in {_SHARED_MEMORY}",
        fix="Ray needs 512 MiB there; in a container add --shm-size=1g",
    )
