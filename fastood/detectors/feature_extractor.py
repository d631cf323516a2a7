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
    """Extractor of the outputs of named layers of a model.

    The model runs in evaluation mode; afterwards every module has its previous mode, and no hooks remain. Outputs
    `[N, C, H, W]` become their spatial mean `[N, C]` (Lee et al. 2018, https://arxiv.org/abs/1807.03888). Inputs are
    moved to the model's device and cast to the dtype of its parameters; a mapping becomes its keyword arguments.

    Args:
        model: A function from a batch of inputs to a tensor: a module, a method of a module such as `model.features`,
            or another callable, which runs in its current mode. With `layers` it must be an `nn.Module`; wrappers by
            `torch.compile`, DataParallel and DistributedDataParallel are removed, so that it runs uncompiled and in
            this process only. If the model returns an object or mapping, its "logits" are taken or, for features, its
            "pooler_output".
        layers: Names in `named_modules()` of the unwrapped model; None for the output of the model itself. If a layer
            runs more than once, its last output is taken.
        pooled: Whether outputs `[N, C, H, W]` become their spatial mean; if False they raise, as logits need.

    Raises:
        TypeError: If `model` cannot be called; or if `layers` are named and it is not an `nn.Module`, or is a
            ScriptModule.
        ValueError: If a layer does not exist; the message lists the layers that do.

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
        """Return the features of a batch, one tensor `[N, d]` per layer; differentiable if gradients are enabled.

        Raises:
            TypeError: If `x` is neither a tensor nor a mapping, or a layer does not return a tensor.
            ValueError: If a layer did not run, or its output is neither `[N, d]` nor `[N, C, H, W]`.
        """
        names = ["the model"] if self.layers is None else [f"layer {name!r}" for name in self.layers]
        return [as_features(out, name, pooled=self.pooled) for out, name in zip(self.outputs(x), names, strict=True)]

    def outputs(self, x: Inputs) -> list[object]:
        """Return the unmodified outputs of the layers, or of the model; errors are those of a call."""
        if self.layers is None:
            return [call(self.model, x)]
        outputs: dict[int, object] = {}

        def keep(position: int) -> Callable[[nn.Module, object, object], None]:
            return lambda module, inputs, output: outputs.__setitem__(position, output)

        hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(self._modules)]
        try:
            assert isinstance(self.model, nn.Module)
            with eager(self.model):
                call(self.model, x)
        finally:
            for hook in hooks:
                hook.remove()
        for i, name in enumerate(self.layers):
            if i not in outputs:
                raise ValueError(f"layer {name!r} did not run in the forward pass of the model{_reason(self.model)}")
        return [outputs[i] for i in range(len(self.layers))]

    def single(self, x: Inputs) -> Tensor:
        """Return the features `[N, d]` of the first layer, or of the model."""
        return self(x)[0]


def as_features(output: object, whose: str, *, pooled: bool = True) -> Tensor:
    """Return the output of a layer as `[N, d]`: unchanged or, if pooled, the spatial mean of `[N, C, H, W]`.

    A tuple of one tensor is unpacked; of an object or mapping the entry "logits" or, if pooled, "pooler_output" is
    returned.
    """
    tensor = tensor_in(output, whose, "pooler_output" if pooled else "logits")
    if tensor.dim() == 4 and pooled:
        return tensor.mean(dim=(2, 3))
    if tensor.dim() != 2:
        expected = "[N, d] or [N, C, H, W]" if pooled else "[N, K]"
        raise ValueError(f"{whose} must return {expected}, got shape {tuple(tensor.shape)}")
    return tensor


def tensor_in(output: object, whose: str, field: str) -> Tensor:
    """Return the tensor in the output of a layer or model, or raise TypeError with the type of the output."""
    if isinstance(output, tuple | list) and len(output) == 1:
        output = output[0]
    value = output.get(field) if isinstance(output, Mapping) else getattr(output, field, None)
    if isinstance(output, Tensor):
        return output
    if isinstance(value, Tensor):
        return value
    kind = type(output).__name__
    if isinstance(output, Mapping):
        kind += f" with {', '.join(map(str, output))}"
    elif isinstance(output, tuple | list):
        kind += f" of {len(output)}"
    raise TypeError(
        f"{whose} must return a tensor, got {kind}: pass a function that returns the tensor, "
        "such as lambda x: model(x)[0] with the model in evaluation mode, or name a layer that returns one"
    )


def _layers(model: Model, names: Sequence[str]) -> list[nn.Module]:
    """Return the layers of these names, or raise ValueError with the names of all layers."""
    assert isinstance(model, nn.Module)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "layers of a ScriptModule take no hooks: pass the module that it was made of, or a function that returns "
            "features, without layers"
        )
    available = layers_of(model)
    # Names from a wrapped model have the prefix of DataParallel and DistributedDataParallel.
    names = [name if original_name(name) in available else name.removeprefix("module.") for name in names]
    unknown = [name for name in names if name == "" or original_name(name) not in available]
    if unknown:
        listed = ", ".join(name for name in available if name)
        raise ValueError(f"the model has no layer {', '.join(map(repr, unknown))}; it has {listed or 'none'}")
    return [available[original_name(name)] for name in names]


def _reason(model: Model) -> str:
    is_program = isinstance(model, torch.fx.GraphModule)
    return ", an exported program or graph, which does not call its layers" if is_program else ""
