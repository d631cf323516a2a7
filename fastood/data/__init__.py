"""Image data: sources, the embedded default task, and training batches."""

from typing import TYPE_CHECKING, Any

from fastood.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from fastood.data.config import DataConfig
    from fastood.data.embedded.image_sets import EmbeddedConfig
    from fastood.data.images.augment import Augment, AugmentDraws, epoch_batches
    from fastood.data.images.encoded import Images, split_images
    from fastood.data.images.image_set import DetectionTask, ImageSet
    from fastood.data.task import load_task

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

# Imported on first use: loaders need neither the embedded task nor its packages.
_load = lazy_attributes(
    __name__,
    {
        "config": ["DataConfig"],
        "embedded.image_sets": ["EmbeddedConfig"],
        "images.augment": ["Augment", "AugmentDraws", "epoch_batches"],
        "images.encoded": ["Images", "split_images"],
        "images.image_set": ["DetectionTask", "ImageSet"],
        "task": ["load_task"],
    },
)


def __getattr__(name: str) -> Any:
    """Import a name on first use."""
    return _load(name)
