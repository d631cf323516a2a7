"""The kernels of the family of losses against their float64 reference; one table of samples drives everything."""

import math

import pytest
import torch
from torch import Tensor

from fastood.ops.outlier_loss import LossKind, LossSettings, RowArguments, outlier_loss, outlier_loss_value_and_grad
from fastood.ops.reference import outlier_loss as reference
from tests.support.op_samples import DTYPES, LOSS_SAMPLES, SMALL_LOSS_SAMPLES, LossSample

KINDS = list(LossKind)


def exact(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, losses of the rows and gradient in float64."""
    leaf = logits.detach().double().requires_grad_()
    loss, per_sample = reference.outlier_loss(leaf, *rows, *settings)
    loss.backward()
    return loss.detach(), per_sample.detach(), leaf.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", LOSS_SAMPLES, ids=str)
def test_matches_float64_reference(sample: LossSample, dtype: torch.dtype, device: str) -> None:
    logits, rows = sample.make(device, dtype)
    want_loss, want_per_sample, want_gradient = exact(logits, rows, sample.settings)
    leaf = logits.clone().requires_grad_()
    loss, per_sample = outlier_loss(leaf, rows, sample.settings)
    loss.backward()
    assert loss.dtype == per_sample.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not per_sample.requires_grad
    assert leaf.grad.dtype == dtype
    # float32 energies and norms of size x are known to x eps, their squares to 2 x^2 eps.
    tolerance = 2e-12 if dtype == torch.float64 else 2e-6
    size = max(1.0, float(want_per_sample.abs().max()) if len(want_per_sample) else 0.0)
    torch.testing.assert_close(per_sample.double(), want_per_sample, rtol=10 * tolerance, atol=tolerance * size**0.5)
    torch.testing.assert_close(loss.double(), want_loss, rtol=10 * tolerance, atol=tolerance * size**0.5)
    # The gradient is rounded once, to the dtype of the logits.
    rounding = max(10 * tolerance, torch.finfo(dtype).eps)
    scale = float(want_gradient.abs().max()) if want_gradient.numel() else 0.0
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    limit = torch.finfo(dtype).max
    torch.testing.assert_close(
        leaf.grad.double().clamp(-limit, limit),
        want_gradient.clamp(-limit, limit),
        rtol=rounding,
        atol=min(scale, 1e3) * max(tolerance, torch.finfo(dtype).eps) + subnormal,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", LOSS_SAMPLES, ids=str)
def test_value_and_grad_equals_autograd(sample: LossSample, dtype: torch.dtype, device: str) -> None:
    logits, rows = sample.make(device, dtype)
    loss, per_sample, gradient = outlier_loss_value_and_grad(logits, rows, sample.settings)
    leaf = logits.clone().requires_grad_()
    want_loss, want_per_sample = outlier_loss(leaf, rows, sample.settings)
    want_loss.backward()
    # The same row kernels on the same rows: the same bits, however the rows are cut into blocks.
    assert torch.equal(per_sample, want_per_sample)
    assert torch.equal(loss, want_loss.detach())
    assert torch.equal(gradient, leaf.grad)


@pytest.mark.parametrize("sample", SMALL_LOSS_SAMPLES, ids=str)
def test_gradcheck(sample: LossSample, device: str) -> None:
    logits, rows = sample.make(device, torch.float64)
    inputs = [logits.clone().requires_grad_()]
    if rows.weight is not None and sample.weights != "all_zero":  # a mean over nothing is zero, and has no slope there
        inputs.append(rows.weight.clone().requires_grad_())

    def loss(*args: Tensor) -> Tensor:
        return outlier_loss(args[0], rows._replace(weight=args[1] if len(args) > 1 else None), sample.settings)[0]

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
@pytest.mark.parametrize("by_weight", [True, False])
def test_second_derivative(kind: LossKind, by_weight: bool, device: str) -> None:
    sample = LossSample(kind, 4, 5, by_weight=by_weight)
    logits, rows = sample.make(device, torch.float64)

    def loss(logits: Tensor, weight: Tensor) -> Tensor:
        return outlier_loss(logits, rows._replace(weight=weight), sample.settings)[0]

    assert torch.autograd.gradgradcheck(loss, (logits.clone().requires_grad_(), rows.weight.requires_grad_()))


def eager(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """What people write today, in the dtype of the logits."""
    kind, background = settings.kind, rows.targets < 0
    energy = -torch.logsumexp(logits, 1)
    log_f = torch.log_softmax(logits, 1)
    target = rows.targets.clamp(min=0)
    if kind == LossKind.REJECT_CLASS:
        target = torch.where(background, reference.pseudo_labels(logits, settings.num_reject, rows.uniform01), target)
    cross_entropy = -log_f.gather(1, target[:, None]).squeeze(1)
    relu = torch.nn.functional.relu
    extra = {
        LossKind.ENERGY_MARGIN: lambda: relu(energy - settings.margin_id).square(),
        LossKind.ENERGY: lambda: energy,
        LossKind.ICE: lambda: -logits.gather(1, target[:, None]).squeeze(1),
        LossKind.SIGMOID: lambda: -torch.nn.functional.logsigmoid(logits.gather(1, target[:, None]).squeeze(1)),
    }.get(kind, lambda: torch.zeros_like(energy))()
    norm_squared = logits.square().sum(1)
    terms = {
        LossKind.UNIFORMITY: lambda: -log_f.mean(1) - math.log(logits.shape[1]),
        LossKind.ENTROPY: lambda: (log_f.exp() * log_f).sum(1) + math.log(logits.shape[1]),
        LossKind.ENERGY_MARGIN: lambda: relu(settings.margin_background - energy).square(),
        LossKind.ENERGY: lambda: -energy,
        LossKind.REJECT_CLASS: lambda: cross_entropy,
        LossKind.ICE: lambda: -torch.log(1 - logits.max(1).values.clamp(max=-1e-7).exp()),
        LossKind.ICE_MINUS: lambda: -torch.log(1 - logits.max(1).values.clamp(max=-1e-7).exp()),
        LossKind.SIGMOID: lambda: torch.nn.functional.softplus(logits.max(1).values),
        LossKind.MAGNITUDE: lambda: norm_squared,
    }[kind]()
    of_id = cross_entropy + settings.weight * extra
    if kind == LossKind.MAGNITUDE:
        of_id = relu(settings.margin_id - norm_squared.sqrt()).square()
    weight = rows.weight.to(logits.dtype)
    loss = (weight * of_id)[~background].sum() / weight[~background].sum()
    loss = loss + settings.weight * (weight * terms)[background].sum() / weight[background].sum()
    return loss, torch.where(background, terms, of_id)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_error_at_most_twice_that_of_pytorch(kind: LossKind, spread: float, dtype: torch.dtype, device: str) -> None:
    sample = LossSample(kind, 64, 100, spread=spread)
    logits, rows = sample.make(device, dtype)
    if kind in (
        LossKind.ICE,
        LossKind.ICE_MINUS,
    ):  # nearer to zero, eager code has NaN or infinity in bfloat16 and float16
        logits = logits - 0.5
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    want, want_per_sample, want_gradient = exact(logits, rows, sample.settings)
    loss, per_sample = outlier_loss(ours, rows, sample.settings)
    eager_loss, eager_per_sample = eager(theirs, rows, sample.settings)
    loss.backward()
    eager_loss.backward()

    def error(got: Tensor, want: Tensor) -> float:
        return float((got.detach().double() - want).abs().max())

    # One rounding of the largest value is what nobody can be blamed for.
    def allowed(theirs: Tensor, want: Tensor, dtype: torch.dtype) -> float:
        return 2 * error(theirs, want) + torch.finfo(dtype).eps * float(want.abs().max())

    assert error(loss, want) <= allowed(eager_loss, want, torch.float32)
    assert error(per_sample, want_per_sample) <= allowed(eager_per_sample, want_per_sample, torch.float32)
    assert error(ours.grad, want_gradient) <= allowed(theirs.grad, want_gradient, dtype)


@pytest.mark.parametrize("kind", [LossKind.UNIFORMITY, LossKind.ENTROPY], ids=lambda k: k.name)
@pytest.mark.parametrize("classes", [1, 2, 10, 100, 1000, 21841])
@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_relative_error_near_the_uniform_point(
    kind: LossKind, classes: int, spread: float, offset: float, device: str
) -> None:
    sample = LossSample(kind, 64, classes, spread=spread, targets="background")
    logits, rows = sample.make(device, torch.float32)
    logits = logits + offset
    _, per_sample, gradient = outlier_loss_value_and_grad(logits, rows, sample.settings)
    v = logits.double() - logits.double().mean(1, keepdim=True)
    # Without cancellation in float64: lambda = log mean exp v, and KL(f || U) = mean of (1 + e)(x) - e, e = expm1(x).
    lam = torch.log1p(torch.expm1(v).mean(1, keepdim=True))
    x = v - lam
    ratio = torch.expm1(x)
    want = lam[:, 0] if kind == LossKind.UNIFORMITY else ((1 + ratio) * x - ratio).mean(1)
    slope = ratio if kind == LossKind.UNIFORMITY else (1 + ratio) * (x - want[:, None])
    if classes == 1:
        assert per_sample.eq(0).all()
        assert gradient.eq(0).all()
        return
    # Two equal logits of a row of two are exactly uniform: there the error is zero, too.
    assert ((per_sample.double() - want).abs() <= 2e-5 * want).all()
    weight = rows.weight.double()
    slope = 0.7 * (weight / weight.sum())[:, None] * slope / classes
    assert float((gradient.double() - slope).abs().max()) <= 2e-5 * float(slope.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ice_is_accurate_from_the_mean_to_far_away(dtype: torch.dtype, device: str) -> None:
    """-log(1 - exp(h)) and its slope at h from -1e-7 to -1e4, in the dtype's own digits."""
    h = -torch.logspace(-7, 4, 2001, dtype=torch.float64).to(dtype)
    settings = LossSettings(LossKind.ICE, by_weight=False)
    for classes in (1, 40):  # the two layouts
        logits = torch.full((len(h), classes), -2e4, dtype=dtype, device=device)
        logits[:, classes // 2] = h.to(device)
        rows = RowArguments(torch.full((len(h),), -1, device=device))
        _, per_sample, gradient = outlier_loss_value_and_grad(logits, rows, settings)
        exact = h.double()
        want = torch.where(exact > -math.log(2), -torch.log(-torch.expm1(exact)), -torch.log1p(-torch.exp(exact)))
        slope = 1 / torch.expm1(-exact) / len(h)
        tiny = torch.finfo(dtype).smallest_normal
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(per_sample.cpu().double(), want, rtol=tolerance, atol=tiny)
        torch.testing.assert_close(gradient[:, classes // 2].cpu().double(), slope, rtol=tolerance, atol=tiny)
        gradient[:, classes // 2] = 0
        assert gradient.eq(0).all()


def test_ice_on_a_class_mean_is_finite(device: str) -> None:
    logits = torch.tensor([[0.0, -1.0], [-(2.0**-24), -1.0], [3.0, -1.0]], device=device)
    rows = RowArguments(torch.full((3,), -1, device=device))
    _, per_sample, gradient = outlier_loss_value_and_grad(logits, rows, LossSettings(LossKind.ICE))
    torch.testing.assert_close(per_sample.cpu(), torch.full((3,), 24 * math.log(2)))
    torch.testing.assert_close(gradient[:, 0].cpu(), torch.full((3,), 2.0**24 / 3))
    assert gradient[:, 1].eq(0).all()


def test_pseudo_labels(device: str) -> None:
    """The largest logit where it is a reject class, else what the draw says; both layouts, both ends of the draw."""
    for known in (3, 60):
        logits = torch.zeros(6, known + 4, device=device)
        logits[0, known + 2] = 9  # a reject class by itself
        logits[1:, 1] = 9
        uniform01 = torch.tensor([0.0, 0.0, 0.26, 0.5, 0.999999, 1.0], device=device)
        rows = RowArguments(torch.full((6,), -1, device=device), None, uniform01)
        settings = LossSettings(LossKind.REJECT_CLASS, num_reject=4)
        gradient = outlier_loss_value_and_grad(logits, rows, settings)[2]
        assert (gradient.argmin(1) - known).tolist() == [2, 0, 1, 2, 3, 3]


@pytest.mark.parametrize("classes", [4, 70])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_special_rows(kind: LossKind, classes: int, device: str) -> None:
    """NaN and +inf make their row NaN, and no other row; a masked class (-inf) does what the docstrings say."""
    inf, nan = math.inf, math.nan
    sample = LossSample(kind, 8, classes, weights="none")
    logits, rows = sample.make(device, torch.float32)
    logits = logits.clone()
    rows = rows._replace(targets=torch.tensor([0, -1, 0, -1, 0, -1, 0, -1], device=device))
    logits[0, 1], logits[1, 1], logits[2, 1], logits[3, 1], logits[4, 1], logits[5, 1] = nan, nan, inf, inf, -inf, -inf
    per_sample = outlier_loss(logits, rows, sample.settings)[1].tolist()
    assert all(math.isfinite(x) for x in per_sample[6:])
    assert math.isnan(per_sample[0])
    assert math.isnan(per_sample[1])
    if kind == LossKind.MAGNITUDE:
        assert per_sample[2:6] == [0, inf, 0, inf]
        return
    assert math.isnan(per_sample[2])
    assert math.isnan(per_sample[3])
    assert math.isfinite(per_sample[4])
    assert per_sample[5] == inf if kind == LossKind.UNIFORMITY else math.isfinite(per_sample[5])
    # The gradient at a masked class is zero.
    for row in (4, 5) if kind != LossKind.UNIFORMITY else (4,):
        one = RowArguments(rows.targets[row : row + 1], None, None if rows.uniform01 is None else rows.uniform01[:1])
        gradient = outlier_loss_value_and_grad(logits[row : row + 1], one, sample.settings)[2]
        assert torch.isfinite(gradient).all()
        assert abs(float(gradient[0, 1])) < 1e-30


@pytest.mark.parametrize("classes", [4, 70])
@pytest.mark.parametrize("by_weight", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_rows_of_weight_zero_add_nothing_whatever_they_hold(
    kind: LossKind, by_weight: bool, classes: int, device: str
) -> None:
    sample = LossSample(kind, 8, classes, by_weight=by_weight)
    logits, rows = sample.make(device, torch.float32)
    logits = logits.clone()
    rows = rows._replace(
        targets=torch.tensor([0, -1, 0, -1, 0, -1, 0, -1], device=device),
        weight=torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1], device=device),
    )
    logits[0, 1], logits[1, 1], logits[2, 1], logits[3, 1], logits[4, 0], logits[5, 1] = (
        math.nan,
        math.nan,
        math.inf,
        math.inf,
        -math.inf,
        -math.inf,
    )
    loss, _, gradient = outlier_loss_value_and_grad(logits, rows, sample.settings)
    assert math.isfinite(loss)
    assert gradient[:6].eq(0).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("mask", [-math.inf, torch.finfo(torch.float32).min, -1e9])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != LossKind.MAGNITUDE], ids=lambda k: k.name)
def test_create_graph_changes_no_gradient_of_masked_rows(kind: LossKind, mask: float, device: str) -> None:
    """The float64 way of second derivatives has to stand a masked class as well, in rows of either kind."""
    sample = LossSample(kind, 8, 33)
    logits, rows = sample.make(device, torch.float32)
    logits = logits.clone()
    logits[:, 7] = mask
    rows = rows._replace(targets=torch.tensor([0, -1] * 4, device=device), weight=None)
    leaf = logits.requires_grad_()
    plain, differentiable = (
        torch.autograd.grad(outlier_loss(leaf, rows, sample.settings)[0], leaf, create_graph=create_graph)[0]
        for create_graph in (False, True)
    )
    assert torch.isfinite(plain).all()
    torch.testing.assert_close(differentiable.detach(), plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_without_its_weight_an_infinite_background_is_nobodys_concern(kind: LossKind, device: str) -> None:
    logits, rows = LossSample(kind, 6, 7, targets="sorted").make(device, torch.float32)
    logits = logits.clone()
    logits[-1] = math.nan
    assert int(rows.targets[-1]) < 0
    settings = LossSample(kind, 6, 7).settings._replace(weight=0.0)
    loss, _, gradient = outlier_loss_value_and_grad(logits, rows, settings)
    assert math.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("classes", [10, 31, 100])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_nothing_depends_on_the_number_of_threads_or_on_other_rows(kind: LossKind, classes: int) -> None:
    sample = LossSample(kind, 20_001, classes)
    logits, rows = sample.make("cpu", torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(outlier_loss_value_and_grad(logits, rows, sample.settings))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
    some = slice(77, 91)
    part = RowArguments(*(None if x is None else x[some].contiguous() for x in rows))
    assert torch.equal(outlier_loss(logits[some], part, sample.settings)[1], results[0][1][some])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_upstream_gradient_scales_before_rounding(kind: LossKind, device: str) -> None:
    """At fp16 an unscaled gradient of 1e-8 is zero; a GradScaler's factor must reach it before it is rounded."""
    sample = LossSample(kind, 4096, 100)
    logits, rows = sample.make(device, torch.float16)
    leaf = logits.clone().requires_grad_()
    (outlier_loss(leaf, rows, sample.settings)[0] * 8192).backward()
    want = exact(logits, rows, sample.settings)[2] * 8192
    limit = torch.finfo(torch.float16).max
    torch.testing.assert_close(leaf.grad.double().clamp(-limit, limit), want.clamp(-limit, limit), rtol=2e-3, atol=2e-6)


def test_large_shapes(device: str) -> None:
    """A 21,841-class head, 100,000 classes, and a million rows."""
    for rows, classes in ((3, 21_841), (2, 100_000), (1 << 20, 2)):
        sample = LossSample(LossKind.UNIFORMITY, rows, classes, spread=2)
        logits, args = sample.make(device, torch.float32)
        want, want_per_sample, want_gradient = exact(logits, args, sample.settings)
        loss, per_sample, gradient = outlier_loss_value_and_grad(logits, args, sample.settings)
        torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
        torch.testing.assert_close(per_sample.double(), want_per_sample, rtol=1e-5, atol=1e-6)
        scale = float(want_gradient.abs().max())
        torch.testing.assert_close(gradient.double(), want_gradient, rtol=1e-5, atol=1e-6 * scale)


def test_the_last_of_most_classes_has_its_own_gradient() -> None:
    """Row statistics name a class in float32, exactly."""
    logits = torch.full((1, (1 << 24) - 1), -50.0)
    logits[0, -1] = -1.0
    gradient = outlier_loss_value_and_grad(logits, RowArguments(), LossSettings(LossKind.ICE))[2]
    assert gradient.nonzero().tolist() == [[0, (1 << 24) - 2]]
    with pytest.raises(RuntimeError, match="logits must have at most 16777215 classes, got 16777216"):
        outlier_loss(torch.zeros(1, 1 << 24), RowArguments(), LossSettings(LossKind.ICE))


@pytest.mark.parametrize(
    ("rows_change", "settings_change", "message"),
    [
        ({"targets": torch.tensor([0, 5])}, {}, "targets must be below K = 5 .* got 5"),
        ({"targets": torch.tensor([0])}, {}, "targets must have 2 rows, got 1"),
        ({"targets": torch.tensor([0, 1], dtype=torch.int32)}, {}, "targets must be Long, got Int"),
        ({"weight": torch.ones(2, dtype=torch.float64)}, {}, "weight must be Float, got Double"),
        ({}, {"kind": len(KINDS)}, f"loss must be in 0 ... {len(KINDS) - 1}, got {len(KINDS)}"),
        ({}, {"num_reject": 1}, "num_reject must be 0 for this loss, got 1"),
        ({}, {"kind": LossKind.REJECT_CLASS, "num_reject": 5}, "num_reject must be at least 1 and below .* got 5"),
        ({}, {"kind": LossKind.REJECT_CLASS, "num_reject": 2}, "uniform01 is for the reject-class loss, and needed"),
        (
            {"uniform01": torch.zeros(2)},
            {"kind": LossKind.REJECT_CLASS, "num_reject": 2},
            "targets must be below K = 3",
        ),
    ],
)
def test_the_op_itself_refuses(rows_change: dict[str, Tensor], settings_change: dict[str, int], message: str) -> None:
    rows = RowArguments(torch.tensor([4, -1]))._replace(**rows_change)
    settings = LossSettings(LossKind.UNIFORMITY)._replace(**settings_change)
    with pytest.raises(RuntimeError, match=message):
        outlier_loss(torch.zeros(2, 5), rows, settings)
