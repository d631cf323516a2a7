"""The Mahalanobis logits: values and gradients against float64, next to a mean, far away, ill-conditioned."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastood.ops import mahalanobis_logits, mahalanobis_logits_and_nearest
from fastood.ops.reference import mahalanobis as reference
from tests.support.mahalanobis_samples import SAMPLES, SMALL_SAMPLES, MahalanobisSample, random_scale

samples = pytest.mark.parametrize("sample", SAMPLES, ids=str)
small_samples = pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)


def exact(args: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits and gradients by differences in float64, from the same inputs."""
    leaves = [x.detach().double().requires_grad_() for x in args]
    logits = reference.mahalanobis_logits(*leaves)
    return logits.detach(), torch.autograd.grad(logits, leaves, upstream.double())


def own(args: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [x.detach().requires_grad_() for x in args]
    logits = mahalanobis_logits(*leaves)
    return logits.detach(), torch.autograd.grad(logits, leaves, upstream)


def upstream_like(args: tuple[Tensor, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (args[0].shape[0], args[1].shape[0])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(args[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@samples
def test_matches_float64_reference(sample: MahalanobisSample, dtype: torch.dtype, device: str) -> None:
    args = sample.make(device, dtype)
    upstream = upstream_like(args)
    want, want_gradients = exact(args, upstream)
    got, gradients = own(args, upstream)
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps
    # Pairs that are neither near nor the nearest: rounding of the whitened vectors and of a product of two bits less.
    slack = 64 * eps * want.abs()
    if dtype == torch.float64:  # whitened in the same precision: a difference has the error of what it is left of
        scale = args[2] if sample.diagonal else args[2].tril()
        size = reference.mahalanobis_logits(torch.cat(args[:2]), args[1].mean(0, keepdim=True), scale).abs().max()
        slack = slack + 64 * eps * (want.abs() * size).sqrt() * (1 + sample.condition / 100)
    assert ((got.double() - want).abs() <= slack + 1e-30).all()
    assert (got <= 0).all()
    for g, w in zip(gradients, want_gradients, strict=True):
        assert g.dtype == dtype
        if w.numel() > 0:
            size = float(w.abs().max())
            cancelled = 1 + sample.spread * (1 + sample.condition / 100)
            assert float((g.double() - w).abs().max()) <= 64 * eps * cancelled * (size + 1e-30)


@pytest.mark.parametrize("dim", [8, 64, 256, 512])
def test_next_to_a_mean_far_from_the_origin(dim: int, device: str) -> None:
    """Distance 1e-4 from a mean of norm 1e3: at most twice the error of float64 rounded to float32."""
    generator = torch.Generator().manual_seed(dim)
    means = torch.randn(10, dim, generator=generator, dtype=torch.float64)
    means *= 1e3 / means.norm(dim=1, keepdim=True)
    step = torch.randn(10, dim, generator=generator, dtype=torch.float64)
    features = means + 1e-4 * step / step.norm(dim=1, keepdim=True)
    scale = random_scale(dim, generator=generator)
    args = tuple(x.to(device, torch.float32) for x in (features, means, scale))
    want = reference.mahalanobis_logits(*args).diagonal()
    got, nearest = mahalanobis_logits_and_nearest(*args)
    assert torch.equal(nearest.cpu(), torch.arange(10))
    rounding = (want.float().double() - want).abs().max() / want.abs().max()
    assert ((got.diagonal().double() - want).abs() / want.abs()).max() <= 2 * max(rounding, 2.0**-24)


def test_a_common_offset_costs_nothing(device: str) -> None:
    """Every logit to 1e-6 under an offset of 1000, where products without centring keep no digit."""
    sample = MahalanobisSample(384, 100, 128, offset=1000.0, spread=1.0)
    args = sample.make(device, torch.float32)
    want = reference.mahalanobis_logits(*args)
    got = mahalanobis_logits(*args).double()
    assert float(((got - want).abs() / want.abs().clamp_min(1e-3)).max()) <= 1e-6
    z, m, scale = args
    whitened = torch.linalg.solve_triangular(scale.tril(), torch.cat([z, m]).T, upper=False).T
    y, c = whitened[: len(z)], whitened[len(z) :]
    by_products = -(y.square().sum(1, keepdim=True) + c.square().sum(1) - 2 * y @ c.T).double()
    assert float(((by_products - want).abs() / want.abs().clamp_min(1e-3)).max()) > 1e-2


@pytest.mark.parametrize("scaled_by", [1.0, 1e-4])
def test_gradient_of_rows_on_their_own_mean(scaled_by: float, device: str) -> None:
    """Rows close to means far apart, whose gradient is their own class's alone: no digit is lost to the others."""
    generator = torch.Generator().manual_seed(0)
    means = 100 * torch.randn(5, 32, generator=generator)
    label = torch.arange(40) % 5
    features = means[label] + scaled_by * torch.randn(40, 32, generator=generator)
    scale = random_scale(32, generator=generator).float()
    args = tuple(x.to(device) for x in (features, means, scale))
    upstream = torch.zeros(40, 5, device=device).scatter(1, label[:, None].to(device), 1.0)
    _, want = exact(args, upstream)
    _, got = own(args, upstream)
    for g, w in zip(got, want, strict=True):
        assert float((g.double() - w).abs().max()) <= 4e-6 * float(w.abs().max())


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_equals_multivariate_normal(condition: float, device: str) -> None:
    """Up to its constant and its half, whatever the condition of the covariance."""
    args = MahalanobisSample(20, 7, 24, condition=condition).make(device, torch.float64)
    scale = args[2].tril()
    normal = torch.distributions.MultivariateNormal(args[1], scale_tril=scale)
    constant = -0.5 * 24 * math.log(2 * math.pi) - scale.diagonal().log().sum()
    want = normal.log_prob(args[0][:, None])
    torch.testing.assert_close(0.5 * mahalanobis_logits(*args) + constant, want, rtol=1e-9, atol=1e-9)


@small_samples
def test_gradcheck(sample: MahalanobisSample, device: str) -> None:
    features, means, scale = sample.make(device, torch.float64)
    # Off the means: a step of gradcheck from between two of them would change the nearest class.
    args = tuple(x.detach().requires_grad_() for x in (features + 0.1, means, scale))
    assert torch.autograd.gradcheck(mahalanobis_logits, args)
    assert torch.autograd.gradgradcheck(mahalanobis_logits, args)


def test_the_references_gradients_are_those_of_its_logits() -> None:
    args = MahalanobisSample(6, 4, 5).make("cpu", torch.float64)
    upstream = upstream_like(args)
    _, want = exact(args, upstream)
    z, m, scale = args
    nearest = torch.tensor([0, 3, 1, 1, 2, 0])  # any class may stand in for the nearest
    lower = scale.tril()
    u, c = (torch.linalg.solve_triangular(lower, x.T, upper=False).T for x in (z - m[nearest], m - 3.0))
    got = reference.mahalanobis_logits_backward(upstream, u, c, nearest, scale)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_upstream_gradients_of_any_stride(device: str) -> None:
    args = [x.requires_grad_() for x in MahalanobisSample(9, 4, 6).make(device, torch.float32)]
    sums = torch.autograd.grad(mahalanobis_logits(*args).sum(), args)
    ones = torch.autograd.grad(mahalanobis_logits(*args), args, torch.ones(9, 4, device=device))
    transposed = torch.autograd.grad(mahalanobis_logits(*args), args, torch.ones(4, 9, device=device).T)
    for a, b, c in zip(sums, ones, transposed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_row_stays_in_its_row(value: float, device: str) -> None:
    features, means, scale = MahalanobisSample(9, 4, 40).make(device, torch.float32)
    want = mahalanobis_logits(features, means, scale)
    features[3, 7] = value
    got = mahalanobis_logits(features, means, scale)
    assert got[3].isnan().all()
    others = torch.arange(9) != 3
    assert torch.equal(got[others], want[others])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_row_of_a_diagonal_scale(value: float, device: str) -> None:
    """An infinite feature is infinitely far, or nobody can say how far."""
    features, means = torch.zeros(2, 3, device=device), torch.eye(3, device=device)
    features[0, 1] = value
    got = mahalanobis_logits(features, means, torch.ones(3, device=device))
    far = got[0].isnan() if math.isnan(value) else got[0].isnan() | got[0].eq(-math.inf)
    assert far.all()
    assert got[1].eq(-1).all()


def test_ties_go_to_the_first_class(device: str) -> None:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], device=device)
    logits, nearest = mahalanobis_logits_and_nearest(torch.zeros(2, 2, device=device), means, torch.ones(2).to(device))
    assert logits.eq(-1).all()
    assert nearest.eq(0).all()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    args = MahalanobisSample(700, 40, 200).make("cpu", torch.float32)
    upstream = upstream_like(args)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        logits, gradients = own(args, upstream)
        found.append((logits, *gradients))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_matmul_precision_changes_nothing(precision: str) -> None:
    args = MahalanobisSample(64, 10, 64).make("cpu", torch.float32)
    want = mahalanobis_logits(*args)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    got = mahalanobis_logits(*args)
    torch.set_float32_matmul_precision(before)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_features_are_computed_in_float32(dtype: torch.dtype, device: str) -> None:
    features, means, scale = MahalanobisSample(9, 4, 40).make(device, torch.float32)
    reduced = features.to(dtype).requires_grad_()
    logits = mahalanobis_logits(reduced, means, scale)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, mahalanobis_logits(reduced.float(), means, scale))
    logits.sum().backward()
    assert reduced.grad.dtype == dtype
    with torch.autocast(device, dtype=torch.bfloat16):
        linear = torch.nn.Linear(40, 40).to(device)
        assert mahalanobis_logits(linear(features), means, scale).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": [[1.0]]}, TypeError, "features must be a torch.Tensor, got list"),
        ({"features": torch.zeros(5, 3).to_sparse()}, TypeError, "features must be a dense tensor"),
        ({"scale_tril": torch.eye(3).to_sparse_csr()}, TypeError, "scale_tril must be a dense tensor"),
        ({"features": torch.zeros(5, 3, dtype=torch.int64)}, TypeError, "features must be float64, .*got torch.int64"),
        ({"features": torch.zeros(5, 3).double()}, TypeError, "means must be torch.float64 with features"),
        ({"means": torch.zeros(2, 3).long()}, TypeError, "means must be float64, float32, .*got torch.int64"),
        (
            {"means": torch.zeros(2, 3).half(), "features": torch.zeros(5, 3).double()},
            TypeError,
            "means must be .*float16",
        ),
        ({"scale_tril": torch.eye(3).double()}, TypeError, "scale_tril must be torch.float32 like means"),
        ({"features": torch.zeros(5)}, ValueError, r"features must be \[N, 3\] with means .*got shape \(5,\)"),
        ({"means": torch.zeros(2, 4)}, ValueError, r"features must be \[N, 4\] with means .*got shape \(5, 3\)"),
        ({"means": torch.zeros(0, 3)}, ValueError, r"means must be \[K, d\] with K, d >= 1, got shape \(0, 3\)"),
        ({"scale_tril": torch.zeros(3, 4)}, ValueError, r"scale_tril must be \[3, 3\] or \[3\], got shape \(3, 4\)"),
        ({"scale_tril": torch.ones(4)}, ValueError, r"scale_tril must be \[3, 3\] or \[3\], got shape \(4,\)"),
        ({"means": torch.zeros(2, 3, device="meta")}, ValueError, "means must be on cpu like features, got meta"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], error: type[Exception], message: str) -> None:
    args = {"features": torch.zeros(5, 3), "means": torch.zeros(2, 3), "scale_tril": torch.eye(3)} | change
    with pytest.raises(error, match=message):
        mahalanobis_logits(**args)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_bad_diagonal_is_refused(value: float, diagonal: bool) -> None:
    scale = torch.ones(3) if diagonal else torch.eye(3)
    scale[(1,) if diagonal else (1, 1)] = value
    with pytest.raises(ValueError, match=r"^scale_tril must have a finite diagonal above 0, got .* at position 1$"):
        mahalanobis_logits(torch.zeros(5, 3), torch.zeros(2, 3), scale)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str, device: str) -> None:
    def loss(*args: Tensor) -> Tensor:
        logits, nearest = mahalanobis_logits_and_nearest(*args)
        return (logits.exp().sum(1) * (nearest + 1)).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for rows in (12, 7):
        args = MahalanobisSample(rows, 4, 6).make(device, torch.float32)
        leaves = [x.requires_grad_() for x in args]
        want = torch.autograd.grad(loss(*leaves), leaves)
        got = torch.autograd.grad(compiled(*leaves), leaves)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)


def test_export(device: str) -> None:
    class Head(torch.nn.Module):
        def forward(self, features: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
            return mahalanobis_logits(features, means, scale_tril)

    args = MahalanobisSample(12, 4, 6).make(device, torch.float32)
    batch = torch.export.Dim("batch", min=2, max=4096)
    exported = torch.export.export(Head(), args, dynamic_shapes=({0: batch}, None, None))
    for rows in (12, 5):
        some = (args[0][:rows], *args[1:])
        torch.testing.assert_close(exported.module()(*some), Head()(*some))


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets_agree(capability: str) -> None:
    """The copies of the CPU kernels for older machines, in a process of their own: the choice is made once."""
    script = (
        "import torch, fastood\n"
        "from tests.support.mahalanobis_samples import SAMPLES\n"
        "from tests.ops.test_mahalanobis_logits import test_matches_float64_reference as check\n"
        f"assert fastood.build_info()['cpu_capability'] in ('baseline', '{capability}')\n"
        "for sample in SAMPLES:\n"
        "    check(sample, torch.float32, 'cpu')\n"
        "    check(sample, torch.float64, 'cpu')\n"
    )
    environment = {**os.environ, "FASTOOD_CPU_CAPABILITY": capability}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
