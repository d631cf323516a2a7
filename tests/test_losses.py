import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.losses import OutlierExposureLoss


def reference(logits: Tensor, targets: Tensor, weight: Tensor | None, alpha: float, reduction: str) -> Tensor:
    """Li & Vasconcelos 2020, eq. 1-5, row by row."""
    w = torch.ones(len(targets), dtype=logits.dtype) if weight is None else weight.to(logits.dtype)
    terms = []
    for rows, factor in ((targets >= 0, 1.0), (targets < 0, alpha)):
        log_f = torch.log_softmax(logits[rows], 1)
        if factor == 1.0:
            per_sample = -log_f.gather(1, targets[rows, None]).squeeze(1)
        else:
            per_sample = -log_f.mean(1) - math.log(logits.shape[1])
        divisor = w[rows].sum() if reduction == "weighted_mean" else rows.sum()
        terms.append(factor * (w[rows] * per_sample).sum() / divisor if rows.any() else logits.sum() * 0)
    return terms[0] + terms[1]


def batch(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(40, 7, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, 7, (40,), generator=generator)
    targets[torch.rand(40, generator=generator) < 0.6] = -1
    targets[3], targets[4] = -7, -100  # any negative label is background
    return logits, targets, torch.rand(40, generator=generator, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("reduction", ["weighted_mean", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", ["mixed", "id", "background"])
def test_value_and_gradient(reduction: str, weighted: bool, rows: str, generator: torch.Generator, device: str) -> None:
    logits, targets, weight = batch(generator)
    if rows != "mixed":
        targets = targets.clamp(min=0) if rows == "id" else torch.full_like(targets, -1)
    leaf = logits.clone().requires_grad_()
    want = reference(leaf, targets, weight if weighted else None, 0.7, reduction)
    want.backward()
    ours = logits.to(device).requires_grad_()
    criterion = OutlierExposureLoss(weight=0.7, reduction=reduction)
    got = criterion(ours, targets.to(device), weight.to(device) if weighted else None)
    got.backward()
    torch.testing.assert_close(got.detach().cpu(), want.detach())
    torch.testing.assert_close(ours.grad.cpu(), leaf.grad)


def test_per_sample_losses(generator: torch.Generator) -> None:
    logits, targets, weight = batch(generator)
    loss, per_sample = OutlierExposureLoss().with_per_sample(logits.requires_grad_(), targets, weight)
    assert loss.requires_grad
    assert not per_sample.requires_grad
    background = targets < 0
    log_f = torch.log_softmax(logits.detach(), 1)
    torch.testing.assert_close(per_sample[background], -log_f[background].mean(1) - math.log(7))
    want = F.cross_entropy(logits.detach()[~background], targets[~background], reduction="none")
    torch.testing.assert_close(per_sample[~background], want)


def test_means_are_taken_apart() -> None:
    """Doubling the background rows must not change the trade-off (one joint mean would)."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    criterion = OutlierExposureLoss()
    once = criterion(logits, torch.tensor([0, -1]))
    twice = criterion(torch.cat([logits, logits[1:]]), torch.tensor([0, -1, -1]))
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("reduction", ["weighted_mean", "mean"])
def test_rows_without_weight_add_nothing_whatever_they_hold(reduction: str, device: str) -> None:
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [[1.0, 0.0], [-inf, 0.0], [2.0, 1.0], [nan, 1.0], [-inf, 0.0]], device=device, requires_grad=True
    )
    targets = torch.tensor([0, -1, -1, -1, 0], device=device)  # the last: an infinite cross-entropy
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], device=device)
    loss = OutlierExposureLoss(reduction=reduction)(logits, targets, weight)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad[:4]).all()
    assert logits.grad[1:4].eq(0).all()


def test_large_background_weights_leave_the_id_mean_alone() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])
    weight = torch.tensor([1.0] * 4 + [1.23e8, 3.3e8, 7e8, 1e8])
    got = OutlierExposureLoss(weight=0)(logits, targets, weight)
    torch.testing.assert_close(got, F.cross_entropy(logits[:4], targets[:4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_logits_give_a_float32_loss(dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    logits, targets, weight = batch(generator, dtype)
    leaf = logits.to(device).requires_grad_()
    loss = OutlierExposureLoss()(leaf, targets.to(device), weight.to(device))
    loss.backward()
    assert loss.dtype == torch.float32
    assert leaf.grad.dtype == dtype
    want = reference(logits.double(), targets, weight, 0.5, "weighted_mean")
    torch.testing.assert_close(loss.detach().cpu().double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targets": torch.tensor([0, 2])}, ValueError, "targets must be below K = 2 .*got 2"),
        ({"targets": torch.tensor([0.0, 1.0])}, TypeError, "targets must be int64, got torch.float32"),
        ({"targets": torch.tensor([0])}, ValueError, r"targets must have shape \(2,\).*got \(1,\)"),
        ({"targets": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "targets must be on cpu"),
        ({"sample_weight": torch.ones(3)}, ValueError, r"sample_weight must have shape \(2,\)"),
        ({"logits": torch.zeros(2)}, ValueError, r"logits must be \[N, K\]"),
    ],
)
def test_bad_input(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"logits": torch.zeros(2, 2), "targets": torch.tensor([0, -1])}
    with pytest.raises(error, match=message):
        OutlierExposureLoss()(**{**good, **arguments})


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_bad_trade_off(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be finite and >= 0"):
        OutlierExposureLoss(weight=weight)


def test_nan_logits_are_flagged_on_request() -> None:
    logits = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    targets = torch.tensor([0, -1])
    assert math.isnan(OutlierExposureLoss()(logits, targets))
    with pytest.raises(ValueError, match=r"logits must be finite.*row 1"):
        OutlierExposureLoss(check_finite=True)(logits, targets)


def test_bad_reduction() -> None:
    with pytest.raises(ValueError, match="reduction must be"):
        OutlierExposureLoss(reduction="sum")
