"""The loss modules against their papers' formulas, row by row; one table (loss_modules.py) for all of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.losses import (
    EnergyRegularizedLoss,
    MixedBatchLoss,
    ObjectosphereLoss,
    OutlierExposureLoss,
    RejectClassLoss,
)
from tests.support.loss_modules import LOSS_MODULES, REJECT, Batch, LossModule, by_the_paper, mixed_batch

modules = pytest.mark.parametrize("module", LOSS_MODULES, ids=str)


def with_leaves(batch: Batch) -> Batch:
    # Detached: a batch of the same dtype or device is the same tensors, and a copy of a leaf is none.
    logits, features = (x.detach().requires_grad_() for x in (batch.logits, batch.features))
    return replace(batch, logits=logits, features=features)


@modules
@pytest.mark.parametrize("reduction", ["weighted_mean", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", ["mixed", "id", "background"])
def test_is_the_papers_formula(module: LossModule, reduction: str, weighted: bool, rows: str, device: str) -> None:
    batch = mixed_batch()
    if rows != "mixed":
        targets = batch.targets.clamp(min=0) if rows == "id" else torch.full_like(batch.targets, -1)
        batch = replace(batch, targets=targets)
    theirs, ours = with_leaves(batch.to(torch.float64)), with_leaves(batch.to(device))
    want, want_per_sample = by_the_paper(module, theirs, weighted, reduction)
    want.backward()
    got, per_sample = module.call(module.make(reduction=reduction), ours, weighted, "with_per_sample")
    got.backward()
    torch.testing.assert_close(got.detach().cpu(), want.detach())
    torch.testing.assert_close(per_sample.cpu(), want_per_sample.detach())
    torch.testing.assert_close(ours.logits.grad.cpu(), theirs.logits.grad)
    if isinstance(module.make(), ObjectosphereLoss):
        torch.testing.assert_close(ours.features.grad.cpu(), theirs.features.grad)
    assert not per_sample.requires_grad


# ObjectosphereLoss has two gradients: through autograd alone.
@pytest.mark.parametrize("module", [m for m in LOSS_MODULES if isinstance(m.make(), MixedBatchLoss)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_grad_is_what_autograd_gives(module: LossModule, weighted: bool, device: str) -> None:
    criterion = module.make()
    batch = with_leaves(mixed_batch(dtype=torch.float32).to(device))
    loss, per_sample, gradient = module.call(criterion, batch, weighted, "value_and_grad")
    want, want_per_sample = module.call(criterion, batch, weighted, "with_per_sample")
    want.backward()
    assert not loss.requires_grad
    assert torch.equal(loss, want.detach())
    assert torch.equal(per_sample, want_per_sample)
    assert torch.equal(gradient, batch.logits.grad)


@modules
@pytest.mark.parametrize("reduction", ["weighted_mean", "mean"])
def test_gradient_of_the_sample_weights(module: LossModule, reduction: str, device: str) -> None:
    batch = mixed_batch(rows=8).to(device)
    batch = replace(batch, weight=batch.weight.requires_grad_())
    criterion = module.make(reduction=reduction)

    def loss(weight: Tensor) -> Tensor:
        return module.call(criterion, replace(batch, weight=weight), True)

    assert torch.autograd.gradcheck(loss, batch.weight)


@modules
def test_second_derivatives(module: LossModule) -> None:
    batch = with_leaves(mixed_batch(rows=5))
    criterion = module.make()

    def loss(logits: Tensor, features: Tensor) -> Tensor:
        return module.call(criterion, replace(batch, logits=logits, features=features), True)

    if not isinstance(criterion, ObjectosphereLoss):
        batch = replace(batch, features=batch.features.detach())
    assert torch.autograd.gradgradcheck(loss, (batch.logits, batch.features))


@modules
def test_the_rows_losses_have_no_gradient(module: LossModule) -> None:
    batch = with_leaves(mixed_batch())
    _, per_sample = module.call(module.make(), batch, False, "with_per_sample")
    with pytest.raises(RuntimeError, match="does not require grad"):
        per_sample.sum().backward()


@modules
def test_means_are_taken_apart(module: LossModule) -> None:
    """Doubling the background rows must not change the trade-off (one joint mean would)."""
    batch = mixed_batch()
    background = batch.targets < 0
    twice = Batch(*(torch.cat([x, x[background]]) for x in vars(batch).values()))
    criterion = module.make()
    torch.testing.assert_close(module.call(criterion, twice), module.call(criterion, batch))


@modules
def test_order_of_the_rows_does_not_matter(module: LossModule) -> None:
    batch = mixed_batch(rows=70, dtype=torch.float32)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
    shuffled = Batch(*(x[order] for x in vars(batch).values()))
    criterion = module.make()
    one, of_row = module.call(criterion, batch, True, "with_per_sample")
    two, of_shuffled = module.call(criterion, shuffled, True, "with_per_sample")
    torch.testing.assert_close(one, two, rtol=1e-6, atol=0)
    assert torch.equal(of_row[order], of_shuffled)


@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_logits_give_a_float32_loss(module: LossModule, dtype: torch.dtype, device: str) -> None:
    exact = mixed_batch().to(dtype).to(torch.float64)  # the values that are left after rounding
    batch = exact.to(dtype)
    # Rounded, a draw could fall into another reject class.
    batch = with_leaves(replace(batch, uniform01=exact.uniform01.float(), weight=exact.weight.float()).to(device))
    loss = module.call(module.make(), batch, True)
    loss.backward()
    assert loss.dtype == torch.float32
    assert batch.logits.grad.dtype == dtype
    want = by_the_paper(module, exact, True, "weighted_mean")[0]
    torch.testing.assert_close(loss.detach().cpu().double(), want, rtol=1e-5, atol=1e-6)


@modules
def test_strided_rows_and_targets(module: LossModule, device: str) -> None:
    """Slices of bigger tensors, and a transposed one, give the same as copies of them."""
    batch = mixed_batch(dtype=torch.float32).to(device)
    criterion = module.make()
    want = module.call(criterion, batch, True)
    wide = Batch(*(torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in vars(batch).values()))
    assert not wide.logits.is_contiguous()
    assert torch.equal(module.call(criterion, wide, True), want)
    assert torch.equal(module.call(criterion, replace(batch, logits=batch.logits.T.contiguous().T), True), want)


@modules
def test_settings_may_change_between_steps(module: LossModule) -> None:
    criterion = module.make()
    if isinstance(criterion, ObjectosphereLoss):
        criterion.magnitude_weight = 0.0
        other = OutlierExposureLoss(0.7)
        batch = mixed_batch()
        assert torch.equal(module.call(criterion, batch), other(batch.logits, batch.targets))
        return
    criterion.weight = 0.0
    batch = mixed_batch()
    id_rows = batch.targets >= 0
    torch.testing.assert_close(
        module.call(criterion, batch), F.cross_entropy(batch.logits[id_rows], batch.targets[id_rows])
    )
    assert "weight=0.0" in repr(criterion)


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
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1:].eq(0).all()


def test_large_background_weights_leave_the_id_mean_alone() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])
    weight = torch.tensor([1.0] * 4 + [1.23e8, 3.3e8, 7e8, 1e8])
    got = OutlierExposureLoss(weight=0)(logits, targets, weight)
    torch.testing.assert_close(got, F.cross_entropy(logits[:4], targets[:4]))


def test_confident_rows_keep_their_digits() -> None:
    """1 - f_y of a confident row: log_softmax in float32 has none, the fused cross-entropy all."""
    logits = torch.tensor([[20.0, 0.0, 0.0], [18.0, 0.0, -1.0]], requires_grad=True)
    loss, per_sample = OutlierExposureLoss().with_per_sample(logits, torch.tensor([0, 0]))
    loss.backward()
    want = F.cross_entropy(logits.detach().double(), torch.tensor([0, 0]), reduction="none")
    torch.testing.assert_close(per_sample.double(), want, rtol=1e-6, atol=0)
    assert F.cross_entropy(logits.detach(), torch.tensor([0, 0]), reduction="none")[0] == 0
    torch.testing.assert_close(logits.grad[:, 0].double(), torch.expm1(-want) / 2, rtol=1e-6, atol=0)


def test_reject_classes_are_drawn_from_the_generator_alone() -> None:
    batch = mixed_batch(dtype=torch.float32)
    criterion = RejectClassLoss(REJECT)
    state = torch.get_rng_state()
    losses = [
        criterion(batch.logits, batch.targets, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_reject_classes_are_drawn_uniformly() -> None:
    logits = torch.zeros(6000, 4 + REJECT)
    logits[:, 0] = 5
    targets = torch.full((6000,), -1)
    generator = torch.Generator().manual_seed(0)
    gradient = RejectClassLoss(REJECT).value_and_grad(logits, targets, generator=generator)[2]
    counts = torch.bincount(gradient.argmin(1), minlength=4 + REJECT)
    assert counts[:4].eq(0).all()
    assert (counts[4:] - 2000).abs().max() < 5 * (6000 * 2 / 9) ** 0.5


def test_entropic_open_set_is_objectosphere_without_magnitudes() -> None:
    batch = mixed_batch()
    got = ObjectosphereLoss(1.0, 0.0)(batch.logits, batch.features, batch.targets)
    assert torch.equal(got, OutlierExposureLoss(1.0)(batch.logits, batch.targets))


@modules
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": torch.tensor([0, 7])}, ValueError, "^targets must be below K = [47] .*got 7"),
        ({"targets": torch.tensor([0.0, 1.5])}, ValueError, "^targets must be whole numbers, got 1.5"),
        ({"targets": torch.tensor([0.0, math.nan])}, ValueError, "^targets must be whole numbers, got nan"),
        ({"targets": torch.tensor([0.0, -math.inf])}, ValueError, "^targets must be whole numbers, got -inf"),
        ({"targets": torch.tensor([0.0, 1e300]).double()}, ValueError, "^targets must be whole numbers, got"),
        ({"targets": torch.zeros(2).half()}, TypeError, "^targets must be int64 .*got torch.float16"),
        ({"targets": torch.tensor([True, False])}, TypeError, "^targets must be int64 .*got torch.bool"),
        ({"targets": torch.eye(2).to_sparse()}, TypeError, "^targets must be a dense tensor"),
        ({"targets": torch.tensor([0])}, ValueError, r"^targets must have shape \(2,\).*got \(1,\)"),
        ({"targets": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "^targets must be on cpu"),
        ({"targets": [0, 1, 2]}, ValueError, r"^targets must have shape \(2,\).*got \(3,\)"),
        ({"targets": np.ma.array([0, 1], mask=[0, 1])}, TypeError, "^targets must be a plain array, got a masked one"),
        ({"targets": ["cat", "dog"]}, TypeError, "^targets must hold numbers"),
        ({"targets": [[0], [1, 2]]}, TypeError, "^targets must hold numbers"),
        ({"targets": [0, 10**30]}, TypeError, "^targets must hold numbers"),
        ({"targets": None}, TypeError, "^targets must be a tensor, an array or a list, got NoneType"),
        ({"weight": torch.ones(3)}, ValueError, r"^sample_weight must have shape \(2,\)"),
        ({"weight": torch.ones(2, dtype=torch.complex64)}, TypeError, "^sample_weight must be floating-point"),
        ({"weight": torch.ones(2, device="meta")}, ValueError, "^sample_weight must be on cpu"),
        ({"weight": "ab"}, TypeError, "^sample_weight must be a tensor, an array or a list, got str"),
        ({"logits": torch.zeros(2)}, ValueError, r"^logits must be \[N, K"),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"^logits must be \[N, K"),
        ({"logits": torch.zeros(2, 7, dtype=torch.int64)}, TypeError, "^logits must be float64, .*got torch.int64"),
        ({"logits": [[0.0]]}, TypeError, "^logits must be a torch.Tensor, got list"),
    ],
)
def test_bad_input(module: LossModule, change: dict[str, object], error: type[Exception], message: str) -> None:
    good = mixed_batch(rows=2, dtype=torch.float32)
    with pytest.raises(error, match=message):
        module.call(module.make(), replace(good, **change), weighted=True)


@modules
@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_bad_trade_off(module: LossModule, weight: float) -> None:
    cls = type(module.make())
    extra = {"num_reject": 2} if cls is RejectClassLoss else {}
    if cls is ObjectosphereLoss:
        extra = {"min_magnitude": 1.0, "magnitude_weight": 1.0}
    name = "alpha" if cls is EnergyRegularizedLoss else "weight"  # pytorch-ood's name
    with pytest.raises(ValueError, match=f"^{name} must be finite and >= 0"):
        cls(**{name: weight}, **extra)


@modules
def test_bad_reduction(module: LossModule) -> None:
    with pytest.raises(ValueError, match=r"^reduction must be"):
        module.make(reduction="average")


@modules
def test_nan_logits_are_flagged_on_request(module: LossModule) -> None:
    batch = mixed_batch(dtype=torch.float32)
    batch.logits[1, 0] = math.nan
    assert math.isnan(module.call(module.make(), batch))
    with pytest.raises(ValueError, match=r"^logits must be finite.*row 1"):
        module.call(module.make(check_finite=True), batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnergyRegularizedLoss(margin_in=-5, margin_out=-23), "margin_in must be at most margin_out"),
        (lambda: EnergyRegularizedLoss(margin_in=math.nan), "margin_in must be finite, got nan"),
        (lambda: OutlierExposureLoss(10**400), "weight must be finite and >= 0, got an int of 401 digits"),
        (lambda: RejectClassLoss(0), "num_reject must be an int >= 1, got 0"),
        (lambda: ObjectosphereLoss(0, 1), "min_magnitude must be finite and > 0, got 0"),
        (lambda: ObjectosphereLoss(1, -1), "magnitude_weight must be finite and >= 0, got -1"),
    ],
)
def test_bad_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "generator or uniform01 must be given.*got neither"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
        ({"uniform01": torch.tensor([0.5, math.nan])}, ValueError, r"uniform01 must be in \[0, 1\), got nan"),
        ({"uniform01": torch.tensor([-5.0, 0.0])}, ValueError, r"uniform01 must be in \[0, 1\), got -5"),
        ({"uniform01": torch.tensor([0.5, 1.0])}, ValueError, r"uniform01 must be in \[0, 1\), got 1"),
        ({"generator": torch.Generator(), "uniform01": torch.zeros(2)}, ValueError, "got both"),
        ({"uniform01": torch.zeros(3)}, ValueError, r"uniform01 must have shape \(2,\)"),
    ],
)
def test_bad_draws(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RejectClassLoss(REJECT)(torch.zeros(2, 4 + REJECT), torch.tensor([0, -1]), **arguments)
    with pytest.raises(ValueError, match=r"logits must be \[N, K \+ 3\] with K >= 1"):
        RejectClassLoss(REJECT)(torch.zeros(2, REJECT), torch.tensor([-1, -1]), uniform01=torch.zeros(2))


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.zeros(3, 5), ValueError, r"features must be \[N, d\] with N = 2"),
        (torch.zeros(2), ValueError, r"features must be \[N, d\] with N = 2"),
        (torch.zeros(2, 5, dtype=torch.int64), TypeError, "features must be float64, .*got torch.int64"),
        (torch.zeros(2, 5, device="meta"), ValueError, "features must be on cpu like logits, got meta"),
        ([[0.0]], TypeError, "features must be a torch.Tensor, got list"),
    ],
)
def test_bad_features(features: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ObjectosphereLoss(1, 1)(torch.zeros(2, 4), features, torch.tensor([0, -1]))


def test_every_loss_of_a_mixed_batch_is_in_the_table() -> None:
    assert {type(m.make()) for m in LOSS_MODULES} - {ObjectosphereLoss} == set(MixedBatchLoss.__subclasses__())
