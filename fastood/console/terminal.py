"""Standard streams that may be closed, full or of a limited encoding without ending a command."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO


class TolerantStream:
    """A text stream that drops its output once it cannot be written; other attributes are those of the stream.

    Args:
        stream: The stream.
        name: Name of the stream in the warning that it cannot be written; None for no warning.

    Example:
        >>> stream = TolerantStream(open("/dev/full", "w"), None)
        >>> print("lost", file=stream, flush=True)
        >>> stream.lost
        True
    """

    def __init__(self, stream: TextIO, name: str | None) -> None:
        self._stream = stream
        self._name = name
        self.lost = False

    def write(self, text: str) -> int:
        """Write, or do nothing once the stream is lost."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing once the stream is lost."""
        self._attempt(self._stream.flush)

    def _attempt(self, work: Callable[[], object]) -> None:
        if self.lost:
            return
        try:
            work()
        except OSError as error:
            self.lost = True
            # Redirected, so that flushing the buffer when the interpreter ends does not fail again.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self._name is not None and not isinstance(error, BrokenPipeError):
                print(f"warning: {self._name} cannot be written: {error}", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_terminal() -> Iterator[None]:
    """Keep errors of stdout and stderr from ending a command.

    Characters that the encoding of a stream lacks are replaced. A closed pipe is ignored; any other error of stdout is
    reported once on stderr.
    """
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by the caller: occupy its descriptor, which the next opened file would get.
            stream = Path(os.devnull).open("w")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
        if not isinstance(stream, TolerantStream):
            stream = TolerantStream(stream, "stdout" if name == "stdout" else None)
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
