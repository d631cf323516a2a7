"""The stages of a run, one after the other: a stage that fails costs the arms that stand on it, and no other."""

import sys
from collections.abc import Mapping

from torch import Tensor

from fastood.data.loaders import EncodedImages, LoaderPlan, plan_loader
from fastood.train.engine.failure import (
    LinAlgError,
    StageFailedError,
    StageFailure,
    failed_arms,
    learnt_pool_of,
    reason_of,
    with_dependants,
)
from fastood.train.engine.loop import run_stage
from fastood.train.engine.processes import from_first_process
from fastood.train.method import Stage, StageContext
from fastood.train.run import Run
from fastood.train.run_folder import RunFolder


def loader_plan(run: Run) -> LoaderPlan:
    """Return the plan of how training images get to the device.

    Raises:
        ValueError: If DALI is asked for and not installed, or resident for images that are decoded as they are used.
    """
    images = (run.task.id_train.images, run.task.background.images)
    data = run.config.data
    return plan_loader(
        data.loader,
        data.prefetch_depth,
        image_bytes=sum(part.nbytes for part in images),
        device=run.fabric.device,
        encoded=any(isinstance(part, EncodedImages) for part in images),
    )


def train_stages(run: Run, folder: RunFolder, *, checkpoint_every: int) -> dict[str, StageFailure]:
    """Run the method's stages, each from its checkpoint if it has one, and store weights and pool.

    The first of several processes alone reads and writes the folder.

    Returns:
        Arms without weights, since a stage under them failed.

    Raises:
        StageFailedError: If every arm has failed.
        OSError: If the folder cannot be written.
        ValueError: If a checkpoint is damaged.
        TrainingInterrupted: On Ctrl-C or SIGTERM; the run can be resumed.
    """
    loading = loader_plan(run)
    run.fabric.print(loading, flush=True)
    config = run.config
    context = StageContext(
        task=run.task,
        augment=config.augment,
        seed=config.seed,
        fabric=run.fabric,
        precision=config.precision,
        loading=loading,
        channels_last=config.channels_last,
        compile=config.compile,
        ema_decay=config.ema_decay,
    )
    failed = from_first_process(folder.read_failures, run.fabric)
    for before in failed.values():
        _warn(run, f"failed before, and is not repeated ({folder.failures}): {before.describe()}")
    for stage in run.method.stages:
        if stage.name in with_dependants(run.method, failed):
            continue
        failure = _run_or_fail(run, folder, stage, context, checkpoint_every)
        if failure is not None:
            failed[stage.name] = failure
            if run.fabric.is_global_zero:
                folder.write_failures(failed)
    arms = failed_arms(run.method, failed)
    if len(arms) == len(run.method.arms):
        raise StageFailedError(f"every arm has failed: {next(iter(failed.values())).describe()}")
    if run.fabric.is_global_zero:
        for arm in run.method.arms:
            if arm.name not in arms:
                folder.write_weights(arm.name, _final_weights(folder, arm.stage))
        if (learnt := learnt_pool_of(run.method, failed)) is not None:
            state = {**learnt.pool.state_dict(), "effective_sample_sizes": learnt.effective_sample_sizes}
            folder.write_pool(state, background=run.task.background.sha256())
    return arms


def _run_or_fail(
    run: Run, folder: RunFolder, stage: Stage, context: StageContext, checkpoint_every: int
) -> StageFailure | None:
    """Run a stage to its end, or return why it has none."""
    step, steps = 0, None
    try:
        model = stage.build_model()
        path = folder.checkpoints.path(stage.name)
        # A checkpoint of the stage itself holds all that it began with.
        if stage.start_from is not None and not from_first_process(path.exists, run.fabric):
            base = stage.start_from
            weights = from_first_process(lambda: _final_weights(folder, base), run.fabric)
            try:
                stage.take_over(model, weights, run.embed)
            except (LinAlgError, ValueError) as error:
                # What the stage begins with is computed from what the base has learnt.
                raise StageFailedError(f"it cannot begin with the weights of stage {base!r}: {error}") from error
        started = stage.begin(model, context)
        steps = started.total_steps
        try:
            run_stage(
                started,
                checkpoints=folder.checkpoints,
                checkpoint_every=checkpoint_every,
                tensorboard_folder=folder.tensorboard,
                curves=folder.curves,
            )
        finally:
            step = started.step
    except StageFailedError as error:
        failure = reason_of(
            error.__cause__ if isinstance(error.__cause__, StageFailedError) else error,
            stage=stage.name,
            step=step,
            steps=steps,
        )
        _warn(run, f"failed: {failure.describe()}; the arms that do not need it go on")
        return failure
    return None


def _final_weights(folder: RunFolder, stage: str) -> dict[str, Tensor]:
    """The weights that a stage has ended with.

    Raises:
        ValueError: If its checkpoint is missing or damaged.
    """
    path = folder.checkpoints.path(stage)
    state = folder.checkpoints.load(stage)
    if state is None:
        raise ValueError(f"{path} does not exist, which stage {stage!r} has written: begin the run again")
    if not isinstance(weights := state.get("model"), Mapping):
        raise ValueError(f"{path} is damaged: it holds no weights")
    return dict(weights)


def _warn(run: Run, text: str) -> None:
    if run.fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)
