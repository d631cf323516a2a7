"""Detection scores against their definition."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastood.scores import energy_score, max_logit_score, max_softmax_score, reject_sum_score


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


@pytest.mark.parametrize("score", [max_softmax_score, max_logit_score, energy_score, lambda v: reject_sum_score(v, 1)])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((2, 3)), r"logits must be a torch.Tensor, got ndarray: pass torch.as_tensor\(logits\)"),
        ([[0.0, 1.0]], "logits must be a torch.Tensor, got list"),
        (1.0, "logits must be a torch.Tensor, got float$"),
        (torch.eye(3).to_sparse(), "logits must be a dense tensor, got layout torch.sparse_coo"),
        (torch.zeros(2, 3, dtype=torch.complex64), "logits must be a floating-point tensor, got torch.complex64"),
        (torch.zeros(2, 3, dtype=torch.bool), "logits must be a floating-point tensor, got torch.bool"),
        (
            torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),
            "logits must be a dense tensor, got a",
        ),
    ],
)
def test_what_is_no_tensor_of_logits_is_named(score: Callable[[object], Tensor], logits: object, message: str):
    with pytest.raises(TypeError, match=f"^{message}"):
        score(logits)


def test_float8_and_meta_logits():
    logits = torch.tensor([[1.0, 2.0], [0.0, -4.0]])
    assert torch.equal(energy_score(logits.to(torch.float8_e4m3fn)), energy_score(logits))
    assert energy_score(logits.to("meta")).shape == (2,)


def test_errors():
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
        max_softmax_score(torch.zeros(2, 3, dtype=torch.int64))
    for shape in [(3,), (2, 0), (1, 2, 3)]:
        with pytest.raises(ValueError, match="logits must have shape"):
            max_softmax_score(torch.zeros(shape))
