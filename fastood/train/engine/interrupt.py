"""Ctrl-C, SIGTERM and SIGUSR1 that wait for the end of a step."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop and has saved its state.

    Args:
        stage: Name of the stage that was running.
        step: Steps of the stage that are done and saved.
        checkpoint: File of the saved state.
    """

    def __init__(self, stage: str, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped in stage {stage!r} after step {step}; saved in {checkpoint}")
        self.stage = stage
        self.step = step
        self.checkpoint = checkpoint


class StopRequest:
    """Context in which a first Ctrl-C, SIGTERM or SIGUSR1 only sets `requested`; a second Ctrl-C stops at once.

    Slurm sends SIGUSR1 before it ends or requeues a job that asks for it (`--signal=USR1@120`).

    A signal can fall between the update of the network and that of the pool. Stopping only between steps makes
    the saved state that of an uninterrupted run. Off the main thread, where Python delivers no
    signals, it does nothing.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
