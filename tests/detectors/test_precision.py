"""Detectors of rows under autocast and on features with a common offset: same bits, and the right values in float64."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastood.detectors import (
    ASH,
    DICE,
    KNN,
    SHE,
    GradNorm,
    LinearHeadModel,
    MahalanobisDetector,
    MultiLayerMahalanobisDetector,
    ReAct,
    ViM,
    build_detectors,
    detector_names,
)
from fastood.detectors.bal.coverage import generator_coverage
from fastood.detectors.bal.detector import BoundaryAwareDetector
from fastood.detectors.bal.feature_bank import FeatureBank
from fastood.detectors.bal.feature_frame import FeatureFrame
from fastood.detectors.bal.gan import ConditionalGenerator
from fastood.detectors.bal.negatives import LowDensityGaussian
from fastood.detectors.base import Detector
from fastood.heads import GaussianStatistics
from fastood.ops.class_l1_nearest import class_l1_nearest

WIDTH, CLASSES = 24, 4
Made = Callable[[nn.Linear], Detector]


def registered(name: str) -> Made:
    def make(head: nn.Linear) -> Detector:
        model = LinearHeadModel(nn.Sequential(nn.Identity(), head), head=head)
        return build_detectors(model, [name])[name]

    return make


MAKE: dict[str, Made] = {name: registered(name) for name in detector_names()} | {
    "knn, as it is": lambda head: KNN(normalize=False, k=7),
    "mahalanobis, relative": lambda head: MahalanobisDetector(relative=True),
    "mahalanobis, per class": lambda head: MahalanobisDetector(covariance="per_class", shrinkage="ledoit_wolf"),
    "mahalanobis, normalised": lambda head: MahalanobisDetector(normalize=True),
    "ash-b": lambda head: ASH(head=head, variant="b"),
    "boundary": lambda head: BoundaryAwareDetector(head=head, boundary={"steps": 20, "hidden": 16}),
    "boundary, gaussian": lambda head: BoundaryAwareDetector(
        head=head, boundary={"steps": 5, "hidden": 16, "sampling": "gaussian", "conditioning": "projection"}
    ),
}


def head_with(generator: torch.Generator, offset: float = 0.0) -> nn.Linear:
    """A head that takes features with an offset for what they are without it."""
    head = nn.Linear(WIDTH, CLASSES).double()
    head.weight.data.copy_(torch.randn(CLASSES, WIDTH, generator=generator))
    head.bias.data.copy_(0.1 * torch.randn(CLASSES, generator=generator) - offset * head.weight.data.sum(1))
    return head.requires_grad_(False)


def rows_of(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Non-negative features of classes with labels, and others, in steps of 2^-20, which no offset here rounds away."""
    features = torch.randn(700, WIDTH, generator=generator, dtype=torch.float64).relu()
    labels = torch.arange(700) % CLASSES
    features += 2 * nn.functional.one_hot(labels, WIDTH)
    features = (features * 2**20).round() / 2**20
    return features[:600], labels[:600], features[600:] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_autocast_changes_no_bit(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    head = head_with(generator).float()
    train, labels, new = rows_of(generator)
    train, new = train.float(), new.float()
    plain = MAKE[name](head)
    if plain.reads == "logits":
        train, new = head(train), head(new)
    if plain.reads == "inputs":
        want = plain.score_logits(head(new))  # type: ignore[attr-defined]
        with torch.autocast("cpu", dtype=dtype):
            logits = head.double()(new.double())
            assert plain.score_logits(logits).dtype == torch.float64  # type: ignore[attr-defined]
        torch.testing.assert_close(plain.score_logits(logits), want, rtol=1e-4, atol=1e-6)  # type: ignore[attr-defined]
        return
    want = plain.fit_features(train, labels).predict_features(new)
    with torch.autocast("cpu", dtype=dtype):
        within = plain.predict_features(new)
        fitted_within = MAKE[name](head).fit_features(train, labels).predict_features(new)
    assert torch.equal(within, want)
    assert torch.equal(fitted_within, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_no_bit_of_a_fit_to_batches_beyond_the_model(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    """The model runs under it, as the caller wants; what it puts out is taken as it comes."""
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
    x, y, new = rows_of(generator)
    x, new = x.float(), new.float()
    for detector in (KNN(model, k=3), MahalanobisDetector(model, shrinkage="oas")):
        with torch.autocast("cpu", dtype=dtype):
            features, of_new = model(x), model(new)
            found = detector.fit([(x, y)]).predict(new)
        assert features.dtype == dtype
        assert torch.equal(detector.fit_features(features, y).predict_features(of_new), found)
    layers = MultiLayerMahalanobisDetector(nn.Sequential(nn.Linear(WIDTH, 8)), ["0"], shrinkage="oas").fit([(x, y)])
    layers.weights *= 1.1
    want = layers.predict(new)
    assert torch.isfinite(want).all()


def knn_oracle(train: Tensor, labels: Tensor, new: Tensor, head: nn.Linear) -> Tensor:
    return torch.stack([(train - row).square().sum(1).sort().values[6].sqrt() for row in new])


def within_classes(train: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
    means = [train[labels == k].mean(0) for k in range(CLASSES)]
    inside = train - torch.stack(means)[labels]
    return means, inside.mT @ inside / len(train)


def squared(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    return ((rows - mean) @ torch.linalg.inv(covariance) * (rows - mean)).sum(1)


def mahalanobis_oracle(train: Tensor, labels: Tensor, new: Tensor, head: nn.Linear) -> Tensor:
    means, covariance = within_classes(train, labels)
    return torch.stack([squared(new, mean, covariance) for mean in means]).amin(0)


def relative_oracle(train: Tensor, labels: Tensor, new: Tensor, head: nn.Linear) -> Tensor:
    whole = squared(new, train.mean(0), torch.cov(train.mT, correction=0))
    return mahalanobis_oracle(train, labels, new, head) - whole


SHIFTED: dict[str, tuple[Made, Callable[[Tensor, Tensor, Tensor, nn.Linear], Tensor]]] = {
    "knn": (lambda head: KNN(k=7, normalize=False), knn_oracle),
    "mahalanobis": (lambda head: MahalanobisDetector(), mahalanobis_oracle),
    "relative": (lambda head: MahalanobisDetector(relative=True), relative_oracle),
}


@pytest.mark.parametrize("offset", [1e4, 2.0**26])
@pytest.mark.parametrize("name", SHIFTED)
def test_an_offset_changes_no_distance(name: str, offset: float, generator: torch.Generator) -> None:
    """The oracle sees the features without it."""
    make, oracle = SHIFTED[name]
    head, (train, labels, new) = head_with(generator), rows_of(generator)
    detector = make(head).fit_features(train + offset, labels)
    want = oracle(train, labels, new, head)
    # Means of float64 numbers have the digits that the offset leaves.
    tolerance = offset * 1e-14
    torch.testing.assert_close(detector.predict_features(new + offset), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in MAKE if name not in ("odin", "boundary", "boundary, gaussian")])
def test_scores_of_offset_features_in_float32_are_those_in_float64(name: str, generator: torch.Generator) -> None:
    """Rows that float32 holds exactly are scored alike in both."""
    offset = 2.0**13
    head, (train, labels, new) = head_with(generator, offset), rows_of(generator)
    train, new = ((rows + offset).float() for rows in (train, new))
    narrow, wide = MAKE[name](head), MAKE[name](head)
    if narrow.reads == "logits":
        train, new = (head(rows.double()).float() for rows in (train, new))
    want = wide.fit_features(train.double(), labels).predict_features(new.double())
    assert torch.equal(narrow.fit_features(train, labels).predict_features(new), want)
    assert want.unique().numel() > 20 or name in ("scale", "ash", "ash-b", "klm")


@pytest.mark.parametrize("make", [SHE, GradNorm, ReAct, DICE, ViM])
def test_head_products_keep_the_digits_of_float64(make: Any, generator: torch.Generator) -> None:
    """Logits that are differences of numbers 10⁴ times as large."""
    offset = 2.0**13
    head, (train, labels, new) = head_with(generator, offset), rows_of(generator)
    found = make(head=head)._logits(new + offset)
    want = (new[:, None, :] * head.weight).sum(2) + 0.0
    plain = head.bias + offset * head.weight.sum(1)
    torch.testing.assert_close(found, want + plain, rtol=1e-9, atol=1e-9)
    assert make(head=head).fit_features(train + offset, labels).predict_features(new + offset).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_frames_and_draws_of_the_boundary(dtype: torch.dtype, generator: torch.Generator) -> None:
    train, labels, new = rows_of(generator)
    bank = FeatureBank((train + 100).float(), labels)
    frame = FeatureFrame(WIDTH)
    frame.fit(bank)
    inside = frame.enter((new + 100).float())
    gaussian = LowDensityGaussian(bank.statistics)
    imitator = ConditionalGenerator(WIDTH, CLASSES, hidden=16, generator=generator)

    def drawn() -> list[Tensor]:
        draws = torch.Generator().manual_seed(1)
        covered = generator_coverage(imitator, bank, generator=draws)
        found = frame.enter((new + 100).float()), frame.leave(inside), gaussian.sample(labels, generator=draws)
        nearest = class_l1_nearest(new.float(), labels[: len(new)], train.float(), labels)
        return [*found, *nearest, torch.tensor([covered.coverage, covered.spread])]

    plain = drawn()
    with torch.autocast("cpu", dtype=dtype):
        within = drawn()
    assert all(torch.equal(a, b) for a, b in zip(plain, within, strict=True))
    cast = frame.to(dtype)
    assert cast.enter(new.to(dtype)).dtype == dtype
    assert cast.leave(cast.enter(new.to(dtype))).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_statistics_under_autocast(dtype: torch.dtype, generator: torch.Generator) -> None:
    train, labels, _ = rows_of(generator)
    features = (train + 1000).float()
    want = GaussianStatistics(WIDTH, per_class=True).partial_fit(features, labels)
    with torch.autocast("cpu", dtype=dtype):
        found = GaussianStatistics(WIDTH, per_class=True).partial_fit(features, labels)
        fourth = found.fourth_moment(features, labels)
        covariances = found.covariance(), found.marginal_covariance(), found.class_covariance(1), found.cholesky()
    assert torch.equal(found.means, want.means)
    assert torch.equal(fourth, want.fourth_moment(features, labels))
    plain = want.covariance(), want.marginal_covariance(), want.class_covariance(1), want.cholesky()
    assert all(torch.equal(a, b) for a, b in zip(covariances, plain, strict=True))


def test_a_bank_says_what_float32_cannot_hold(generator: torch.Generator) -> None:
    train, labels, _ = rows_of(generator)
    train[:, 3] += 1e9
    detector = BoundaryAwareDetector(head=head_with(generator), boundary={"steps": 1, "hidden": 4})
    for keep in (
        lambda: FeatureBank(train, labels),
        lambda: FeatureBank.collect([(train, labels)]),
        lambda: detector.fit_features(train, labels),
    ):
        with pytest.warns(
            UserWarning, match="too few digits for 1 of 24 features, the first is feature 3 with a mean of 1e[+]09"
        ):
            keep()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train[:, 3] = 0.1  # constant, and no number of float32
        FeatureBank(train, labels)
        detector.fit_features(train + 1e4, labels)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_vim_of_a_spread_far_below_the_offset(offset: float, generator: torch.Generator) -> None:
    # As of one unit with a massive activation: squares about the origin would leave nothing of the other directions.
    head = nn.Linear(WIDTH, CLASSES, bias=False).double()
    head.weight.data = torch.randn(CLASSES, WIDTH, generator=generator).double()
    head.weight.data -= head.weight.mean(1, keepdim=True)  # blind to the offset, so that logits are ordinary
    spread = torch.logspace(0, -2, WIDTH, dtype=torch.float64)
    features = torch.randn(500, WIDTH, generator=generator, dtype=torch.float64) * spread + offset
    new = torch.randn(20, WIDTH, generator=generator, dtype=torch.float64) + offset
    found = ViM(head=head, principal=8).fit_features(features, torch.arange(500) % CLASSES).predict_features(new)
    beyond = torch.linalg.svd(features).Vh[8:].mT
    alpha = head(features).amax(1).sum() / (features @ beyond).norm(dim=1).sum()
    expected = alpha * (new @ beyond).norm(dim=1) - head(new).logsumexp(1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-6)
