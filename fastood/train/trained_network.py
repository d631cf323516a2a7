"""A trained network at test time: logits and features of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastood.data import Augment, ImageSet, split_images
from fastood.train.acceleration import memory_format

if TYPE_CHECKING:
    from lightning.fabric import Fabric

BATCH_SIZE = 512
"""Images passed at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """What one forward pass says of N images; float32, on the CPU."""

    logits: Tensor
    """`[N, K]`."""
    features: Tensor
    """`[N, d]`, what the logits were computed from."""


class TrainedNetwork:
    """A network that trains no more: no augmentation, no dropout, BatchNorm with its statistics.

    Args:
        module: The network; left in eval mode, on the device of `fabric`.
        augment: Supplies the normalisation.
        fabric: Device and precision.
        channels_last: Memory layout of weights and activations.

    Attributes:
        module: The network.
    """

    def __init__(self, module: nn.Module, *, augment: Augment, fabric: Fabric, channels_last: bool = True) -> None:
        self.module = module.to(memory_format=memory_format(channels_last))
        self._augment = augment
        self._fabric = fabric
        self._forward: Any = fabric.setup_module(self.module)
        self._forward.eval()

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self._fabric.device

    def batches(self, images: ImageSet) -> Iterator[Tensor]:
        """Images as network input, float32 `[B, C, H, W]` on the device, in order."""
        for batch in split_images(images.images, BATCH_SIZE):
            yield self._augment.normalize(batch).to(self.device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the network puts out for input as of `batches`; differentiable where gradients are on."""
        output: Tensor = self._forward(inputs)
        return output

    def logits(self, images: ImageSet) -> Tensor:
        """Logits float32 `[N, K]`, on the CPU."""
        with torch.inference_mode():
            return torch.cat([self._forward(batch).float().cpu() for batch in self.batches(images)])

    def features(self, images: ImageSet) -> Tensor:
        """Penultimate features float32 `[N, d]` of a `Classifier`, on the CPU."""
        self._forward.mark_forward_method("features")
        with torch.inference_mode():
            return torch.cat([self._forward.features(batch).float().cpu() for batch in self.batches(images)])

    def outputs(self, images: ImageSet) -> Outputs:
        """Logits and features of a `Classifier`, in one pass."""
        self._forward.mark_forward_method("forward_outputs")
        logits, features = [], []
        with torch.inference_mode():
            for batch in self.batches(images):
                of_batch = self._forward.forward_outputs(batch)
                logits.append(of_batch[0].float().cpu())
                features.append(of_batch[1].float().cpu())
        return Outputs(logits=torch.cat(logits), features=torch.cat(features))
