"""Autoencoder with Mahalanobis distance (Denouden et al. 2018), the AEC column of Pei et al. 2022."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastood.common.config_checks import require_at_least_one, require_positive
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask, ImageSet
from fastood.heads import GaussianStatistics
from fastood.models import Classifier, ModelConfig
from fastood.models.autoencoder import Autoencoder
from fastood.ops.mahalanobis_logits import mahalanobis_logits
from fastood.train.arm import Arm, Predict, Prediction, Scorer
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import Batch, StatelessObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Embed, Stage, Weights
from fastood.train.method import Method, MethodConfig
from fastood.train.methods.plain import plain_arm, plain_stage
from fastood.train.trained_network import TrainedNetwork


@dataclass(frozen=True, kw_only=True)
class AECConfig(MethodConfig):
    """An autoencoder next to the classifier.

    Example:
        >>> AECConfig(distance_weight=-1)
        Traceback (most recent call last):
        ...
        ValueError: distance_weight must be finite and above 0, got -1
    """

    name: ClassVar[str] = "aec"
    summary: ClassVar[str] = "autoencoder: reconstruction error and Mahalanobis distance (Denouden 2018, in Pei 2022)"
    ignores_background: ClassVar[bool] = True

    latent_dim: int = 64
    """Width d of the latent vector."""
    distance_weight: float = 1.0
    """Weight of the distance relative to the error, each in standard deviations over the training images: α/β of the
    paper's α · distance + β · error. Only OOD images could choose a better value than 1."""
    batch_size: int = 128
    """Images in a batch, of classifier and autoencoder."""
    training: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1))
    """Schedule of the classifier."""
    autoencoder: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=100, learning_rate=0.001, optimizer="adam", decay="cosine", weight_decay=0.0
        )
    )
    """Schedule of the autoencoder. Network and schedule are choices of this library, because those of the papers are
    not available."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "latent_dim", "batch_size")
        require_positive(self, "distance_weight")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "AEC":
        """Build the method with these hyper-parameters; see `AEC`."""
        return AEC(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "AECConfig":
        """Return a narrower latent vector for smaller images, and half the epochs."""
        adam = Schedule(epochs=50, learning_rate=0.003, optimizer="adam", decay="cosine", weight_decay=0.0)
        return cls(latent_dim=16, training=Schedule(epochs=50, learning_rate=0.1, decay="cosine"), autoencoder=adam)


class AEC(Method):
    """A classifier by cross-entropy, and an autoencoder of the same images; background images are not used.

    Images are scored by the reconstruction error alone, the paper's baseline, and by

        D(E(x)) / σ_D · α + ‖x - x̂‖² / σ_e,        D(z) = ((z - μ)ᵀ Σ⁻¹ (z - μ))^½,

    with mean μ and covariance Σ of the latent vectors E(x) of all training images, regardless of their class, and σ the
    standard deviations over them. The classifier alone predicts the class, so that all arms have its accuracy.

    The network of the last stage is not a `Classifier`: detectors that need logits and features take its `classifier`.

    Raises:
        ValueError: If the network is unknown.
    """

    config: AECConfig

    def build_arms(self) -> tuple[Arm, ...]:
        """Return the plain arm, and those of the reconstruction error without and with the distance."""
        distance_weight = self.config.distance_weight
        return (
            plain_arm(),
            Arm(name="error", label="Autoencoder, error", stage="autoencoder", scorer=by_reconstruction(0.0)),
            Arm(name="aec", label="AEC", stage="autoencoder", scorer=by_reconstruction(distance_weight)),
        )

    def build_stages(self) -> tuple[Stage, ...]:
        """Return the trainings of the classifier and of the autoencoder."""
        config = self.config
        return (
            plain_stage(self.build_classifier, config.training, batch_size=config.batch_size),
            ImageStage(
                name="autoencoder",
                rng_name="autoencoder",
                schedule=config.autoencoder,
                build_model=self._both,
                objective=ReconstructionObjective,
                batch_size=config.batch_size,
                start_from="msp",
                take_over=load_classifier,
            ),
        )

    def _both(self) -> "AutoencodingClassifier":
        images = self.task.id_train.images
        autoencoder = Autoencoder(
            in_channels=images.shape[1],
            image_size=images.shape[2],
            latent_dim=self.config.latent_dim,
            generator=named_generator(self.seed, "initial autoencoder"),
        )
        return AutoencodingClassifier(self.build_classifier(), autoencoder)


class AutoencodingClassifier(nn.Module):
    """A frozen classifier and an autoencoder.

    Args:
        classifier: Trained classifier; its parameters are frozen.
        autoencoder: Autoencoder to train.
    """

    def __init__(self, classifier: Classifier, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False)
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's logits `[N, K]`."""
        logits: Tensor = self.classifier(images)
        return logits

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent vectors `[N, d]`, and the mean squared error over the values of each image, `[N]`."""
        latent, reconstruction = self.autoencoder(images)
        return latent, (reconstruction - images).square().flatten(1).mean(dim=1)


def load_classifier(model: AutoencodingClassifier, weights: Weights, embed: Embed) -> None:
    """Load the weights of a trained classifier."""
    model.classifier.load_state_dict(weights)


class ReconstructionObjective(StatelessObjective):
    """Mean reconstruction error of an `AutoencodingClassifier`, in the units of normalised images."""

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean error over the batch, and that of each image."""
        network.mark_forward_method("reconstruct")  # type: ignore[operator]
        _, errors = network.reconstruct(batch.images)  # type: ignore[operator]
        return errors.mean(), errors.detach()


def by_reconstruction(distance_weight: float) -> Scorer:
    """Return a scorer by reconstruction error and Mahalanobis distance, fitted to the training images.

    Args:
        distance_weight: Weight α of the distance; 0 for the error alone.
    """

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        latents, errors = reconstructions(network, task.id_train)
        distance = mahalanobis_distance(latents)
        error_scale, distance_scale = errors.std(), distance(latents).std()

        def predict(images: ImageSet) -> Prediction:
            latents, errors = reconstructions(network, images)
            scores = errors / error_scale + distance_weight * distance(latents) / distance_scale
            return Prediction(scores=scores, classes=network.logits(images).argmax(dim=1))

        return predict

    return scorer


@torch.inference_mode()
def reconstructions(network: TrainedNetwork, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return latent vectors `[N, d]` and reconstruction errors `[N]` of images, float64 on the CPU."""
    module: Any = network.module
    latents, errors = network.over_batches(images, lambda batch: [of.double() for of in module.reconstruct(batch)])
    return latents, errors


def mahalanobis_distance(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the Mahalanobis distance to the Gaussian of rows `[n, d]`, not squared, as a function `[M, d]` → `[M]`.

    Raises:
        ValueError: If the covariance of the rows is singular.
    """
    statistics = GaussianStatistics(rows.shape[1]).partial_fit(rows, torch.zeros(len(rows), dtype=torch.int64))
    means, scale_tril = statistics.means, statistics.cholesky()
    # The operator returns the negative squared distance to each mean; there is one.
    return lambda others: (-mahalanobis_logits(others, means, scale_tril)[:, 0]).sqrt()
