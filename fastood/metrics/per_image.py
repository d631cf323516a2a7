"""Metrics of the pixels of each image of a segmentation, and their mean over images."""

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor

__all__ = ["mean_over_images", "metrics_of_images"]


def metrics_of_images(
    scores: Tensor, labels: Tensor, compute: Callable[[Tensor, Tensor], dict[str, float]]
) -> list[dict[str, float]]:
    """Return the metrics of each image.

    Args:
        scores: `[B, H, W]`.
        labels: `[B, H, W]`, below 0 for OOD.
        compute: Function that returns the metrics of one image by name.

    Raises:
        ValueError: If the shape is not `[B, H, W]`, or an image has no pixels of one class; the message has its number.
    """
    if scores.dim() != 3:
        raise ValueError(f'scores must be [B, H, W] with mode "segmentation", got shape {tuple(scores.shape)}')
    metrics = []
    for number, (image, of_image) in enumerate(zip(scores, labels, strict=True)):
        try:
            metrics.append(compute(image, of_image))
        except ValueError as error:
            raise ValueError(f"image {number} of {len(scores)}: {error}") from error
    return metrics


def mean_over_images(images: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over images; raise ValueError for an empty sequence.

    Example:
        >>> mean_over_images([{"AUROC": 1.0}, {"AUROC": 0.5}])
        {'AUROC': 0.75}
    """
    if not images:
        raise ValueError("there must be at least one image so far, got none")
    return {name: fmean(metrics[name] for metrics in images) for name in images[0]}
