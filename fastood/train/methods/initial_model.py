"""The network that a run begins with: the same for every method and arm."""

from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.models import Classifier, ModelConfig, build_model


def initial_model(config: ModelConfig, task: DetectionTask, *, seed: int) -> Classifier:
    """The configured network for a task's images and classes, with the run's initial weights, the same at each call.

    Raises:
        ValueError: If the network is unknown.
    """
    images = task.id_train.images
    return build_model(
        config.name,
        num_classes=task.num_classes,
        in_channels=images.shape[1],
        image_size=images.shape[2],
        dropout=config.dropout_rate,
        generator=named_generator(seed, "initial weights"),
    )
