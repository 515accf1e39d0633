"""The errors a user can meet, each a sentence with its exit code.

VitrailError
+-- UsageError         2    a command line that cannot be understood
+-- SpecError          3    a spec that breaks a rule
+-- UnreachableError   4    cluster, tracker or store cannot be reached
+-- StageFailedError   1    a stage raised
|   +-- DiskFullError  1    the disk (or quota) is full
|   +-- DataError      1    the data itself cannot be used
|   +-- OutOfMemoryError  1  a process wanted more memory than there is
+-- IntegrityError     6    stored bytes are not what was written
+-- GateError          7    a measurement is not what its gate asks for
+-- PausedError       75    stopped on request; `run` goes on from here
"""


class VitrailError(Exception):
    """What went wrong, where, and what to try next; printed without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        """Hold a sentence, and optionally a place (file:line or spec path) and an exact command."""
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """The lines that a person reads."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes whole: Ray pickles what a task raises."""
        return _rebuild, (type(self), self.what, self.where, self.hint)


def _rebuild(
    kind: type[VitrailError], what: str, where: str | None, hint: str | None
) -> VitrailError:
    return kind(what, where=where, hint=hint)


class UsageError(VitrailError):
    """The command line cannot be understood."""

    exit_code = 2


class SpecError(VitrailError):
    """A spec breaks a rule; the sentence names the field and what is allowed."""

    exit_code = 3


class UnreachableError(VitrailError):
    """The cluster, the tracker or the store cannot be reached."""

    exit_code = 4


class StageFailedError(VitrailError):
    """A stage could not make its artifact."""


class DiskFullError(StageFailedError):
    """No space is left where the artifact has to go; nothing was torn."""


class DataError(StageFailedError):
    """The data cannot be used as asked: too few rows, too many rejections, no such split."""


class OutOfMemoryError(StageFailedError):
    """A process wanted more memory than there is; worth one try with smaller micro-batches."""


class InfrastructureError(VitrailError):
    """The machinery under a stage failed (a process or a node was lost); worth another try."""


class IntegrityError(VitrailError):
    """Stored bytes differ from what was written."""

    exit_code = 6


class PausedError(VitrailError):
    """Stopped on request after a checkpoint."""

    exit_code = 75


class GateError(VitrailError):
    """A measurement is not what its gate asks for; everything was made all the same."""

    exit_code = 7
