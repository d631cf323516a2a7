"""Detection of the transforms that the autograd functions of the ops do not support."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Return whether torch.func (grad, vmap, jvp, …) or forward-mode differentiation surrounds the call.

    The autograd functions of the ops support reverse mode only, which keeps their overhead small. Under a transform the
    plain PyTorch reference of the op runs instead, which supports all of them.

    Example:
        >>> is_transformed(), torch.func.vmap(lambda x: x * is_transformed())(torch.ones(1))
        (False, tensor([1.]))
    """
    # In a compiled function dynamo traces the transform, and the query below would break the graph.
    if torch.compiler.is_compiling():
        return False
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0
