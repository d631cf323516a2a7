"""Which loader serves a run: by the size of its images and by what is installed."""

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
"""Batches that the loaders with workers are asked ahead unless told otherwise."""
MAX_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class LoaderPlan:
    """A loader chosen, and why."""

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

    Left to itself: DataLoader where images are still encoded, as DALI's resizing and its decoder on a GPU round
    otherwise than what all test images go through; resident where they take up to half of the device's memory (free
    memory of a GPU, all of the machine's for a CPU); else DALI if it is installed, else DataLoader.

    Args:
        asked: A loader by name, or "auto".
        prefetch_depth: Batches asked ahead; None for 0 with resident and 2 with the others.
        image_bytes: Of all images that are to be served.
        device: Where batches are wanted.
        encoded: Whether some of them are still encoded.

    Raises:
        ValueError: If `asked` is unknown, or DALI is asked for and not installed, or resident for encoded images, or
            `prefetch_depth` is below 0.

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
    """Make the loader of one image set.

    Args:
        plan: Which, and how far ahead.
        images: uint8 `[N, C, H, W]`, in memory or mapped from a file, or encoded images for DALI and DataLoader.
        augment: What they go through.
        batch_size: The most images that a batch asks for.
        device: Where batches are wanted.

    Raises:
        ValueError: If encoded images are to be resident, or DALI is not installed.
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
    """Whether NVIDIA DALI can be imported."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def require_dali() -> None:
    """Refuse to go on without DALI, with a ValueError that says how to install it."""
    if not dali_installed():
        raise ValueError(
            f"data.loader is dali, but NVIDIA DALI is not installed: {install_command(requirements('dali'))}, "
            "or take data.loader dataloader"
        )


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
