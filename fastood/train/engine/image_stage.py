"""Stages that train on images, with the training step that most methods share."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastood.common.seeding import named_generator
from fastood.train.acceleration import compile_in_place, memory_format
from fastood.train.engine.background import Background
from fastood.train.engine.failure import LinAlgError, NonFiniteLossError
from fastood.train.engine.objective import Objective
from fastood.train.engine.processes import of_every_process
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Embed, StageContext, Weights, load_all
from fastood.train.engine.stage_batches import StageBatches, StepImages
from fastood.train.engine.step_reader import READ_EVERY
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
    background: Callable[[StageContext], Background] | None = None
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

    On a GPU a step waits for the device in two cases alone: a loader with workers needs the images that a pool on the
    device has drawn, and processes that divide a pool need the number of their draws.

    Args:
        stage: Stage to run.
        model: Network, already holding the weights that the stage begins with; trained in place.
        context: Images, device and seed of the run.
    """

    def __init__(self, stage: ImageStage, model: nn.Module, context: StageContext) -> None:
        task, fabric = context.task, context.fabric
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
        self.batches = StageBatches(
            context,
            name=stage.name,
            rng_name=stage.rng_name,
            id_index=torch.arange(len(task.id_train)) if stage.id_index is None else stage.id_index,
            batch_size=stage.batch_size,
            background=stage.background(context) if stage.background is not None else None,
        )
        self.background = self.batches.background
        self.order = self.batches.order
        self.step = 0
        self.steps_per_epoch: int | None = self.order.batches_per_epoch
        self.total_steps = stage.schedule.epochs * self.order.batches_per_epoch
        self.images_per_step = self.order.batch_size + (0 if self.background is None else self.background.batch_size)
        self._accuracy = AccuracyCounter(task.num_classes)
        self._recent: deque[_Step] = deque(maxlen=READ_EVERY)
        # Reading a loss on the CPU costs nothing, and stops a diverged step before it moves a weight.
        self._reads_losses = fabric.world_size == 1 and fabric.device.type == "cpu"

    def train_step(self) -> Tensor:
        """Train on one batch.

        Returns:
            The loss of this process, floating-point `[]` on its device. The mean over the processes is the loss of the
            whole batch.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite, or cannot be computed because a value is. A single
                process on the CPU raises before a weight of network or pool changes. On a GPU, or with several
                processes, the loop finds it when it reads the losses.
        """
        epoch = self.step / self.order.batches_per_epoch
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.schedule.learning_rate_at(epoch)
        try:
            batch, images = self.batches.next()
        except ValueError as error:
            raise self._refusal(error) from error
        problem = None
        try:
            loss, per_sample = self.objective(
                cast(nn.Module, self._accuracy.counting(self._forward, batch.labels[: images.id_count])), batch
            )
        except (LinAlgError, ValueError) as error:
            if not self._has_diverged(error):
                raise
            problem = str(error)
            loss, per_sample = self._undefined_loss(), torch.full_like(batch.labels, math.nan, dtype=torch.float32)
        value = loss.detach()
        if self._reads_losses and not math.isfinite(number := float(value)):
            raise self._failure(problem, f"the loss is {number}", images)
        self._recent.append(_Step(images, value, problem))
        self._stepper.zero_grad()
        self.fabric.backward(loss)
        self._stepper.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.background is not None and images.background is not None:
            try:
                self.background.observe(images.background.index, per_sample[images.id_count :])
            except ValueError as error:
                self.step += 1
                raise self._refusal(error) from error
        self.step += 1
        return value

    def _undefined_loss(self) -> Tensor:
        """Return a NaN that depends on every weight: the other processes wait for the gradients of this one."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        return torch.stack([weight.sum() for weight in weights]).sum() * math.nan

    def _has_diverged(self, error: Exception) -> bool:
        """Return whether an operator refused values that are not finite, rather than an argument."""
        if isinstance(error, LinAlgError) or "finite" in str(error) or "NaN" in str(error):
            return True
        return not all(torch.isfinite(value).all() for value in self.model.state_dict().values())

    def loss_failure(self, step: int, loss: float) -> NonFiniteLossError:
        """Return the error for the loss of a recent step, which names its images."""
        failed = self._recent[step - self.step]
        # The state after the step is not saved: the stage ends with it.
        self.step = step
        return self._failure(failed.problem, f"the loss is {loss}", failed.images)

    def _refusal(self, error: ValueError) -> Exception:
        """Return the error of a stage whose pool has refused losses that are not finite, otherwise the error itself.

        A pool refuses them on every process: on the CPU those of this step, on a GPU those of an earlier one.
        """
        if self._reads_losses or not self._recent or not self._has_diverged(error):
            return error
        first = self.step - len(self._recent)
        for step, recent in enumerate(self._recent, first):
            if not math.isfinite(loss := float(recent.loss)):
                return self.loss_failure(step, loss)
        # The loss of another process.
        self.step -= 1
        return self._failure(None, str(error), self._recent[-1].images)

    def _failure(self, problem: str | None, otherwise: str, images: StepImages) -> NonFiniteLossError:
        """Return the error of the present step; every process must call it.

        Args:
            problem: Reason that this process knows, if any; the first one of all processes is named.
            otherwise: Reason if no process knows one.
            images: Images of the step.
        """
        known = [reason for reason in of_every_process(problem, self.fabric) if reason is not None]
        text = f"stage {self.stage.name!r}, step {self.step} of {self.total_steps}: {[*known, otherwise][0]}"
        return NonFiniteLossError(f"{text}; {images.describe()}")

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

    def take_accuracy_counts(self) -> Tensor:
        """Return the counts of correct and of all classified images of this process since the last call, `[2]`."""
        return self._accuracy.take()

    def scalars(self) -> dict[str, Tensor]:
        """Return the numbers of the background."""
        return {} if self.background is None else self.background.scalars()

    def close(self) -> None:
        """End the processes and threads that load images."""
        self.batches.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which new processes resume exactly; every process must call it."""
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
            **self.batches.state_dict(),
            "dropout": of_every_process(random_state, self.fabric),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`.

        Another number of processes than it was saved by resumes with the same batches. Dropout, which each process
        draws for its own images, then draws from new streams.

        Raises:
            ValueError: If the state is that of a stage of another length or another prefetch depth.
        """
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
        self.batches.load_state_dict(state)
        if len(state["dropout"]) == self.fabric.world_size:
            random_state = state["dropout"][self.fabric.global_rank]
            torch.set_rng_state(random_state["cpu"])
            if self.fabric.device.type == "cuda":
                torch.cuda.set_rng_state(random_state["cuda"], self.fabric.device)
        else:
            moment = ("dropout", str(self.step), str(self.fabric.world_size))
            seed = named_generator(self.context.seed, self.stage.rng_name, *moment).initial_seed()
            torch.manual_seed(seed + self.fabric.global_rank)


@dataclass(frozen=True, eq=False)
class _Step:
    """A step whose loss may not have been read yet."""

    images: StepImages
    """Its images."""
    loss: Tensor
    """Loss of this process, `[]`."""
    problem: str | None
    """Reason why the loss cannot be computed; None if there is none, or another process has it."""


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
