"""What every test may use: one Ray cluster and one workspace for the session, small threads."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Two noisy cores: time says nothing, and a run must be repeatable.
settings.register_profile("vitrail", deadline=None, derandomize=True)
settings.load_profile("vitrail")

# Before anything imports torch or Ray: tests share two cores, and phone nobody.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@dataclass(frozen=True)
class RaySession:
    """Where the session's cluster listens."""

    address: str
    jobs_server: str


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RaySession]:
    """A one-node Ray cluster with a real Jobs server; this process does not join it."""
    from infra.ray_cluster import import_ray

    import_ray()
    from ray.cluster_utils import Cluster

    port = free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            # Ray's own default is one port for all clusters of a machine.
            "dashboard_agent_listen_port": free_port(),
            "object_store_memory": 128 * 2**20,
        },
    )
    yield RaySession(address=cluster.address, jobs_server=f"http://127.0.0.1:{port}")
    cluster.shutdown()


@pytest.fixture(scope="session")
def ray_session(ray_cluster: RaySession) -> Iterator[RaySession]:
    """The session's cluster, joined by this process."""
    from infra.ray_cluster import cluster

    with cluster(ray_cluster.address):
        yield ray_cluster


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URI of a bucket of the session's S3 server."""
    from tests.support.s3_server import s3_server

    with s3_server() as uri:
        yield uri


@pytest.fixture(scope="module")
def torch_is_left_as_it_was() -> Iterator[None]:
    """A training stage makes torch deterministic; the tests after it get what they began with."""
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]
