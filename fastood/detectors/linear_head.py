"""A model taken apart at its linear head: one forward pass gives features and logits."""

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
    """A model that gives features and logits in one forward pass."""

    @property
    def head(self) -> nn.Module:
        """From features to logits."""
        ...

    def __call__(self, x: Any) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and logits `[N, K]` of a batch; differentiable where gradients are on."""
        ...

    def features(self, x: Any) -> Tensor:
        """The features of a batch alone."""
        ...


class LinearHeadModel:
    """Call a model and return what its linear head is given and puts out: features `[N, d]` and logits `[N, K]`.

    The model runs in evaluation mode, unwrapped and uncompiled, and is left as it was found, as by `FeatureExtractor`.

    Args:
        model: The network, or what maps inputs to features.
        feature_layer: Name of the layer whose output is the features, to which the head is then applied; None for what
            the head is given when the model runs or, where it does not run then, for what the model puts out.
        head: The layer from features to logits; None for the last `nn.Linear` of `model`.

    Attributes:
        head: That layer.

    Raises:
        TypeError: `head` is no `nn.Linear`, or there is none and `model` is no `nn.Module` to look in.
        ValueError: `model` has no `nn.Linear`, or the layer does not exist.

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
        self._is_found = head is None
        self.head = find_linear_head(self.model) if head is None else check_head(head)
        self._extract = FeatureExtractor(self.model, None if feature_layer is None else [feature_layer])

    def __call__(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch; differentiable where gradients are on.

        Raises:
            TypeError: `x` is no tensor or mapping, or the model puts out none.
            ValueError: The head is given no `[N, d]`, or was found in the model and does not put out what that does.
        """
        if self._extract.layers is not None:
            return self._apply_head(self._extract.single(x))
        module = module_of(self.model)
        with nullcontext() if module is None else eager(module), recorded_calls(self.head) as passed:
            output = call(self.model, x)
        if self._is_found and (not passed or tensor_in(output, "the model", "logits") is not passed[-1][1]):
            raise ValueError(
                f"the last nn.Linear of the model, {_name(self.model, self.head)!r}, does not put out what the model "
                "does: pass the layer that makes the logits as head="
            )
        return last_features_and_logits(passed) if passed else self._apply_head(as_features(output, "the model"))

    def features(self, x: Inputs) -> Tensor:
        """The features of a batch alone."""
        return self(x)[0]

    def _apply_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        check_features(features, self.head.in_features)
        return features, self.head(features)


@contextmanager
def recorded_calls(head: nn.Module) -> Iterator[list[tuple[object, object]]]:
    """Collect what a layer is given and puts out, one pair for each time that it runs."""
    passed: list[tuple[object, object]] = []

    def keep(module: nn.Module, args: tuple[object, ...], named: dict[str, object], output: object) -> None:
        passed.append((args[0] if args else next(iter(named.values()), None), output))

    hook = head.register_forward_hook(keep, with_kwargs=True)
    try:
        yield passed
    finally:
        hook.remove()


def last_features_and_logits(passed: list[tuple[object, object]]) -> tuple[Tensor, Tensor]:
    """Features and logits of the last time that a head ran, or an error that says what it was given."""
    if not passed:
        raise ValueError("the head did not run in the forward pass of the model")
    given, logits = passed[-1]
    if not isinstance(given, Tensor) or given.dim() != 2:
        said = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"the head must be given [N, d], got {said}")
    return given, as_features(logits, "the head", pooled=False)


def find_linear_head(model: Model) -> nn.Linear:
    """The last `nn.Linear` of a model, which classifiers have as their head."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module to find its head, got {type(model).__name__}: pass head=")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear to be its head: pass head=, or use other detectors")
    return linear[-1]


def check_head(head: Model) -> nn.Linear:
    """Return the `nn.Linear` that `head` is, compiled or not, or raise."""
    head = unwrapped(head)
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head must be an nn.Linear, got {type(head).__name__}")
    return head


def head_logits(head: nn.Linear, features: Tensor, weight: Tensor | None = None) -> Tensor:
    """Logits in float64 of features, with other weights where some are given."""
    weight = (head.weight if weight is None else weight).detach().double()
    bias = None if head.bias is None else head.bias.detach().double()
    return F.linear(features, weight, bias)


def head_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A head with these weights `[K, d]` and this bias `[K]`."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    head.load_state_dict(tensors, assign=True)
    return head.requires_grad_(False)


def _name(model: Model, wanted: nn.Module) -> str:
    assert isinstance(model, nn.Module)
    return {module: name for name, module in layers_of(model).items()}[wanted]
