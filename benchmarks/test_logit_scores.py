"""All detection scores of a batch of logits, compared with PyTorch with the softmax computed once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from harness import Comparison, compare, floor
from torch import Tensor

from fastood.ops import logit_scores

SHAPES = [(256, 10), (4096, 100), (16384, 1000), (512, 21841)]
GAMMA = 0.1
WITHOUT_GEN = ["msp", "max_logit", "energy", "entropy", "kl_uniform"]


def eager(logits: Tensor, with_gen: bool) -> dict[str, Tensor]:
    """Compute every score from one log_softmax, with -log p for the maximum softmax."""
    log_f = torch.log_softmax(logits, 1)
    f = log_f.exp()
    max_logit = logits.amax(1)
    max_log_f = log_f.amax(1)
    scores = {
        "msp": -max_log_f,
        "max_logit": -max_logit,
        "energy": max_log_f - max_logit,
        "entropy": -(f * log_f).sum(1),
        "kl_uniform": log_f.mean(1) + math.log(logits.shape[1]),
    }
    if with_gen:
        scores["gen"] = (f * (1 - f)).pow_(GAMMA).sum(1)
    return scores


@pytest.mark.parametrize("with_gen", [True, False], ids=["all", "without gen"])
@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=lambda v: str(v))
def test_scores(
    rows: int,
    classes: int,
    with_gen: bool,
    device: str,
    budget: dict[str, float],
    record: Callable[[Comparison, Callable[[], object]], None],
) -> None:
    logits = (torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)) * 3).to(device)
    torch.compiler.reset()
    compiled = torch.compile(eager, dynamic=False)
    scores = None if with_gen else WITHOUT_GEN

    def without_gradient(call: Callable[[Tensor, bool], object]) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return call(logits, with_gen)

        return run

    providers = {
        "fastood": lambda: logit_scores(logits, scores=scores, gen_gamma=GAMMA),
        "eager": without_gradient(eager),
        "torch.compile": without_gradient(compiled),
    }
    # One exponential per logit serves all scores; GEN takes a power in addition.
    seconds, floor_is = floor(device, logits.nbytes, (2 if with_gen else 1) * logits.numel())
    comparison = compare(
        "all logit_scores" if with_gen else "logit_scores without gen",
        f"{rows}x{classes}",
        providers,
        subject="fastood",
        device=device,
        floor=seconds,
        floor_is=f"one read of the logits: {floor_is}" if "bytes" in floor_is else floor_is,
        **budget,
    )
    record(comparison, providers["fastood"])
