"""Perturbation of inputs by one step against the gradient of their score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastood.detectors.model_calls import FLOATS, Inputs, check_inputs
from fastood.ops._arguments import as_real, shown

__all__ = ["check_perturbation", "gradients", "leaf", "perturbed", "step_against"]


def check_perturbation(epsilon: float, input_std: Sequence[float] | None) -> tuple[float, tuple[float, ...] | None]:
    """Check that ε is at least 0 and every standard deviation above 0, and return them as floats."""
    step = as_real("epsilon", epsilon)
    if not 0 <= step < math.inf:
        raise ValueError(f"epsilon must be finite and >= 0, got {shown(epsilon)}")
    if input_std is None:
        return step, None
    if isinstance(input_std, str) or not isinstance(input_std, Iterable) or getattr(input_std, "ndim", 1) != 1:
        raise TypeError(f"input_std must be one number per channel, [std] for one channel, got {shown(input_std)}")
    deviations = tuple(as_real("every number in input_std", std) for std in input_std)
    if not all(0 < std < math.inf for std in deviations):
        raise ValueError(f"input_std must be above 0 and finite, got {list(deviations)}")
    return step, deviations


def perturbed(
    x: Inputs, score: Callable[[Tensor], Tensor], epsilon: float, input_std: Sequence[float] | None = None
) -> Tensor:
    """Return `x - ε sign(∂ score / ∂x)`: one step towards a lower score.

    ODIN (Liang et al. 2018, https://arxiv.org/abs/1706.02690) and Lee et al. 2018, section 2.2
    (https://arxiv.org/abs/1807.03888). The score of in-distribution inputs falls more than that of others.

    Args:
        x: `[N, ...]`, floating-point.
        score: Function from a batch to scores `[N]`, higher for out-of-distribution; a score depends on its row only.
        epsilon: Step, in the units of the inputs before they were divided by `input_std`.
        input_std: Standard deviation that each channel (the second dimension) was divided by; None for 1.

    Returns:
        Moved inputs of the shape and dtype of `x`, without gradient.

    Raises:
        TypeError: If `x` is not floating-point.
        ValueError: If `input_std` does not have one value per channel, or the score has no gradient at the inputs.

    Example:
        >>> import torch
        >>> perturbed(torch.tensor([[1.0, -2.0]]), lambda x: x.square().sum(1), 0.25)
        tensor([[ 0.7500, -1.7500]])
    """
    with gradients():
        x = leaf(x)
        # A model may modify its input in place, which autograd forbids for a leaf that requires gradients.
        return step_against(x, score(x.clone()), epsilon, input_std)


@contextmanager
def gradients() -> Iterator[None]:
    """Enable gradients, also inside `torch.no_grad()` and `torch.inference_mode()`."""
    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        except RuntimeError as error:
            if "Inference tensors cannot be saved for backward" not in str(error):
                raise
            raise ValueError(
                "model must not compute with tensors made inside torch.inference_mode(), which take no gradients: "
                "create the model outside of it, or pass the nn.Module itself instead of a function"
            ) from error


def leaf(x: object) -> Tensor:
    """Return the inputs as a leaf tensor that requires gradients; raise TypeError if they cannot."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS or x.layout != torch.strided:
        kind = f"a tensor of {x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"inputs must be one dense floating-point tensor to be moved along a gradient, got {kind}: use a detector "
            "that does not move inputs, or pass embeddings and the part of the model that takes them"
        )
    check_inputs(x)
    # Inference tensors cannot require gradients; a clone outside of inference mode can.
    return (x.detach().clone() if x.is_inference() else x.detach()).requires_grad_()


def step_against(
    x: Tensor,
    scores: Tensor,
    epsilon: float,
    input_std: Sequence[float] | None = None,
    *,
    retain_graph: bool = False,
) -> Tensor:
    """Return the step of `perturbed`, given the scores `[N]` of `x` with gradients; errors are those of `perturbed`."""
    gradient = None
    if scores.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(scores.sum(), x, retain_graph=retain_graph, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                "model must be differentiable at its inputs for them to be moved, but its backward pass fails: use a "
                f"detector that does not move inputs. {error}"
            ) from error
    if gradient is None:
        raise ValueError(
            "model must be differentiable at its inputs for them to be moved, but its output has no gradient there "
            "(a detached, quantised or rounded input, or no_grad inside the model): use a detector that does not move "
            "inputs"
        )
    # The sign alone: its steps have one length in every coordinate, regardless of the scale of the score.
    step = gradient.sign() * epsilon
    if input_std is not None:
        # Inputs were divided by input_std, and so is a step in their original units.
        if x.dim() < 2 or x.shape[1] != len(input_std):
            raise ValueError(f"input_std must have one value per channel of {tuple(x.shape)}, got {len(input_std)}")
        step /= torch.tensor(input_std, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 2))
    return x.detach() - step
