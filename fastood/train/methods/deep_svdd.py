"""Deep SVDD: one network per class, trained on that class only; Mohseni et al. 2020 compare with it.

Ruff et al. 2018 (https://proceedings.mlr.press/v80/ruff18a.html).
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastood.common.config_checks import require_at_least_one, require_choice
from fastood.common.seeding import named_generator
from fastood.data import Augment, DetectionTask, ImageSet
from fastood.losses.deep_svdd import DeepSVDDLoss
from fastood.models import ModelConfig
from fastood.models.one_class import OneClassLeNet
from fastood.train.arm import Arm, Predict, Prediction, Scorer
from fastood.train.engine.image_stage import ImageStage, ImageStageRun
from fastood.train.engine.objective import Batch, StatelessObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Stage, StageContext
from fastood.train.method import Method, MethodConfig, Preset, PresetName
from fastood.train.trained_network import TrainedNetwork

Boundary = Literal["hard", "soft"]
OTHERS = "other classes"
"""Name of the one OOD set of every arm."""


@dataclass(frozen=True, kw_only=True)
class DeepSVDDConfig(MethodConfig):
    """One-class networks; the defaults are those of the authors for MNIST.

    Example:
        >>> DeepSVDDConfig(nu=0)
        Traceback (most recent call last):
        ...
        ValueError: nu (ν) must be in (0, 1], got 0
    """

    name: ClassVar[str] = "deep-svdd"
    summary: ClassVar[str] = "one class against the others, for each class (Ruff 2018, in Mohseni 2020)"
    ignores_background: ClassVar[bool] = True

    boundary: Boundary = "hard"
    """hard: the mean distance to the centre (eq. 4), the authors' One-Class Deep SVDD; soft: a sphere that may leave a
    share ν of the images outside (eq. 3), its radius computed on every batch."""
    nu: float = 0.1
    """soft: largest fraction ν of training images outside the sphere, in (0, 1]."""
    widths: tuple[int, ...] = (8, 4)
    """Channels of the 5×5 convolutions. The authors use 8, 4 for MNIST and 32, 64, 128 for CIFAR-10."""
    feature_dim: int = 32
    """Width d of the features; the authors use 128 for CIFAR-10."""
    batch_size: int = 200
    """Images in a batch."""
    training: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=150,
            learning_rate=1e-4,
            optimizer="adam",
            decay="milestones",
            milestones=(1 / 3,),
            weight_decay=0.5e-6,
        )
    )
    """Schedule of each network."""

    def __post_init__(self) -> None:
        require_choice(self, boundary=Boundary)
        if not 0 < self.nu <= 1:
            raise ValueError(f"nu (ν) must be in (0, 1], got {self.nu}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more, each at least 1, got {self.widths}")
        require_at_least_one(self, "feature_dim", "batch_size")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "DeepSVDD":
        """Build the method with these hyper-parameters; see `DeepSVDD`. `model` is not used."""
        return DeepSVDD(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "DeepSVDDConfig":
        """Return larger steps, as a class has 120 images instead of 6000."""
        training = Schedule(epochs=100, learning_rate=1e-3, optimizer="adam", decay_every=None, weight_decay=0.5e-6)
        return cls(batch_size=32, training=training)

    @classmethod
    def presets(cls) -> dict[PresetName, Preset]:
        """Return presets without augmentation, and with the authors' network for CIFAR-10."""
        presets = super().presets()
        embedded = replace(presets["embedded"], augment=Augment(padding=0))
        method = cls(widths=(32, 64, 128), feature_dim=128)
        return {"embedded": embedded, "paper": replace(presets["paper"], method=method, augment=Augment(padding=0))}


class DeepSVDD(Method):
    """A network and an arm for each class, trained on its images alone and evaluated on the test images of all.

    An arm's in-distribution images are those of its class, its only OOD set is the test images of the other classes;
    the run's own OOD sets and background are not used. The "accuracy" of an arm is 1 and has no meaning, because there
    is one class. Papers report the mean of the AUROC over the arms.

    Ambiguities and their resolution:
        - The centre is the mean of the features that the initial network, in evaluation mode, gives the training
          images, as in the authors' code; BatchNorm has initial statistics then.
        - The authors start from the weights of an autoencoder trained on the class; here they are random.
        - The authors apply global contrast normalisation to each image, and scale by the extremes of the class; here
          images are normalised as for every method.
        - For the soft boundary the authors compute R on every batch after ten epochs; here from the first epoch on.

    Raises:
        ValueError: If images are too small for the network.
    """

    config: DeepSVDDConfig

    def build_arms(self) -> tuple[Arm, ...]:
        """Return one arm for each class."""
        return tuple(
            Arm(
                name=f"class-{label}",
                label=class_name,
                stage=f"class-{label}",
                scorer=by_distance(label),
                view=partial(one_against_rest, label),
            )
            for label, class_name in enumerate(self.task.id_train.class_names)
        )

    def build_stages(self) -> tuple[Stage, ...]:
        """Return one training for each class."""
        return tuple(self._stage(label) for label in range(self.task.num_classes))

    @property
    def baseline(self) -> str | None:
        """No arm: each is evaluated on in-distribution images of another class."""
        return None

    def _network(self, label: int) -> OneClassLeNet:
        images = self.task.id_train.images
        return OneClassLeNet(
            in_channels=images.shape[1],
            image_size=images.shape[2],
            widths=self.config.widths,
            feature_dim=self.config.feature_dim,
            generator=named_generator(self.seed, "initial weights", str(label)),
        )

    def _stage(self, label: int) -> "OneClassStage":
        nu = self.config.nu if self.config.boundary == "soft" else None
        return OneClassStage(
            name=f"class-{label}",
            rng_name=f"class-{label}",
            schedule=self.config.training,
            build_model=partial(self._network, label),
            objective=lambda: DeepSVDDObjective(DeepSVDDLoss(nu)),
            batch_size=self.config.batch_size,
            id_index=(self.task.id_train.labels == label).nonzero().flatten(),
        )


@dataclass(frozen=True, kw_only=True)
class OneClassStage(ImageStage):
    """An `ImageStage` that first centres the sphere on its images."""

    def begin(self, model: Any, context: StageContext) -> ImageStageRun:
        """Start with the centre at the mean of the features; a checkpoint replaces it with the stored one."""
        images = context.task.id_train
        if self.id_index is not None:
            images = images.subset(self.id_index)
        initial = TrainedNetwork(model, augment=context.augment, fabric=context.fabric)
        model.head.fit(initial.features(images).to(context.fabric.device))
        return super().begin(model, context)


class DeepSVDDObjective(StatelessObjective):
    """`DeepSVDDLoss` of a network that returns distances; its head holds the radius.

    Args:
        loss: Loss with the hard or the soft boundary.
    """

    def __init__(self, loss: DeepSVDDLoss) -> None:
        self.loss = loss

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of the network's distances, with the soft boundary at the optimal radius for them."""
        distances = network(batch.images)
        radius: Any = network.head.radius  # type: ignore[union-attr]
        if self.loss.nu is not None:
            radius.copy_(self.loss.radius_of(distances))
        return self.loss.with_per_sample(distances, radius)


def one_against_rest(label: int, task: DetectionTask) -> DetectionTask:
    """Return the task of telling the images of one class from those of all other classes."""

    def of_class(images: ImageSet) -> ImageSet:
        return images.subset((images.labels == label).nonzero().flatten())

    rest = task.id_test.subset((task.id_test.labels != label).nonzero().flatten(), name=OTHERS)
    others = replace(rest, labels=torch.full_like(rest.labels, -1), class_names=())
    return replace(task, id_train=of_class(task.id_train), id_test=of_class(task.id_test), ood={OTHERS: others})


def by_distance(label: int) -> Scorer:
    """Return a scorer by the squared distance to the centre minus R²; every image is assigned the one class.

    Args:
        label: The class.
    """

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        radius: Any = network.module.head.radius  # type: ignore[union-attr]

        def predict(images: ImageSet) -> Prediction:
            scores = network.logits(images).double() - float(radius) ** 2
            return Prediction(scores=scores, classes=torch.full((len(images),), label))

        return predict

    return scorer
