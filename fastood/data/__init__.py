"""Images: the embedded default task, other sources by option, and training batches."""

from fastood.data.batches import Augment, AugmentDraws, epoch_batches
from fastood.data.config import DataConfig
from fastood.data.embedded import EmbeddedConfig
from fastood.data.encoded import Images, split_images
from fastood.data.image_set import DetectionTask, ImageSet
from fastood.data.loading import load_task

__all__ = [
    "Augment",
    "AugmentDraws",
    "DataConfig",
    "DetectionTask",
    "EmbeddedConfig",
    "ImageSet",
    "Images",
    "epoch_batches",
    "load_task",
    "split_images",
]
