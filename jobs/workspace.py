"""Where a pipeline's files live: `--workspace`, `VITRAIL_WORKSPACE`, or `.vitrail/` here."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from infra.atomic_files import write_atomic
from schemas.errors import UnreachableError, UsageError

_STORE_FILE = "store.json"
"""In the workspace: the store that its runs use, if that is not its own folder."""


@dataclass(frozen=True)
class StorePlace:
    """Where artifacts are kept."""

    uri: str
    local: Path
    """Folder for copies of what lies in an object store."""


@dataclass(frozen=True)
class Workspace:
    """One folder with store, runs and the default tracker; created only when a run begins."""

    root: Path
    store_uri: str | None = None
    """Another place for artifacts than the folder `store`; see `open_workspace`."""

    @property
    def store(self) -> StorePlace:
        """The artifact store."""
        return StorePlace(self.store_uri or str(self.root / "store"), self.root / "copies")

    @property
    def runs(self) -> Path:
        """One folder for each run."""
        return self.root / "runs"

    @property
    def tracking_uri(self) -> str:
        """The tracker of a workspace whose user names none."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def require_writable(self) -> None:
        """Create the folder, and remember in it which store its runs use.

        Raises:
            UnreachableError: If that is not possible, or nothing can be written there.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error.strerror or str(error)) from error
        if not os.access(self.root, os.W_OK | os.X_OK) or not self.root.is_dir():
            raise self._not_writable("no permission to write there")
        if self.store_uri is not None and not (self.root / _STORE_FILE).exists():
            write_atomic(self.root / _STORE_FILE, json.dumps({"store": self.store_uri}) + "\n")

    def _not_writable(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"the workspace {self.root} cannot be used: {why}",
            hint="name another folder with --workspace DIR or VITRAIL_WORKSPACE",
        )


def open_workspace(given: Path | None, store: str | None = None) -> Workspace:
    """The workspace a command works in.

    Args:
        given: The folder that the user named.
        store: The store that the user named with `--store`; else `VITRAIL_STORE` counts, else what
            earlier runs in this workspace used, else its own folder.

    Raises:
        UsageError: If the workspace belongs to another store already.
    """
    root = (given or Path(".vitrail")).expanduser().resolve()
    asked = store or os.environ.get("VITRAIL_STORE")
    if asked is not None and "://" not in asked:
        asked = str(Path(asked).expanduser().absolute())
    kept = _kept_store(root)
    if kept is not None and asked is not None and kept != asked:
        raise UsageError(
            f"the runs in {root} keep their artifacts in {kept}, not in {asked}",
            hint="leave out --store and VITRAIL_STORE, or give another --workspace",
        )
    return Workspace(root, asked or kept)


def _kept_store(root: Path) -> str | None:
    try:
        return str(json.loads((root / _STORE_FILE).read_text(encoding="utf-8"))["store"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError) as error:
        raise UnreachableError(
            f"{root / _STORE_FILE} cannot be read: {error}",
            hint='it holds one line such as {"store": "s3://BUCKET/PREFIX"}',
        ) from error
