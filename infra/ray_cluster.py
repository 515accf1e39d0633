"""Start or join a Ray cluster, and prove that its nodes can work here. One of Ray's doors."""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import UnreachableError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's uv hook would resolve an environment in every worker; ours is already installed.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # A CPU stage must not lose sight of GPUs that a later stage in the same process needs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
_EMBEDDED_OBJECT_STORE_BYTES = 128 * 2**20
"""Stages exchange files, not objects: the smallest useful store leaves memory for training."""
_PROBE_SECONDS = 120
"""For every node to start a process and to answer."""


def import_ray() -> Any:
    """Ray itself, imported late and made quiet."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def node_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def cluster(address: str | None, *, code: Path | None = None) -> Iterator[Any]:
    """Ray for the length of a `with` block: embedded, or the running cluster at `address`.

    Args:
        address: `host:port` of a cluster's GCS, `auto`, or None for a cluster of this process.
        code: Folder with our packages, to be shipped to the nodes of a cluster that lacks them.

    Raises:
        UnreachableError: If nothing answers at the address.
    """
    ray = import_ray()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {
            "num_cpus": max(2, node_cpus()),
            "include_dashboard": False,
            "object_store_memory": _EMBEDDED_OBJECT_STORE_BYTES,
        }
        # Without this an address in the environment would make "embedded" mean something else.
        options["address"] = "local"
    else:
        options["address"] = _checked(address)
        if code is not None:
            options["runtime_env"] = {"working_dir": str(code)}
    try:
        if address is None:
            _start_deaf_to_sigterm(ray, options)
        else:
            ray.init(**options)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise _not_started(address, error) from error
    try:
        yield ray
    finally:
        with suppress(Exception):  # shutting down must never hide what happened before it
            ray.shutdown()


def _start_deaf_to_sigterm(ray: Any, options: dict[str, Any]) -> None:
    """Start Ray here so that none of its processes, and none of theirs, ever hears SIGTERM.

    Service managers, batch systems and `timeout` send it to all processes at once. It is for this
    one to end the others, once the stages have left a checkpoint.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(**options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Ray ends them with SIGTERM, and waits a second for each before it takes the signal they hear.
    for started in ray._private.worker._global_node.all_processes.values():  # noqa: SLF001
        for each in started:
            each.process.terminate = each.process.kill


def _checked(address: str) -> str:
    """The address, after a quick look whether anything listens there (Ray itself waits minutes)."""
    if address == "auto":
        return address
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    if parts.scheme in {"http", "https"}:
        raise UnreachableError(
            f"{address} is a Jobs server; `run --address` takes a cluster address such as "
            "host:6379, `submit --address` takes the Jobs server",
            hint=f"vitrail submit SPEC --address {address}",
        )
    check_listens(parts.hostname or "", parts.port or 6379, address)
    return address


def check_listens(host: str, port: int, address: str) -> None:
    """Raise `UnreachableError` unless something accepts connections at host and port."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _not_started(address: str | None, error: Exception) -> UnreachableError:
    if address is not None:
        return _unreachable(address, error)
    return UnreachableError(
        f"Ray could not start on this machine: {_first_line(error)}",
        hint="look at the space in /dev/shm and in the temporary folder; Ray's own logs are in "
        "/tmp/ray/session_latest/logs",
    )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unreachable(address: str, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"no Ray cluster answers at {address}: {_first_line(error)}",
        hint="start one with `ray start --head`, or leave out --address to run on this machine",
    )


def require_shared(ray: Any, folder: Path) -> None:
    """Prove that every node of the cluster can read and write `folder`.

    Raises:
        UnreachableError: Naming the first node that cannot, or if the nodes do not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nonce = secrets.token_hex(8)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{nonce}"
    probe.write_text(nonce)
    echo = ray.remote(num_cpus=0, max_retries=1)(_echo)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answers = [
            echo.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(probe), node["NodeManagerAddress"])
            for node in nodes
        ]
        for node, answer in zip(nodes, _told(ray, answers), strict=True):
            if answer != nonce:
                raise UnreachableError(
                    f"node {node['NodeManagerAddress']} cannot use the store at {folder}: {answer}",
                    hint="give --workspace a folder that every node of the cluster mounts",
                )
    finally:
        for left in folder.glob(f".probe-{nonce}*"):
            left.unlink(missing_ok=True)


def _told(ray: Any, answers: list[Any]) -> list[str]:
    try:
        told: list[str] = ray.get(answers, timeout=_PROBE_SECONDS)
    except ray.exceptions.RayError as error:  # no answer in time, or no process could be set up
        raise UnreachableError(
            f"the nodes of the cluster cannot run a task: {type(error).__name__}: "
            f"{_first_line(error)}",
            hint="`ray status` tells which nodes are alive; they need our Python and packages",
        ) from error
    return told


def _echo(path: str, node: str) -> str:
    """The content of the probe, if this node can read it and write beside it."""
    try:
        text = Path(path).read_text()
        Path(f"{path}-{node}").write_text(text)
    except OSError as error:
        return str(error)
    return text
