"""Labelled sets of images, and the task that methods train and are evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastood.data.images.background_share import BackgroundShare
from fastood.data.images.digests import digest_of_set, digest_of_subset
from fastood.data.images.encoded import EncodedImages, Images, decoded_images, select_images, split_images
from fastood.data.images.left_out import LeftOut
from fastood.data.images.row_values import check_range, count_rows, take_rows

_HASHED_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images of one size, in memory, mapped from a file or still encoded, each with a label and a source.

    Raises:
        TypeError: If a tensor has the wrong dtype.
        ValueError: If a tensor has the wrong shape, or a label or source is out of range.

    Example:
        >>> letters = ImageSet(
        ...     name="letters",
        ...     images=torch.zeros(3, 1, 16, 16, dtype=torch.uint8),
        ...     labels=torch.full((3,), -1),
        ...     source=torch.tensor([0, 0, 1]),
        ...     source_names=("DejaVu Sans", "STIX"),
        ... )
        >>> len(letters), len(letters.subset(torch.tensor([2])))
        (3, 1)
    """

    name: str
    """Name of the set in tables."""
    images: Images
    """uint8 `[N, C, H, W]`, or image files that are decoded to this shape."""
    labels: Tensor
    """int64 `[N]`: 0…K-1 in-distribution, -1 background or out-of-distribution; never written to (`constant_rows`)."""
    source: Tensor
    """int64 `[N]`, index into `source_names`; never written to (`constant_rows`)."""
    source_names: tuple[str, ...]
    """Origins of the images, e.g. "letters: DejaVu Sans"."""
    class_names: tuple[str, ...] = ()
    """Names of the K classes of an in-distribution set; empty for background and OOD sets."""
    digest: Callable[[], str] | None = None
    """Function that computes a SHA-256 of the images without decoding them; None if their pixels must be hashed."""
    digest_covers_rows: bool = False
    """Whether `digest` depends on labels and sources, too (`digest_of_set`)."""
    left_out: tuple[LeftOut, ...] = ()
    """Files and folders among the images that are not read."""

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor) and self.images.dtype != torch.uint8:
            raise TypeError(f"{self.name}: images must be uint8, got {self.images.dtype}")
        if len(self.images.shape) != 4:
            raise ValueError(f"{self.name}: images must have shape [N, C, H, W], got {list(self.images.shape)}")
        for field, index in (("labels", self.labels), ("source", self.source)):
            if index.dtype != torch.int64:
                raise TypeError(f"{self.name}: {field} must be int64, got {index.dtype}")
            if index.shape != (len(self),):
                raise ValueError(f"{self.name}: {field} must have shape [{len(self)}], got {list(index.shape)}")
        if not self.source_names:
            raise ValueError(f"{self.name}: source_names must not be empty")
        check_range(self.name, "source", self.source, 0, len(self.source_names))
        if self.class_names:
            check_range(self.name, "labels", self.labels, 0, len(self.class_names))
        else:
            check_range(self.name, "labels without class_names", self.labels, -1, 0)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor, *, name: str | None = None) -> "ImageSet":
        """Select images by index.

        Args:
            index: int64 `[M]`, each 0…N-1, in any order.
            name: Name of the subset; by default that of the set.

        Returns:
            A set of M images with the same sources and classes.

        Raises:
            TypeError: If `index` is not int64.
            ValueError: If `index` does not have one dimension, or is out of range.
        """
        if index.dtype != torch.int64:
            raise TypeError(f"index must be int64, got {index.dtype}")
        if index.ndim != 1:
            raise ValueError(f"index must have shape [M], got {list(index.shape)}")
        check_range(self.name, "index", index, 0, len(self))
        return replace(
            self,
            name=self.name if name is None else name,
            images=select_images(self.images, index),
            labels=take_rows(self.labels, index),
            source=take_rows(self.source, index),
            digest=digest_of_subset(self.digest, index),
        )

    def rows(self, begin: int, end: int) -> "ImageSet":
        """Return consecutive images, a view: images that are mapped or encoded stay so.

        Args:
            begin: Index of the first image.
            end: Index after the last image, `begin <= end <= N`.

        Raises:
            ValueError: If the range is not within the set.
        """
        if not 0 <= begin <= end <= len(self):
            raise ValueError(f"begin and end must be in 0…{len(self)} and ascend, got {begin} and {end}")
        chosen = range(begin, end)
        images = self.images
        return replace(
            self,
            images=images.select(chosen) if isinstance(images, EncodedImages) else images[begin:end],
            labels=self.labels[begin:end],
            source=self.source[begin:end],
            digest=digest_of_subset(self.digest, chosen),
        )

    def pixels(self, index: Tensor) -> Tensor:
        """Return the pixels of selected images.

        Args:
            index: int64 `[M]`, each 0…N-1.

        Returns:
            uint8 `[M, C, H, W]`, in the order of `index`.

        Raises:
            ValueError: If an image is unreadable; the message names it.
        """
        return decoded_images(self.images, index)

    def sha256(self) -> str:
        """Return the SHA-256 of images, labels and sources, in hexadecimal; equal for decoded and encoded images.

        Images enter by `digest` if there is one, otherwise by their pixels.
        """
        images = split_images(self.images, _HASHED_AT_ONCE) if self.digest is None else self.digest()
        rows = (self.labels, self.source)
        return digest_of_set(self.images.shape, images, rows, covers_rows=self.digest_covers_rows)

    def group_counts(self) -> Tensor:
        """Return the number of images of each class, or of each source of a set without classes, int64."""
        if self.class_names:
            return count_rows(self.labels, minlength=len(self.class_names))
        return count_rows(self.source, minlength=len(self.source_names))


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionTask:
    """An in-distribution classification task, a background pool, and OOD test sets.

    Raises:
        ValueError: If a set other than the background is empty, has the wrong labels for its part, or images of another
            shape than `id_train`.
    """

    id_train: ImageSet
    """In-distribution training images."""
    id_test: ImageSet
    """In-distribution test images of the same classes."""
    background: ImageSet
    """Pool of background images to train with, or this process's slice of it; empty for methods that train without."""
    ood: dict[str, ImageSet]
    """OOD test sets by name, in the order of the table; disjoint from the background."""
    share: BackgroundShare | None = None
    """Place of the slice in the whole background; None if `background` is the whole."""

    def __post_init__(self) -> None:
        if not self.ood:
            raise ValueError("ood must hold at least one set, got none")
        parts = {"id_train": self.id_train, "id_test": self.id_test, "background": self.background}
        parts |= {f"ood[{name!r}]": images for name, images in self.ood.items()}
        shape = self.id_train.images.shape[1:]
        for part, images in parts.items():
            if len(images) == 0 and part != "background":
                raise ValueError(f"{part} must hold at least one image, got none ({images.name})")
            if tuple(images.images.shape[1:]) != tuple(shape):
                raise ValueError(
                    f"{part} must have images of {list(shape)} as id_train has, got {list(images.images.shape[1:])}"
                )
            labelled = bool(images.class_names)
            if labelled != part.startswith("id_"):
                expected = "class_names" if part.startswith("id_") else "no class_names (every label -1)"
                raise ValueError(f"{part} must have {expected}, got {images.class_names}")
        if self.id_test.class_names != self.id_train.class_names:
            raise ValueError(
                f"id_test must have the classes of id_train {self.id_train.class_names}, got {self.id_test.class_names}"
            )
        if self.num_classes < 2:
            raise ValueError(f"id_train must have at least 2 classes, got {self.num_classes}")
        end = self.background_begin + len(self.background)
        if self.background_begin < 0 or end > self.background_size:
            raise ValueError(
                f"share must place the slice in the {self.background_size} images of the whole background, "
                f"got {self.background_begin}…{end - 1}"
            )

    @property
    def num_classes(self) -> int:
        """Number K of in-distribution classes."""
        return len(self.id_train.class_names)

    @property
    def background_begin(self) -> int:
        """Index of the first image of `background` in the whole background."""
        return 0 if self.share is None else self.share.begin

    @property
    def background_size(self) -> int:
        """Number N of images of the whole background."""
        return len(self.background) if self.share is None else self.share.size

    def background_digest(self) -> str:
        """Return `ImageSet.sha256` of the whole background, equal for any number of processes."""
        return self.background.sha256() if self.share is None else self.share.digest()

    def background_groups(self) -> Tensor:
        """Return the number of images of each source in the whole background, int64 `[len(source_names)]`."""
        return self.background.group_counts() if self.share is None else self.share.group_counts()
