"""Calls of models by detectors: in evaluation mode, in the dtype and on the device of the model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "FLOATS",
    "LABEL_KEYS",
    "Inputs",
    "Model",
    "call",
    "check_inputs",
    "check_model",
    "eager",
    "evaluating",
    "layers_of",
    "module_of",
    "original_name",
    "unwrapped",
    "without_ddp",
]

Model = Callable[..., Any]
Inputs = Tensor | Mapping[str, Any]
"""A batch: one tensor, or a mapping of the model's keyword arguments."""

LABEL_KEYS = ("labels", "label")
"""Keys of the labels in a batch that is a mapping; the other entries are the model's arguments."""
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Floating dtypes that PyTorch computes in."""
_COMPILED = "_orig_mod"


def module_of(model: Model) -> nn.Module | None:
    """Return the module that `model` is or is a method of; None for another callable."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def check_model(model: Model) -> None:
    """Raise TypeError unless `model` is callable."""
    if isinstance(model, torch.export.ExportedProgram):
        raise TypeError("model must be callable, got an ExportedProgram: pass program.module()")
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")


def without_ddp(model: Model) -> Model:
    """Return the module inside DistributedDataParallel, whose call is a collective; any other model unchanged."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def unwrapped(model: Model) -> Model:
    """Return the module inside `torch.compile`, DataParallel or DistributedDataParallel; any other model unchanged.

    Hooks on layers do not run in code that is compiled already, and run once per device in DataParallel.
    """
    while isinstance(model, nn.Module):
        if _COMPILED in model._modules:
            model = model.get_submodule(_COMPILED)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    return model


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of an unwrapped module by name, those inside compiled submodules by their original names."""
    return {original_name(name): module for name, module in model.named_modules()}


def original_name(name: str) -> str:
    """Return the name of a layer without the parts that `torch.compile` adds.

    Example:
        >>> original_name("_orig_mod.stages.1._orig_mod.conv")
        'stages.1.conv'
    """
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def call(model: Model, x: Inputs) -> Any:
    """Call a model in evaluation mode and restore its mode; differentiable if gradients are enabled.

    Tensors are moved to the device of the model's first parameter that has values. Floating-point tensors are cast to
    the dtype of the floating-point parameters if all of them share one. A mapping, without its labels, becomes the
    keyword arguments of a module or a method of a module; another function gets the mapping itself.

    Raises:
        TypeError: If `x` is neither a tensor nor a mapping.
        ValueError: If a tensor has no values (meta device), or no batch dimension.
    """
    check_inputs(x)
    module = module_of(model)
    with evaluating(model), _differentiable(module) if torch.is_grad_enabled() else nullcontext():
        if isinstance(x, Tensor):
            return model(_like_parameters(x, module))
        parts = {name: value for name, value in x.items() if name not in LABEL_KEYS}
        parts = {
            name: _like_parameters(part, module) if isinstance(part, Tensor) else part for name, part in parts.items()
        }
        return model(parts) if module is None else model(**parts)


def check_inputs(x: object) -> None:
    """Check that `x` is a batch that a model can be called with; errors are those of `call`."""
    if not isinstance(x, Tensor | Mapping):
        raise TypeError(
            f"inputs must be a torch.Tensor, or a mapping with the model's keyword arguments, got {type(x).__name__}: "
            "convert it by torch.as_tensor or torch.stack"
        )
    for tensor in [x] if isinstance(x, Tensor) else [value for value in x.values() if isinstance(value, Tensor)]:
        if tensor.is_meta:
            raise ValueError("inputs must have values, got a tensor on the meta device, which has none")
    if isinstance(x, Tensor) and x.dim() == 0:
        raise ValueError("inputs must be a batch [N, ...], got a tensor without dimensions")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Switch a model to evaluation mode, and restore the mode of every module at exit.

    An exported program has no mode: it computes as it did when it was exported.
    """
    module = module_of(model)
    training = [] if module is None else [m for m in module.modules() if m.training]
    try:
        if module is not None and training:
            try:
                module.eval()
            except NotImplementedError:  # modules of torch.export do not implement eval()
                training = []
        yield
    finally:
        for one in training:
            one.training = True


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Run compiled parts of a module eagerly, so that hooks on its layers run."""
    is_compiled = any(_COMPILED in m._modules or m._compiled_call_impl is not None for m in module.modules())
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        yield


def _like_parameters(x: Tensor, module: nn.Module | None) -> Tensor:
    """Return `x` on the device and in the dtype of the module's parameters."""
    if x.is_inference() and not torch.is_inference_mode_enabled():
        x = x.clone()  # the model may modify its input in place, which an inference tensor forbids
    if module is None:
        return x
    kinds: set[torch.dtype] = set()
    device = None
    for parameter in module.parameters():
        if parameter.is_floating_point():
            kinds.add(parameter.dtype)
        # Offloaded weights are on the meta device until their layer runs; the input goes to the first real device.
        if device is None or device.type == "meta":
            device = parameter.device if device is None or not parameter.is_meta else device
    dtype = kinds.pop() if len(kinds) == 1 and x.dtype in FLOATS else x.dtype
    return x.to(x.device if device is None else device, dtype if dtype in FLOATS else x.dtype)


@contextmanager
def _differentiable(module: nn.Module | None) -> Iterator[None]:
    """Replace weights that were created inside `torch.inference_mode()`, which autograd cannot save, by copies."""
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    if module is not None:
        for one in module.modules():
            if isinstance(one, torch.jit.ScriptModule):
                continue
            tables: tuple[dict[str, Any], dict[str, Any]] = one._parameters, one._buffers
            for table in tables:
                replaced += [(table, name, t) for name, t in table.items() if t is not None and t.is_inference()]
    try:
        for table, name, tensor in replaced:
            table[name] = tensor.detach().clone()
        yield
    finally:
        for table, name, tensor in replaced:
            table[name] = tensor
