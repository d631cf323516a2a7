"""Losses take targets and weights as people have them, dense logits, and reduce as torch's losses do."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastood.losses import MixedBatchLoss, ObjectosphereLoss, OutlierExposureLoss, PrototypeLoss, RejectClassLoss
from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad
from tests.support.loss_modules import LOSS_MODULES, REJECT, Batch, LossModule, by_the_paper, mixed_batch

modules = pytest.mark.parametrize("module", LOSS_MODULES, ids=str)
on_logits = pytest.mark.parametrize(
    "module", [m for m in LOSS_MODULES if isinstance(m.make(), MixedBatchLoss)], ids=str
)


@modules
@pytest.mark.parametrize(
    "form",
    [
        Tensor.tolist,
        lambda t: tuple(t.tolist()),
        lambda t: [float(x) for x in t],
        list,
        Tensor.numpy,
        lambda t: t.numpy().astype(np.int32),
        lambda t: t.numpy().astype(np.float32),
        lambda t: t.numpy().astype(">i8"),
        lambda t: t.numpy()[::-1].copy()[::-1],
        lambda t: t.to(torch.int32),
        lambda t: t.to(torch.int16),
        lambda t: t.to(torch.int8),
        lambda t: t.numpy().astype(np.int16),
        lambda t: t.to(torch.float32),
        lambda t: t.to(torch.float64),
    ],
)
def test_targets_of_any_kind(module: LossModule, form: object) -> None:
    batch = mixed_batch(rows=12, dtype=torch.float32)
    criterion = module.make()
    want = module.call(criterion, batch)
    assert torch.equal(module.call(criterion, replace(batch, targets=form(batch.targets))), want)


@modules
@pytest.mark.parametrize(
    "form", [Tensor.tolist, Tensor.numpy, Tensor.double, Tensor.float, lambda w: w.double().numpy()]
)
def test_weights_of_any_kind(module: LossModule, form: object) -> None:
    batch = mixed_batch(rows=12, dtype=torch.float32)
    criterion = module.make()
    want = module.call(criterion, batch, True)
    got = module.call(criterion, replace(batch, weight=form(batch.weight)), True)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    counts = torch.arange(12) % 3
    want = module.call(criterion, replace(batch, weight=counts.float()), True)
    for integers in (counts, counts.to(torch.uint8), counts.numpy(), counts.tolist()):
        assert torch.equal(module.call(criterion, replace(batch, weight=integers), True), want)
    want = module.call(criterion, replace(batch, weight=(counts > 0).float()), True)
    assert torch.equal(module.call(criterion, replace(batch, weight=counts > 0), True), want)


@modules
@pytest.mark.parametrize("scales", [(1e300, 1e300), (1e-300, 1e300), (1e-45, 1.0), (1e300, 5e-324)])
@pytest.mark.parametrize("form", ["tensor", "array", "list"])
def test_weights_of_any_scale(module: LossModule, scales: tuple[float, float], form: str) -> None:
    """Of in-distribution and of background rows: only the ratios within each matter to a weighted mean."""
    batch = mixed_batch(rows=12, dtype=torch.float32)
    criterion = module.make()
    counts = (torch.arange(12) % 3 + 1).double()
    leaf = batch.logits.clone().requires_grad_()
    want = module.call(criterion, replace(batch, logits=leaf, weight=counts), True)
    want.backward()
    scaled = counts * torch.tensor(scales, dtype=torch.float64)[(batch.targets < 0).long()]
    weight = {"tensor": scaled, "array": scaled.numpy(), "list": scaled.tolist()}[form]
    again = batch.logits.clone().requires_grad_()
    got = module.call(criterion, replace(batch, logits=again, weight=weight), True)
    got.backward()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.grad, leaf.grad, rtol=1e-5, atol=1e-7)


def test_gradient_of_float64_weights_of_float32_logits() -> None:
    batch = mixed_batch(rows=8, dtype=torch.float32)
    weight = batch.weight.double().mul(1e200).requires_grad_()
    OutlierExposureLoss()(batch.logits, batch.targets, weight).backward()
    plain = batch.weight.clone().requires_grad_()
    OutlierExposureLoss()(batch.logits, batch.targets, plain).backward()
    torch.testing.assert_close(weight.grad * 1e200, plain.grad.double(), rtol=1e-4, atol=1e-6)


def rows_of(module: LossModule, batch: Batch, weighted: bool) -> Tensor:
    """Return the terms of rows, by the paper's formulas."""
    _, per_sample = by_the_paper(module, batch, weighted, "mean")
    factor = torch.where(batch.targets < 0, module.weight, 1.0)
    return per_sample * factor * (batch.weight if weighted else 1.0)


@modules
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", ["mixed", "id", "background"])
def test_reduction_none_and_sum_are_the_papers_terms(module: LossModule, weighted: bool, rows: str) -> None:
    batch = mixed_batch(rows=20)
    if rows != "mixed":
        targets = batch.targets.clamp(min=0) if rows == "id" else torch.full_like(batch.targets, -1)
        batch = replace(batch, targets=targets)
    upstream = torch.linspace(-1, 2, 20, dtype=torch.float64)
    theirs, ours, summed = (
        replace(
            batch,
            **{
                name: getattr(batch, name).clone().requires_grad_()
                for name in (("logits", "features", "weight") if weighted else ("logits", "features"))
            },
        )
        for _ in range(3)
    )
    want = rows_of(module, theirs, weighted)
    (want * upstream).sum().backward()
    got, per_sample = module.call(module.make(reduction="none"), ours, weighted, "with_per_sample")
    (got * upstream).sum().backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(per_sample, by_the_paper(module, batch, weighted, "mean")[1])
    assert not per_sample.requires_grad
    for name in ("logits", "features", "weight"):
        mine, wanted = getattr(ours, name).grad, getattr(theirs, name).grad
        if wanted is not None:
            torch.testing.assert_close(mine, wanted)
    total = module.call(module.make(reduction="sum"), summed, weighted)
    torch.testing.assert_close(total, want.sum())
    assert torch.equal(module.call(module.make(reduction=None), batch, weighted), got.detach())


@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reduction_none_in_low_precision(module: LossModule, dtype: torch.dtype) -> None:
    exact = mixed_batch(rows=20).to(dtype).to(torch.float64)
    batch = replace(exact.to(dtype), uniform01=exact.uniform01.clamp(max=0.99), weight=exact.weight.float())
    exact = replace(exact, uniform01=batch.uniform01)
    leaf = batch.logits.clone().requires_grad_()
    got = module.call(module.make(reduction="none"), replace(batch, logits=leaf), True)
    got.sum().backward()
    assert got.dtype == torch.float32
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(got.detach().double(), rows_of(module, exact, True), rtol=1e-5, atol=1e-5)


@modules
def test_reduction_none_differentiates_twice(module: LossModule) -> None:
    batch = mixed_batch(rows=4)
    criterion = module.make(reduction="none")

    def terms(logits: Tensor, weight: Tensor) -> Tensor:
        return module.call(criterion, replace(batch, logits=logits, weight=weight), True)

    inputs = (batch.logits.requires_grad_(), batch.weight.requires_grad_())
    assert torch.autograd.gradcheck(terms, inputs)
    assert torch.autograd.gradgradcheck(terms, inputs)


@on_logits
def test_value_and_grad_of_a_sum(module: LossModule) -> None:
    batch = mixed_batch(rows=20, dtype=torch.float32)
    criterion = module.make(reduction="sum")
    leaf = batch.logits.clone().requires_grad_()
    want = module.call(criterion, replace(batch, logits=leaf), True)
    want.backward()
    loss, per_sample, gradient = module.call(criterion, batch, True, "value_and_grad")
    assert torch.equal(loss, want.detach())
    assert torch.equal(gradient, leaf.grad)
    assert torch.equal(per_sample, module.call(criterion, batch, True, "with_per_sample")[1])
    with pytest.raises(ValueError, match=r'^reduction must be .* for value_and_grad, got "none"'):
        module.call(module.make(reduction="none"), batch, True, "value_and_grad")


def test_masked_terms_have_no_gradient_whatever_they_hold() -> None:
    logits = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [math.nan, 0.0]], requires_grad=True)
    terms = OutlierExposureLoss(reduction="none")(logits, torch.tensor([0, 1, -1]))
    terms[:1].sum().backward()
    assert logits.grad[1:].eq(0).all()
    assert logits.grad[0].ne(0).all()


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_uniformity_takes_weights_of_any_scale(scale: float) -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    want, _ = weighted_uniformity(logits, torch.tensor([1.0, 2.0, 4.0]))
    weights = [scale, 2 * scale, 4 * scale]
    for weight in (weights, np.array(weights), torch.tensor(weights, dtype=torch.float64)):
        torch.testing.assert_close(weighted_uniformity(logits, weight)[0], want, rtol=1e-6, atol=0)
    assert torch.equal(weighted_uniformity(logits, [1, 2, 4])[0], want)


def test_objectosphere_of_float64_logits_and_float32_features() -> None:
    batch = mixed_batch(rows=12)
    criterion = ObjectosphereLoss(2.0, 0.3)
    weight = batch.weight
    want = criterion(batch.logits, batch.features, batch.targets, weight)
    got = criterion(batch.logits, batch.features.float(), batch.targets, weight * 1e-300)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_uniformity_reduces_alike() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 0.0, 2.0, 3.0, 0.5])
    terms, per_sample = weighted_uniformity(logits, weight, reduction="none")
    torch.testing.assert_close(terms, weight * per_sample)
    total, _ = weighted_uniformity(logits, weight, reduction="sum")
    torch.testing.assert_close(total, terms.sum())
    loss, _, gradient = weighted_uniformity_value_and_grad(logits, weight, reduction="sum")
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(gradient, weight[:, None] * (logits.softmax(1) - 0.25))


@on_logits
@pytest.mark.parametrize("reduction", ["weighted_mean", "mean", "sum", "none"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dense_logits_are_rows(module: LossModule, reduction: str, layout: torch.memory_format) -> None:
    """[N, K, H, W], as segmentation has them: each pixel is a row."""
    flat = mixed_batch(rows=24)
    shape = (2, 3, 4)
    dense = Batch(
        flat.logits.reshape(*shape, -1).movedim(-1, 1).contiguous(memory_format=layout),
        *(x.reshape(*shape, *x.shape[1:]) for x in list(vars(flat).values())[1:]),
    )
    criterion = module.make(reduction=reduction)
    rows, pixels = flat.logits.clone().requires_grad_(), dense.logits.clone().requires_grad_()
    want, want_rows = module.call(criterion, replace(flat, logits=rows), True, "with_per_sample")
    got, got_rows = module.call(criterion, replace(dense, logits=pixels), True, "with_per_sample")
    want.sum().backward()
    got.sum().backward()
    assert torch.equal(got, want.reshape(shape) if reduction == "none" else want)
    assert torch.equal(got_rows, want_rows.reshape(shape))
    assert torch.equal(pixels.grad, rows.grad.reshape(*shape, -1).movedim(-1, 1))
    if reduction != "none":
        gradient = module.call(criterion, dense, True, "value_and_grad")[2]
        assert torch.equal(gradient, pixels.grad)


def test_dense_targets_have_the_shape_of_the_pixels() -> None:
    logits = torch.zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"^targets must have shape \(2, 4, 5\).*got \(2,\)"):
        OutlierExposureLoss()(logits, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^sample_weight must have shape \(2, 4, 5\).*got \(2,\)"):
        OutlierExposureLoss()(logits, torch.zeros(2, 4, 5, dtype=torch.int64), torch.ones(2))
    with pytest.raises(ValueError, match=r"^logits must be \[N, K\] alongside features"):
        ObjectosphereLoss(1, 1)(logits, torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))


def test_reject_class_loss_has_a_generator_of_its_own() -> None:
    batch = mixed_batch(dtype=torch.float32)
    criterion = RejectClassLoss(REJECT, generator=torch.Generator().manual_seed(3))
    given = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    copies = [copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))]
    want = [RejectClassLoss(REJECT)(batch.logits, batch.targets, generator=given) for _ in range(3)]
    for loss in (criterion, *copies):
        assert torch.equal(torch.stack([loss(batch.logits, batch.targets) for _ in range(3)]), torch.stack(want))
    assert not torch.equal(want[0], want[1])
    other = torch.Generator().manual_seed(3)
    assert torch.equal(criterion(batch.logits, batch.targets, generator=other), want[0])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TypeError, match=r"^generator must be a torch.Generator, got int"):
        RejectClassLoss(REJECT, generator=0)


def test_prototype_loss_names_a_target_that_is_no_class() -> None:
    features, prototypes = torch.zeros(2, 4), torch.zeros(3, 1, 4)
    with pytest.raises(ValueError, match=r"^targets must be below K = 3 .*got 3"):
        PrototypeLoss()(features, prototypes, [-1, 3])
    assert PrototypeLoss()(features, prototypes, [2.0, -1.0]) == 0
    with pytest.raises(TypeError, match=r"^features must be float64, .*got torch.complex64"):
        PrototypeLoss()(features.to(torch.complex64), prototypes, [0, 1])
