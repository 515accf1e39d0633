"""Free what a dead gang holds: Ray keeps its places, and so its processes, until the job ends.

The controller of Ray Train notes the placement group of its workers in the stage's progress, so
that whoever starts the next gang of the stage can free it. One of Ray's doors.

Ray Train's own cleaner is left out. It asks the State API whether the controller lives, which finds
the Ray that was started last on the machine; where that is another one, with a dashboard, it hears
of no such controller, and ends a healthy gang.
"""

import os
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

_NOTES = "places-*.txt"


class NotePlaces(WorkerGroupCallback):  # type: ignore[misc]  # Ray has no types
    """Runs inside Ray Train's controller."""

    def __init__(self, storage: Path) -> None:
        """Keep the notes in `storage`."""
        self._storage = storage

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Note the places as soon as they are taken."""
        # How long processes are waited for to leave their group, also those that never will.
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._storage.mkdir(parents=True, exist_ok=True)
        (self._storage / _NOTES.replace("*", group.id.hex())).touch()


class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """Ray Train without its own cleaner of places."""

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()
        return [each for each in made if not isinstance(each, PlacementGroupCleanerCallback)]


def free_places(storage: Path) -> None:
    """Free the places that gangs of this stage have noted; those that are free already stay so.

    The key of the stage must be held: then no gang of it is alive but those that were lost.
    """
    for note in storage.glob(_NOTES):
        number = note.stem.removeprefix("places-")
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))
        note.unlink(missing_ok=True)
