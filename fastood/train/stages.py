"""Training of a run's stages in order; a failed stage excludes the arms that depend on it, and no others."""

import sys
from collections.abc import Mapping

from lightning_fabric import Fabric
from torch import Tensor

from fastood.train.engine.failure import LinAlgError, StageFailedError, StageFailure, reason_of
from fastood.train.engine.loop import run_stage
from fastood.train.engine.processes import from_first_process
from fastood.train.engine.slices import gathered
from fastood.train.engine.stage import Embed, Stage, StageContext
from fastood.train.failed_stages import failed_arms, learnt_pool_of, with_dependants
from fastood.train.method import Method
from fastood.train.run_folder import RunFolder


def train_stages(
    method: Method, folder: RunFolder, context: StageContext, *, embed: Embed, checkpoint_every: int
) -> None:
    """Train a method's stages, each from its checkpoint if there is one, and store the arms' weights and the pool.

    Stages that failed before are reported and not repeated. The first of several processes alone reads and writes the
    folder.

    Args:
        method: The method.
        folder: The run's folder.
        context: Images, device and settings that the stages share.
        embed: Computes features, for stages that begin with statistics of them.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        StageFailedError: If every arm has failed.
        OSError: If the folder cannot be written.
        ValueError: If a checkpoint is damaged.
        TrainingInterrupted: On Ctrl-C or SIGTERM; the run can be resumed.
    """
    fabric = context.fabric
    failed = from_first_process(folder.read_failures, fabric)
    for before in failed.values():
        _warn(fabric, f"failed before, and is not repeated ({folder.failures}): {before.describe()}")
    for stage in method.stages:
        if stage.name in with_dependants(method, failed):
            continue
        failure = _train_or_fail(stage, folder, context, embed, checkpoint_every)
        if failure is not None:
            failed[stage.name] = failure
            from_first_process(lambda: folder.write_failures(failed), fabric)
    arms = failed_arms(method, failed)
    if len(arms) == len(method.arms):
        raise StageFailedError(f"every arm has failed: {next(iter(failed.values())).describe()}")

    def write_weights() -> None:
        for arm in method.arms:
            if arm.name not in arms:
                folder.write_weights(arm.name, _final_weights(folder, arm.stage))

    from_first_process(write_weights, fabric)
    if (learnt := learnt_pool_of(method, failed)) is not None:
        state = {name: gathered(tensor) for name, tensor in learnt.pool.state_dict().items()}
        state["effective_sample_sizes"] = learnt.effective_sample_sizes
        background = context.task.background_digest()
        from_first_process(lambda: folder.write_pool(state, background=background), fabric)


def _train_or_fail(
    stage: Stage, folder: RunFolder, context: StageContext, embed: Embed, checkpoint_every: int
) -> StageFailure | None:
    """Train a stage to its end, or return why it failed."""
    step, steps = 0, None
    try:
        model = stage.build_model()
        path = folder.checkpoints.path(stage.name)
        # A checkpoint of the stage itself holds all that it began with.
        if stage.start_from is not None and not from_first_process(path.exists, context.fabric):
            base = stage.start_from
            weights = from_first_process(lambda: _final_weights(folder, base), context.fabric)
            try:
                stage.take_over(model, weights, embed)
            except (LinAlgError, ValueError) as error:
                # The initial weights of the stage are computed from those that its base has learnt.
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
        _warn(context.fabric, f"failed: {failure.describe()}; the arms that do not need it continue")
        return failure
    return None


def _final_weights(folder: RunFolder, stage: str) -> dict[str, Tensor]:
    """Return the weights that a stage ended with.

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


def _warn(fabric: Fabric, text: str) -> None:
    if fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)
