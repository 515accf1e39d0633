"""A gang over two nodes: each rank knows its place, and the loss of a node is survived by one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.ray
@pytest.mark.slow
def test_a_gang_goes_on_with_one_node_of_two(checkout: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.two_nodes", str(tmp_path)],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert len({node for node, *_ in told["ranks"]}) == 2
    assert [place for _, *place in told["ranks"]] == [["0", "1", "1"]] * 2
    assert told["said"][0].startswith("a training process was lost")
    assert "starts 1 of at most 2 workers, with room for 1" in told["said"]
    assert "x2" in (tmp_path / "halved" / "log.txt").read_text()  # who wrote the checkpoint
    whole, halved = told["whole"], told["halved"]
    assert whole.keys() == halved.keys()
    assert list(halved.values()) == pytest.approx(list(whole.values()), abs=1e-5)
