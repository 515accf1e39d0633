"""A real S3 server in this process, reached through the network as any other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "photos"
_KEYS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-7f3a",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve an empty bucket; the environment says where it is and who may use it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    kept = {name: os.environ.get(name) for name in (*_KEYS, "AWS_ENDPOINT_URL")}
    os.environ.update(_KEYS, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    try:
        client().create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        client.cache_clear()
        server.stop()


@cache
def client() -> Any:
    """Who talks to the server beside the code under test."""
    return boto3.client("s3")


def put(key: str, data: bytes) -> str:
    """Write an object; returns its URI."""
    client().put_object(Bucket=BUCKET, Key=key, Body=data)
    return f"s3://{BUCKET}/{key}"


def upload(folder: Path, uri: str) -> str:
    """Copy a file, or all files below a folder, to a URI; returns it."""
    prefix = uri.removeprefix(f"s3://{BUCKET}/")
    if folder.is_file():
        return put(prefix, folder.read_bytes())
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            put(f"{prefix}/{file.relative_to(folder)}", file.read_bytes())
    return uri
