"""Each detector against its paper's formula, written out in float64 on hand-made features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastood.detectors import (
    ASH,
    DICE,
    GEN,
    KNN,
    ODIN,
    SCALE,
    SHE,
    EnergyBased,
    Entropy,
    GradNorm,
    KLMatching,
    MaxLogit,
    MaxSoftmax,
    ReAct,
    ViM,
)
from fastood.detectors import neighbours as neighbours_module
from fastood.detectors.quantile import float32_quantile
from fastood.detectors.row_detector import CHUNK_ROWS

CLASSES, WIDTH = 4, 12


@pytest.fixture
def head(generator: torch.Generator) -> nn.Linear:
    head = nn.Linear(WIDTH, CLASSES)
    head.weight.data.copy_(torch.randn(CLASSES, WIDTH, generator=generator))
    head.bias.data.copy_(torch.randn(CLASSES, generator=generator))
    return head


@pytest.fixture
def rows(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Training features with labels, the last two unknown and far off, and others to score; more than a chunk."""
    train = torch.randn(CHUNK_ROWS + 77, WIDTH, generator=generator).relu()
    train[-2:] = 1000
    labels = torch.arange(len(train)) % CLASSES
    labels[-2:] = -1
    return train, labels, torch.randn(CHUNK_ROWS + 5, WIDTH, generator=generator).relu() * 2


def logits_of(head: nn.Linear, features: Tensor) -> Tensor:
    return features.double() @ head.weight.detach().double().mT + head.bias.detach().double()


@pytest.mark.parametrize(
    ("detector", "formula"),
    [
        (MaxSoftmax(), lambda v: torch.log1p(-v.softmax(1).amax(1)) - v.softmax(1).amax(1).log()),
        (MaxLogit(), lambda v: -v.amax(1)),
        (EnergyBased(temperature=2.5), lambda v: -2.5 * (v / 2.5).exp().sum(1).log()),
        (Entropy(), lambda v: -(v.softmax(1) * v.softmax(1).log()).sum(1)),
        (GEN(gamma=0.3), lambda v: (v.softmax(1) * (1 - v.softmax(1))).pow(0.3).sum(1)),
        (GEN(top=2), lambda v: (v.softmax(1).topk(2).values * (1 - v.softmax(1).topk(2).values)).pow(0.1).sum(1)),
    ],
    ids=lambda value: repr(value) if not callable(value) or hasattr(value, "reads") else "",
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_logit_detectors(
    detector: Any, formula: Callable[[Tensor], Tensor], dtype: torch.dtype, generator: torch.Generator
) -> None:
    logits = (3 * torch.randn(CHUNK_ROWS + 3, CLASSES, generator=generator)).to(dtype)
    found = detector.fit([]).fit_features(logits, torch.zeros(len(logits)).long()).predict_features(logits)
    torch.testing.assert_close(found, formula(logits.double()), rtol=1e-9, atol=1e-9)


def test_kl_matching(generator: torch.Generator) -> None:
    train, new = (3 * torch.randn(n, CLASSES, generator=generator, dtype=torch.float64) for n in (200, 50))
    train[:, 2] -= 100  # a class that no row is taken for
    labels = torch.zeros(200, dtype=torch.int64)  # which the templates do not ask for
    labels[:20] = -1
    detector = KLMatching().fit_features(train, labels)
    p, q = train[20:].softmax(1), new.softmax(1)
    templates = [p[p.argmax(1) == k].mean(0) for k in (0, 1, 3)]
    want = torch.stack([(q * (q / template).log()).sum(1) for template in templates], 1).amin(1)
    torch.testing.assert_close(detector.predict_features(new), want)
    certain = torch.tensor([[0.0, -1e5, -1e5, -torch.inf]], dtype=torch.float64)
    assert detector.predict_features(certain).isfinite().all()
    with pytest.raises(ValueError, match=r"logits must be \[N, 4\], got shape \(1, 3\)"):
        detector.predict_features(certain[:, :3])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_knn(k: int, normalize: bool, rows: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "TILE_NUMBERS", 100 * WIDTH)
    train, labels, new = rows
    found = KNN(k=k, normalize=normalize).fit_features(train, labels).predict_features(new)
    bank, queries = train[:-2].double(), new.double()
    if normalize:
        bank, queries = F.normalize(bank), F.normalize(queries)
    want = torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, k - 1]
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def test_knn_measures_close_neighbours_exactly(generator: torch.Generator) -> None:
    """Squared distances of 1e-12 are below what products of float32 resolve."""
    bank = F.normalize(torch.randn(500, 64, generator=generator)).float()
    step = torch.zeros(64, dtype=torch.float64)
    step[0] = 1e-6
    found = KNN(k=1, normalize=False).fit_features(bank, torch.zeros(500).long()).predict_features(bank + step)
    torch.testing.assert_close(found, torch.full((500,), 1e-6, dtype=torch.float64), rtol=1e-6, atol=0)


def test_knn_needs_k_rows(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, _ = rows
    with pytest.raises(ValueError, match=r"k must be at most the number of rows .*, 5, got 6"):
        KNN(k=6).fit_features(train[-7:], labels[-7:])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        KNN(k=0)


def test_vim(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, new = rows
    found = ViM(head=head, principal=5).fit_features(train, labels).predict_features(new)
    known, origin = train[:-2].double(), -np.linalg.pinv(head.weight.detach().double()) @ head.bias.detach().double()
    # The null space of the principal directions, by singular values instead of eigenvalues.
    directions = torch.linalg.svd(known - origin, full_matrices=False).Vh
    beyond = torch.eye(WIDTH) - directions[:5].mT @ directions[:5]
    residual = ((known - origin) @ beyond).norm(dim=1)
    alpha = logits_of(head, known).amax(1).sum() / residual.sum()
    virtual = alpha * ((new.double() - origin) @ beyond).norm(dim=1)
    probability = torch.cat([virtual[:, None], logits_of(head, new)], 1).softmax(1)[:, 0]
    torch.testing.assert_close(found, torch.logit(probability), rtol=1e-7, atol=1e-7)
    assert ViM(head=nn.Linear(2048, 2)).principal == 1000
    assert ViM(head=nn.Linear(768, 2)).principal == 512
    assert ViM(head=nn.Linear(63, 2)).principal == 31


def test_vim_without_anything_beyond(head: nn.Linear, generator: torch.Generator) -> None:
    flat = torch.zeros(50, WIDTH)
    flat[:, :3] = torch.randn(50, 3, generator=generator)
    nn.init.zeros_(head.bias)
    with pytest.raises(ValueError, match=r"ViM: principal=5 leaves no residual .* span 3 of 12 dimensions; pass a"):
        ViM(head=head, principal=5).fit_features(flat, torch.zeros(50).long())
    for principal in (-1, WIDTH):
        with pytest.raises(ValueError, match=f"principal must be at least 0 and below 12, .* got {principal}"):
            ViM(head=head, principal=principal)


@pytest.mark.parametrize("percentile", [0.0, 0.5, 0.9])
def test_react(percentile: float, head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, new = rows
    found = ReAct(head=head, percentile=percentile).fit_features(train, labels).predict_features(new)
    threshold = np.percentile(train[:-2].double().numpy(), 100 * percentile)
    torch.testing.assert_close(found, -logits_of(head, new.clamp(max=threshold)).logsumexp(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.31, 0.5, 0.9999, 1.0])
def test_quantile_is_that_of_all_numbers(share: float, generator: torch.Generator) -> None:
    numbers = torch.randn(5000, generator=generator) * torch.logspace(-30, 30, 5000)
    numbers[:300] = 0
    numbers[300:310] = -0.0
    parts = numbers[torch.randperm(5000, generator=generator)].split(701)
    want = np.quantile(numbers.double().numpy(), share)
    assert float32_quantile(lambda: parts, share) == pytest.approx(want, rel=1e-9)


def test_quantile_of_passes_that_differ(generator: torch.Generator) -> None:
    """As under augmentation: the second pass need not hold a number near the quantile of the first."""
    passes = iter([torch.linspace(1, 2, 1000), torch.linspace(5, 6, 1000), torch.linspace(5, 6, 1000)])
    assert float32_quantile(lambda: [next(passes)], 0.5) == pytest.approx(1.5, rel=2**-7)


@pytest.mark.parametrize("percentile", [0.0, 0.65, 0.9])
def test_activation_shaping(percentile: float, head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, new = rows
    new = new[new.sum(1) > 0]
    keep = WIDTH - round(WIDTH * percentile)
    shaped: dict[str, list[Tensor]] = {"s": [], "p": [], "b": [], "scale": []}
    for row in new.double():
        kept = torch.zeros(WIDTH, dtype=torch.bool)
        kept[row.argsort(descending=True)[:keep]] = True
        factor = (row.sum() / row[kept].sum()).exp()
        shaped["s"].append(row * kept * factor)
        shaped["p"].append(row * kept)
        shaped["b"].append(kept * row.sum() / keep)
        shaped["scale"].append(row * factor)
    for variant in ("s", "p"):
        found = ASH(head=head, variant=variant, percentile=percentile).predict_features(new)
        torch.testing.assert_close(found, -logits_of(head, torch.stack(shaped[variant])).logsumexp(1))
    found = SCALE(head=head, percentile=percentile).predict_features(new)
    torch.testing.assert_close(found, -logits_of(head, torch.stack(shaped["scale"])).logsumexp(1))
    distinct = (new > 0).sum(1) >= keep  # which of several zeros is kept is anyone's choice, and "b" shows it
    found = ASH(head=head, variant="b", percentile=percentile).predict_features(new)
    want = -logits_of(head, torch.stack(shaped["b"])).logsumexp(1)
    torch.testing.assert_close(found[distinct], want[distinct])
    assert percentile < 0.5 or distinct.sum() > 100


def test_a_row_of_zeros_has_the_energy_of_the_bias(head: nn.Linear) -> None:
    want = -head.bias.detach().double().logsumexp(0)
    for detector in (ASH(head=head), SCALE(head=head)):
        torch.testing.assert_close(detector.predict_features(torch.zeros(2, WIDTH)), want.expand(2))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_dice(sparsity: float, head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, new = rows
    found = DICE(head=head, sparsity=sparsity).fit_features(train, labels).predict_features(new)
    weight = head.weight.detach().double().numpy()
    contribution = weight * train[:-2].double().mean(0).numpy()
    masked = np.where(contribution > np.percentile(contribution, 100 * sparsity), weight, 0)
    logits = new.double() @ torch.from_numpy(masked).mT + head.bias.detach().double()
    torch.testing.assert_close(found, -logits.logsumexp(1))


def test_she(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, _, new = rows
    labels = logits_of(head, train).argmax(1)
    labels[::3] = (labels[::3] + 1) % CLASSES  # misclassified
    labels[labels == 2] = 1  # so that class 2 stores nothing
    labels[-2:] = -1
    found = SHE(head=head).fit_features(train, labels).predict_features(new)
    taken_for = logits_of(head, train).argmax(1)
    patterns = torch.zeros(CLASSES, WIDTH, dtype=torch.float64)
    for k in (0, 1, 3):
        patterns[k] = train[(labels == k) & (taken_for == k)].double().mean(0)
    predicted = logits_of(head, new).argmax(1)
    torch.testing.assert_close(found, -(new.double() * patterns[predicted]).sum(1))
    assert (found[predicted == 2] == 0).all()
    with pytest.raises(ValueError, match="at least one row that the head classifies correctly"):
        SHE(head=head).fit_features(train, (taken_for + 1) % CLASSES)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_is_the_norm_of_the_gradient(temperature: float, head: nn.Linear, generator: torch.Generator) -> None:
    new = torch.randn(6, WIDTH, generator=generator)
    found = GradNorm(head=head, temperature=temperature).predict_features(new)
    head = head.double()
    for row, score in zip(new.double(), found, strict=True):
        loss = -(head(row) / temperature).log_softmax(0).mean()
        (gradient,) = torch.autograd.grad(loss, head.weight)
        torch.testing.assert_close(score, -gradient.abs().sum())


def test_odin(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    x = torch.randn(5, 2, 5, 5, generator=generator, dtype=torch.float64)
    found = ODIN(model, temperature=10, epsilon=0.01, input_std=[0.5, 0.25]).predict(x)
    x.requires_grad_()
    F.cross_entropy(model(x) / 10, model(x).argmax(1), reduction="sum").backward()
    moved = x.detach() - 0.01 * x.grad.sign() / torch.tensor([0.5, 0.25]).view(2, 1, 1)
    p = (model(moved) / 10).softmax(1).amax(1).detach()
    torch.testing.assert_close(found, torch.log((1 - p) / p))
    assert not any(parameter.grad is not None and parameter.grad.isnan().any() for parameter in model.parameters())


class Saturating(nn.Module):
    """Logits that a step helps where the first input is small, and harms where it is not: ε has a best value."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.sin(x[:, 0]), torch.zeros(len(x))], 1) * 5


def test_epsilon_is_chosen_on_held_out_data() -> None:
    detector = ODIN(Saturating(), temperature=1)
    x = torch.full((8, 1), torch.pi / 2 - 0.5)
    labels = torch.zeros(8, dtype=torch.int64)
    assert detector.choose_epsilon([(x, labels)], [0.0, 0.25, 0.5, 1.5]) == 0.5  # at the top of the sine
    assert detector.epsilon == 0.5
    outliers = torch.full((8, 1), torch.pi / 2 - 0.7)
    both = torch.cat([x, outliers]), torch.cat([labels, labels - 1])
    assert (
        detector.choose_epsilon([both], [0.7, 0.0, 0.1]) == 0.0
    )  # 0.7 makes outliers the better ones; ties: the least
    with pytest.raises(ValueError, match="candidates must hold at least one step, got none"):
        detector.choose_epsilon([both], [])
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0, got -1"):
        detector.choose_epsilon([both], [-1])
    with pytest.raises(ValueError, match="at least one row with a label of 0 or above"):
        detector.choose_epsilon([(outliers, labels - 1)])
