"""Stores on a disk and in a bucket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.s3_server import s3_server
from tests.support.stores import Place


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store of each kind: what is promised holds for both."""
    if request.param == "disk":
        return Place(str(tmp_path / "store"), tmp_path / "store")
    uri = request.getfixturevalue("bucket")
    return Place(f"{uri}/{tmp_path.name}/store", tmp_path / "local")


@pytest.fixture
def store(place: Place) -> Any:
    return place.open()
