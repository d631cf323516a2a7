"""From stored images to training batches: order, augmentation, normalisation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.common.transfer import to_device
from fastood.ops.augment_images import augment_images

MEAN, STD = 0.5, 0.25
"""Normalisation of every data set (Li & Vasconcelos 2020, supplementary C,
https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html);
one for all, since the data set of a test image is unknown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AugmentDraws:
    """Random crop offsets and flips for a batch of n images.

    Holds no images, so that it is cheap to send to workers and to keep in checkpoints.
    """

    rows: Tensor
    """int64 `[n]`, first row of each crop in the zero-padded image, 0…2·padding."""
    columns: Tensor
    """int64 `[n]`, first column of each crop in the zero-padded image, 0…2·padding."""
    flip: Tensor
    """bool `[n]`, whether the crop is mirrored left and right."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random crop after zero padding, random horizontal flip, normalisation (Li & Vasconcelos 2020, suppl. C).

    A whole batch is augmented at once. The draws depend on the number of images alone, never on their content.

    Example:
        >>> augment = Augment(flip=True)
        >>> images = torch.full((2, 1, 16, 16), 255, dtype=torch.uint8)
        >>> batch = augment(images, generator=torch.Generator().manual_seed(0))
        >>> batch.shape, batch.dtype, batch.max().item()
        (torch.Size([2, 1, 16, 16]), torch.float32, 2.0)
    """

    padding: int | None = None
    """Zero pixels on each side before the crop; by default an eighth of the image height (4 for 32×32)."""
    flip: bool = False
    """Mirror each image with probability ½. Not for digits or letters."""

    def __post_init__(self) -> None:
        if self.padding is not None and self.padding < 0:
            raise ValueError(f"padding must be 0 or larger, got {self.padding}")

    def draw(self, n: int, *, height: int, generator: torch.Generator) -> AugmentDraws:
        """Draw the augmentations of a batch; `apply` can apply them later or in another process.

        Args:
            n: Number of images, 0 or larger.
            height: Rows of the images, which decide the default padding.
            generator: Source of all randomness, on any device.

        Returns:
            Draws on the device of the generator.

        Example:
            >>> draws = Augment().draw(3, height=32, generator=torch.Generator().manual_seed(0))
            >>> draws.rows.shape, draws.flip.any().item()
            (torch.Size([3]), False)
        """
        padding = self.padding_of(height)
        device = generator.device
        rows, columns = torch.randint(2 * padding + 1, (2, n), generator=generator, device=device)
        if self.flip:
            return AugmentDraws(rows=rows, columns=columns, flip=_coin_flips(n, generator))
        return AugmentDraws(rows=rows, columns=columns, flip=torch.zeros(n, dtype=torch.bool, device=device))

    def apply(self, images: Tensor, index: Tensor, draws: AugmentDraws) -> Tensor:
        """Pick images out of a set, augment them by `draws` and normalise them, in one pass over their bytes.

        Args:
            images: uint8 `[P, C, H, W]`; may be a memory-mapped file, of which only the images asked for are read.
            index: int64 `[n]`, each 0…P-1, repeats allowed; on any device.
            draws: Augmentations of n images of this height; on any device.

        Returns:
            float32 `[n, C, H, W]` on the device of `images`.

        Raises:
            TypeError: If a tensor has the wrong dtype.
            ValueError: If a tensor has the wrong shape, or an index or crop is out of range.

        Example:
            >>> images = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
            >>> draws = Augment().draw(2, height=32, generator=torch.Generator().manual_seed(0))
            >>> Augment().apply(images, torch.tensor([41, 7]), draws).shape
            torch.Size([2, 3, 32, 32])
        """
        _check_images(images)
        device = images.device
        return augment_images(
            images,
            *(to_device(values, device) for values in (index, draws.rows, draws.columns, draws.flip)),
            padding=self.padding_of(images.shape[2]),
            mean=MEAN,
            std=STD,
        )

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Augment and normalise a batch for training: `draw`, then `apply` to all images.

        Args:
            images: uint8 `[N, C, H, W]`.
            generator: Source of all randomness, on any device.

        Returns:
            float32 `[N, C, H, W]` on the device of `images`.

        Raises:
            TypeError: If `images` is not uint8.
            ValueError: If `images` does not have four dimensions.
        """
        _check_images(images)
        n, _, height, _ = images.shape
        draws = self.draw(n, height=height, generator=generator)
        return self.apply(images, torch.arange(n, device=images.device), draws)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise a batch, (x/255 - 0.5)/0.25, without randomness, as for evaluation.

        Args:
            images: uint8 `[N, C, H, W]`.

        Returns:
            float32 `[N, C, H, W]` in -2…2.

        Raises:
            TypeError: If `images` is not uint8.
            ValueError: If `images` does not have four dimensions.

        Example:
            >>> Augment().normalize(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
            [[[[-2.0, 2.0]]]]
        """
        _check_images(images)
        index = torch.arange(len(images), device=images.device)
        middle = torch.zeros_like(index)
        return augment_images(images, index, middle, middle, middle.bool(), padding=0, mean=MEAN, std=STD)

    def padding_of(self, height: int) -> int:
        """Return the zero pixels on each side of an image before the crop.

        Args:
            height: Rows of the image.

        Example:
            >>> Augment().padding_of(32), Augment(padding=2).padding_of(32)
            (4, 2)
        """
        return height // 8 if self.padding is None else self.padding


def _coin_flips(n: int, generator: torch.Generator) -> Tensor:
    # Not randint: seeded runs depend on these draws.
    return torch.rand(n, generator=generator, device=generator.device) < 0.5


def epoch_batches(
    num_examples: int, batch_size: int, *, generator: torch.Generator, drop_last: bool
) -> Iterator[Tensor]:
    """Return the batches of one epoch, in random order without replacement.

    The order is drawn when the function is called, not when the first batch is taken.

    Args:
        num_examples: Size of the data set, 1 or more.
        batch_size: Size of a batch, 1 or more.
        generator: Source of the order.
        drop_last: Leave out the last batch if it is smaller than the others.

    Returns:
        Iterator over int64 `[batch_size]` indices into the data set.

    Raises:
        ValueError: If a size is below 1, or `drop_last` would leave no batch.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> batches = list(epoch_batches(5, 2, generator=generator, drop_last=False))
        >>> [len(batch) for batch in batches], sorted(torch.cat(batches).tolist())
        ([2, 2, 1], [0, 1, 2, 3, 4])
    """
    if num_examples < 1:
        raise ValueError(f"num_examples must be 1 or larger, got {num_examples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or larger, got {batch_size}")
    if drop_last and batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most num_examples with drop_last, got {batch_size} for {num_examples} examples"
        )
    # Drawn here and not in a generator function, which would draw when the first batch is taken.
    order = torch.randperm(num_examples, generator=generator, device=generator.device)
    stop = num_examples - num_examples % batch_size if drop_last else num_examples
    return iter(torch.split(order[:stop], batch_size))


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape [N, C, H, W], got {list(images.shape)}")
