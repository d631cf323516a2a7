"""Resolution of a config: fields that depend on the machine, the current directory or the run to resume."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import torch

from fastood.console.names import expanded
from fastood.data import DataConfig
from fastood.train.config import Device, RunConfig, differences, to_dict
from fastood.train.methods import MethodConfig
from fastood.train.run_folder import RunFolder

SMALL_NETWORKS = ("small-cnn", "lenet-5", "oe-cnn")
"""Networks whose steps, on images of at most `SMALL_IMAGES` pixels, are too short to be shared by threads."""
SMALL_IMAGES = 32


def resolve(config: RunConfig) -> RunConfig:
    """Return a config that means the same everywhere: device, threads and absolute paths instead of defaults.

    Raises:
        ValueError: If the config asks for a GPU and there is none.
    """
    device = resolve_device(config.device)
    threads = default_threads(device=device, network=config.model.name, image_size=config.data.image_size)
    return replace(
        config,
        device=device,
        threads=threads if config.threads is None else config.threads,
        data=absolute_paths(config.data),
        method=with_absolute_paths(config.method),
    )


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return the device that "auto" selects on this machine.

    Raises:
        ValueError: If `device` is "cuda" and PyTorch finds no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ValueError("device is cuda, but this PyTorch finds no GPU")
    return "cuda" if has_gpu and device != "cpu" else "cpu"


def default_threads(*, device: str, network: str, image_size: int | None) -> int:
    """Return the default number of threads of a run, from its computation and never from the machine's load.

    The number is part of the config since sums depend on how threads share them.

    Args:
        device: "cpu" or "cuda".
        network: Name of the network.
        image_size: Height and width of the images in pixels; None for small images of their native size.

    Returns:
        1 for a small network on the CPU, otherwise PyTorch's number, which follows the cores and OMP_NUM_THREADS.

    Example:
        >>> default_threads(device="cpu", network="small-cnn", image_size=None)
        1
    """
    is_small = network in SMALL_NETWORKS and (image_size is None or image_size <= SMALL_IMAGES)
    return 1 if device == "cpu" and is_small else torch.get_num_threads()


def absolute_paths(data: DataConfig) -> DataConfig:
    """Return the data config with absolute paths, and with the background that "auto" selects.

    Example:
        >>> absolute_paths(DataConfig(in_dist="folder:/data/cats", background="gaussian", ood=("x=npy:/x.npy",))).ood
        ('x=npy:/x.npy',)
        >>> absolute_paths(DataConfig(background="packed:/pools/a")).background
        'packed:/pools/a'
    """

    def absolute(source: str) -> str:
        parts = re.fullmatch(r"([^=:]*=)?(folder|npy|list|packed):(.*)", source, re.DOTALL)
        if parts is None:
            return source
        paths = parts[3].split(",") if parts[2] == "npy" else [parts[3]]
        return f"{parts[1] or ''}{parts[2]}:{','.join(str(expanded(Path(path)).absolute()) for path in paths)}"

    return replace(
        data,
        in_dist=absolute(data.in_dist),
        in_dist_test=None if data.in_dist_test is None else absolute(data.in_dist_test),
        background=data.background_spec.kind if data.background == "auto" else absolute(data.background),
        ood=tuple(absolute(source) for source in data.ood),
        root=expanded(data.root).absolute(),
        list_root=None if data.list_root is None else expanded(data.list_root).absolute(),
    )


def with_absolute_paths(method: MethodConfig) -> MethodConfig:
    """Return the method's config with absolute paths in every field that is a path."""
    paths = {entry.name: getattr(method, entry.name) for entry in fields(method)}
    return replace(
        method, **{name: expanded(path).absolute() for name, path in paths.items() if isinstance(path, Path)}
    )


def config_to_run(config: RunConfig, folder: RunFolder, *, resume: bool, threads: int | None) -> RunConfig:
    """Return the config to begin or resume a run with, after checking that the folder is one for it.

    Args:
        config: The config, resolved.
        folder: The run's folder.
        resume: Resume the run in the folder; begin it if there is none.
        threads: Number of threads that the caller asked for; None for none.

    Raises:
        FileExistsError: If the folder exists and `resume` is false, or it holds files but no run to resume.
        ValueError: If the config differs from that of the run to resume.
    """
    begun = folder.begun_config(resume=resume)
    if begun is not None:
        resumed = replace(
            config,
            data=_loading_as_begun(config.data, begun.data),
            threads=threads_to_resume(threads, begun.threads, config.threads),
        )
        _require_same(begun, resumed, folder.path)
        return resumed
    if resume:
        print(f"there is no run to resume in {folder.path}: a new one begins", file=sys.stderr, flush=True)
    if "list" in config.data.kinds and config.data.list_root is None:
        return replace(config, data=replace(config.data, list_root=Path.cwd()))
    return config


def _require_same(begun: RunConfig, config: RunConfig, path: Path) -> None:
    """Raise ValueError, naming each field with both values, if a run is resumed with another config.

    Loaders give the same images and may differ; so may the number of threads, which is warned of.
    """
    loading = {name: getattr(config.data, name) for name in ("loader", "decode", "decode_budget_gb")}
    begun = replace(begun, data=replace(begun.data, **loading), threads=config.threads)
    if changed := differences(to_dict(begun), to_dict(config)):
        raise ValueError(f"the run in {path} has another configuration (there → here): {'; '.join(changed)}")


def threads_to_resume(asked: int | None, begun: int | None, default: int | None) -> int | None:
    """Return the number of threads of a resumed run: the number it began with, unless another is asked for.

    Args:
        asked: Number that the caller asks for; None for none.
        begun: Number that the run began with; None if the run did not record it.
        default: Number of a new run.

    A number other than the one that the run began with is warned of on stderr, since the last digits of the result
    then differ.
    """
    if asked is not None and begun is not None and asked != begun:
        print(
            f"warning: the run began with threads={begun} and is resumed with threads={asked}: sums are then rounded "
            "differently, and its result is that of neither number alone",
            file=sys.stderr,
        )
    return next((number for number in (asked, begun) if number is not None), default)


def _loading_as_begun(data: DataConfig, begun: DataConfig) -> DataConfig:
    """Return how to load the images of a run that is resumed.

    Any loader may resume a run, since all give the same images, but it must draw batches as far ahead as the run did
    at its beginning. Lists of files keep the root that they had then, and a root that no source uses may differ.
    """
    depth = begun.prefetch_depth if data.prefetch_depth is None else data.prefetch_depth
    list_root = begun.list_root if data.list_root is None else data.list_root
    root = data.root if data.kinds & {"torchvision", "set"} else begun.root
    return replace(data, prefetch_depth=depth, list_root=list_root, root=root)
