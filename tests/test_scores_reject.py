"""Scores of reject classes against Mohseni et al. 2020, table 2, written out, and where those would round."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastood.scores import (
    reject_combined_score,
    reject_entropy_difference_score,
    reject_entropy_score,
    reject_max_score,
    reject_sum_score,
    reject_weighted_score,
)

WEIGHTS = torch.tensor([0.5, 3.0, 0.0])
FLOATS = torch.tensor([2.0, 1.0])
ALL_WEIGHTS = torch.tensor([0.5, 3.0, 0.0, 2.0, 0.25])
SCORES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sum": reject_sum_score,
    "max": reject_max_score,
    "weighted": lambda logits, k: reject_weighted_score(logits, k, WEIGHTS),
    "entropy": reject_entropy_score,
    "difference": reject_entropy_difference_score,
    "combined": lambda logits, k: reject_combined_score(logits, k, ALL_WEIGHTS),
}


@pytest.mark.parametrize("name", SCORES)
def test_is_the_papers_formula(name: str, generator: torch.Generator):
    logits = 3 * torch.randn(40, 7, generator=generator)
    f = logits.double().softmax(1)
    reject = f[:, 4:]
    h_in, h_out = (-(p * p.log()).sum(1) for p in (v.double().softmax(1) for v in (logits[:, :4], logits[:, 4:])))
    want = {
        "sum": reject.sum(1).logit(),
        "max": reject.amax(1).logit(),
        "weighted": (reject @ (WEIGHTS.double() / 3)).logit(),
        "entropy": -h_out,
        "difference": h_in - h_out,
        "combined": reject @ ALL_WEIGHTS[:3].double() - 2 * h_out + 0.25 * h_in,
    }[name]
    torch.testing.assert_close(SCORES[name](logits, 3), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sum", "max", "weighted"])
def test_rows_that_are_certain_either_way_keep_their_order(name: str):
    """Where the probability itself is 0 or 1 in float64."""
    margin = torch.linspace(-3000, 3000, 61)
    logits = torch.zeros(61, 7)
    logits[:, 5] = margin
    weighted = torch.tensor([1.0, 1.0, 0.5])
    scores = reject_weighted_score(logits, 3, weighted) if name == "weighted" else SCORES[name](logits, 3)
    rising = scores.diff() > 0
    # Of several reject classes the others keep their share as one vanishes.
    assert rising[31:].all()
    assert name != "max" or rising[30:].all()


def test_entropy_of_a_certain_row_does_not_vanish():
    logits = torch.tensor([[0.0, 0.0, 50.0], [0.0, 0.0, 60.0], [0.0, 0.0, 600.0]])
    scores = reject_entropy_score(logits, 2)
    assert (scores.diff() > 0).all()
    # -(1 - e) log(1 - e) - e log e with e = exp(-50).
    assert scores[0].item() == pytest.approx(-51 * math.exp(-50), rel=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_masked_classes_count_nothing_and_bad_rows_are_nan(name: str):
    logits = torch.tensor([[1.0, -math.inf, 0.0, 2.0, 0.5, 1.0], [math.nan, *[0.0] * 5], [*[0.0] * 5, math.inf]])
    scores = SCORES[name](logits, 3)
    # The entropy of the reject classes does not look at the others.
    assert scores.isnan().tolist() == [False, name != "entropy", True]
    torch.testing.assert_close(scores[:1], SCORES[name](logits[:1, [0, 2, 3, 4, 5]], 3))


def test_errors_name_the_argument():
    logits = torch.zeros(2, 4)
    for bad in (0, 4):
        with pytest.raises(ValueError, match=f"num_reject must be at least 1 and below 4, .*, got {bad}"):
            reject_max_score(logits, bad)
    with pytest.raises(TypeError, match="logits must be a floating-point tensor"):
        reject_sum_score(logits.long(), 2)
    for bad, error in ((True, TypeError), (1.0, TypeError), ("2", TypeError), (None, TypeError), (10**400, ValueError)):
        with pytest.raises(error, match=r"^num_reject must be"):
            reject_max_score(logits, bad)
    assert torch.equal(reject_max_score(logits, np.int64(2)), reject_max_score(logits, 2))
    assert torch.equal(reject_weighted_score(logits, 2, torch.tensor([2, 1])), reject_weighted_score(logits, 2, FLOATS))
    for weights in ([2.0, 1.0], np.ones(2), torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match=r"^weights must be"):
            reject_weighted_score(logits, 2, weights)
    with pytest.raises(ValueError, match=r"^weights must be on a device that holds its values"):
        reject_weighted_score(logits, 2, torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\), got \(3,\)"):
        reject_weighted_score(logits, 2, torch.ones(3))
    with pytest.raises(ValueError, match=r"weights must have shape \(4,\), got \(2,\)"):
        reject_combined_score(logits, 2, torch.ones(2))
    for weights in (torch.zeros(2), torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.inf])):
        with pytest.raises(ValueError, match="weights must be finite and at least 0, one of them above 0"):
            reject_weighted_score(logits, 2, weights)
