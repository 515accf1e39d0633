"""A real MLflow server on this machine, for tests: started, stopped and started again."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.mlflow_tracking import ui_address, ui_command, ui_environment
from tests.conftest import free_port

_START_SECONDS = 120.0


class MlflowServer:
    """Serves the SQLite file and artifacts of one workspace, by the command of `vitrail ui`."""

    def __init__(self, workspace: Path) -> None:
        """Take a port; nothing is started."""
        self.uri = f"sqlite:///{workspace / 'mlflow.db'}"
        self.artifact_root = workspace / "mlartifacts"
        self._port = free_port()
        self.address = ui_address(self._port)
        self._log = workspace / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = ui_command(self.uri, artifact_root=self.artifact_root, port=self._port)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | ui_environment(), stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and its workers."""
        if self._process is None:
            return
        family = psutil.Process(self._process.pid)
        processes = [family, *family.children(recursive=True)]
        family.terminate()
        _, alive = psutil.wait_procs(processes, timeout=20)
        for process in alive:
            process.kill()
        self._process.wait()
        self._process = None

    def get(self, path: str) -> bytes:
        """The body that the server answers."""
        with urllib.request.urlopen(f"{self.address}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def _answers(self) -> bool:
        try:
            return self.get("/health") == b"OK"
        except urllib.error.URLError:
            return False


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The session's server, running; a test that stops it starts it again."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
