"""The training loop: every stage of every method runs through `run_stage`."""

from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from fastood.data.seeding import named_generator
from fastood.training.checkpoint import CheckpointFolder, summary
from fastood.training.failure import StageFailedError
from fastood.training.interrupt import StopRequest, TrainingInterrupted
from fastood.training.method import StageRun
from fastood.training.processes import any_process, from_first_process

LOG_EVERY = 10
"""Steps between two points of a TensorBoard curve."""


def run_stage(
    run: StageRun,
    *,
    checkpoints: CheckpointFolder,
    checkpoint_every: int,
    tensorboard_folder: Path,
) -> None:
    """Run a stage to its end, from its checkpoint if it has one, and close it.

    Args:
        run: The stage.
        checkpoints: Where its state is kept.
        checkpoint_every: Steps between two checkpoints; the end of the stage is always one.
        tensorboard_folder: Folder of the run's curves; the stage writes into one of its own.

    Raises:
        StageFailedError: If training diverges; names step, images and the last good checkpoint, and is raised from an
            error without the latter.
        TrainingInterrupted: On Ctrl-C or SIGTERM, with the state saved.
    """
    name, fabric = run.name, run.context.fabric
    device = fabric.device
    # Dropout knows no generator of its own: the global one is seeded for the stage and put back afterwards.
    with closing(run), torch.random.fork_rng([device] if device.type == "cuda" else []), StopRequest() as stop:
        # By rank, for each process drops out of images of its own.
        torch.manual_seed(named_generator(run.context.seed, run.draws, "dropout").initial_seed() + fabric.global_rank)
        if (saved := from_first_process(lambda: checkpoints.load(name), fabric)) is not None:
            _go_on(run, saved, checkpoints.path(name))
        if run.step < run.total_steps:
            bar_options = {"total": run.total_steps, "initial": run.step, "disable": not fabric.is_global_zero}
            with (
                open_writer(tensorboard_folder / name, run) as writer,
                tqdm(desc=name, unit="step", mininterval=0.5, **bar_options) as bar,
            ):
                try:
                    _run_steps(run, writer, bar, stop, checkpoints, checkpoint_every)
                except StageFailedError as error:
                    last = checkpoints.path(name)
                    kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
                    raise type(error)(f"{error}; {kept}") from error
        # Asked here and not in the loop: the signal may have come while the last checkpoint was written.
        if any_process(stop.requested, fabric):
            raise TrainingInterrupted(name, run.step, checkpoints.path(name))


def _go_on(run: StageRun, saved: dict[str, Any], path: Path) -> None:
    """Load a checkpoint into a stage.

    Raises:
        ValueError: If it is no state of this stage; names the file.
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
    bar: "tqdm[None]",
    stop: StopRequest,
    checkpoints: CheckpointFolder,
    checkpoint_every: int,
) -> None:
    fabric = run.context.fabric
    while run.step < run.total_steps:
        loss = run.train_step()
        at_end, stopping = run.step == run.total_steps, any_process(stop.requested, fabric)
        if run.step % LOG_EVERY == 0 or at_end:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if writer is not None:
                log_scalars(writer, run, loss)
        if run.step % checkpoint_every == 0 or at_end or stopping:
            run.require_finite_weights()
            state = run.state_dict()
            if writer is not None:
                writer.flush()
                checkpoints.save(run.name, state)
            fabric.barrier()
        bar.update()
        if stopping:
            return


def open_writer(folder: Path, run: StageRun) -> AbstractContextManager[SummaryWriter | None]:
    """TensorBoard's writer in the first process, which writes all files; None in others."""
    if not run.context.fabric.is_global_zero:
        return nullcontext()
    writer: AbstractContextManager[SummaryWriter | None] = SummaryWriter(str(folder), purge_step=run.step + 1)
    return writer


def log_scalars(writer: SummaryWriter, run: StageRun, loss: float) -> None:
    """One point on each of the stage's TensorBoard curves."""
    for tag, value in {"loss": loss, **run.scalars()}.items():
        writer.add_scalar(tag, value, run.step)
