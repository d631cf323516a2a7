"""Split of a model at its linear head: features and logits from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from fastood.detectors.feature_extractor import FeatureExtractor, as_features, tensor_in
from fastood.detectors.model_calls import Inputs, Model, call, check_model, eager, layers_of, module_of, unwrapped
from fastood.ops._features import check_features

__all__ = [
    "LinearHeadModel",
    "SplitModel",
    "check_head",
    "find_linear_head",
    "head_logits",
    "head_of",
    "last_features_and_logits",
    "recorded_calls",
]


class SplitModel(Protocol):
    """Model that returns features and logits in one forward pass."""

    @property
    def head(self) -> nn.Module:
        """Module from features to logits."""
        ...

    def __call__(self, x: Any) -> tuple[Tensor, Tensor]:
        """Return features `[N, d]` and logits `[N, K]` of a batch; differentiable if gradients are enabled."""
        ...

    def features(self, x: Any) -> Tensor:
        """Return the features `[N, d]` of a batch."""
        ...


class LinearHeadModel:
    """Split of a model into input and output of its linear head: features `[N, d]` and logits `[N, K]`.

    The model runs in evaluation mode, unwrapped and uncompiled; afterwards every module has its previous mode.

    Args:
        model: The network, or a function from inputs to features.
        feature_layer: Name of the layer whose output is the features, to which the head is then applied. None for the
            input of the head in the forward pass or, if the head does not run there, for the output of the model.
        head: The layer from features to logits; None for the last `nn.Linear` of `model`.

    Attributes:
        head: The layer from features to logits.

    Raises:
        TypeError: If `head` is not an `nn.Linear`, or is None and `model` is not an `nn.Module`.
        ValueError: If `model` has no `nn.Linear`, or the layer does not exist.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> split = LinearHeadModel(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
        >>> features, logits = split(torch.zeros(2, 6))
        >>> features.shape, logits.shape
        (torch.Size([2, 5]), torch.Size([2, 3]))
    """

    def __init__(self, model: Model, feature_layer: str | None = None, *, head: nn.Linear | None = None) -> None:
        check_model(model)
        self.model = unwrapped(model)
        self._is_last_linear = head is None
        self.head = find_linear_head(self.model) if head is None else check_head(head)
        self._extract = FeatureExtractor(self.model, None if feature_layer is None else [feature_layer])

    def __call__(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Return features `[N, d]` and logits `[N, K]` of a batch; differentiable if gradients are enabled.

        Raises:
            TypeError: If `x` is neither a tensor nor a mapping, or the model does not return a tensor.
            ValueError: If the head's input is not `[N, d]`, or if `head` was None and the model's output is not the
                output of its last `nn.Linear`.
        """
        if self._extract.layers is not None:
            return self._apply_head(self._extract.single(x))
        module = module_of(self.model)
        with nullcontext() if module is None else eager(module), recorded_calls(self.head) as calls:
            output = call(self.model, x)
        # The last nn.Linear in the order of modules need not compute the logits: its output must be that of the model.
        if self._is_last_linear and (not calls or tensor_in(output, "the model", "logits") is not calls[-1][1]):
            raise ValueError(
                f"the last nn.Linear of the model, {_name(self.model, self.head)!r}, does not return the output of "
                "the model: pass the layer that computes the logits as head="
            )
        return last_features_and_logits(calls) if calls else self._apply_head(as_features(output, "the model"))

    def features(self, x: Inputs) -> Tensor:
        """Return the features `[N, d]` of a batch."""
        return self(x)[0]

    def _apply_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        check_features(features, self.head.in_features)
        return features, self.head(features)


@contextmanager
def recorded_calls(head: nn.Module) -> Iterator[list[tuple[object, object]]]:
    """Record the input and the output of a layer, one pair for each call."""
    calls: list[tuple[object, object]] = []

    def keep(module: nn.Module, args: tuple[object, ...], named: dict[str, object], output: object) -> None:
        calls.append((args[0] if args else next(iter(named.values()), None), output))

    hook = head.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def last_features_and_logits(calls: list[tuple[object, object]]) -> tuple[Tensor, Tensor]:
    """Return input and output of the last recorded call of a head as features `[N, d]` and logits `[N, K]`.

    Raises:
        ValueError: If there is no call, or its input is not `[N, d]`.
    """
    if not calls:
        raise ValueError("the head did not run in the forward pass of the model")
    features, logits = calls[-1]
    if not isinstance(features, Tensor) or features.dim() != 2:
        kind = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the input of the head must be [N, d], got {kind}")
    return features, as_features(logits, "the head", pooled=False)


def find_linear_head(model: Model) -> nn.Linear:
    """Return the last `nn.Linear` of a model, which is the head of most classifiers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module to find its head, got {type(model).__name__}: pass head=")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear: pass head=, or use detectors that need no head")
    return linear[-1]


def check_head(head: Model) -> nn.Linear:
    """Return `head`, unwrapped if it is compiled; raise TypeError unless it is an `nn.Linear`."""
    head = unwrapped(head)
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head must be an nn.Linear, got {type(head).__name__}")
    return head


def head_logits(head: nn.Linear, features: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return logits float64 `[N, K]` of features float64 `[N, d]`; `weight` replaces the weight of the head."""
    weight = (head.weight if weight is None else weight).detach().double()
    bias = None if head.bias is None else head.bias.detach().double()
    return F.linear(features, weight, bias)


def head_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a head with weights `[K, d]` and bias `[K]`, which are not copied."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    head.load_state_dict(tensors, assign=True)
    return head.requires_grad_(False)


def _name(model: Model, layer: nn.Module) -> str:
    assert isinstance(model, nn.Module)
    return {module: name for name, module in layers_of(model).items()}[layer]
