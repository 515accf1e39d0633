"""Where a pipeline's files live: `--workspace`, `VITRAIL_WORKSPACE`, or `.vitrail/` here."""

import os
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UnreachableError


@dataclass(frozen=True)
class Workspace:
    """One folder with store, runs and the default tracker; created only when a run begins."""

    root: Path

    @property
    def store(self) -> Path:
        """The artifact store."""
        return self.root / "store"

    @property
    def runs(self) -> Path:
        """One folder for each run."""
        return self.root / "runs"

    @property
    def tracking_uri(self) -> str:
        """The tracker of a workspace whose user names none."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def require_writable(self) -> None:
        """Create the folder.

        Raises:
            UnreachableError: If that is not possible, or nothing can be written there.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error.strerror or str(error)) from error
        if not os.access(self.root, os.W_OK | os.X_OK) or not self.root.is_dir():
            raise self._not_writable("no permission to write there")

    def _not_writable(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"the workspace {self.root} cannot be used: {why}",
            hint="name another folder with --workspace DIR or VITRAIL_WORKSPACE",
        )


def open_workspace(given: Path | None) -> Workspace:
    """The workspace a command works in; `given` is what the user named."""
    return Workspace((given or Path(".vitrail")).expanduser().resolve())
