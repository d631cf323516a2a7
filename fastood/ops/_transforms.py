"""Detection of transforms that an op's own autograd does not know."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Return whether torch.func (grad, vmap, jvp, …) or forward-mode differentiation surrounds the call.

    The ops' autograd functions know reverse mode alone, which is what keeps their overhead small; under a transform the
    op is computed by its plain PyTorch reference instead, which takes them all.

    Example:
        >>> is_transformed(), torch.func.vmap(lambda x: x * is_transformed())(torch.ones(1))
        (False, tensor([1.]))
    """
    # Of a compiled function, dynamo traces the transform; asking would break its graph.
    if torch.compiler.is_compiling():
        return False
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0
