"""Detection scores against their definition."""

import math

import pytest
import torch

from fastood.scores import max_softmax_score


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_is_the_log_odds_of_the_largest_softmax(classes: int, dtype: torch.dtype, generator: torch.Generator):
    logits = (3 * torch.randn(50, classes, generator=generator)).to(dtype)
    p = logits.double().softmax(dim=1).max(dim=1).values
    torch.testing.assert_close(max_softmax_score(logits), -torch.logit(p), rtol=1e-9, atol=1e-12)


def test_confident_rows_keep_their_order():
    margins = torch.linspace(10, 7000, 5000)
    logits = torch.stack([margins, torch.zeros_like(margins)], dim=1)
    score = max_softmax_score(logits)
    assert (score.diff() < 0).all()
    torch.testing.assert_close(score, -margins.double(), rtol=1e-12, atol=0)


def test_range_and_ties():
    assert max_softmax_score(torch.zeros(1, 7)).item() == pytest.approx(math.log(6))
    assert max_softmax_score(torch.tensor([[5.0, 5.0, -1e4]])).item() == 0
    assert max_softmax_score(torch.zeros(1, 1)).item() == -math.inf
    assert max_softmax_score(torch.empty(0, 3)).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_scores_nan(bad: float):
    score = max_softmax_score(torch.tensor([[0.0, bad], [0.0, 1.0]]))
    assert score.isnan().tolist() == [True, False]


def test_errors():
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
        max_softmax_score(torch.zeros(2, 3, dtype=torch.int64))
    for shape in [(3,), (2, 0), (1, 2, 3)]:
        with pytest.raises(ValueError, match="logits must have shape"):
            max_softmax_score(torch.zeros(shape))
