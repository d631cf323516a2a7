"""Stages that train on images, with the training step that most methods share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastood.common.seeding import named_generator
from fastood.console.wording import some
from fastood.data import Images
from fastood.data.loaders import open_loader
from fastood.train.acceleration import compile_in_place, memory_format
from fastood.train.engine.background import Background
from fastood.train.engine.failure import LinAlgError, NonFiniteLossError, StageFailedError
from fastood.train.engine.objective import Batch, Objective
from fastood.train.engine.prefetch import PrefetchedBatches
from fastood.train.engine.processes import (
    mean_of_processes,
    of_every_process,
    of_whole_batch,
    require_equal_shares,
    share_of,
)
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Embed, StageContext, Weights, load_all
from fastood.train.engine.stream import EpochStream
from fastood.train.engine.sync_batch_norm import synchronize_batch_norm
from fastood.train.engine.training_accuracy import AccuracyCounter

NormMode = Literal["eval", "train"]


@dataclass(frozen=True, kw_only=True)
class ImageStage:
    """Training on batches of in-distribution and background images: initial weights, data, loss and schedule."""

    name: str
    """Name in checkpoints, progress bars and TensorBoard."""
    rng_name: str
    """Name of the RNG streams; stages that share it see the same in-distribution batches."""
    schedule: Schedule
    """Length and optimiser."""
    build_model: Callable[[], nn.Module]
    """Builds the stage's network with the run's initial weights, the same at each call."""
    objective: Callable[[], Objective]
    """Builds the loss when the stage begins."""
    batch_size: int
    """In-distribution images in a batch."""
    start_from: str | None = None
    """Earlier stage that supplies the initial weights; None for the run's initial ones."""
    needs: tuple[str, ...] = ()
    """Earlier stages that supply anything but weights, such as a learnt pool."""
    take_over: Callable[[Any, Weights, Embed], None] = load_all
    """Puts those weights into the network, which may have another head."""
    id_index: Tensor | None = None
    """In-distribution images to train on, int64 `[n]`; None for all."""
    background: Callable[[], Background] | None = None
    """Builds the source of background images when the stage begins; None trains on in-distribution images alone."""
    batch_norm: NormMode = "train"
    """Whether BatchNorm learns its statistics ("train") or keeps and uses them ("eval")."""
    dropout: bool = True
    """Whether dropout is active."""

    def begin(self, model: nn.Module, context: StageContext) -> "ImageStageRun":
        """Start with a network that already holds the weights that the stage begins with; it is trained in place."""
        return ImageStageRun(self, model, context)


class ImageStageRun:
    """An `ImageStage` in progress.

    Args:
        stage: Stage to run.
        model: Network, already holding the weights that the stage begins with; trained in place.
        context: Images, device and seed of the run.
    """

    def __init__(self, stage: ImageStage, model: nn.Module, context: StageContext) -> None:
        task, fabric, seed = context.task, context.fabric, context.seed
        self.stage = stage
        self.name, self.rng_name, self.context = stage.name, stage.rng_name, context
        self.task = task
        self.fabric = fabric
        self.model = model.to(memory_format=memory_format(context.channels_last))
        if stage.batch_norm == "train":
            self.model = synchronize_batch_norm(self.model, fabric)
        self.objective = stage.objective()
        self.optimizer = stage.schedule.build_optimizer(self.model)
        self._forward, self._stepper = fabric.setup(self.model, self.optimizer)
        set_mode(self._forward, stage)
        decay = context.ema_decay
        self.average = None if decay is None else average_of(self.model, decay)
        compile_in_place(self.model, context.compile)
        self.id_index = torch.arange(len(task.id_train)) if stage.id_index is None else stage.id_index
        self.order = EpochStream(len(self.id_index), stage.batch_size, named_generator(seed, stage.rng_name, "order"))
        # Separate generators: stages with the same rng_name see the same pixels, regardless of their background.
        self.background = stage.background() if stage.background is not None else None

        def batches(images: Images, choose: Callable[[], Tensor], batch_size: int, name: str) -> PrefetchedBatches:
            try:
                require_equal_shares(f"the batch of stage {stage.name!r}", batch_size, fabric.world_size)
            except ValueError as error:
                # Only the number of images that learnt weights select cannot be checked before training.
                raise StageFailedError(str(error)) from None
            share = batch_size // fabric.world_size
            return PrefetchedBatches(
                open_loader(context.loading, images, context.augment, batch_size=share, device=fabric.device),
                choose,
                augment=context.augment,
                height=images.shape[2],
                generator=named_generator(seed, stage.rng_name, name),
                share=partial(share_of, fabric=fabric),
            )

        self.id_batches = batches(task.id_train.images, self._next_id, self.order.batch_size, "augment-id")
        self.background_batches = None
        if self.background is not None:
            source = self.background
            self.background_batches = batches(
                task.background.images, source.draw, source.batch_size, "augment-background"
            )
        self.step = 0
        self.steps_per_epoch: int | None = self.order.batches_per_epoch
        self.total_steps = stage.schedule.epochs * self.order.batches_per_epoch
        self.images_per_step = self.order.batch_size + (0 if self.background is None else self.background.batch_size)
        self._accuracy = AccuracyCounter(task.num_classes)

    def train_step(self) -> float:
        """Train on one batch: a joint forward of ID and background images, a backward, and both updates.

        Returns:
            The loss.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite, or cannot be computed because a value is; no weight of
                network or pool has moved then.
        """
        epoch = self.step / self.order.batches_per_epoch
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.schedule.learning_rate_at(epoch)
        # Indices are those of the whole batch; images, labels and importance those of this process's share.
        id_index, batch = self.id_batches.next()
        labels = self.task.id_train.labels[share_of(id_index, self.fabric)]
        id_count = len(labels)
        importance: Tensor | None = None
        background_index: Tensor | None = None
        if self.background is not None and self.background_batches is not None:
            background_index, background = self.background_batches.next()
            background_importance = self.background.importance(background_index)
            batch = torch.cat([batch, background])
            labels = torch.cat([labels, self.task.background.labels[share_of(background_index, self.fabric)]])
            if background_importance is not None:
                importance = torch.cat([torch.ones(id_count), share_of(background_importance, self.fabric)])

        device = self.fabric.device
        labels = labels.to(device)
        problem: str | None = None
        try:
            loss, per_sample = self.objective(
                cast(nn.Module, self._accuracy.counting(self._forward, labels[:id_count])),
                Batch(
                    images=batch,
                    labels=labels,
                    importance=None if importance is None else importance.to(device),
                ),
            )
        except (LinAlgError, ValueError) as error:
            if not self._has_diverged(error):
                raise
            # Other processes may have a finite loss: the mean with a NaN stops them as well.
            problem, loss, per_sample = str(error), torch.tensor(math.nan, device=device), torch.empty(0)
        value = mean_of_processes(loss.detach(), self.fabric)
        if not math.isfinite(value):
            problems = [text for text in of_every_process(problem, self.fabric) if text is not None]
            problems.append(f"the loss is {value}")
            raise NonFiniteLossError(self._describe(problems[0], id_index, background_index))
        self._stepper.zero_grad()
        self.fabric.backward(loss)
        self._stepper.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.background is not None and background_index is not None:
            self.background.observe(background_index, of_whole_batch(per_sample[id_count:], self.fabric).cpu())
        self.step += 1
        return value

    def _has_diverged(self, error: Exception) -> bool:
        """Return whether an operator refused values that are not finite, rather than an argument."""
        if isinstance(error, LinAlgError) or "finite" in str(error) or "NaN" in str(error):
            return True
        return not all(torch.isfinite(value).all() for value in self.model.state_dict().values())

    def _next_id(self) -> Tensor:
        return self.id_index[self.order.next()]

    def _describe(self, problem: str, id_index: Tensor, background_index: Tensor | None) -> str:
        drawn = [] if background_index is None else background_index.tolist()
        return (
            f"stage {self.stage.name!r}, step {self.step} of {self.total_steps}: {problem}; "
            f"in-distribution images {some(id_index.tolist())}; background images {some(drawn)}"
        )

    def require_finite_weights(self) -> None:
        """Raise `NonFiniteLossError` if a parameter or a BatchNorm statistic is NaN or infinite."""
        for name, value in self.model.state_dict().items():
            if not torch.isfinite(value).all():
                raise NonFiniteLossError(
                    f"stage {self.stage.name!r}, step {self.step} of {self.total_steps}: {name} is not finite"
                )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def take_accuracy_counts(self) -> tuple[int, int]:
        """Return the correctly classified and all training images of this process since the last call."""
        return self._accuracy.take()

    def scalars(self) -> dict[str, float]:
        """Return the learning rate, and the values of the background."""
        rate = {"learning_rate": self.learning_rate}
        return rate if self.background is None else rate | self.background.scalars()

    def close(self) -> None:
        """End the processes and threads that load images."""
        for batches in (self.id_batches, self.background_batches):
            if batches is not None:
                batches.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another process resumes exactly."""
        random_state = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "model": (self.model if self.average is None else self.average.module).state_dict(),
            "averaged": None
            if self.average is None
            else {"training": self.model.state_dict(), "steps": self.average.n_averaged},
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "order": self.order.state_dict(),
            "id_batches": self.id_batches.state_dict(),
            "background_batches": None if self.background_batches is None else self.background_batches.state_dict(),
            "background": None if self.background is None else self.background.state_dict(),
            "dropout": of_every_process(random_state, self.fabric),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`.

        Raises:
            ValueError: If the state is that of a stage of another length, another number of processes or another
                prefetch depth.
        """
        if len(state["dropout"]) != self.fabric.world_size:
            raise ValueError(
                f"the checkpoint of stage {self.stage.name!r} must be of {self.fabric.world_size} processes, "
                f"got {len(state['dropout'])}: resume with as many as it was written by"
            )
        if state["total_steps"] != self.total_steps:
            raise ValueError(
                f"the checkpoint of stage {self.stage.name!r} must be of {self.total_steps} steps, "
                f"got {state['total_steps']}"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"] if self.average is None else state["averaged"]["training"])
        if self.average is not None:
            self.average.module.load_state_dict(state["model"])
            self.average.n_averaged.copy_(state["averaged"]["steps"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.order.load_state_dict(state["order"])
        self.id_batches.load_state_dict(state["id_batches"])
        if self.background is not None and self.background_batches is not None:
            self.background.load_state_dict(state["background"])
            self.background_batches.load_state_dict(state["background_batches"])
        random_state = state["dropout"][self.fabric.global_rank]
        torch.set_rng_state(random_state["cpu"])
        if self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(random_state["cuda"], self.fabric.device)


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential running average of a network's weights and of its BatchNorm statistics."""
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def set_mode(model: nn.Module, stage: ImageStage) -> None:
    """Set BatchNorm and dropout to the stage's modes, all other modules to training mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(stage.batch_norm == "train")
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.train(stage.dropout)
