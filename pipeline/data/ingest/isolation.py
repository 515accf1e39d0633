"""Keeps decoders that hang or crash from taking a build down, at no cost while all goes well.

A unit's images are decoded in the process of its task. A marker file says that this has begun, and
goes when it has ended, well or with an error. A decoder that crashes takes the process along, and
one that hangs is ended with it by the system's alarm clock, which waits for no lock; in both cases
the marker stays. Whoever takes the unit up next, a retry or another driver, finds it and decodes
the images of this unit in a child process, where a crash or a hang costs one image and no more.
Prepared bytes are the same either way. A task that was killed for other reasons leaves a marker,
too: its unit then costs a child process once (about 2 s), and nothing else.

`python -m pipeline.data.ingest.isolation FD` is the child.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.data.images.prepare import Prepared, Rejection, prepare
from schemas.data import ImageSpec
from schemas.errors import InfrastructureError

Prepare = Callable[[bytes], Prepared | Rejection]

_TRIES = 2
"""A decoder that dies in a fresh process once more did not die of somebody else's fault."""
_START_SECONDS = 300.0
"""For a child to import what it needs, on a machine that has other things to do."""


@contextlib.contextmanager
def preparing(marker: Path, spec: ImageSpec, *, hashes: bool) -> Iterator[Prepare]:
    """Yield what prepares the images of one unit, as `pipeline.data.images.prepare` does.

    An image over `spec.decode_seconds`, or one that kills its process, ends this process the first
    time; in the next attempt at the unit it is a `decode_timeout` or a `decoder_crash`.

    Args:
        marker: A file of this unit alone, in a folder that the next attempt sees.
        spec: How images are stored.
        hashes: Whether perceptual hashes and thumbnails are made.
    """
    before = signal.getitimer(signal.ITIMER_REAL)
    try:
        if marker.exists():
            with Child(spec, hashes=hashes) as child:
                yield child.prepare
        else:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            yield _alarmed(spec, hashes=hashes)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        marker.unlink(missing_ok=True)


def _alarmed(spec: ImageSpec, *, hashes: bool) -> Prepare:
    def prepared(data: bytes) -> Prepared | Rejection:
        # Nobody handles this signal, so it ends the process, even inside a decoder's own loop.
        signal.setitimer(signal.ITIMER_REAL, spec.decode_seconds)
        try:
            return prepare(data, spec, hashes=hashes)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return prepared


class Child:
    """A process that prepares one image at a time; started when needed, and again once it died."""

    def __init__(self, spec: ImageSpec, *, hashes: bool) -> None:
        """Start nothing yet."""
        self._spec = spec
        self._hashes = hashes
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None

    def __enter__(self) -> Self:
        """Nothing runs before the first image."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self._end()

    def prepare(self, data: bytes) -> Prepared | Rejection:
        """As `pipeline.data.images.prepare.prepare`, whatever the decoder does."""
        for _ in range(_TRIES):
            channel = self._channel or self._start()
            try:
                channel.send_bytes(data)
                if not channel.poll(self._spec.decode_seconds):
                    self._end()
                    return Rejection(
                        "decode_timeout", f"not decoded within {self._spec.decode_seconds:g} s"
                    )
                result: Prepared | Rejection = channel.recv()
            except (EOFError, ConnectionError):
                self._end()
            else:
                return result
        # Not how it died: the same fault may end in one signal or in another.
        return Rejection("decoder_crash", "the decoder died, and the process that it ran in")

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own module, in our own Python
                [sys.executable, "-m", "pipeline.data.ingest.isolation", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[3],
            )
        self._channel = ours
        if not self._greeted(ours):
            self._end()
            raise InfrastructureError(
                f"a process to decode images in did not start, or not within {_START_SECONDS:g} s"
            )
        return ours

    def _greeted(self, channel: Connection) -> bool:
        """Say how images are stored, and hear that everything is imported."""
        with contextlib.suppress(EOFError, ConnectionError):
            channel.send((self._spec.dump(), self._hashes))
            if channel.poll(_START_SECONDS):
                channel.recv()
                return True
        return False

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._channel is not None:
            self._channel.close()
        self._process = self._channel = None


def main() -> None:
    """Prepare what comes in until nothing more comes."""
    # A parent that is killed cannot end us; the alarm does, should the decoder hang by then.
    channel = Connection(int(sys.argv[1]))
    fields, hashes = channel.recv()
    spec = ImageSpec.parse(fields)
    import torch  # noqa: F401  # what the first resize would import is not part of its time

    channel.send(None)
    run = _alarmed(spec.revise(decode_seconds=2 * spec.decode_seconds), hashes=hashes)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            channel.send(run(channel.recv_bytes()))


if __name__ == "__main__":
    main()
