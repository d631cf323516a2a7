"""The training loop: every stage of every method runs through `run_stage`."""

import math
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from fastood.common.seeding import named_generator
from fastood.train.engine.checkpoint import CheckpointFolder, summary
from fastood.train.engine.curve import Curve, write_curve
from fastood.train.engine.failure import StageFailedError
from fastood.train.engine.interrupt import StopRequest, TrainingInterrupted
from fastood.train.engine.processes import any_process, from_first_process
from fastood.train.engine.progress import StageProgress
from fastood.train.engine.slices import load_slices, remove_other_slices
from fastood.train.engine.stage import StageRun
from fastood.train.engine.step_reader import Reading, StepReader

LOG_EVERY = 10
"""Steps between two points of a TensorBoard curve."""


def run_stage(
    run: StageRun,
    *,
    checkpoints: CheckpointFolder,
    checkpoint_every: int,
    tensorboard_folder: Path,
    curves: Path | None = None,
) -> None:
    """Run a stage to its end, starting from its checkpoint if it has one, and close it.

    A terminal shows a bar; a pipe or a file gets a line per epoch.

    Args:
        run: The stage.
        checkpoints: Folder of the stages' checkpoints.
        checkpoint_every: Steps between two checkpoints; the end of the stage is always one.
        tensorboard_folder: Folder of the run's TensorBoard curves; each stage writes into a subfolder.
        curves: File of the run's curves, an entry per epoch; None writes none.

    Raises:
        StageFailedError: If training diverges; names step, images and the last good checkpoint, and is raised from an
            error without the latter.
        TrainingInterrupted: On Ctrl-C or SIGTERM, with the state saved.
    """
    name, fabric = run.name, run.context.fabric
    device = fabric.device
    # Dropout takes no generator: the global one is seeded for the stage and restored afterwards.
    with closing(run), torch.random.fork_rng([device] if device.type == "cuda" else []), StopRequest() as stop:
        seed = named_generator(run.context.seed, run.rng_name, "dropout").initial_seed()
        # By rank, since each process applies dropout to different images.
        torch.manual_seed(seed + fabric.global_rank)
        curve = Curve(run.steps_per_epoch, run.total_steps)

        def load() -> dict[str, Any] | None:
            found = checkpoints.load(name)
            if found is not None:
                # A kill may have come between the checkpoint and the removal of the slices of the one before.
                remove_other_slices(checkpoints.folder, name, found)
            return found

        if (saved := from_first_process(load, fabric)) is not None:
            _resume(run, load_slices(saved, checkpoints.folder, device=device), checkpoints.path(name))
            if "curve" in saved:
                curve.load_state_dict(saved["curve"])
        if run.step < run.total_steps:
            silent = not fabric.is_global_zero
            with (
                open_writer(tensorboard_folder / name, run) as writer,
                StageProgress(name, curve, step=run.step, images_per_step=run.images_per_step, silent=silent) as shown,
            ):
                try:
                    _run_steps(run, writer, curve, shown, stop, checkpoints, checkpoint_every)
                except StageFailedError as error:
                    last = checkpoints.path(name)
                    kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
                    raise type(error)(f"{error}; {kept}") from error
        # For a finished stage as well: a kill may have come between its last checkpoint and this file.
        if curves is not None and curve.entries:
            from_first_process(lambda: write_curve(curves, name, curve.entries), fabric)
        # Checked here and not in the loop: the signal may have come while the last checkpoint was written.
        if any_process(stop.requested, fabric):
            raise TrainingInterrupted(name, run.step, checkpoints.path(name))


def _resume(run: StageRun, saved: dict[str, Any], path: Path) -> None:
    """Load a checkpoint into a stage.

    Raises:
        ValueError: If it is not a state of this stage; the error names the file.
    """
    try:
        run.load_state_dict(saved)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} does not belong to this run, or is damaged: {summary(error)}") from None
    step: Any = run.step
    if type(step) is not int or not 0 <= step <= run.total_steps:
        raise ValueError(f"{path} is damaged: step must be in 0 … {run.total_steps}, got {step!r:.40}")


def _run_steps(
    run: StageRun,
    writer: SummaryWriter | None,
    curve: Curve,
    shown: StageProgress,
    stop: StopRequest,
    checkpoints: CheckpointFolder,
    checkpoint_every: int,
) -> None:
    fabric = run.context.fabric
    reader = StepReader(fabric)
    while run.step < run.total_steps:
        reader.add(run.train_step())
        shown.advance()
        at_end = run.step == run.total_steps
        ends, logs = curve.ends_at(run.step), run.step % LOG_EVERY == 0 or at_end
        saves = run.step % checkpoint_every == 0 or at_end
        if not (ends or logs or saves or run.step % reader.every == 0):
            continue
        scalars = run.scalars() if logs and writer is not None else {}
        reading = reader.read(stop=stop.requested, accuracy_counts=run.take_accuracy_counts(), scalars=scalars)
        first = run.step - len(reading.losses)
        for step, loss in enumerate(reading.losses, first):
            if not math.isfinite(loss):
                raise run.loss_failure(step, loss)
            curve.add(loss=loss)
        curve.add_accuracy_counts(reading.correct, reading.total)
        if logs:
            shown.show_loss(reading.losses[-1])
            if writer is not None:
                log_scalars(writer, run, reading)
        if ends:
            entry = curve.close(run.step, learning_rate=run.learning_rate)
            shown.end_epoch(entry)
            if writer is not None and entry["accuracy"] is not None:
                writer.add_scalar("training_accuracy", entry["accuracy"], run.step)
        if saves or reading.stopping:
            run.require_finite_weights()
            state = run.state_dict() | {"curve": curve.state_dict()}
            if writer is not None:
                writer.flush()
            checkpoints.save_together(run.name, state, step=run.step)
            fabric.barrier()
        if reading.stopping:
            return


def open_writer(folder: Path, run: StageRun) -> AbstractContextManager[SummaryWriter | None]:
    """Open TensorBoard's writer in the first process, which writes all files; None in others."""
    if not run.context.fabric.is_global_zero:
        return nullcontext()
    writer: AbstractContextManager[SummaryWriter | None] = SummaryWriter(str(folder), purge_step=run.step + 1)
    return writer


def log_scalars(writer: SummaryWriter, run: StageRun, reading: Reading) -> None:
    """Add a point to each of the stage's TensorBoard curves."""
    values = {"loss": reading.losses[-1], **reading.scalars}
    if run.learning_rate is not None:
        values["learning_rate"] = run.learning_rate
    for tag, value in values.items():
        writer.add_scalar(tag, value, run.step)
