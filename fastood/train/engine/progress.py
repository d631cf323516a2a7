"""Progress of a stage: a bar on a terminal, a line per epoch in a pipe or a file."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

from fastood.train.engine.curve import Curve, Entry


def on_terminal() -> bool:
    """Return whether both output and errors go to a terminal, not into a pipe or a file."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class StageProgress:
    """Progress bar or lines of one stage.

    Args:
        name: Name of the stage.
        curve: Curve of the stage, which holds its length.
        step: Steps done before.
        images_per_step: Images of a step; 0 for a stage that trains on none.
        silent: Show nothing; set in all processes but the first.
    """

    def __init__(self, name: str, curve: Curve, *, step: int, images_per_step: int, silent: bool = False) -> None:
        self._name, self._curve, self._images_per_step = name, curve, images_per_step
        self._has_bar = on_terminal()
        self._has_lines = not silent and not self._has_bar
        self._bar = tqdm(
            desc=name,
            unit="step",
            mininterval=0.5,
            total=curve.total_steps,
            initial=step,
            disable=silent or not self._has_bar,
        )
        self._began, self._step = time.monotonic(), step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def show_loss(self, loss: float) -> None:
        """Show the loss of the last step next to the bar."""
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def advance(self) -> None:
        """Count a step."""
        self._bar.update()

    def end_epoch(self, entry: Entry) -> None:
        """Print a line for an epoch, or a part of a stage without epochs."""
        now, step = time.monotonic(), int(entry["step"] or 0)
        seconds, steps = now - self._began, step - self._step
        self._began, self._step = now, step
        if self._has_lines:
            rate = steps * self._images_per_step / max(seconds, 1e-9)
            print(progress_line(self._name, self._curve, entry, seconds=seconds, images_per_second=rate), flush=True)


def progress_line(name: str, curve: Curve, entry: Entry, *, seconds: float, images_per_second: float) -> str:
    """Return the line of an entry.

    Example:
        >>> entry = {"epoch": 1, "step": 9, "loss": 0.5, "accuracy": 0.875, "learning_rate": 0.1}
        >>> progress_line("oe", Curve(9, 18), entry, seconds=2.0, images_per_second=1234.5)
        'oe: epoch 1/2, step 9/18, loss 0.5000, training accuracy 87.50 %, learning rate 0.1, 2.0 s, 1,234 images/s'
    """
    parts = [] if entry["epoch"] is None else [f"epoch {entry['epoch']}/{curve.epochs}"]
    parts += [f"step {entry['step']}/{curve.total_steps}", f"loss {entry['loss']:.4f}"]
    if entry["accuracy"] is not None:
        parts.append(f"training accuracy {100 * entry['accuracy']:.2f} %")
    if entry["learning_rate"] is not None:
        parts.append(f"learning rate {entry['learning_rate']:.3g}")
    parts.append(f"{seconds:.1f} s")
    if images_per_second > 0:
        parts.append(f"{images_per_second:,.0f} images/s")
    return f"{name}: {', '.join(parts)}"
