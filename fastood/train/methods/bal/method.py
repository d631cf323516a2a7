"""Boundary aware learning: a frozen classifier, and a GAN that learns the boundary of its features.

BAL: Pei et al., ECCV 2022 (https://arxiv.org/abs/2112.11648).
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fastood.common.config_checks import require_at_least_one, require_choice, require_weight
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask, ImageSet
from fastood.data.images.augment import STD
from fastood.detectors import ODIN
from fastood.detectors.bal import BoundarySettings, FeatureBank, boundary_score
from fastood.losses import OutlierExposureLoss
from fastood.models import Classifier, ModelConfig
from fastood.scores import max_softmax_score
from fastood.train.arm import Arm, Predict, Prediction, by_logits
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.processes import without_group
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Stage, StageContext
from fastood.train.feature_map import FeatureMap
from fastood.train.method import Method, MethodConfig, Preset, PresetName
from fastood.train.methods.bal.arms import ARMS, ArmName
from fastood.train.methods.bal.boundary_map import boundary_map
from fastood.train.methods.bal.classifier_with_gan import BoundaryAwareNetwork
from fastood.train.methods.bal.gan_stage import BoundaryStage
from fastood.train.trained_network import TrainedNetwork


@dataclass(frozen=True, kw_only=True)
class BALConfig(MethodConfig):
    """A classifier trained without background, then BAL on its features.

    Example:
        >>> BALConfig(odin_temperature=0)
        Traceback (most recent call last):
        ...
        ValueError: odin_temperature must be above 0, got 0
    """

    name: ClassVar[str] = "bal"
    summary: ClassVar[str] = "boundary aware learning: a GAN in the feature space of a frozen classifier (Pei 2022)"
    ignores_background: ClassVar[bool] = True

    arms: tuple[ArmName, ...] = ("softmax", "odin", "bal")
    """Scores to evaluate, all on one classifier. softmax: maximum softmax. odin: maximum softmax with temperature, of
    moved inputs. bal: softmax times discriminator. bal-p2: the discriminator of bal alone. Each of the following trains
    another GAN, with one setting of bal changed. bal-t, bal-ts, bal-tu: the losses L_t, L_t + L_s and L_t + L_u of
    table 1 instead of all three. bal-0.1 … bal-0.9: λ_c of table 2. bal-uniform, bal-gaussian: the two kinds of trivial
    features of table 3. bal-log-d: equations 8 and 9 as printed, but bounded. bal-printed: neither principal axes nor
    mode seeking; bal-features, bal-no-seeking: without the one or the other. bal-projection: a discriminator with
    unbounded logits."""
    boundary: BoundarySettings = field(default_factory=BoundarySettings)
    """Settings of the GAN and its losses. Three are choices of this library in every preset, paper included: principal
    axes, mode seeking, and -log(1 - D) for the log D of equations 8 and 9 as printed. Arm bal-printed has neither of
    the first two."""
    batch_size: int = 128
    """Images in a batch of the classifier's training."""
    pretrain: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=300, learning_rate=0.001, optimizer="adam", decay_every=None, weight_decay=0.0
        )
    )
    """Training of the classifier. The paper states Adam and 300 epochs; the learning rate is Adam's default."""
    odin_temperature: float = 10.0
    """ODIN's temperature T, above 0; that of the paper's table 4."""
    odin_epsilon: float = 5e-4
    """ODIN's step ε, for images in [0, 1]; that of the paper's table 4."""

    def __post_init__(self) -> None:
        require_choice(self, arms=ArmName)
        require_at_least_one(self, "batch_size")
        require_weight(self, "odin_epsilon")
        if not self.odin_temperature > 0:
            raise ValueError(f"odin_temperature must be above 0, got {self.odin_temperature}")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "BAL":
        """Build the method with these hyper-parameters; see `BAL`."""
        return BAL(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "BALConfig":
        """Return fewer, larger steps for the classifier."""
        return cls(
            pretrain=Schedule(epochs=50, learning_rate=0.005, optimizer="adam", decay="cosine", weight_decay=0.0),
        )

    @classmethod
    def presets(cls) -> dict[PresetName, Preset]:
        """Return presets with the paper's network for images like MNIST, ResNet-18."""
        paper = replace(super().presets()["paper"], model=ModelConfig(name="resnet-18", dropout=0.0))
        return {**super().presets(), "paper": paper}


class BAL(Method):
    """A classifier, trained and frozen, and discriminators on its features, one for each arm that needs its own.

    Every GAN trains with the same RNG streams, and GANs of one shape start from the same weights. Background images are
    not used.

    Raises:
        ValueError: If the network is unknown.
    """

    config: BALConfig

    def setup(self) -> None:
        """Start without features: the first GAN computes them."""
        self._bank: FeatureBank | None = None

    def build_arms(self) -> tuple[Arm, ...]:
        """Return the configured arms."""
        return tuple(self._arm(arm) for arm in self.config.arms)

    def build_stages(self) -> tuple[Stage, ...]:
        """Return the training of the classifier, and that of a GAN for each arm that needs its own."""
        gans = dict.fromkeys(arm.stage for arm in self.arms if arm.stage != "pretrain")
        return (self._pretrain(), *(self._boundary(name) for name in gans))

    @property
    def baseline(self) -> str | None:
        """The softmax arm, else the first one."""
        return "softmax" if "softmax" in self.config.arms else super().baseline

    def _pretrain(self) -> ImageStage:
        return ImageStage(
            name="pretrain",
            rng_name="pretrain",
            schedule=self.config.pretrain,
            build_model=self.build_classifier,
            objective=lambda: LogitObjective(OutlierExposureLoss(weight=0.0)),
            batch_size=self.config.batch_size,
        )

    def _settings(self, arm: str) -> BoundarySettings:
        """Return the configured settings with the changes of an arm."""
        return replace(self.config.boundary, **(ARMS[arm].changes or {}))

    def _boundary(self, name: str) -> BoundaryStage:
        settings = self._settings(name)

        def network() -> BoundaryAwareNetwork:
            rng = named_generator(self.seed, "initial gan")
            return BoundaryAwareNetwork(self.build_classifier(), self.task.num_classes, settings, generator=rng)

        return BoundaryStage(name=name, settings=settings, build_network=network, bank_of=self._bank_of)

    def _bank_of(self, classifier: Classifier, context: StageContext) -> FeatureBank:
        """Return the features of the training images, computed once, as all GANs share the classifier."""
        if self._bank is None:
            fabric = without_group(context.fabric, precision=context.precision)
            trained = TrainedNetwork(classifier, augment=context.augment, fabric=fabric)
            images = context.task.id_train
            self._bank = FeatureBank(trained.features(images), images.labels).to(context.fabric.device)
        return self._bank

    def _arm(self, name: ArmName) -> Arm:
        stage, scorer = {
            "softmax": ("pretrain", by_logits(max_softmax_score)),
            "odin": ("pretrain", self._by_odin),
            "bal-p2": ("bal", _by_discriminator),
        }.get(name, (name, _by_boundary))
        return Arm(
            name=name,
            label=ARMS[name].label,
            stage=stage,
            scorer=scorer,
            feature_map=None if ARMS[name].changes is None else partial(self._map, self._settings(name)),
        )

    def _map(self, settings: BoundarySettings, network: TrainedNetwork, task: DetectionTask) -> FeatureMap:
        model = network.module
        assert isinstance(model, BoundaryAwareNetwork)
        return boundary_map(network, model, task, settings, seed=self.seed)

    def _by_odin(self, network: TrainedNetwork, task: DetectionTask) -> Predict:
        """Score by ODIN with the configured temperature and step, which are not tuned on test images."""
        channels = task.id_train.images.shape[1]
        detector = ODIN(
            network,
            temperature=self.config.odin_temperature,
            epsilon=self.config.odin_epsilon,
            input_std=[STD] * channels,
        )

        def of_batch(inputs: Tensor) -> tuple[Tensor, Tensor]:
            inputs.requires_grad_()
            logits = network(inputs)
            moved = detector.moved(inputs, logits)
            with torch.no_grad():
                scores = detector.score_logits(network(moved))
            return scores, logits.argmax(dim=1)

        def predict(images: ImageSet) -> Prediction:
            scores, classes = network.over_batches(images, of_batch)
            return Prediction(scores=scores, classes=classes)

        return predict


def _by_boundary(network: TrainedNetwork, task: DetectionTask) -> Predict:
    """Score by softmax and discriminator, p₁ · p₂."""

    def predict(images: ImageSet) -> Prediction:
        logits, of_discriminator = _outputs(network, images)
        return Prediction(scores=boundary_score(logits, of_discriminator), classes=logits.argmax(dim=1))

    return predict


def _by_discriminator(network: TrainedNetwork, task: DetectionTask) -> Predict:
    """Score by the discriminator alone."""

    def predict(images: ImageSet) -> Prediction:
        logits, of_discriminator = _outputs(network, images)
        return Prediction(scores=-of_discriminator.double(), classes=logits.argmax(dim=1))

    return predict


def _outputs(network: TrainedNetwork, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return logits of the classifier, and of the discriminator for the most likely class; on the CPU."""
    outputs = network.outputs(images)
    discriminator = network.module.get_submodule("discriminator")
    classes = outputs.logits.argmax(dim=1)
    with torch.inference_mode():
        parts = zip(torch.split(outputs.features, 8192), torch.split(classes, 8192), strict=True)
        logits = [discriminator(rows.to(network.device), under.to(network.device)).cpu() for rows, under in parts]
    return outputs.logits, torch.cat(logits)
