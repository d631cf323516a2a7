import math

import pytest
import torch
from torch import Tensor

from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad
from fastood.ops.reference import weighted_uniformity as reference
from tests.support.op_samples import SMALL_UNIFORMITY_SAMPLES, UNIFORMITY_SAMPLES, UniformitySample

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
REDUCTIONS = ["weighted_mean", "mean"]


def eager(logits: Tensor, weight: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
    """What people write today, in the dtype of the logits."""
    per_sample = -torch.log_softmax(logits, 1).mean(1) - math.log(logits.shape[1])
    w = torch.ones_like(per_sample) if weight is None else weight.to(logits.dtype)
    return (w * per_sample).sum() / (w.sum() if reduction == "weighted_mean" else len(w)), per_sample


def exact_per_sample(logits: Tensor) -> Tensor:
    """Eq. 5 in float64 by the identity log1p(mean expm1(v - mean v)), accurate at any spread."""
    v = logits.double()
    return torch.log1p(torch.expm1(v - v.mean(1, keepdim=True)).mean(1))


def relative_error(got: Tensor, want: Tensor) -> float:
    return float(((got.double() - want).abs() / want.abs().clamp_min(1e-300)).max())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", UNIFORMITY_SAMPLES, ids=str)
def test_matches_float64_reference(sample: UniformitySample, dtype: torch.dtype, reduction: str, device: str) -> None:
    logits, weight = sample.make(device, dtype)
    logits.requires_grad_()
    loss, per_sample = weighted_uniformity(logits, weight, reduction=reduction)
    assert loss.dtype == per_sample.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not per_sample.requires_grad
    loss.backward()

    exact = logits.detach().double().requires_grad_()
    exact_loss, exact_losses = reference.weighted_uniformity(exact, weight, reduction=reduction)
    exact_loss.backward()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(per_sample.double(), exact_losses.detach(), rtol=10 * tolerance, atol=tolerance)
    torch.testing.assert_close(loss.double(), exact_loss.detach(), rtol=10 * tolerance, atol=tolerance)
    # The gradient is rounded once, to the dtype of the logits.
    rounding = max(tolerance, torch.finfo(dtype).eps)
    scale = float(exact.grad.abs().max()) if exact.numel() else 0.0
    assert logits.grad.dtype == dtype
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rounding, atol=rounding * scale + subnormal)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 21841])
@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0])
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
def test_relative_error_near_the_uniform_point(classes: int, spread: float, offset: float, device: str) -> None:
    logits, _ = UniformitySample(64, classes, spread=spread, offset=offset).make(device, torch.float32)
    assert relative_error(weighted_uniformity(logits)[1], exact_per_sample(logits)) <= 1e-5


def test_log_softmax_has_no_digit_left_where_ours_has_five() -> None:
    """Why the kernel does not subtract: the claim of the README, measured."""
    logits, _ = UniformitySample(64, 1000, spread=1e-3).make("cpu", torch.float32)
    assert relative_error(eager(logits, None, "mean")[1], exact_per_sample(logits)) > 0.1
    assert relative_error(weighted_uniformity(logits)[1], exact_per_sample(logits)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_error_at_most_twice_that_of_pytorch(dtype: torch.dtype, spread: float, device: str) -> None:
    logits, weight = UniformitySample(64, 100, spread=spread).make(device, dtype)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    exact = logits.double().requires_grad_()
    loss = weighted_uniformity(ours, weight)[0]
    eager_loss = eager(theirs, weight, "weighted_mean")[0]
    exact_loss = reference.weighted_uniformity(exact, weight)[0]
    for value in (loss, eager_loss, exact_loss):
        value.backward()
    assert abs(loss.item() - exact_loss.item()) <= 2 * abs(eager_loss.item() - exact_loss.item()) + 1e-7
    ours_error = (ours.grad.double() - exact.grad).abs().max()
    assert ours_error <= 2 * (theirs.grad.double() - exact.grad).abs().max() + 1e-9


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sample", SMALL_UNIFORMITY_SAMPLES, ids=str)
def test_gradcheck(sample: UniformitySample, reduction: str, device: str) -> None:
    logits, weight = sample.make(device, torch.float64)
    inputs = [logits.clone().requires_grad_()]
    if weight is not None:
        inputs.append(weight.clone().requires_grad_())

    def loss(*args: Tensor) -> Tensor:
        return weighted_uniformity(*args, reduction=reduction)[0]

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", UNIFORMITY_SAMPLES, ids=str)
def test_value_and_grad_equals_autograd(
    sample: UniformitySample, dtype: torch.dtype, reduction: str, device: str
) -> None:
    logits, weight = sample.make(device, dtype)
    loss, per_sample, gradient = weighted_uniformity_value_and_grad(logits, weight, reduction=reduction)
    leaf = logits.clone().requires_grad_()
    want_loss, want_per_sample = weighted_uniformity(leaf, weight, reduction=reduction)
    want_loss.backward()
    # The same row kernels on the same rows, but a block of value_and_grad may end where a vector of rows would go on.
    torch.testing.assert_close(per_sample, want_per_sample, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss, want_loss.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, leaf.grad)


def test_upstream_gradient_scales_before_rounding(device: str) -> None:
    """At fp16 an unscaled gradient of 1e-8 is zero; a GradScaler's factor must reach it before it is rounded."""
    logits, _ = UniformitySample(4096, 100).make(device, torch.float16)
    logits.requires_grad_()
    (weighted_uniformity(logits)[0] * 65536).backward()
    exact = logits.detach().double().requires_grad_()
    (reference.weighted_uniformity(exact)[0] * 65536).backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=1e-6)


def test_special_rows(device: str) -> None:
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [
            *([0, -inf, 0], [0, nan, 0], [0, inf, 0], [300, -300, 0], [-inf, -inf, -inf], [1e30, -1e30, 0]),
            # Their sum overflows: [3e38, 3e38, 0] and the gradient of two equal large logits.
            [3e38, 3e38, 0],
        ],
        device=device,
        requires_grad=True,
    )
    weight = torch.tensor([0.0, 0, 0, 1, 0, 0, 1], device=device)
    loss, losses = weighted_uniformity(logits, weight)
    loss.backward()
    per_sample = losses.tolist()
    assert per_sample[0] == inf
    assert math.isnan(per_sample[1])
    assert math.isnan(per_sample[2])
    assert per_sample[3] == pytest.approx(300 - math.log(3))
    assert math.isnan(per_sample[4])
    assert per_sample[5] == pytest.approx(1e30)
    assert per_sample[6] == pytest.approx(1e38)
    torch.testing.assert_close(2 * logits.grad[3].cpu(), torch.tensor([2 / 3, -1 / 3, -1 / 3]))
    torch.testing.assert_close(2 * logits.grad[6].cpu(), torch.tensor([1 / 6, 1 / 6, -1 / 3]))


def test_rows_of_weight_zero_add_nothing_whatever_they_hold(device: str) -> None:
    logits = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [math.inf, 0.0]], device=device, requires_grad=True)
    loss, _ = weighted_uniformity(logits, torch.tensor([2.0, 0.0, 0.0], device=device))
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad[1:].eq(0).all()
    assert logits.grad[0].ne(0).all()


def test_one_class_is_always_uniform(device: str) -> None:
    logits = torch.tensor([[3.0], [-50.0]], device=device, requires_grad=True)
    loss, per_sample = weighted_uniformity(logits)
    loss.backward()
    assert loss.item() == 0
    assert per_sample.eq(0).all()
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("classes", [31, 100])
def test_nothing_depends_on_the_number_of_threads(classes: int) -> None:
    logits, weight = UniformitySample(40001, classes).make("cpu", torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(weighted_uniformity_value_and_grad(logits, weight))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivative(reduction: str, device: str) -> None:
    logits, weight = UniformitySample(3, 4).make(device, torch.float64)

    def loss(*args: Tensor) -> Tensor:
        return weighted_uniformity(*args, reduction=reduction)[0]

    assert torch.autograd.gradgradcheck(loss, (logits.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("weights", ["random", "all_zero"])
def test_create_graph_changes_no_gradient(weights: str, device: str) -> None:
    """Also where the weights depend on the logits: their path counts once."""
    logits, weight = UniformitySample(3, 4, weights=weights).make(device, torch.float64)
    logits.requires_grad_()
    weight.requires_grad_()

    def gradients(create_graph: bool) -> tuple[Tensor, ...]:
        loss = weighted_uniformity(logits, weight * logits.exp().sum(1))[0]
        return torch.autograd.grad(loss, (logits, weight), create_graph=create_graph)

    torch.testing.assert_close(gradients(True), gradients(False))


def test_backward_twice_with_retain_graph(device: str) -> None:
    logits = torch.randn(3, 4, device=device, requires_grad=True)
    loss = weighted_uniformity(logits)[0]
    loss.backward(retain_graph=True)
    first = logits.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close(logits.grad, 4 * first)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": [[1.0]]}, TypeError, "logits must be a torch.Tensor, got list"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logits must be float64.*got torch.int64"),
        ({"logits": torch.zeros(3)}, ValueError, r"logits must be \[N, K\].*got shape \(3,\)"),
        ({"logits": torch.zeros(3, 0)}, ValueError, r"K >= 1, got shape \(3, 0\)"),
        ({"weight": torch.ones(3)}, ValueError, r"weight must have shape \(2,\).*got \(3,\)"),
        ({"weight": torch.ones(2, dtype=torch.complex64)}, TypeError, "weight must be floating-point or integers"),
        ({"weight": "ab"}, TypeError, "weight must be a tensor, an array or a list, got str"),
        ({"weight": torch.ones(2, device="meta")}, ValueError, "weight must be on cpu like logits, got meta"),
        ({"reduction": "total"}, ValueError, "reduction must be .*got 'total'"),
        (
            {"logits": torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), "check_finite": True},
            ValueError,
            "logits must be finite.*row 1",
        ),
        ({"weight": torch.tensor([1.0, math.inf]), "check_finite": True}, ValueError, "weight must be finite.*row 1"),
        ({"weight": torch.tensor([1.0, -2.0]), "check_finite": True}, ValueError, "weight must be >= 0, got .* -2"),
    ],
)
def test_bad_input(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted_uniformity(**{"logits": torch.zeros(2, 2), **arguments})
