"""The Gaussian head: its formula, its parametrisation, its initial values, and what it starts from."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastood.heads import CholeskyMahalanobisHead, GaussianStatistics
from fastood.losses import ICELoss

KINDS = [{"covariance": "full"}, {"covariance": "diagonal"}, {"covariance": "low_rank", "rank": 2}]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["covariance"])


def trained(kind: dict[str, object], d: int = 5, classes: int = 4, **settings: object) -> CholeskyMahalanobisHead:
    """A head whose every parameter is off its initial value."""
    generator = torch.Generator().manual_seed(3)
    head = CholeskyMahalanobisHead(d, classes, generator=generator, **kind, **settings)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return head


def random_covariance(d: int, generator: torch.Generator) -> Tensor:
    a = torch.randn(d, 2 * d, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-1, 1, d, dtype=torch.float64)
    return (a @ a.mT / d) * scale * scale[:, None]


@kinds
def test_is_the_formula_and_the_density(kind: dict[str, object], generator: torch.Generator) -> None:
    head = trained(kind, dtype=torch.float64)
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64) * 3
    difference = features[:, None] - head.means
    want = -torch.einsum("nki,ij,nkj->nk", difference, torch.linalg.inv(head.covariance.matrix), difference)
    torch.testing.assert_close(head(features), want)
    normal = torch.distributions.MultivariateNormal(head.means, covariance_matrix=head.covariance.matrix)
    # The paper's distance is not halved.
    log_density = head(features) / 2 - head.log_det() / 2 - 2.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_density, normal.log_prob(features[:, None]))
    torch.testing.assert_close(head.log_det(), torch.logdet(head.covariance.matrix))


@kinds
def test_any_parameters_give_a_triangle_with_a_positive_diagonal(kind: dict[str, object]) -> None:
    head = trained(kind, d=6, min_scale=1e-2)
    with torch.no_grad():
        for parameter in head.covariance.parameters():
            parameter.mul_(-50)
    factor = head.scale_tril
    diagonal = factor if factor.dim() == 1 else factor.diagonal()
    assert (diagonal >= 1e-2).all()
    if factor.dim() == 2:
        assert torch.equal(factor, factor.tril())
    assert math.isfinite(head.log_det().item())


@kinds
def test_gradients_of_all_parameters(kind: dict[str, object], generator: torch.Generator) -> None:
    head = trained(kind, d=4, classes=3, dtype=torch.float64)
    features = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in head.named_parameters()]

    def logits(features: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (features,))

    assert torch.autograd.gradcheck(logits, (features, *head.parameters()))


@pytest.mark.parametrize("d", [16, 128, 512])
@kinds
def test_initial_logits_are_about_minus_one(kind: dict[str, object], d: int, generator: torch.Generator) -> None:
    head = CholeskyMahalanobisHead(d, 10, feature_scale=3.0, generator=generator, **kind)
    logits = head(3 * torch.randn(500, d, generator=generator))
    assert -1.5 < logits.mean().item() < -0.75
    assert head.confidence(logits=logits).min() > 1e-3


@kinds
def test_trains_from_scratch_with_ice(kind: dict[str, object], generator: torch.Generator) -> None:
    """In 64 dimensions, where squared distances by the unit covariance would be 128 and exp(h) nothing."""
    centers = torch.randn(4, 64, generator=generator)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(4, (rows,), generator=generator)
        known = centers[y] + 0.5 * torch.randn(rows, 64, generator=generator)
        background = torch.randn(rows, 64, generator=generator) * 1.2
        return torch.cat([known, background]), torch.cat([y, torch.full((rows,), -1)])

    head = CholeskyMahalanobisHead(64, 4, generator=generator, **kind)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    criterion = ICELoss(weight=0.1)
    for _ in range(200):
        x, y = batch(64)
        loss = criterion(head(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = batch(500)
    with torch.no_grad():
        logits = head(x)
        confidence = head.confidence(x)
    assert (logits[:500].argmax(1) == y[:500]).float().mean() > 0.95
    known, background = confidence[:500], confidence[500:]
    assert (known[:, None] > background).float().mean() > 0.95
    assert known.mean() > 2 * background.mean()


@kinds
def test_confidence(kind: dict[str, object], generator: torch.Generator) -> None:
    head = trained(kind)
    on_means = head.confidence(head.means.detach())
    torch.testing.assert_close(on_means, torch.ones(4))
    features = torch.randn(6, 5, generator=generator) * 4
    assert torch.equal(head.confidence(features), head(features).amax(1).exp())
    assert torch.equal(head.confidence(logits=head(features)), head.confidence(features))
    assert head.confidence(features * 1e4).max() == 0
    for arguments in ({}, {"features": features, "logits": head(features)}):
        with pytest.raises(ValueError, match="either features or logits"):
            head.confidence(**arguments)


@kinds
def test_state_dict_round_trip_and_repr(kind: dict[str, object], generator: torch.Generator) -> None:
    head = trained(kind)
    other = CholeskyMahalanobisHead(5, 4, generator=generator, **kind)
    other.load_state_dict(head.state_dict())
    features = torch.randn(3, 5, generator=generator)
    assert torch.equal(other(features), head(features))
    assert f"kind='{kind['covariance']}'" in repr(head)
    assert "CholeskyMahalanobisHead(\n  5, 4" in repr(head)
    assert head.no_weight_decay() <= {name for name, _ in head.named_parameters()}


@kinds
def test_generator_decides_the_initial_values(kind: dict[str, object]) -> None:
    def made(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return CholeskyMahalanobisHead(5, 4, generator=generator, **kind).state_dict()

    state = torch.get_rng_state()
    first, again, other = made(0), made(0), made(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["means"], other["means"])
    assert torch.equal(torch.get_rng_state(), state)
    head = trained(kind)
    head.reset_parameters(torch.Generator().manual_seed(0))
    assert all(torch.equal(value, first[name]) for name, value in head.state_dict().items())


@kinds
def test_autocast_computes_in_float32(kind: dict[str, object], generator: torch.Generator) -> None:
    head, layer = trained(kind), nn.Linear(8, 5)
    x = torch.randn(6, 8, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = layer(x)
        logits = head(features)
    assert (features.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logits, head(features.float()))
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@kinds
def test_compile(kind: dict[str, object], generator: torch.Generator) -> None:
    head, features = trained(kind), torch.randn(6, 5, generator=generator)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), head(features))
    want = torch.autograd.grad(head(features).sum(), list(head.parameters()))
    torch.testing.assert_close(torch.autograd.grad(compiled(features).sum(), list(head.parameters())), want)


@kinds
def test_from_features_scales_the_own_distance(kind: dict[str, object], generator: torch.Generator) -> None:
    matrix = random_covariance(5, generator)
    labels = torch.arange(2000) % 4
    noise = torch.randn(2000, 5, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(matrix).mT
    features = noise + 100 + 10 * torch.randn(4, 5, generator=generator, dtype=torch.float64)[labels]
    head = CholeskyMahalanobisHead.from_features(features, labels, dtype=torch.float64, **kind)
    statistics = GaussianStatistics(5).partial_fit(features, labels)
    torch.testing.assert_close(head.means.detach(), statistics.means)
    own = -head(features).gather(1, labels[:, None]).mean()
    want = 5 * statistics.covariance()
    if kind["covariance"] == "full":
        torch.testing.assert_close(head.covariance.matrix, want)
    torch.testing.assert_close(head.covariance.matrix.diagonal(), want.diagonal())
    if kind["covariance"] != "low_rank":
        assert own.item() == pytest.approx(1, rel=1e-6)
    assert 0.5 < own.item() < 2
    plain = CholeskyMahalanobisHead.from_statistics(statistics, mean_distance=None, dtype=torch.float64, **kind)
    torch.testing.assert_close(plain(features), 5 * head(features))


def test_low_rank_is_exact_where_the_covariance_is(generator: torch.Generator) -> None:
    """A correlation matrix with one loading for all features and equal rests."""
    scale = torch.logspace(-2, 2, 6, dtype=torch.float64)
    matrix = (0.7 * torch.eye(6, dtype=torch.float64) + 0.3) * scale * scale[:, None]
    features = torch.randn(4, 6, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(matrix).mT
    head = CholeskyMahalanobisHead(6, 2, covariance="low_rank", rank=1, dtype=torch.float64)
    head.covariance.set_matrix_(matrix)
    torch.testing.assert_close(head.covariance.matrix.detach(), matrix)
    assert head(features).isfinite().all()


@kinds
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("d", "classes"), [(5, 2), (5, 6), (32, 10)])
def test_from_linear_keeps_the_posterior(
    kind: dict[str, object], bias: bool, d: int, classes: int, generator: torch.Generator
) -> None:
    linear = nn.Linear(d, classes, bias=bias).double()
    for parameter in linear.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    features = torch.randn(50, d, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(random_covariance(d, generator))
    for scale_tril in (None, factor):
        head = CholeskyMahalanobisHead.from_linear(linear, scale_tril=scale_tril, dtype=torch.float64, **kind)
        torch.testing.assert_close(head(features).softmax(1), linear(features).softmax(1))
        if kind["covariance"] == "full" and scale_tril is not None:
            torch.testing.assert_close(head.covariance.matrix, factor @ factor.mT)


def test_from_linear_with_more_classes_than_dimensions_is_off_by_a_constant_per_class(
    generator: torch.Generator,
) -> None:
    linear = nn.Linear(3, 9).double()
    features = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    head = CholeskyMahalanobisHead.from_linear(linear, dtype=torch.float64)
    difference = head(features).log_softmax(1) - linear(features).log_softmax(1)
    spread = (difference - difference[:, :1]).std(0)
    torch.testing.assert_close(spread, torch.zeros_like(spread), atol=1e-9, rtol=0)


def test_from_linear_puts_the_means_where_asked(generator: torch.Generator) -> None:
    linear, center = nn.Linear(16, 3), torch.full((16,), 7.0)
    features = center + torch.randn(100, 16, generator=generator)
    head = CholeskyMahalanobisHead.from_linear(linear, center=center)
    # The least step that balances the classes is a combination of differences of weights.
    step, differences = (head.means.mean(0) - center).detach(), linear.weight.detach().diff(dim=0)
    projected = differences.mT @ torch.linalg.lstsq(differences.mT, step[:, None]).solution
    torch.testing.assert_close(projected[:, 0], step, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(head(features).softmax(1), linear(features).softmax(1), rtol=1e-3, atol=1e-4)
    at_origin = CholeskyMahalanobisHead.from_linear(linear)
    assert head(features).mean() > at_origin(features).mean()


@kinds
def test_limit_condition(kind: dict[str, object], generator: torch.Generator) -> None:
    head = trained(kind, d=6, dtype=torch.float64, min_scale=1e-4)
    with torch.no_grad():
        head.covariance.log_scale.copy_(torch.linspace(-8, 3, 6))
    before = head.covariance.matrix.detach()
    assert head.condition_number() == pytest.approx(torch.linalg.cond(before).item(), rel=1e-3)
    assert head.condition_number() > 1e6
    ridge = head.limit_condition_(1e4)
    assert head.condition_number() == pytest.approx(1e4, rel=1e-6)
    torch.testing.assert_close(head.covariance.matrix.detach(), before + ridge * torch.eye(6))
    assert head.limit_condition_(1.1e4) == 0
    with pytest.raises(ValueError, match=r"maximum must be above 1, got 1\.0"):
        head.limit_condition_(1.0)


def test_scales_are_equivariant(generator: torch.Generator) -> None:
    """A feature in other units, with its mean and scale, gets the same steps from everything without units."""
    units = torch.tensor([1e-3, 1.0, 1e3, 10.0, 0.1], dtype=torch.float64)
    features, targets = torch.randn(8, 5, generator=generator, dtype=torch.float64), torch.arange(8) % 4

    def gradients(units: Tensor) -> tuple[Tensor, Tensor]:
        head = trained(KINDS[0], dtype=torch.float64, min_scale=0.0)
        with torch.no_grad():
            head.means.mul_(units)
            head.covariance.log_scale.add_(units.log())
        F.cross_entropy(head(features * units), targets).backward()
        return head.covariance.log_scale.grad, head.covariance.correlation.grad

    torch.testing.assert_close(gradients(units), gradients(torch.ones(5)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"covariance": "tied"}, ValueError, "covariance must be one of full, diagonal, low_rank, got 'tied'"),
        ({"covariance": "low_rank"}, ValueError, "rank must be between 1 and 4, .* got None"),
        ({"covariance": "low_rank", "rank": 5}, ValueError, "rank must be between 1 and 4, .* got 5"),
        ({"rank": 2}, ValueError, "rank must be None unless covariance=\"low_rank\", got 2 with 'full'"),
        ({"feature_scale": 0.0}, ValueError, "feature_scale must be above 0 and finite, got 0.0"),
        ({"min_scale": -1.0}, ValueError, "min_scale must be at least 0 and below .* got -1.0"),
        ({"min_scale": 9.0}, ValueError, "min_scale must be at least 0 and below the first scale, 2.83, got 9.0"),
        ({"dtype": torch.bfloat16}, TypeError, "dtype must be torch.float32 or torch.float64, got torch.bfloat16"),
    ],
)
def test_bad_settings(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CholeskyMahalanobisHead(**{"in_features": 4, "num_classes": 3, **arguments})


def test_what_it_cannot_start_from() -> None:
    make = CholeskyMahalanobisHead
    features = torch.randn(20, 3)
    with pytest.raises(ValueError, match=r"statistics must have rows of every class, got none of \[1\]"):
        make.from_features(features, torch.arange(20) % 2 * 2)
    with pytest.raises(ValueError, match="statistics must have rows of every class, got none of any"):
        make.from_features(features, torch.full((20,), -1))
    with pytest.raises(ValueError, match="covariance is singular: feature 1 is constant within the classes"):
        make.from_features(features * torch.tensor([1.0, 0.0, 1.0]), torch.arange(20) % 2)
    with pytest.raises(ValueError, match="mean_distance must be above 0 and finite, or None, got 0"):
        make.from_features(features, torch.arange(20) % 2, mean_distance=0.0)
    with pytest.raises(ValueError, match=r"min_scale must be at least 0 and below .*, got 1000000000\.0"):
        make.from_features(features, torch.arange(20) % 2, min_scale=1e9)
    with pytest.raises(ValueError, match=r"min_scale must be below the least scale .* 1e-05 in feature 2, got 0\.001"):
        make(3, 2).covariance.set_matrix_(torch.tensor([1.0, 1.0, 1e-10]).double().diag())
    with pytest.raises(TypeError, match=r"linear must be an nn\.Linear, got Identity"):
        make.from_linear(nn.Identity())
    with pytest.raises(ValueError, match=r"scale_tril must be \[3, 3\], got shape \(2, 2\)"):
        make.from_linear(nn.Linear(3, 2), scale_tril=torch.eye(2))
    with pytest.raises(ValueError, match=r"center must be \[3\], got shape \(2,\)"):
        make.from_linear(nn.Linear(3, 2), center=torch.zeros(2))
    with pytest.raises(ValueError, match="features must be"):
        make(3, 2)(torch.zeros(4, 5))
