"""What a stage minimises: from a batch of images to a loss and the loss of each image."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fastood.losses import MixedBatchLoss


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Images of one step, in-distribution ones first, on the device of the network."""

    images: Tensor
    """float32 `[B, C, H, W]`, augmented and normalised."""
    labels: Tensor
    """int64 `[B]`; below 0 for background."""
    importance: Tensor | None
    """float32 `[B]`, what each image counts for; None for 1 each."""


class Objective(Protocol):
    """A loss of a network on a batch. It calls the network once: in-distribution and background images jointly."""

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The scalar loss, and what each image's loss is before any weight, `[B]` and detached."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as this one would; draws for example."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


class StatelessObjective:
    """Base of objectives that remember nothing between steps."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


def forward_outputs(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features of a `Classifier` that Fabric has set up, in one pass through its precision and processes."""
    # Fabric lets nothing but `forward` through unless it is told.
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
        """The loss of the network's logits."""
        return self.loss.with_per_sample(network(batch.images), batch.labels, batch.importance)
