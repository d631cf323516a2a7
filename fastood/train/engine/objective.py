"""Objectives of stages: from a batch of images to the loss to minimise, and the loss of each image."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fastood.losses import MixedBatchLoss


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Images of one step, in-distribution ones first, on the device of the network."""

    images: Tensor
    """Augmented and normalised images, float32 `[B, C, H, W]`."""
    labels: Tensor
    """Classes, int64 `[B]`; below 0 for background."""
    importance: Tensor | None
    """Importance of each image, float32 `[B]`; None for 1 each."""


class Objective(Protocol):
    """A loss of a network on a batch. It calls the network once: in-distribution and background images jointly."""

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the scalar loss, and each image's loss before any weight, `[B]` and detached."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` resumes, such as that of an RNG."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        ...


class StatelessObjective:
    """Base of objectives without state between steps."""

    def state_dict(self) -> dict[str, Any]:
        """Return the empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""


def forward_outputs(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits `[B, K]` and features `[B, d]` of a `Classifier` set up by Fabric, from one forward pass."""
    # Fabric wraps `forward` alone in its precision and processes unless other methods are marked.
    network.mark_forward_method("forward_outputs")  # type: ignore[operator]
    logits, features = network.forward_outputs(images)  # type: ignore[operator]
    return logits, features


class LogitObjective(StatelessObjective):
    """A loss of this library on the logits of the batch.

    Args:
        loss: Called with logits, labels and importance.
    """

    def __init__(self, loss: MixedBatchLoss) -> None:
        self.loss = loss

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of the network's logits."""
        return self.loss.with_per_sample(network(batch.images), batch.labels, batch.importance)
