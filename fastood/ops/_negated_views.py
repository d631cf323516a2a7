"""Lazily negated views, such as `torch.Tensor.imag` of a conjugate, as arguments of ops that write into arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("fastood", "IMPL")  # type: ignore[no-untyped-call]


def _kernel(op: torch._ops.OpOverload) -> Callable[..., object]:
    """Return a kernel that refuses a negated view of an argument that the op writes, and resolves others."""
    arguments = op._schema.arguments
    written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]

    def run(*values: object) -> object:
        for argument, value in zip(arguments, values, strict=True):
            if argument.name in written and isinstance(value, Tensor) and value.is_neg():
                raise RuntimeError(
                    f"{argument.name} must not be a lazily negated view, because {op._schema.name} writes into it: "
                    f"pass {argument.name}.resolve_neg()"
                )
        return op(*(value.resolve_neg() if isinstance(value, Tensor) else value for value in values))

    return run


# The fallback of PyTorch expects an op to return the arguments that it has written. For an op that does not, an
# internal assertion fails, which may end the process.
for _name in ("background_pool_fill", "background_pool_build", "background_pool_ascend", "resampling_counts"):
    _LIBRARY.impl(_name, _kernel(getattr(torch.ops.fastood, _name).default), "Negative")  # type: ignore[no-untyped-call]
