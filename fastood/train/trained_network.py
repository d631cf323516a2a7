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
    from lightning_fabric import Fabric

BATCH_SIZE = 512
"""Images per forward pass."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """Logits and features of N images from one forward pass; float32, on the CPU."""

    logits: Tensor
    """Logits `[N, K]`."""
    features: Tensor
    """Penultimate features `[N, d]`, the input of the head."""


class TrainedNetwork:
    """A network in evaluation mode: no augmentation, no dropout, BatchNorm with its running statistics.

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
        """Device of the network."""
        return self._fabric.device

    def batches(self, images: ImageSet) -> Iterator[Tensor]:
        """Yield images as network input, float32 `[B, C, H, W]` on the device, in order."""
        for batch in split_images(images.images, BATCH_SIZE):
            yield self._augment.normalize(batch).to(self.device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the output for an input of `batches`; differentiable if gradients are enabled."""
        output: Tensor = self._forward(inputs)
        return output

    def logits(self, images: ImageSet) -> Tensor:
        """Return logits float32 `[N, K]`, on the CPU."""
        with torch.inference_mode():
            return torch.cat([self._forward(batch).float().cpu() for batch in self.batches(images)])

    def features(self, images: ImageSet) -> Tensor:
        """Return penultimate features float32 `[N, d]` of a `Classifier`, on the CPU."""
        self._forward.mark_forward_method("features")
        with torch.inference_mode():
            return torch.cat([self._forward.features(batch).float().cpu() for batch in self.batches(images)])

    def outputs(self, images: ImageSet) -> Outputs:
        """Return logits and features of a `Classifier`, from one forward pass."""
        self._forward.mark_forward_method("forward_outputs")
        logits, features = [], []
        with torch.inference_mode():
            for batch in self.batches(images):
                outputs = self._forward.forward_outputs(batch)
                logits.append(outputs[0].float().cpu())
                features.append(outputs[1].float().cpu())
        return Outputs(logits=torch.cat(logits), features=torch.cat(features))
