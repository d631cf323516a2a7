"""Statistics that hold rounding, or what no rows add up to, and labels that would take all memory: refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastood.detectors import LinearHeadModel, MahalanobisDetector, MultiLayerMahalanobisDetector, build_detectors
from fastood.heads import CholeskyMahalanobisHead, GaussianStatistics
from fastood.heads.covariance import shrinkage_share


def with_dead_features(generator: torch.Generator, dead: Tensor) -> tuple[Tensor, Tensor]:
    """300 float32 rows of 6 features, two of them `dead` `[300, 2]`."""
    features, labels = torch.randn(300, 6, generator=generator), torch.arange(300) % 3
    features[:, [1, 4]] = dead
    return features + labels[:, None] * torch.tensor([2.0, 0, 1, 0, 0, 1]), labels


def nearly_zero(generator: torch.Generator) -> Tensor:
    """Variances of 1e-66 and 1e-17."""
    return torch.randn(300, 2, generator=generator) * torch.tensor([1e-33, 3e-9])


def last_places(generator: torch.Generator) -> Tensor:
    """Constants of which the last place flickers."""
    steps = torch.randint(0, 2, (300, 2), generator=generator)
    return torch.tensor([100.0, -0.3]) * (1 + steps * torch.finfo(torch.float32).eps)


DEAD = [nearly_zero, last_places]


@pytest.mark.parametrize("dead", DEAD, ids=lambda dead: dead.__name__)
@pytest.mark.parametrize("settings", [{}, {"relative": True}, {"covariance": "per_class"}, {"shrinkage": 0.0}], ids=str)
def test_rounding_has_no_vote(dead: Any, settings: dict[str, Any], generator: torch.Generator) -> None:
    features, labels = with_dead_features(generator, dead(generator))
    for build in (
        lambda: MahalanobisDetector(**settings).fit_features(features, labels),
        lambda: MahalanobisDetector(**settings).partial_fit(features, labels).predict_features(features),
        lambda: CholeskyMahalanobisHead.from_features(features, labels),
        lambda: CholeskyMahalanobisHead.from_features(features, labels, covariance="diagonal"),
        lambda: GaussianStatistics(6).partial_fit(features, labels).cholesky(),
    ):
        with pytest.raises(ValueError, match=r'singular: features 1, 4 are .*constant .* Pass shrinkage="oas"'):
            build()


@pytest.mark.parametrize("dead", DEAD, ids=lambda dead: dead.__name__)
def test_shrinkage_scores_as_if_dead_features_were_constant(dead: Any, generator: torch.Generator) -> None:
    features, labels = with_dead_features(generator, dead(generator))
    constant = features.clone()
    constant[:, [1, 4]] = features[:, [1, 4]].mean(0)
    new = torch.randn(50, 6, generator=generator)
    new[:, [1, 4]] = constant[:50, [1, 4]]
    found, want = (
        MahalanobisDetector(shrinkage="oas").fit_features(rows, labels).predict_features(new)
        for rows in (features, constant)
    )
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_float64_resolves_more() -> None:
    """Features of other units than the rest, whose digits are all there."""
    features = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = features * torch.tensor([1.0, 1e-9, 1e3], dtype=torch.float64) + 1e3
    labels = torch.arange(300) % 3
    want = MahalanobisDetector().fit_features(features, labels).predict_features(features)
    found = MahalanobisDetector().fit_features(scaled, labels).predict_features(scaled)
    torch.testing.assert_close(found, want, rtol=1e-2, atol=1e-2)  # 1e3 leaves the second four digits
    with pytest.raises(ValueError, match="feature 1 is constant within the classes"):
        MahalanobisDetector().fit_features(scaled.float(), labels)


def test_the_rounding_of_rows_is_remembered(generator: torch.Generator) -> None:
    features, labels = with_dead_features(generator, nearly_zero(generator))
    statistics = GaussianStatistics(6).partial_fit(features, labels)
    merged = GaussianStatistics(6).partial_fit(features[:9].double(), labels[:9])
    for other in (GaussianStatistics.from_state_dict(statistics.state_dict()), merged.merge(statistics)):
        with pytest.raises(ValueError, match="features 1, 4 are nearly constant"):
            other.cholesky()
    older = {name: tensor for name, tensor in statistics.state_dict().items() if name != "resolution"}
    assert GaussianStatistics.from_state_dict(older).count == 300


def test_a_network_with_dead_units_fits_in_the_suite(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.data[:3], model[0].bias.data[:3] = 0, torch.tensor([-1.0, 0.0, 1.0])
    x, y = torch.randn(200, 5, generator=generator), torch.arange(200) % 3
    detector = build_detectors(LinearHeadModel(model), ["mahalanobis"])["mahalanobis"].fit([(x, y)])
    assert detector.predict(x).isfinite().all()


@pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf", 0.5])
@pytest.mark.parametrize("covariance", ["tied", "per_class"])
def test_remedies_are_others_than_what_was_done(shrinkage: Any, covariance: str, generator: torch.Generator) -> None:
    features = torch.randn(3, 4, generator=generator)
    detector = MahalanobisDetector(shrinkage=shrinkage, covariance=covariance)
    with pytest.raises(ValueError, match=r"singular: .*does not help.* fit to more rows of each class") as found:
        detector.fit_features(features, torch.arange(3))
    assert 'Pass shrinkage="oas"' not in str(found.value)


def test_two_passes_need_a_loader_that_gives_them(generator: torch.Generator) -> None:
    batches = [(torch.randn(40, 4, generator=generator), torch.arange(40) % 2)]
    detectors = (
        MahalanobisDetector(nn.Identity(), shrinkage="ledoit_wolf"),
        MultiLayerMahalanobisDetector(nn.Sequential(nn.Linear(4, 4)), ["0"], shrinkage="ledoit_wolf"),
    )
    for detector in detectors:
        with pytest.raises(ValueError, match=r"loader must allow two passes .* got the iterator generator"):
            detector.fit(batch for batch in batches)
        detector.fit(batches)


@pytest.mark.parametrize("label", [10**12, 2**62, 2 * 10**6, 1 << 16])
def test_a_stray_label_takes_no_memory(label: int, generator: torch.Generator) -> None:
    features, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    statistics = GaussianStatistics(4).partial_fit(features, labels)
    detector = MahalanobisDetector().fit_features(features, labels)
    stray = labels.clone()
    stray[7] = label
    for add in (statistics.partial_fit, detector.partial_fit, detector.fit_features, statistics.fourth_moment):
        with pytest.raises(ValueError, match=f"labels must be class indices below 65536 .*got {label}: number the"):
            add(features, stray)
    for build in (MahalanobisDetector(covariance="per_class").fit_features, CholeskyMahalanobisHead.from_features):
        with pytest.raises(ValueError, match=f"labels must be class indices below .*got {label}"):
            build(features, stray)
    assert statistics.count == 30
    assert detector.statistics is not None
    assert detector.statistics.num_classes == 3
    with pytest.raises(ValueError, match=f"labels must be below num_classes = 3, got {label}"):
        GaussianStatistics(4, num_classes=3).partial_fit(features, stray)


def test_many_classes_of_their_own_accord() -> None:
    labels = torch.arange(70_000)
    assert GaussianStatistics(1).partial_fit(torch.zeros(70_000, 1), labels).num_classes == 70_000
    one = torch.tensor([69_999])
    assert GaussianStatistics(1, num_classes=70_000).partial_fit(torch.zeros(1, 1), one).count == 1


def changed(state: dict[str, Tensor], name: str, value: Any, at: tuple[int, ...] = ()) -> dict[str, Tensor]:
    copy = {key: tensor.clone() for key, tensor in state.items()}
    if at:
        copy[name][at] = value
    else:
        copy[name] = value
    return copy


@pytest.mark.parametrize(
    ("name", "value", "at", "error", "message"),
    [
        ("counts", -5, (1,), ValueError, "counts must be at least 0, got -5"),
        ("counts", torch.zeros(3), (), TypeError, r"counts must be int64, got torch\.float32"),
        ("means", torch.nan, (0, 1), ValueError, "means must be finite, got NaN or infinity"),
        ("means", torch.zeros(3, 4, dtype=torch.complex64), (), TypeError, r"means must be float64 or float32"),
        ("means", torch.zeros(()), (), ValueError, r"counts, means and scatter must be \[K\]"),
        ("means", torch.zeros(3, 4, 1), (), ValueError, r"counts, means and scatter must be \[K\]"),
        ("means", [[0.0]], (), TypeError, r"means must be a torch\.Tensor, got list"),
        ("scatter", torch.inf, (0, 2, 1), ValueError, "scatter must be finite, got NaN or infinity"),
        ("scatter", torch.nan, (0, 2, 2), ValueError, "scatter must be finite, got NaN or infinity"),
        ("scatter", -1.0, (0, 2, 2), ValueError, "scatter must have a diagonal of at least 0"),
        ("scatter", torch.zeros(1, 4, 4).to(torch.float8_e4m3fn), (), TypeError, "scatter must be float64 or float32"),
        ("per_class", torch.zeros(2), (), ValueError, r"per_class must be one truth value, got shape \(2,\)"),
        ("resolution", torch.tensor(torch.nan), (), ValueError, "resolution must be one finite number"),
    ],
)
def test_states_that_no_rows_add_up_to(
    name: str, value: Any, at: tuple[int, ...], error: type[Exception], message: str, generator: torch.Generator
) -> None:
    features, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    statistics = GaussianStatistics(4).partial_fit(features, labels)
    broken = changed(statistics.state_dict(), name, value, at)
    with pytest.raises(error, match=message):
        GaussianStatistics.from_state_dict(broken)
    detector = MahalanobisDetector().fit_features(features, labels)
    with pytest.raises(error, match=message):
        detector.load_state_dict(broken)
    assert detector.predict_features(features).isfinite().all()


@pytest.mark.parametrize("moment", [torch.nan, torch.inf, -1.0, 0.0, torch.empty(0), torch.zeros(2, 3), torch.zeros(2)])
def test_fourth_moments_of_no_rows(moment: Any, generator: torch.Generator) -> None:
    features, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    statistics = GaussianStatistics(4, per_class=True).partial_fit(features, labels)
    for covariance in (
        lambda: statistics.covariance("ledoit_wolf", fourth_moment=moment),
        lambda: statistics.marginal_covariance("ledoit_wolf", fourth_moment=moment),
        lambda: statistics.class_covariance(1, "ledoit_wolf", fourth_moment=moment),
    ):
        with pytest.raises(ValueError, match="fourth_moment must be"):
            covariance()
    if isinstance(moment, float):
        with pytest.raises(ValueError, match="fourth_moment must be finite and at least"):
            shrinkage_share(torch.diag(torch.tensor([2.0, 1.0])).double(), 30, "ledoit_wolf", moment)


def test_ledoit_wolf_of_a_head(generator: torch.Generator) -> None:
    features, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    statistics = GaussianStatistics(4).partial_fit(features, labels)
    moment = statistics.fourth_moment(features, labels)
    head = CholeskyMahalanobisHead.from_features(features, labels, shrinkage="ledoit_wolf", mean_distance=None)
    want = statistics.covariance("ledoit_wolf", fourth_moment=moment)
    torch.testing.assert_close(head.covariance.matrix.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", [-1, 3])
def test_classes_are_counted_from_zero(index: int, generator: torch.Generator) -> None:
    statistics = GaussianStatistics(4, per_class=True)
    statistics.partial_fit(torch.randn(30, 4, generator=generator), torch.arange(30) % 3)
    with pytest.raises(ValueError, match=f"index must be a class, 0 to 2, got {index}"):
        statistics.class_covariance(index)


@pytest.mark.parametrize("regularization", [0.0, -1.0, torch.nan, torch.inf])
def test_a_penalty_of_no_strength(regularization: float, generator: torch.Generator) -> None:
    x, y = torch.randn(60, 4, generator=generator), torch.arange(60) % 3 - 1
    detector = MultiLayerMahalanobisDetector(nn.Sequential(nn.Linear(4, 4)), ["0"]).fit([(x, y)])
    with pytest.raises(ValueError, match="regularization must be above 0 and finite"):
        detector.fit_weights([(x, y)], regularization=regularization)
