"""Writes checkpoints beside the training: one thread for each rank, one checkpoint at a time."""

import threading
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pipeline.training import checkpoint
from schemas.checkpoint import CheckpointState
from schemas.errors import InfrastructureError

_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 1800.0
"""How long rank 0 waits for the shares of others; a rank that died ends the whole world sooner."""


class ShareWriter:
    """Writes this rank's shares; rank 0's commits when all ranks have written theirs.

    No collective call is made here: that the others are ready stands on the disk.
    """

    def __init__(self, root: Path, *, rank: int, world_size: int) -> None:
        """Write below `root`, for one rank of a world."""
        self._root = root
        self._rank = rank
        self._world_size = world_size
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def start(
        self,
        tensors: dict[str, Tensor],
        state: CheckpointState,
        committed: Callable[[], None],
    ) -> None:
        """Begin to write, after the one before is done; the working folder is there already.

        Args:
            tensors: Nobody else may change them from here on.
            state: Committed by rank 0, when all shares are there.
            committed: Called on rank 0 after the commit.

        Raises:
            DiskFullError, InfrastructureError: Of the write before.
        """
        self.wait()

        def write() -> None:
            try:
                self._write(tensors, state, committed)
            except Exception as error:  # whatever it was, it is raised where the loop can see it
                self._failure = error

        # A daemon: a world that is ending does not wait for what nobody will commit.
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written here any more.

        Raises:
            DiskFullError, InfrastructureError: Of the write.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(
        self, tensors: dict[str, Tensor], state: CheckpointState, committed: Callable[[], None]
    ) -> None:
        folder = checkpoint.working_folder(self._root, state.step)
        checkpoint.write_share(folder, self._rank, tensors)
        if self._rank == 0:
            self._await_others(folder)
            checkpoint.commit(self._root, state)
            committed()

    def _await_others(self, folder: Path) -> None:
        never = threading.Event()
        for _ in range(int(_PATIENCE_SECONDS / _LOOK_SECONDS)):
            if checkpoint.all_written(folder, self._world_size):
                return
            never.wait(_LOOK_SECONDS)
        raise InfrastructureError(
            f"other ranks did not write their part of {folder.name} within "
            f"{_PATIENCE_SECONDS / 60:.0f} minutes",
            hint="look at the storage of the workspace; then run again",
        )
