"""One table of batches for `augment_images`: shapes, layouts of the pool, scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last]


@dataclass(frozen=True)
class AugmentSample:
    """Some images of a pool of random bytes; `layout`: contiguous, channels_last, transposed or strided."""

    batch: int
    channels: int
    height: int
    width: int
    padding: int
    layout: str = "contiguous"
    by_channel: bool = False
    flip: str = "mixed"  # mixed, all, none
    num_images: int = 9

    def __str__(self) -> str:
        by = "-by-channel" if self.by_channel else ""
        return (
            f"{self.batch}of{self.num_images}x{self.channels}x{self.height}x{self.width}-padding{self.padding}-{self.layout}"
            f"-{self.flip}{by}"
        )

    @property
    def mean(self) -> float | list[float]:
        return [0.4 + 0.03 * c for c in range(self.channels)] if self.by_channel else 0.5

    @property
    def std(self) -> float | list[float]:
        return [0.2 + 0.017 * c for c in range(self.channels)] if self.by_channel else 0.25

    def make(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images, index, rows, columns, flip; the corners of the crops among them."""
        generator = torch.Generator().manual_seed(self.batch * 101 + self.width)
        shape = (self.num_images, self.channels, self.height, self.width)
        stored = {
            "contiguous": shape,
            "channels_last": (shape[0], shape[2], shape[3], shape[1]),
            "transposed": (shape[0], shape[1], shape[3], shape[2]),
            "strided": (2 * shape[0], shape[1], shape[2] + 3, 2 * shape[3]),
        }[self.layout]
        images = torch.randint(256, stored, dtype=torch.uint8, generator=generator)
        if self.layout == "channels_last":
            images = images.permute(0, 3, 1, 2)
        if self.layout == "transposed":
            images = images.transpose(2, 3)
        if self.layout == "strided":
            images = images[::2, :, 2 : 2 + self.height, ::2]
        index = torch.randint(max(1, self.num_images), (self.batch,), generator=generator)
        rows, columns = torch.randint(2 * self.padding + 1, (2, self.batch), generator=generator)
        rows[:2], columns[1:3] = 0, 2 * self.padding
        flip = torch.rand(self.batch, generator=generator) < 0.5
        if self.flip != "mixed":
            flip.fill_(self.flip == "all")
        # Plain `to` may straighten the strides.
        moved = torch.empty_strided(images.shape, images.stride(), dtype=images.dtype, device=device).copy_(images)
        return moved, index.to(device), rows.to(device), columns.to(device), flip.to(device)


# Around the vectors of a row (16, 32, 64 bytes), the rows taken at once (8), images smaller than their padding.
SAMPLES = [
    *(AugmentSample(7, 3, 9, width, 2) for width in (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65)),
    *(AugmentSample(7, 2, height, 8, 1) for height in (1, 7, 8, 9, 16, 17)),
    *(AugmentSample(5, channels, 8, 19, 3, by_channel=True) for channels in (1, 2, 3, 4, 16)),
    *(AugmentSample(33, 3, 32, 32, 4, flip=flip) for flip in ("mixed", "all", "none")),
    *(AugmentSample(9, 3, 10, 12, 2, layout=layout) for layout in ("channels_last", "transposed", "strided")),
    AugmentSample(64, 1, 28, 28, 0),
    AugmentSample(200, 3, 32, 32, 4, num_images=3),
    AugmentSample(6, 3, 4, 5, 11),
    AugmentSample(4, 17, 6, 6, 1),
    AugmentSample(3, 3, 80, 81, 5),  # too large to be copied whole first
    AugmentSample(0, 3, 8, 8, 1),
    AugmentSample(0, 3, 8, 8, 1, num_images=0),
]


def augment_images_calls(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of `augment_images` for opcheck: (name, op, args)."""
    calls: list[tuple[str, Callable[..., object], tuple[object, ...]]] = []
    for sample in (AugmentSample(5, 3, 8, 9, 2, by_channel=True), AugmentSample(2, 1, 4, 4, 0, layout="strided")):
        mean = sample.mean if isinstance(sample.mean, list) else [sample.mean]
        std = sample.std if isinstance(sample.std, list) else [sample.std]
        for dtype in DTYPES:
            for memory_format in MEMORY_FORMATS:
                channels_last = memory_format == torch.channels_last
                args = (*sample.make(device), sample.padding, mean, std, dtype, channels_last)
                calls.append(("augment_images", torch.ops.fastood.augment_images.default, args))
    return calls
