"""Features `[N, d]` of the named layers of any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastood.detectors.model_calls import (
    Inputs,
    Model,
    call,
    check_model,
    eager,
    layers_of,
    original_name,
    unwrapped,
    without_ddp,
)
from fastood.ops._arguments import shown

__all__ = ["FeatureExtractor", "as_features", "tensor_in"]


class FeatureExtractor:
    """Call a model and return what some of its layers put out.

    The model runs in evaluation mode and is left as it was found: each module in its own mode, without hooks. Outputs
    `[N, C, H, W]` become their spatial mean `[N, C]`, as Lee et al. 2018 take them. Inputs are moved to the model's
    device and cast to the dtype of its parameters; a mapping becomes its keyword arguments.

    Args:
        model: Anything that maps a batch of inputs to a tensor: a module, a method of one such as `model.features`,
            or, in whatever mode it is, another callable. With `layers` it must be an `nn.Module`, of which wrappers of
            `torch.compile`, DataParallel and DistributedDataParallel are taken off: it then runs uncompiled, in this
            process alone. An object or mapping that the model puts out counts as the tensor "logits" in it or, for
            features, "pooler_output".
        layers: Names as in `named_modules()` of the unwrapped model; None for the output of the model itself. Of a
            layer that runs more than once the last output counts.
        pooled: Whether outputs `[N, C, H, W]` become their spatial mean; if not they are an error, as for logits.

    Raises:
        TypeError: `model` cannot be called, or has layers to name but is no `nn.Module`, or a ScriptModule.
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
        check_model(model)
        if layers is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module to have layers by name, got {type(model).__name__}")
        if layers is not None and not (
            isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) > 0
        ):
            raise ValueError(f"layers must be a sequence of one or more names, or None, got {shown(layers)}")
        if layers is not None and not all(isinstance(name, str) for name in layers):
            raise TypeError(f"layers must be names, got {shown(list(layers))}")
        self.model = without_ddp(model) if layers is None else unwrapped(model)
        self.layers = None if layers is None else tuple(layers)
        self.pooled = pooled
        self._modules = [] if layers is None else _layers(self.model, layers)

    def __call__(self, x: Inputs) -> list[Tensor]:
        """Features of a batch, one tensor `[N, d]` for each layer; differentiable where gradients are on.

        Raises:
            TypeError: `x` is no tensor or mapping, or a layer puts out no tensor.
            ValueError: A layer did not run, or put out something else than `[N, d]` or `[N, C, H, W]`.
        """
        names = ["the model"] if self.layers is None else [f"layer {name!r}" for name in self.layers]
        return [as_features(out, name, pooled=self.pooled) for out, name in zip(self.outputs(x), names, strict=True)]

    def outputs(self, x: Inputs) -> list[object]:
        """Return what the layers, or the model, put out, as it is; errors as in a call."""
        if self.layers is None:
            return [call(self.model, x)]
        found: dict[int, object] = {}

        def keep(position: int) -> Callable[[nn.Module, object, object], None]:
            return lambda module, inputs, output: found.__setitem__(position, output)

        hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(self._modules)]
        try:
            assert isinstance(self.model, nn.Module)
            with eager(self.model):
                call(self.model, x)
        finally:
            for hook in hooks:
                hook.remove()
        for i, name in enumerate(self.layers):
            if i not in found:
                raise ValueError(f"layer {name!r} did not run in the forward pass of the model{_reason(self.model)}")
        return [found[i] for i in range(len(self.layers))]

    def single(self, x: Inputs) -> Tensor:
        """Features of the first layer, or of the model; as a call otherwise."""
        return self(x)[0]


def as_features(output: object, whose: str, *, pooled: bool = True) -> Tensor:
    """Return `[N, d]` of what a layer puts out: itself or, if pooled, the spatial mean of `[N, C, H, W]`.

    A tuple of one tensor counts as that tensor, an object or mapping as its "logits" or, if pooled, "pooler_output".
    """
    tensor = tensor_in(output, whose, "pooler_output" if pooled else "logits")
    if tensor.dim() == 4 and pooled:
        return tensor.mean(dim=(2, 3))
    if tensor.dim() != 2:
        wanted = "[N, d] or [N, C, H, W]" if pooled else "[N, K]"
        raise ValueError(f"{whose} must put out {wanted}, got shape {tuple(tensor.shape)}")
    return tensor


def tensor_in(output: object, whose: str, field: str) -> Tensor:
    """Return the tensor that a layer or model puts out, or an error that says what it put out instead."""
    if isinstance(output, tuple | list) and len(output) == 1:
        output = output[0]
    found = output.get(field) if isinstance(output, Mapping) else getattr(output, field, None)
    if isinstance(output, Tensor):
        return output
    if isinstance(found, Tensor):
        return found
    said = type(output).__name__
    if isinstance(output, Mapping):
        said += f" with {', '.join(map(str, output))}"
    elif isinstance(output, tuple | list):
        said += f" of {len(output)}"
    raise TypeError(
        f"{whose} must put out a tensor, got {said}: pass a function that returns the tensor wanted, "
        "such as lambda x: model(x)[0] with the model in evaluation mode, or name a layer that puts one out"
    )


def _layers(model: Model, names: Sequence[str]) -> list[nn.Module]:
    """Return the layers of these names, or an error that lists those that there are."""
    assert isinstance(model, nn.Module)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "layers of a ScriptModule cannot be watched: pass the module that it was made of, or a function that puts "
            "out features, without layers"
        )
    known = layers_of(model)
    # Wrappers call what they hold "module".
    names = [name if original_name(name) in known else name.removeprefix("module.") for name in names]
    unknown = [name for name in names if name == "" or original_name(name) not in known]
    if unknown:
        listed = ", ".join(name for name in known if name)
        raise ValueError(f"the model has no layer {', '.join(map(repr, unknown))}; it has {listed or 'none'}")
    return [known[original_name(name)] for name in names]


def _reason(model: Model) -> str:
    is_program = isinstance(model, torch.fx.GraphModule)
    return ", an exported program or graph, which does not call its layers" if is_program else ""
