"""Inputs moved towards the in-distribution side before they are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_perturbation(epsilon: float, input_std: Sequence[float] | None) -> None:
    """Raise unless ε is at least 0 and every deviation above 0."""
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and >= 0, got {epsilon}")
    if input_std is not None and not all(0 < std < math.inf for std in input_std):
        raise ValueError(f"input_std must be above 0 and finite, got {list(input_std)}")


def perturbed(
    x: Tensor, score: Callable[[Tensor], Tensor], epsilon: float, input_std: Sequence[float] | None = None
) -> Tensor:
    """`x - ε sign(∂ score / ∂x)`: one step towards a lower score (Lee et al. 2018, section 2.2; ODIN's idea).

    In-distribution inputs follow further than others do.

    Args:
        x: `[N, ...]`, floating-point.
        score: `[N]` of a batch, higher for out-of-distribution; a row's own.
        epsilon: Step, in the units of the inputs before they were divided by `input_std`.
        input_std: Standard deviation that each channel (the second dimension) was divided by; None for 1.

    Returns:
        Like `x`, without gradient.

    Raises:
        ValueError: `input_std` has not one value for each channel.

    Example:
        >>> import torch
        >>> perturbed(torch.tensor([[1.0, -2.0]]), lambda x: x.square().sum(1), 0.25)
        tensor([[ 0.7500, -1.7500]])
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return step_against(x, score(x), epsilon, input_std)


def step_against(
    x: Tensor,
    scores: Tensor,
    epsilon: float,
    input_std: Sequence[float] | None = None,
    *,
    retain_graph: bool = False,
) -> Tensor:
    """`perturbed` for whoever has the scores `[N]` of `x` already, with gradients on; arguments and errors as there."""
    (gradient,) = torch.autograd.grad(scores.sum(), x, retain_graph=retain_graph)
    step = gradient.sign() * epsilon
    if input_std is not None:
        if x.dim() < 2 or x.shape[1] != len(input_std):
            raise ValueError(f"input_std must have one value per channel of {tuple(x.shape)}, got {len(input_std)}")
        step /= torch.tensor(input_std, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 2))
    return x.detach() - step
