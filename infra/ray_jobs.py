"""Pipelines as Ray jobs, through the Jobs server of a cluster. One of Ray's doors."""

import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from infra.ray_cluster import check_listens, import_ray
from schemas.errors import UnreachableError, UsageError

T = TypeVar("T")

_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
"""How long a server may fail to answer before it counts as gone."""
_NOT_READY = "No available agent"
"""Ray's words while no node has a process that starts jobs."""
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_STOP_WAIT_SECONDS = "120"
"""Between SIGTERM and SIGKILL of a stopped job: long enough to finish a step and a checkpoint."""


class JobServer:
    """The Jobs API at one address."""

    def __init__(self, address: str, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        """Connect.

        Args:
            address: Of the form http://host:port.
            patience_seconds: How long a question is repeated to a server that fails to answer.

        Raises:
            UnreachableError: If no Jobs server answers there.
            UsageError: If the address is not of the form http://host:port.
        """
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"{address!r} is not the address of a Jobs server; write http://HOST:8265"
            )
        check_listens(parts.hostname, parts.port or 8265, address)
        import_ray()
        from ray.job_submission import JobSubmissionClient

        self.address = address
        self._patience_seconds = patience_seconds
        try:
            self._client = JobSubmissionClient(address)
        except Exception as error:
            raise UnreachableError(
                f"the server at {address} is not a Ray Jobs server: {error}",
                hint="start the cluster with `ray start --head` and give the dashboard's address",
            ) from error

    def submit(
        self, entrypoint: Sequence[str], *, name: str, code: Path, metadata: dict[str, str]
    ) -> tuple[str, bool]:
        """Start a job, or adopt the one of this name that is still running.

        Args:
            entrypoint: Arguments of the cluster's Python; the word `{job}` stands for the
                submission id.
            name: The same work has the same name; attempts are numbered behind it.
            code: Folder that becomes the job's working directory.
            metadata: Shown beside the job.

        Returns:
            The submission id, and whether a running job was adopted.
        """
        attempts = self._attempts(name)
        running = [job for job, status in attempts.items() if status not in _ENDED]
        if running:
            return running[0], True
        job = f"{name}-{len(attempts) + 1}"
        command = shlex.join(job if word == "{job}" else word for word in entrypoint)
        request = {
            "entrypoint": f"{_python()} {command}",
            "submission_id": job,
            "metadata": metadata,
            "runtime_env": {
                "working_dir": str(code),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_WAIT_SECONDS},
            },
        }
        try:
            self._submit(request)
        except (RuntimeError, OSError) as error:  # what `requests` raises is an OSError
            if "already exists" in str(error):  # somebody submitted the same in the meantime
                return job, True
            raise UnreachableError(f"{self.address} refused the job: {error}") from error
        return job, False

    def _submit(self, request: dict[str, Any]) -> None:
        """Submit; a cluster that has just started is given time to become able to take jobs."""
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                self._client.submit_job(**request)
            except RuntimeError as error:
                if _NOT_READY not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _attempts(self, name: str) -> dict[str, str]:
        known = self._ask(self._client.list_jobs) or []
        jobs = [job for job in known if job.submission_id]
        mine = [job for job in jobs if job.submission_id.rpartition("-")[0] == name]
        return {job.submission_id: str(job.status.value) for job in mine}

    def info(self, submission_id: str) -> Any | None:
        """Ray's record of a job (`status`, `message`, `driver_exit_code`, `metadata`).

        Returns:
            None only if the server answers that it knows no such job.

        Raises:
            UnreachableError: If the server does not answer, as all questions here.
        """
        return self._ask(lambda: self._client.get_job_info(submission_id))

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None if the server does not know what was asked about."""
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                return question()
            except (RuntimeError, OSError) as error:  # what `requests` raises is an OSError
                if "status code 404" in str(error):
                    return None
                if time.monotonic() >= deadline:
                    raise UnreachableError(
                        f"the Jobs server at {self.address} does not answer: {error}",
                        hint="ask again later; the job itself may go on",
                    ) from error
            time.sleep(min(_POLL_SECONDS, self._patience_seconds))

    def status(self, submission_id: str) -> str | None:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; None for an unknown job."""
        info = self.info(submission_id)
        return None if info is None else str(info.status.value)

    def wait(self, submission_id: str, *, timeout_seconds: float | None = None) -> str | None:
        """The status once the job has ended, or the last one when the time is over."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (status := self.status(submission_id)) not in {*_ENDED, None}:
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        return status

    def logs(self, submission_id: str) -> str:
        """Everything the job has printed so far; nothing for an unknown job."""
        return self._ask(lambda: self._client.get_job_logs(submission_id)) or ""

    def follow(self, submission_id: str) -> Iterator[str]:
        """The job's output as it comes, until the job has ended.

        The end of the stream is not the end of the job (a proxy may cut it), so the stream is
        taken up again, behind what was seen, until the status says that the job is over.
        """
        seen = 0
        while True:
            ended = self.status(submission_id) in {*_ENDED, None}
            text = self.logs(submission_id)
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            if ended:
                return
            with suppress(Exception):  # a broken stream is not an error: the loop goes on
                for piece in _tail(self._client, submission_id, skip=seen):
                    seen += len(piece)
                    yield piece
            time.sleep(_POLL_SECONDS)

    def stop(self, submission_id: str) -> None:
        """Ask Ray to end the job: SIGTERM first."""
        self._ask(lambda: self._client.stop_job(submission_id))


def _python() -> str:
    """Shell words for the cluster's Python: ours where the head is this machine, else its own."""
    mine = shlex.quote(sys.executable)
    return f"$(test -x {mine} && echo {mine} || echo python)"


def _tail(client: Any, submission_id: str, *, skip: int) -> Iterator[str]:
    """New output of the log stream, which always begins at the beginning."""
    loop = asyncio.new_event_loop()
    stream = client.tail_job_logs(submission_id)
    passed = 0
    try:
        while True:
            piece: str = loop.run_until_complete(anext(stream))
            fresh = piece[max(0, skip - passed) :]
            passed += len(piece)
            if fresh:
                yield fresh
    except StopAsyncIteration:
        return
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()
