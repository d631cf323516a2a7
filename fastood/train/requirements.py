"""Checks of config, images and method against each other, before any training."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fastood.data import DetectionTask
from fastood.metrics import Protocol
from fastood.train.acceleration import require_compiler
from fastood.train.config import RunConfig
from fastood.train.engine.launch import launched_processes
from fastood.train.engine.processes import require_equal_shares
from fastood.train.method import Method
from fastood.train.methods import MethodConfig


def check_config(config: RunConfig) -> None:
    """Check the config as far as possible before images are loaded.

    Raises:
        ValueError: If the method needs background images and none are named, if `torch.compile` has no compiler here,
            or if a batch size is not a multiple of the number of processes (except that of a background which the
            processes divide).

    Example:
        >>> from fastood.data import DataConfig
        >>> from fastood.train.methods.outlier_exposure import OEConfig
        >>> check_config(RunConfig(method=OEConfig(), data=DataConfig(in_dist="cifar10", ood=("svhn",))))
        Traceback (most recent call last):
        ...
        ValueError: data.background must name the images that oe trains with, got none: give --data.background \
folder:PATH, the name of a data set or noise
    """
    require_background(config)
    processes = launched_processes()
    for field in fields(config.method):
        divided = config.method.divides_background and field.name == "background_batch_size"
        if field.name.endswith("batch_size") and not divided:
            require_equal_shares(f"method.{field.name}", getattr(config.method, field.name), processes)
    require_compiler(config.compile)


def require_background(config: RunConfig) -> None:
    """Check that background images are named if the method trains with some.

    Raises:
        ValueError: If the method needs background images and none are named.
    """
    if config.method.needs_background and config.data.background_spec.kind == "none":
        raise ValueError(
            f"data.background must name the images that {config.method.name} trains with, got none: "
            "give --data.background folder:PATH, the name of a data set or noise"
        )


def require_enough_ood(task: DetectionTask, protocol: Protocol) -> None:
    """Check that every OOD set has as many images as the protocol draws.

    Raises:
        ValueError: If an OOD set is too small.
    """
    drawn = protocol.ood_count(len(task.id_test)) or 1  # None if the protocol takes sets whole.
    for name, images in task.ood.items():
        if len(images) < drawn:
            raise ValueError(
                f"OOD set {name!r} must have the {drawn} images that the protocol draws "
                f"(protocol.ood_fraction of {len(task.id_test)} test images), got {len(images)}"
            )


def small_backgrounds(method: Method, task: DetectionTask, config: MethodConfig) -> list[str]:
    """Return warnings of batches that will be smaller than configured, because there are too few images.

    Args:
        method: The method.
        task: Its images.
        config: Its hyper-parameters.

    Raises:
        ValueError: If several processes cannot share such a batch.
    """
    processes = launched_processes()
    for stage in method.stages:
        index, size = getattr(stage, "id_index", None), getattr(stage, "batch_size", None)
        if size is not None:
            count = len(task.id_train) if index is None else len(index)
            require_equal_shares(f"the in-distribution batch of stage {stage.name!r}", min(size, count), processes)
    size = getattr(config, "background_batch_size", None)
    if size is None:
        return []
    warnings = []
    gamma: Any = getattr(config, "sample_rate", None)
    for arm in method.arms:
        is_learnt = arm.name == method.learnt_arm
        # The pool selects by weights that are not learnt yet: only the expected number of images is known.
        count = int(gamma * task.background_size) if is_learnt else method.background_count(arm.name)
        if not 0 < count < size:
            continue
        part = f"{'about ' if is_learnt else ''}{count} of {task.background_size} background images"
        reason = part if gamma is None else f"sample_rate (γ) {gamma} leaves it {part}"
        if processes > 1 and not config.divides_background and (is_learnt or count % processes):
            raise ValueError(
                f"arm {arm.name!r} cannot be trained by {processes} processes: {reason}, fewer than a batch of {size}"
            )
        warnings.append(
            f"arm {arm.name!r} trains on all of its background images at every step: {reason}, a batch is {size}"
        )
    return warnings
