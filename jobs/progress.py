"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from infra.pace_file import pace_path, read_pace
from jobs.console import is_terminal, stderr
from jobs.stage_task import append_line
from pipeline.training.meter import in_words
from schemas.runs import TrainingPace

_BAR_WIDTH = 24


class LogTail:
    """Whole new lines of a growing file."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of the file, which need not exist yet."""
        self._path = path
        self._offset = 0

    def new_lines(self) -> list[str]:
        """Lines that were completed since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


class RunView:
    """Shows stages as they start, speak and end."""

    def __init__(self, log: Path) -> None:
        """Show what is written to `log`, by the controller and by the stages alike."""
        self._console = stderr()
        self._log = log
        self._tail = LogTail(log)
        self._began = time.monotonic()
        self._running: dict[str, tuple[float, str]] = {}
        self._live: Live | None = None
        if is_terminal():
            self._live = Live(console=self._console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Print what is left, and leave the terminal as it was."""
        self.refresh()
        if self._live:
            self._live.stop()

    def stage_started(self, stage: str) -> None:
        """A stage has begun."""
        self._running[stage] = (time.monotonic(), "")
        self.say(f"{stage}: started")

    def stage_ended(self, stage: str, status: str, message: str | None = None) -> None:
        """A stage has ended."""
        began, _ = self._running.pop(stage, (time.monotonic(), ""))
        tail = f": {message}" if message else ""
        self.say(f"{stage}: {status} after {time.monotonic() - began:.1f} s{tail}")

    def say(self, text: str) -> None:
        """Add a line to the run's log, and so to what is seen."""
        append_line(self._log, text)

    def refresh(self) -> None:
        """Print new log lines and draw the running stages again."""
        for text in self._tail.new_lines():
            stage, _, said = text.partition(": ")
            if self._live and said and stage in self._running:
                self._running[stage] = (self._running[stage][0], said)
            else:
                stamp = f"{time.monotonic() - self._began:7.1f} s  "
                self._console.print(stamp + text, markup=False)
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        drawn = Table.grid(padding=(0, 2))
        for stage, (began, said) in self._running.items():
            spent = f"{time.monotonic() - began:.0f} s"
            pace = read_pace(pace_path(self._log.parent, stage))
            shown = escape(said) if pace is None else bar(pace)
            drawn.add_row(Spinner("dots", text=escape(stage)), spent, shown)
        return drawn


def bar(pace: TrainingPace) -> RenderableType:
    """A training stage in one line: how far it is, how fast it goes, how long it will take."""
    words = [f"{pace.step:,}/{pace.total_steps:,}", *in_words(pace)]
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(total=pace.total_steps, completed=pace.step, width=_BAR_WIDTH),
        "  ".join(words),
    )
    return line
