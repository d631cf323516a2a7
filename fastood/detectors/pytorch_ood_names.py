"""Decorator for constructors that also accept the arguments of pytorch-ood 0.4, by its names and in its order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastood.detectors.linear_head import head_of

__all__ = ["Constructor", "takes_pytorch_ood"]

Constructor = TypeVar("Constructor", bound=Callable[..., None])

_OF_ALL = {"encoder": "model", "backbone": "model"}


def takes_pytorch_ood(*order: str, **ours: str) -> Callable[[Constructor], Constructor]:
    """Return a decorator for a detector's `__init__` that translates a call of pytorch-ood's class of the same name.

    Positional arguments after the model are read in pytorch-ood's order, unless the second one is the name of a layer,
    or is None and the last. Two arguments of pytorch-ood have no equivalent here: `criterion` must be the
    cross-entropy, and `micro_batch_size` is ignored because it does not change scores.

    Args:
        *order: Names of the parameters after the model in pytorch-ood, in its order.
        **ours: fastood's names of parameters by pytorch-ood's; "encoder" and "backbone" always become `model`, and "w"
            and "b" the `head`.

    Raises:
        TypeError: If the decorated constructor gets an argument twice, by either name or by position.
        ValueError: If the decorated constructor gets a `criterion` that is not the cross-entropy.

    Example:
        >>> class Detector:
        ...     @takes_pytorch_ood("eps", eps="epsilon")
        ...     def __init__(self, model, *, epsilon=0.1):
        ...         self.epsilon = epsilon
        >>> Detector(None, 0.2).epsilon, Detector(None, eps=0.3).epsilon, Detector(None, epsilon=0.4).epsilon
        (0.2, 0.3, 0.4)
    """

    def decorate(constructor: Constructor) -> Constructor:
        has_layer = "feature_layer" in inspect.signature(constructor).parameters

        @functools.wraps(constructor)
        def translating(self: object, *args: Any, **kwargs: Any) -> None:
            name, rest = type(self).__name__, args[1:]
            is_layer = has_layer and len(rest) > 0 and (isinstance(rest[0], str) or (rest[0] is None and len(rest) < 2))
            if not is_layer:
                kwargs = _by_name(name, order, rest, kwargs)
                args = args[:1]
            constructor(self, *args, **_translated(name, _OF_ALL | ours, kwargs))

        return cast(Constructor, translating)

    return decorate


def _by_name(name: str, order: tuple[str, ...], given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments after the model by pytorch-ood's names."""
    if len(given) > len(order):
        raise TypeError(f"{name} takes at most {len(order) + 1} positional arguments, got {len(given) + 1}")
    positional = dict(zip(order, given, strict=False))
    for argument in positional.keys() & kwargs.keys():
        raise TypeError(f"{name} got multiple values for argument {argument!r}")
    return positional | dict(kwargs)


def _translated(name: str, ours: Mapping[str, str], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by fastood's names."""
    left = dict(theirs)
    if "criterion" in left:
        _check_criterion(left.pop("criterion"))
    left.pop("micro_batch_size", None)
    if "w" in left or "b" in left:
        _require_one(name, "head", "w and b", "head" in left)
        if "w" in left and "b" not in left:
            raise TypeError(f"{name} takes w together with b, got w alone: pass b=None for a head without biases")
        left["head"] = _head(left.pop("w", None), left.pop("b", None))
    arguments: dict[str, Any] = {}
    for argument, value in left.items():
        here = ours.get(argument, argument)
        _require_one(name, here, argument, here in arguments or (here != argument and here in left))
        arguments[here] = value
    return arguments


def _require_one(name: str, ours: str, theirs: str, twice: bool) -> None:
    if twice:
        raise TypeError(f"{name} takes {ours}, or {theirs} under pytorch-ood's name, got both: pass one")


def _head(weight: object, bias: object) -> nn.Linear:
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        kind = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"w must be the floating-point weights [K, d] of the head, a tensor, got {kind}")
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        kind = f"shape {tuple(bias.shape)}" if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(f"b must be the biases [{len(weight)}] of the head, a tensor, or None, got {kind}")
    return head_of(weight.detach(), bias if bias is None else bias.detach())


def _check_criterion(criterion: object) -> None:
    if criterion is None or criterion in (F.cross_entropy, torch.nn.functional.cross_entropy):
        return
    if not isinstance(criterion, nn.CrossEntropyLoss) or criterion.weight is not None or criterion.label_smoothing:
        raise ValueError(
            f"criterion must be None or the cross-entropy, whose gradient ODIN steps along, got {criterion!r}"
        )
