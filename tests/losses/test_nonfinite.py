"""Weights and logits that are no numbers: no NaN loss with a gradient that no guard notices."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastood.losses import MixedBatchLoss, ObjectosphereLoss, OutlierExposureLoss
from fastood.ops import weighted_uniformity
from tests.support.loss_modules import LOSS_MODULES, Batch, LossModule, by_the_paper, mixed_batch

INF, NAN = math.inf, math.nan
modules = pytest.mark.parametrize("module", LOSS_MODULES, ids=str)
reductions = pytest.mark.parametrize("reduction", ["weighted_mean", "mean", "sum"])
wrong_weights = pytest.mark.parametrize("value", [INF, -INF, NAN])


def batch_of_both_kinds(dtype: torch.dtype = torch.float64) -> Batch:
    batch = mixed_batch(rows=8, dtype=dtype)
    return replace(batch, targets=torch.tensor([0, 1, 2, 3, -1, -1, -1, -1]))


def gradients(module: LossModule, batch: Batch, reduction: str, weighted: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and the gradients of logits and weights."""
    logits, weight = batch.logits.clone().requires_grad_(), batch.weight.clone().requires_grad_()
    loss = module.call(module.make(reduction=reduction), replace(batch, logits=logits, weight=weight), weighted)
    loss.backward()
    return loss.detach(), logits.grad, weight.grad


def by_eager(module: LossModule, batch: Batch, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    logits, weight = batch.logits.double().requires_grad_(), batch.weight.double().requires_grad_()
    loss, per_sample = by_the_paper(
        module, replace(batch.to(torch.float64), logits=logits, weight=weight), True, reduction
    )
    if reduction == "sum":
        factor = torch.where(batch.targets < 0, module.weight, 1.0)
        loss = (factor * weight * per_sample).sum()
    loss.backward()
    return loss.detach(), logits.grad, weight.grad


@modules
@reductions
@wrong_weights
@pytest.mark.parametrize("row", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wrong_weight_shows_in_the_gradient_of_its_row_as_in_eager_code(
    module: LossModule, reduction: str, value: float, row: int, dtype: torch.dtype
) -> None:
    batch = batch_of_both_kinds(dtype)
    batch.weight[row] = value
    loss, of_logits, of_weight = gradients(module, batch, reduction)
    want_loss, want_of_logits, want_of_weight = by_eager(module, batch, reduction)
    assert not math.isfinite(want_loss)
    assert not math.isfinite(loss)
    # Rows whose gradient is finite: those of eager code, with the same values; per row, as which of a row's classes are
    # NaN depends on the order of multiplications.
    finite, want_finite = of_logits.isfinite().all(1), want_of_logits.isfinite().all(1)
    hinges_met = want_of_logits.eq(0).all(1)  # a row at rest may stay so beside a NaN
    assert torch.equal(finite | hinges_met, want_finite | hinges_met)
    torch.testing.assert_close(of_logits[want_finite].double(), want_of_logits[want_finite], rtol=1e-5, atol=1e-6)
    assert torch.equal(of_weight.isfinite(), want_of_weight.isfinite())
    parameters = [torch.nn.Parameter(batch.logits.clone())]
    parameters[0].grad = of_logits
    if not want_finite.all():
        with pytest.raises(RuntimeError, match="non-finite"):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize("module", [m for m in LOSS_MODULES if isinstance(m.make(), MixedBatchLoss)], ids=str)
@reductions
@wrong_weights
@pytest.mark.parametrize("classes", ["few", "many"])
def test_value_and_grad_of_a_wrong_weight(module: LossModule, reduction: str, value: float, classes: str) -> None:
    batch = batch_of_both_kinds(torch.float32)
    if classes == "many":  # the other layout of the kernel
        batch = replace(batch, logits=torch.cat([batch.logits, *[batch.logits - 9] * 6], 1).flip(1))
    batch.weight[2] = batch.weight[5] = value
    criterion = module.make(reduction=reduction)
    loss, _, gradient = module.call(criterion, batch, True, "value_and_grad")
    want, of_logits, _ = gradients(module, batch, reduction)
    assert not math.isfinite(loss)
    assert not gradient[2].isfinite().all()
    torch.testing.assert_close(loss, want, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(gradient, of_logits, equal_nan=True, rtol=0, atol=0)


@modules
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("row", [1, 6])
@pytest.mark.parametrize("reduction", ["weighted_mean", "mean", "sum", "none"])
def test_a_wrong_logit_shows_in_the_gradient_of_its_row_alone(
    module: LossModule, reduction: str, value: float, row: int
) -> None:
    batch = batch_of_both_kinds(torch.float32)
    batch.logits[row, 3] = value
    logits = batch.logits.clone().requires_grad_()
    loss = module.call(module.make(reduction=reduction), replace(batch, logits=logits), True)
    loss.sum().backward()
    assert math.isnan(loss.detach().sum())
    finite = logits.grad.isfinite().all(1)
    assert finite.tolist() == [i != row for i in range(8)]
    if reduction == "none":
        assert loss.isfinite().tolist() == finite.tolist()


@modules
@reductions
def test_weights_that_are_all_zero_are_no_rows(module: LossModule, reduction: str) -> None:
    for kind in (slice(0, 4), slice(4, 8), slice(0, 8)):
        batch = batch_of_both_kinds(torch.float32)
        batch.weight[kind] = 0
        batch.logits[kind, 0] = NAN
        loss, of_logits, _ = gradients(module, batch, reduction)
        rest = torch.ones(8, dtype=torch.bool)
        rest[kind] = False
        others = Batch(*(x[rest] for x in vars(batch).values()))
        want = by_eager(module, others, reduction)[0] if rest.any() else torch.tensor(0.0)
        torch.testing.assert_close(loss.double(), want.double(), rtol=1e-5, atol=1e-6)
        assert of_logits[kind].eq(0).all()
        assert of_logits.isfinite().all()


@modules
@reductions
@pytest.mark.parametrize("value", [NAN, INF])
def test_without_lambda_no_background_is_anybodys_concern(module: LossModule, reduction: str, value: float) -> None:
    """Neither its weights nor its logits, in loss or gradient, in any order of differentiation."""
    batch = batch_of_both_kinds(torch.float64)
    criterion = module.make(reduction=reduction)
    (criterion.entropic if isinstance(criterion, ObjectosphereLoss) else criterion).weight = 0.0
    batch.weight[5], batch.logits[6, 1] = value, value
    leaf, weight = batch.logits.clone().requires_grad_(), batch.weight.clone().requires_grad_()
    loss = module.call(criterion, replace(batch, logits=leaf, weight=weight), True)
    plain = torch.autograd.grad(loss, (leaf, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (leaf, weight), create_graph=True)
    assert math.isfinite(loss)
    for gradient, other in zip(plain, again, strict=True):
        assert gradient[4:].eq(0).all()
        torch.testing.assert_close(other.detach(), gradient)


@modules
@reductions
@wrong_weights
def test_create_graph_has_the_same_gradients(module: LossModule, reduction: str, value: float) -> None:
    batch = batch_of_both_kinds()
    batch.weight[1], batch.weight[6] = value, value
    leaf, weight = batch.logits.clone().requires_grad_(), batch.weight.clone().requires_grad_()
    loss = module.call(module.make(reduction=reduction), replace(batch, logits=leaf, weight=weight), True)
    plain = torch.autograd.grad(loss, (leaf, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (leaf, weight), create_graph=True)
    for gradient, other in zip(plain, again, strict=True):
        rows = gradient.reshape(8, -1).isfinite().all(1)
        assert torch.equal(other.reshape(8, -1).isfinite().all(1), rows)
        torch.testing.assert_close(other.detach()[rows], gradient[rows])


@pytest.mark.parametrize("reduction", ["weighted_mean", "mean"])
@wrong_weights
def test_weighted_uniformity(reduction: str, value: float) -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, _ = weighted_uniformity(logits, torch.tensor([1.0, value, 2.0]), reduction=reduction)
    loss.backward()
    assert not math.isfinite(loss)
    assert not logits.grad[1].isfinite().any()
    with pytest.raises(ValueError, match=r"^weight must be finite.*row 1"):
        weighted_uniformity(logits, torch.tensor([1.0, value, 2.0]), check_finite=True)


@modules
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, NAN], r"^sample_weight must be finite, got NaN or infinity in 1 rows, the first is row 1"),
        ([INF, 1.0], r"^sample_weight must be finite, .* row 0"),
        ([1.0, -5.0], r"^sample_weight must be >= 0, got a minimum of -5"),
        (torch.tensor([1.0, -5.0]), r"^sample_weight must be >= 0, got a minimum of -5"),
    ],
)
def test_weights_are_flagged_on_request(module: LossModule, weight: object, message: str) -> None:
    batch = mixed_batch(rows=2, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        module.call(module.make(check_finite=True), replace(batch, weight=weight), True)


def test_zero_times_infinite_features_is_zero() -> None:
    """Without its weight, the magnitude of the features is nobody's concern."""
    batch = batch_of_both_kinds(torch.float32)
    features = torch.full_like(batch.features, INF)
    loss = ObjectosphereLoss(1.0, 0.0)(batch.logits, features, batch.targets)
    torch.testing.assert_close(loss, OutlierExposureLoss(1.0)(batch.logits, batch.targets))
