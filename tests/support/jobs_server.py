"""A small HTTP server that answers as a Ray Jobs server does, or as a broken one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


@dataclass
class Answers:
    """What the server says to each path, and what it was told."""

    address: str = ""
    by_path: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    """Status and document; the last one of a path stays."""
    posted: list[dict[str, Any]] = field(default_factory=list)

    def take(self, path: str) -> tuple[int, Any]:
        """The next answer for a path; 404 where there is none."""
        answers = self.by_path.get(path, [(404, "Job does not exist")])
        return answers.pop(0) if len(answers) > 1 else answers[0]


def job(status: str, **more: Any) -> dict[str, Any]:
    """A record of the job `run-1`."""
    return {
        "type": "SUBMISSION",
        "entrypoint": "x",
        "submission_id": "run-1",
        "status": status,
    } | more


@contextmanager
def jobs_server() -> Iterator[Answers]:
    """A server for the length of a `with` block."""
    answers = Answers()
    answers.by_path["/api/version"] = [(200, {"ray_version": ray.__version__})]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = answers.take(self.path)
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            answers.posted.append(json.loads(self.rfile.read(size) or b"{}"))
            self.do_GET()

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    answers.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
