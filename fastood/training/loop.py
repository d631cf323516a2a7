"""The training loop: every stage of every method runs through `run_stage`."""

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from fastood.data import Augment, DetectionTask
from fastood.data.loaders import LoaderPlan, open_loader
from fastood.data.seeding import named_generator
from fastood.models import Classifier
from fastood.training.checkpoint import CheckpointFolder
from fastood.training.interrupt import StopRequest, TrainingInterrupted
from fastood.training.prefetch import PrefetchedBatches
from fastood.training.stage import Stage
from fastood.training.stream import EpochStream

LOG_EVERY = 10
"""Steps between two points of a TensorBoard curve."""


RESIDENT = LoaderPlan(name="resident", prefetch_depth=0, reason="the default")


class NonFiniteLossError(ArithmeticError):
    """The loss or a weight became NaN or infinite; the message names the step and its images."""


class StageRun:
    """A stage in progress: everything that changes while it runs, and so everything that is saved.

    Args:
        stage: What to run.
        model: Network, already holding the weights that the stage begins with; trained in place.
        task: Images to train on.
        augment: Turns uint8 images into network input.
        seed: Seed of the run.
        fabric: Device and precision.
        loading: How images get to the device; by default from its memory.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        model: Classifier,
        task: DetectionTask,
        augment: Augment,
        seed: int,
        fabric: Fabric,
        loading: LoaderPlan = RESIDENT,
    ) -> None:
        self.stage = stage
        self.task = task
        self.fabric = fabric
        # channels_last convolutions take about half the time on a CPU and use the tensor cores on a GPU.
        self.model = model.to(memory_format=torch.channels_last)
        self.optimizer = stage.schedule.optimizer(self.model)
        self._forward, self._stepper = fabric.setup(self.model, self.optimizer)
        set_mode(self._forward, stage)
        self.order = EpochStream(len(task.id_train), stage.batch_size, named_generator(seed, stage.draws, "order"))
        # One each: stages that share draws then see the same pixels, whatever background stands beside them.
        self.background = stage.background() if stage.background is not None else None

        def batches(images: Tensor, choose: Callable[[], Tensor], batch_size: int, name: str) -> PrefetchedBatches:
            return PrefetchedBatches(
                open_loader(loading, images, augment, batch_size=batch_size, device=fabric.device),
                choose,
                augment=augment,
                height=images.shape[2],
                generator=named_generator(seed, stage.draws, name),
            )

        self.id_batches = batches(task.id_train.images, self.order.next, self.order.batch_size, "augment-id")
        self.background_batches = None
        if self.background is not None:
            source = self.background
            self.background_batches = batches(
                task.background.images, source.draw, source.batch_size, "augment-background"
            )
        self.step = 0
        self.total_steps = stage.schedule.epochs * self.order.batches_per_epoch

    def train_step(self) -> float:
        """One batch: a joint forward of ID and background images, a backward, and both updates.

        Returns:
            The loss.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; no weight of network or pool has moved then.
        """
        epoch = self.step / self.order.batches_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.schedule.learning_rate_at(epoch)
        id_index, batch = self.id_batches.next()
        labels = self.task.id_train.labels[id_index]
        importance: Tensor | None = None
        background_index: Tensor | None = None
        if self.background is not None and self.background_batches is not None:
            background_index, background = self.background_batches.next()
            background_importance = self.background.importance(background_index)
            batch = torch.cat([batch, background])
            labels = torch.cat([labels, self.task.background.labels[background_index]])
            if background_importance is not None:
                importance = torch.cat([torch.ones(len(id_index)), background_importance])

        device = self.fabric.device
        logits = self._forward(batch)
        loss, per_sample = self.stage.loss.with_per_sample(
            logits, labels.to(device), None if importance is None else importance.to(device)
        )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLossError(self._describe(f"the loss is {value}", id_index, background_index))
        self._stepper.zero_grad()
        self.fabric.backward(loss)
        self._stepper.step()
        if self.background is not None and background_index is not None:
            self.background.observe(background_index, per_sample[len(id_index) :].cpu())
        self.step += 1
        return value

    def _describe(self, problem: str, id_index: Tensor, background_index: Tensor | None) -> str:
        drawn = "none" if background_index is None else background_index.tolist()
        return (
            f"stage {self.stage.name!r}, step {self.step} of {self.total_steps}: {problem}; "
            f"in-distribution images {id_index.tolist()}, background images {drawn}"
        )

    def require_finite_weights(self) -> None:
        """Raise `NonFiniteLossError` if a parameter or a BatchNorm statistic is NaN or infinite."""
        for name, value in self.model.state_dict().items():
            if not torch.isfinite(value).all():
                raise NonFiniteLossError(
                    f"stage {self.stage.name!r}, step {self.step} of {self.total_steps}: {name} is not finite"
                )

    def close(self) -> None:
        """End the processes and threads that load images."""
        for batches in (self.id_batches, self.background_batches):
            if batches is not None:
                batches.close()

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on exactly as this one would."""
        random_state = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.state_dict(),
            "id_batches": self.id_batches.state_dict(),
            "background_batches": None if self.background_batches is None else self.background_batches.state_dict(),
            "background": None if self.background is None else self.background.state_dict(),
            "dropout": random_state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: If it is of a stage of another length, or of batches drawn further or less far ahead.
        """
        if state["total_steps"] != self.total_steps:
            raise ValueError(
                f"the checkpoint of stage {self.stage.name!r} must be of {self.total_steps} steps, "
                f"got {state['total_steps']}"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.load_state_dict(state["order"])
        self.id_batches.load_state_dict(state["id_batches"])
        if self.background is not None and self.background_batches is not None:
            self.background.load_state_dict(state["background"])
            self.background_batches.load_state_dict(state["background_batches"])
        torch.set_rng_state(state["dropout"]["cpu"])
        if self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout"]["cuda"], self.fabric.device)


def set_mode(model: nn.Module, stage: Stage) -> None:
    """Put BatchNorm and dropout into the stage's modes, everything else into training mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(stage.batch_norm == "train")
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.train(stage.dropout)


def run_stage(
    run: StageRun,
    *,
    seed: int,
    checkpoints: CheckpointFolder,
    checkpoint_every: int,
    tensorboard_folder: Path,
) -> None:
    """Run a stage to its end, from its checkpoint if it has one, and close it.

    Args:
        run: The stage.
        seed: Seed of the run.
        checkpoints: Where its state is kept.
        checkpoint_every: Steps between two checkpoints; the end of the stage is always one.
        tensorboard_folder: Folder of the run's curves; the stage writes into one of its own.

    Raises:
        NonFiniteLossError: If training diverges; names step, images and the last good checkpoint.
        TrainingInterrupted: On Ctrl-C or SIGTERM, with the state saved.
    """
    name = run.stage.name
    devices = [run.fabric.device] if run.fabric.device.type == "cuda" else []
    # Dropout knows no generator of its own: the global one is seeded for the stage and put back afterwards.
    with closing(run), torch.random.fork_rng(devices), StopRequest() as stop:
        torch.manual_seed(named_generator(seed, run.stage.draws, "dropout").initial_seed())
        if (saved := checkpoints.load(name)) is not None:
            run.load_state_dict(saved)
        if run.step < run.total_steps:
            with (
                SummaryWriter(str(tensorboard_folder / name), purge_step=run.step + 1) as writer,
                tqdm(desc=name, total=run.total_steps, initial=run.step, unit="step", mininterval=0.5) as bar,
            ):
                try:
                    _run_steps(run, writer, bar, stop, checkpoints, checkpoint_every)
                except NonFiniteLossError as error:
                    last = checkpoints.path(name)
                    kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
                    raise NonFiniteLossError(f"{error}; {kept}") from None
        # Asked here and not in the loop: the signal may have come while the last checkpoint was written.
        if stop.requested:
            raise TrainingInterrupted(name, run.step, checkpoints.path(name))


def _run_steps(
    run: StageRun,
    writer: SummaryWriter,
    bar: "tqdm[None]",
    stop: StopRequest,
    checkpoints: CheckpointFolder,
    checkpoint_every: int,
) -> None:
    while run.step < run.total_steps:
        loss = run.train_step()
        at_end, stopping = run.step == run.total_steps, stop.requested
        if run.step % LOG_EVERY == 0 or at_end:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            log_scalars(writer, run, loss)
        if run.step % checkpoint_every == 0 or at_end or stopping:
            run.require_finite_weights()
            writer.flush()
            checkpoints.save(run.stage.name, run.state_dict())
        bar.update()
        if stopping:
            return


def log_scalars(writer: SummaryWriter, run: StageRun, loss: float) -> None:
    """One point on each of the stage's TensorBoard curves."""
    scalars = {"loss": loss, "learning_rate": run.optimizer.param_groups[0]["lr"]}
    if run.background is not None:
        scalars |= run.background.scalars()
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, run.step)
