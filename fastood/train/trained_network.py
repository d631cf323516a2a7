"""A trained network at test time: logits and features of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastood.data import Augment, ImageSet, split_images
from fastood.data.images.encoded import Images, select_images
from fastood.train.acceleration import memory_format
from fastood.train.engine.progress import on_terminal
from fastood.train.shared_work import compute_shared

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCH_SIZE = 512
"""Images per forward pass."""
PROGRESS_AFTER = 5.0
"""Seconds after which a pass over an image set shows its progress on a terminal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """Logits and features of N images from one forward pass; float32, on the CPU."""

    logits: Tensor
    """Logits `[N, K]`."""
    features: Tensor
    """Penultimate features `[N, d]`, the input of the head."""


class TrainedNetwork:
    """A network in evaluation mode: no augmentation, no dropout, BatchNorm with its running statistics.

    Several processes share the batches of a call: each computes a contiguous part of the batches that one process would
    compute, and all receive the results, equal to those of one process bit for bit. All must make the same calls in the
    same order. An error of one process is raised on all.

    Args:
        module: The network; left in eval mode, on the device of `fabric`.
        augment: Supplies the normalisation.
        fabric: Device and precision of this process alone.
        channels_last: Memory layout of weights and activations.
        shared_by: The processes that share the batches; None if this process computes all of them.

    Attributes:
        module: The network.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        augment: Augment,
        fabric: Fabric,
        channels_last: bool = True,
        shared_by: Fabric | None = None,
    ) -> None:
        self.module = module.to(memory_format=memory_format(channels_last))
        self._augment = augment
        self._fabric = fabric
        self._shared_by = shared_by
        self._forward: Any = fabric.setup_module(self.module)
        self._forward.eval()

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self._fabric.device

    def batches(self, images: ImageSet) -> Iterator[Tensor]:
        """Yield all images as network input, float32 `[B, C, H, W]` on the device, in order."""
        return self._inputs(images.images)

    def over_batches(self, images: ImageSet, compute: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """Compute tensors of every batch of images, shared by the processes.

        Args:
            images: N images.
            compute: Function from an input of `batches` to tensors `[B, ...]`, as many for every batch.

        Returns:
            Tensors `[N, ...]` on the CPU, on every process.

        Raises:
            Exception: If `compute` raises one, or ValueError if an image is unreadable; on every process.
        """

        def of_part(part: range) -> list[Tensor]:
            whole = images.images
            if len(part) < count:
                whole = _rows(whole, part.start * BATCH_SIZE, min(part.stop * BATCH_SIZE, len(images)))
            is_quiet = not on_terminal() or (self._shared_by is not None and not self._shared_by.is_global_zero)
            results = []
            for batch in tqdm(
                self._inputs(whole),
                desc=images.name,
                total=len(part),
                unit="batch",
                delay=PROGRESS_AFTER,
                leave=False,
                disable=is_quiet,
            ):
                results.append([result.cpu() for result in compute(batch)])
            return [torch.cat(parts) for parts in zip(*results, strict=True)]

        count = max(1, math.ceil(len(images) / BATCH_SIZE))
        return compute_shared(count, of_part, self._shared_by)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the output for an input of `batches`; differentiable if gradients are enabled."""
        output: Tensor = self._forward(inputs)
        return output

    def logits(self, images: ImageSet) -> Tensor:
        """Return logits float32 `[N, K]`, on the CPU."""
        with torch.inference_mode():
            return self.over_batches(images, lambda batch: [self._forward(batch).float()])[0]

    def features(self, images: ImageSet) -> Tensor:
        """Return penultimate features float32 `[N, d]` of a `Classifier`, on the CPU."""
        self._forward.mark_forward_method("features")
        with torch.inference_mode():
            return self.over_batches(images, lambda batch: [self._forward.features(batch).float()])[0]

    def outputs(self, images: ImageSet) -> Outputs:
        """Return logits and features of a `Classifier`, from one forward pass."""
        self._forward.mark_forward_method("forward_outputs")
        with torch.inference_mode():
            logits, features = self.over_batches(
                images, lambda batch: [output.float() for output in self._forward.forward_outputs(batch)[:2]]
            )
        return Outputs(logits=logits, features=features)

    def _inputs(self, images: Images) -> Iterator[Tensor]:
        for batch in split_images(images, BATCH_SIZE):
            yield self._augment.normalize(batch).to(self.device)


def _rows(images: Images, begin: int, end: int) -> Images:
    """Return the images `begin … end - 1`, a view if they are decoded."""
    return images[begin:end] if isinstance(images, Tensor) else select_images(images, torch.arange(begin, end))
