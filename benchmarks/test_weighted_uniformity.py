"""Uniformity loss of background rows, forward and backward, beside what people write today."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from harness import Comparison, compare
from torch import Tensor

from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad

# The grid of training batches, and two where memory decides.
SHAPES = [(n, k) for n in (128, 256, 4096) for k in (10, 100, 1000)] + [(65536, 10), (16384, 1000)]


def eager_log_softmax(logits: Tensor, weight: Tensor) -> Tensor:
    """The usual composition: eq. 5 and 14 by log_softmax."""
    per_sample = -torch.log_softmax(logits, 1).mean(1) - math.log(logits.shape[1])
    return (weight * per_sample).sum() / weight.sum()


def eager_logsumexp(logits: Tensor, weight: Tensor) -> Tensor:
    """The same by logsumexp - mean, which the outlier-exposure code uses."""
    per_sample = torch.logsumexp(logits, 1) - logits.mean(1) - math.log(logits.shape[1])
    return (weight * per_sample).sum() / weight.sum()


def ours(logits: Tensor, weight: Tensor) -> Tensor:
    """The fused op through autograd."""
    return weighted_uniformity(logits, weight)[0]


@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=lambda v: str(v))
def test_forward_and_backward(
    rows: int,
    classes: int,
    device: str,
    bandwidth: float,
    budget: dict[str, float],
    record: Callable[[Comparison, Callable[[], object]], None],
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, classes, generator=generator) * 3).to(device).requires_grad_()
    weight = torch.rand(rows, generator=generator).to(device)

    def forward_backward(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss(logits, weight).backward()

        return run

    torch.compiler.reset()
    compiled = torch.compile(eager_logsumexp, dynamic=False)
    providers = {
        "fastood": forward_backward(ours),
        "fastood, no autograd": lambda: weighted_uniformity_value_and_grad(logits, weight),
        "eager log_softmax": forward_backward(eager_log_softmax),
        "eager logsumexp": forward_backward(eager_logsumexp),
        "torch.compile": forward_backward(compiled),
    }
    comparison = compare(
        "weighted_uniformity forward + backward",
        f"{rows}x{classes}",
        providers,
        subject="fastood",
        device=device,
        floor=3 * logits.nbytes / bandwidth,
        floor_is=f"read, read, write of the logits at the {bandwidth / 1e9:.1f} GB/s of a copy",
        **budget,
    )
    record(comparison, providers["fastood"])
