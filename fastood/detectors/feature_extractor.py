"""Features `[N, d]` of the named layers of any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]


class FeatureExtractor:
    """Call a model and return what some of its layers put out.

    The model runs in evaluation mode and is left as it was found: each module in its own mode, without hooks. Outputs
    `[N, C, H, W]` become their spatial mean `[N, C]`, as Lee et al. 2018 take them.

    Args:
        model: Anything that maps a batch of inputs to a tensor: a module, a method of one such as `model.features`,
            or, in whatever mode it is, another callable. With `layers` it must be an `nn.Module`.
        layers: Names as in `model.named_modules()`; None for the output of the model itself. Of a layer that runs more
            than once the last output counts.
        pooled: Whether outputs `[N, C, H, W]` become their spatial mean; if not they are an error, as for logits.

    Raises:
        TypeError: `model` cannot be called, or has layers to name but is no `nn.Module`.
        ValueError: A layer does not exist; the message lists those that do.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> extract = FeatureExtractor(model, ["1", "3"])
        >>> [features.shape for features in extract(torch.zeros(2, 3, 8, 8))]
        [torch.Size([2, 8]), torch.Size([2, 10])]
    """

    def __init__(self, model: Model, layers: Sequence[str] | None = None, *, pooled: bool = True) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        if layers is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module to have layers by name, got {type(model).__name__}")
        if isinstance(layers, str) or (layers is not None and len(layers) == 0):
            raise ValueError(f"layers must be a sequence of one or more names, or None, got {layers!r}")
        self.model = model
        self.layers = None if layers is None else tuple(layers)
        self.pooled = pooled
        self._modules: list[nn.Module] = []
        if layers is not None:
            assert isinstance(model, nn.Module)
            known = dict(model.named_modules())
            unknown = [name for name in layers if name not in known or name == ""]
            if unknown:
                names = ", ".join(name for name in known if name)
                raise ValueError(f"the model has no layer {', '.join(map(repr, unknown))}; it has {names or 'none'}")
            self._modules = [known[name] for name in layers]

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Features of a batch, one tensor `[N, d]` for each layer; differentiable where gradients are on.

        Raises:
            ValueError: A layer did not run, or put out something else than `[N, d]` or `[N, C, H, W]`.
        """
        found: dict[int, object] = {}

        def keep(position: int) -> Callable[[nn.Module, object, object], None]:
            return lambda module, inputs, output: found.__setitem__(position, output)

        hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(self._modules)]
        try:
            with evaluating(self.model):
                output = self.model(x.to(device_of(self.model, x)))
        finally:
            for hook in hooks:
                hook.remove()
        if self.layers is None:
            return [as_features(output, "the model", pooled=self.pooled)]
        for i, name in enumerate(self.layers):
            if i not in found:
                raise ValueError(f"layer {name!r} did not run in the forward pass of the model")
        return [as_features(found[i], f"layer {name!r}", pooled=self.pooled) for i, name in enumerate(self.layers)]

    def single(self, x: Tensor) -> Tensor:
        """Features of the first layer, or of the model; as a call otherwise."""
        return self(x)[0]


def as_features(output: object, whose: str, *, pooled: bool = True) -> Tensor:
    """`[N, d]` of what a layer puts out: itself or, if pooled, the spatial mean of `[N, C, H, W]`."""
    if not isinstance(output, Tensor):
        raise ValueError(f"{whose} must put out a tensor, got {type(output).__name__}")
    if output.dim() == 4 and pooled:
        return output.mean(dim=(2, 3))
    if output.dim() != 2:
        wanted = "[N, d] or [N, C, H, W]" if pooled else "[N, K]"
        raise ValueError(f"{whose} must put out {wanted}, got shape {tuple(output.shape)}")
    return output


def _module_of(model: Model) -> nn.Module | None:
    """The module that is called, itself or by a method of it."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def device_of(model: Model, x: Tensor) -> torch.device:
    """Where the model's first parameter is, or else the input."""
    module = _module_of(model)
    first = None if module is None else next(module.parameters(), None)
    return x.device if first is None else first.device


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode; every module gets its own mode back."""
    module = _module_of(model)
    training = [] if module is None else [m for m in module.modules() if m.training]
    try:
        if module is not None:
            module.eval()
        yield
    finally:
        for one in training:
            one.training = True
