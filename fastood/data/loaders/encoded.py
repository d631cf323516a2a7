"""Image files that are decoded when they are asked for, instead of once and for all."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fastood.data.fitting import fit_images
from fastood.data.sources import image_to_tensor, read_image


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImages:
    """JPEG, PNG or other image files, on disk or in memory, all to be brought to one size.

    Raises:
        TypeError: If paths and contents are mixed.
        ValueError: If `size` is below 1, or `channels` neither 1 nor 3.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (40, 30), "white").save(buffer, "png")
        >>> images = EncodedImages(files=[buffer.getvalue()], size=16, channels=3)
        >>> images.decode(torch.tensor([0, 0])).shape
        torch.Size([2, 3, 16, 16])
    """

    files: Sequence[str] | Sequence[bytes]
    """Paths, or whole contents."""
    size: int
    """Rows and columns after fitting: the shorter edge is resized to this, then the centre is cropped."""
    channels: int
    """1 (grey) or 3 (RGB)."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be 1 or larger, got {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        kinds = {type(file) for file in self.files}
        if len(kinds) > 1 or not kinds <= {str, bytes}:
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(f"files must be all str (paths) or all bytes (contents), got {found}")

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, index: Tensor) -> Tensor:
        """Decode and fit images with Pillow, as `load_task` does.

        Args:
            index: int64 `[B]`, each 0…N-1.

        Returns:
            uint8 `[B, channels, size, size]`.

        Raises:
            ValueError: If an image is unreadable; the message names its path or its place.
        """
        decoded = torch.empty(len(index), self.channels, self.size, self.size, dtype=torch.uint8)
        for place, chosen in zip(decoded, index.tolist(), strict=True):
            place.copy_(fit_images(self._read(chosen)[None], size=self.size, channels=self.channels)[0])
        return decoded

    def _read(self, index: int) -> Tensor:
        file = self.files[index]
        if isinstance(file, str):
            return read_image(file)
        try:
            with Image.open(io.BytesIO(file)) as image:
                return image_to_tensor(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"unreadable image {index} of {len(self)} in memory: {error}") from error
