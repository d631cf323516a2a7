"""Stage of BAL: a GAN trained on the features of a frozen classifier, with the run's loop and checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.detectors.bal import BoundaryLosses, BoundarySettings, BoundaryTraining, FeatureBank
from fastood.detectors.bal.coverage import generator_coverage
from fastood.models import Classifier
from fastood.train.engine.failure import LinAlgError, NonFiniteLossError
from fastood.train.engine.stage import Embed, StageContext, Weights
from fastood.train.methods.bal.classifier_with_gan import BoundaryAwareNetwork


@dataclass(frozen=True, kw_only=True)
class BoundaryStage:
    """Training of discriminator and generator; the weights of the classifier do not change by a bit."""

    name: str
    """Name in checkpoints, progress bars and TensorBoard."""
    settings: BoundarySettings
    """Hyper-parameters."""
    build_network: Callable[[], BoundaryAwareNetwork]
    """Builds classifier and GAN with the run's initial weights, the same at each call."""
    bank_of: Callable[[Classifier, StageContext], FeatureBank]
    """Returns the features of the training images, on the run's device."""
    rng_name: str = "boundary"
    """Name of the RNG streams, one for all stages, which therefore see the same batches."""
    start_from: str | None = "pretrain"
    """Stage that supplies the classifier."""
    needs: tuple[str, ...] = ()
    """Earlier stages that supply anything but weights: none."""

    def build_model(self) -> BoundaryAwareNetwork:
        """Build the network with the run's initial weights, the same at each call."""
        return self.build_network()

    def take_over(self, model: BoundaryAwareNetwork, weights: Weights, embed: Embed) -> None:
        """Put the weights of the trained classifier into the network."""
        model.classifier.load_state_dict(weights)

    def begin(self, model: BoundaryAwareNetwork, context: StageContext) -> "BoundaryStageRun":
        """Start with a network that holds the trained classifier."""
        return BoundaryStageRun(self, model, context)


class BoundaryStageRun:
    """A `BoundaryStage` in progress; the GAN computes in float32, regardless of the run's precision.

    Each of several processes takes every step, from the same draws, and the networks of the first one are kept: a step
    of some 64 features takes less time than an exchange of its gradients.

    Args:
        stage: Stage to run.
        model: Holds the trained classifier; its GAN is trained in place.
        context: Images, device and seed of the run.
    """

    def __init__(self, stage: BoundaryStage, model: BoundaryAwareNetwork, context: StageContext) -> None:
        self.stage = stage
        self.name, self.rng_name, self.context = stage.name, stage.rng_name, context
        self.model = model.to(context.fabric.device)
        self.step = 0
        self.total_steps = stage.settings.steps
        self.steps_per_epoch: int | None = None
        self.images_per_step = 0
        self.learning_rate: float | None = None
        self._losses: BoundaryLosses | None = None

    @cached_property
    def training(self) -> BoundaryTraining:
        """Training of the GAN, made at the first step: a finished stage needs no features."""
        return BoundaryTraining(
            self.stage.bank_of(self.model.classifier, self.context),
            discriminator=self.model.discriminator,
            generator_network=self.model.generator,
            settings=self.stage.settings,
            generator=named_generator(self.context.seed, self.rng_name),
        )

    def train_step(self) -> Tensor:
        """Train both networks on one batch.

        Returns:
            The discriminator's loss, float64 `[]`.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite, or no GAN can be trained on the features of the
                classifier. If it is the generator's loss, the discriminator has moved.
        """
        try:
            self._losses = self.training.step()
        except (FloatingPointError, ValueError, LinAlgError) as error:
            raise NonFiniteLossError(self._describe(str(error))) from None
        self.step += 1
        return torch.tensor(self._losses.discriminator, dtype=torch.float64)

    def loss_failure(self, step: int, loss: float) -> NonFiniteLossError:
        """Return the error for a loss of another process that is NaN or infinite."""
        return NonFiniteLossError(self._describe(f"the loss is {loss}"))

    def take_accuracy_counts(self) -> Tensor:
        """Return no images: the classifier is not trained."""
        return torch.zeros(2)

    def scalars(self) -> dict[str, Tensor]:
        """Return the generator's losses and, at the end, its coverage of the training features."""
        if self._losses is None:
            return {}
        scalars = {"generator_loss": self._losses.generator, "nearest_distance": self._losses.nearest}
        if self.step == self.total_steps:
            rng = named_generator(self.context.seed, self.rng_name, "coverage")
            reached = generator_coverage(self.model.generator, self.training.bank, generator=rng)
            scalars |= {"generator_coverage": reached.coverage, "generator_spread": reached.spread}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}

    def require_finite_weights(self) -> None:
        """Raise `NonFiniteLossError` if a parameter is NaN or infinite."""
        for name, value in self.model.state_dict().items():
            if not torch.isfinite(value).all():
                raise NonFiniteLossError(self._describe(f"{name} is not finite"))

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another process resumes exactly."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "model": self.model.state_dict(),
            "training": self.training.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`.

        Raises:
            ValueError: If the state is that of a stage of another length.
        """
        if state["total_steps"] != self.total_steps:
            raise ValueError(
                f"the checkpoint of stage {self.name!r} must be of {self.total_steps} steps, got {state['total_steps']}"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.step < self.total_steps:
            self.training.load_state_dict(state["training"])

    def close(self) -> None:
        """Do nothing: the stage loads no images."""

    def _describe(self, problem: str) -> str:
        return f"stage {self.name!r}, step {self.step} of {self.total_steps}: {problem}"
