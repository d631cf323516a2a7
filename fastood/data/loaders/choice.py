"""Choice of a loader by the size of the images and the installed packages."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastood.common.extras import install_command, requirements
from fastood.data.images.augment import Augment
from fastood.data.images.encoded import EncodedImages
from fastood.data.loaders.dataloader import WorkerLoader
from fastood.data.loaders.loader import ImageLoader
from fastood.data.loaders.resident import ResidentLoader

LoaderName = Literal["resident", "dataloader", "dali"]
DEFAULT_DEPTH = 2
"""Default prefetch depth of the loaders with workers."""
MAX_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class LoaderPlan:
    """Chosen loader, and the reason for the choice."""

    name: LoaderName
    prefetch_depth: int
    reason: str

    def __str__(self) -> str:
        return f"loader: {self.name}, {self.prefetch_depth} batches ahead ({self.reason})"


def plan_loader(
    asked: LoaderName | Literal["auto"],
    prefetch_depth: int | None,
    *,
    image_bytes: int,
    device: torch.device,
    encoded: bool = False,
) -> LoaderPlan:
    """Choose a loader.

    "auto" chooses "dataloader" if images are still encoded, since DALI's resizing and its GPU decoder round differently
    from the decoder of the test images; "resident" if the images take at most half of the device's memory (free memory
    of a GPU, total memory of the machine for a CPU); otherwise "dali" if it is installed, else "dataloader".

    Args:
        asked: A loader by name, or "auto".
        prefetch_depth: Batches prepared ahead; None for 0 with "resident" and 2 with the others.
        image_bytes: Bytes of all decoded images of the loaders.
        device: Device of the batches.
        encoded: Whether some images are still encoded.

    Raises:
        ValueError: If `asked` is unknown, or "dali" and not installed, or "resident" for encoded images, or
            `prefetch_depth` is negative.

    Example:
        >>> print(plan_loader("auto", None, image_bytes=10**6, device=torch.device("cpu")))  # doctest: +ELLIPSIS
        loader: resident, 0 batches ahead (0.00 GB of images, up to half of the ... GB of cpu memory)
    """
    if asked not in ("auto", *get_args(LoaderName)):
        raise ValueError(f"data.loader must be one of auto, {', '.join(get_args(LoaderName))}, got {asked!r}")
    if prefetch_depth is not None and prefetch_depth < 0:
        raise ValueError(f"data.prefetch_depth must be 0 or larger, got {prefetch_depth}")
    name: LoaderName
    if asked == "auto" and encoded:
        name, reason = "dataloader", "images are decoded as they are used"
    elif asked == "auto":
        memory = _memory_bytes(device)
        fits = image_bytes <= memory / 2
        installed = dali_installed()
        name = "resident" if fits else "dali" if installed else "dataloader"
        reason = f"{image_bytes / 1e9:.2f} GB of images, {'up to' if fits else 'more than'} half of the "
        reason += f"{memory / 1e9:.1f} GB of {device.type} memory"
        reason += "" if fits else f"; DALI is {'' if installed else 'not '}installed"
    else:
        name, reason = asked, "asked for"
        if name == "resident" and encoded:
            raise ValueError(
                "data.loader resident keeps decoded images, but some are decoded as they are used: "
                "choose data.decode memory, or data.loader dataloader"
            )
        if name == "dali":
            require_dali()
    depth = (0 if name == "resident" else DEFAULT_DEPTH) if prefetch_depth is None else prefetch_depth
    return LoaderPlan(name=name, prefetch_depth=depth, reason=reason)


def open_loader(
    plan: LoaderPlan, images: Tensor | EncodedImages, augment: Augment, *, batch_size: int, device: torch.device
) -> ImageLoader:
    """Create the loader of one image set.

    Args:
        plan: Chosen loader and prefetch depth.
        images: uint8 `[N, C, H, W]`, in memory or mapped from a file, or encoded images for DALI and DataLoader.
        augment: Augmentation and normalisation of the images.
        batch_size: Largest number of images of a batch.
        device: Device of the batches.

    Raises:
        ValueError: If images are encoded and the plan is "resident", or DALI is not installed.
    """
    if plan.name == "resident":
        if isinstance(images, EncodedImages):
            raise ValueError("images must be decoded, uint8 [N, C, H, W], for the resident loader, got encoded ones")
        return ResidentLoader(images, augment, device=device, prefetch_depth=plan.prefetch_depth)
    threads = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_WORKERS
    )
    if plan.name == "dataloader":
        return WorkerLoader(images, augment, device=device, prefetch_depth=plan.prefetch_depth, workers=threads)
    require_dali()
    # Imported here: DALI is an extra, and takes seconds to load.
    from fastood.data.loaders.dali import DaliLoader

    return DaliLoader(
        images,
        augment,
        batch_size=batch_size,
        device=device,
        prefetch_depth=plan.prefetch_depth,
        threads=threads,
    )


def dali_installed() -> bool:
    """Return whether NVIDIA DALI can be imported."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def require_dali() -> None:
    """Raise a ValueError with the install command if DALI is not installed."""
    if not dali_installed():
        raise ValueError(
            f"data.loader is dali, but NVIDIA DALI is not installed: {install_command(requirements('dali'))}, "
            "or choose data.loader dataloader"
        )


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
