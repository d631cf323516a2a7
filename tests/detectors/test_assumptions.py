"""Assumptions of scores: ViM's logits around 0, features after a ReLU, logits that are logits."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastood.detectors import (
    ASH,
    DICE,
    GEN,
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
from fastood.detectors.base import Detector

WIDTH, CLASSES = 10, 4


@pytest.fixture
def head(generator: torch.Generator) -> nn.Linear:
    head = nn.Linear(WIDTH, CLASSES)
    head.weight.data.copy_(torch.eye(CLASSES, WIDTH) * 5 - 1)
    head.bias.data.copy_(0.1 * torch.randn(CLASSES, generator=generator))
    return head.requires_grad_(False)


@pytest.fixture
def rows(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Training features in the first dimensions, labels, and outliers in the others."""
    labels = torch.arange(400) % CLASSES
    train = 3 * nn.functional.one_hot(labels, WIDTH) + 0.3 * torch.randn(400, WIDTH, generator=generator)
    outliers = train[:100].clone()
    outliers[:, CLASSES:] += torch.randn(100, WIDTH - CLASSES, generator=generator) * 2
    return train, labels, outliers


def shifted(head: nn.Linear, shift: float) -> nn.Linear:
    """The head with a constant added to all its logits, which a softmax does not see."""
    moved = nn.Linear(WIDTH, CLASSES).requires_grad_(False)
    moved.load_state_dict(head.state_dict())
    moved.bias += shift
    return moved


def auroc(inside: Tensor, outside: Tensor) -> float:
    return float((inside[:, None] < outside).double().mean())


def silent(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


def test_vim_of_an_ordinary_head_is_the_papers(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, outliers = rows
    detector = silent(lambda: ViM(head=head, principal=CLASSES).fit_features(train, labels))
    assert not detector._state["centred"]
    assert auroc(detector.predict_features(train), detector.predict_features(outliers)) > 0.95


@pytest.mark.parametrize("shift", [-20.0, -100.0, -1e4])
def test_vim_does_not_turn_round(
    shift: float, head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    train, labels, outliers = rows
    detector = ViM(head=shifted(head, shift), principal=CLASSES)
    with pytest.warns(UserWarning, match="ViM: the largest logit of training features is -.*subtract the means over"):
        detector.fit_features(train, labels)
    found = detector.predict_features(outliers)
    assert auroc(detector.predict_features(train), found) > 0.95
    # The remedy gives the scores that the detector chose, without a warning.
    centred = shifted(head, shift)
    centred.weight -= centred.weight.mean(0)
    centred.bias -= centred.bias.mean()
    remedied = silent(lambda: ViM(head=centred, principal=CLASSES).fit_features(train, labels))
    torch.testing.assert_close(remedied.predict_features(outliers), found, rtol=1e-3, atol=1e-3)
    detector.save(tmp_path / "vim.safetensors")
    assert torch.equal(ViM.load(tmp_path / "vim.safetensors").predict_features(outliers), found)


def test_vim_of_log_softmax_and_of_distances(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    """Logits that are all below 0: negative distances to the classes, about."""
    train, labels, outliers = rows
    distances = nn.Linear(WIDTH, CLASSES).requires_grad_(False)
    distances.weight.copy_(6 * torch.eye(CLASSES, WIDTH))
    distances.bias.fill_(-9 - 0.09 * WIDTH - 9)
    with pytest.warns(UserWarning, match="would be near 0 or negative"):
        detector = ViM(head=distances, principal=CLASSES).fit_features(train, labels)
    assert auroc(detector.predict_features(train), detector.predict_features(outliers)) > 0.95


def test_vim_says_when_an_offset_decides(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, _ = rows
    with pytest.warns(UserWarning, match="dominated by the common offset"):
        ViM(head=shifted(head, 1e3), principal=CLASSES).fit_features(train, labels)
    one = nn.Linear(WIDTH, 1).requires_grad_(False)
    one.bias.fill_(-1000)
    with pytest.raises(ValueError, match="ViM needs a logit that is above 0 on training features, got one of -"):
        ViM(head=one).fit_features(train, labels)


@pytest.mark.parametrize("make", [ASH, SCALE])
def test_negative_features_are_named_once(make: Any, head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, _, _ = rows
    detector = make(head=head)
    with pytest.warns(UserWarning, match=rf"{make.__name__}: features must be at least 0, .* got \d+% below 0"):
        first = detector.predict_features(train)
    assert torch.equal(silent(lambda: detector.predict_features(train)), first)
    leaky = nn.functional.leaky_relu(train, 0.001)
    silent(lambda: make(head=head).predict_features(leaky))
    silent(lambda: make(head=head).predict_features(train.relu()))


def test_features_without_an_assumption_are_not_named(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, _ = rows
    for make in (ReAct, DICE, SHE, GradNorm, ViM):
        silent(lambda make=make: make(head=head).fit_features(train, labels).predict_features(train))


def test_react_that_clips_everything(head: nn.Linear, generator: torch.Generator) -> None:
    sparse = torch.zeros(200, WIDTH)
    sparse[:, 0] = torch.rand(200, generator=generator)
    with pytest.warns(
        UserWarning, match=r"ReAct: features are clipped at 0, because 90.0% .* Set percentile above 0.900"
    ):
        ReAct(head=head, percentile=0.5).fit_features(sparse, torch.zeros(200).long())


def test_dice_that_keeps_nothing(head: nn.Linear) -> None:
    with pytest.warns(UserWarning, match="DICE: no weight contributes more .* Set a lower sparsity"):
        DICE(head=head).fit_features(torch.zeros(9, WIDTH), torch.zeros(9).long())


def test_she_with_empty_classes_of_negative_features(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, labels, _ = rows
    some = labels < 3
    with pytest.warns(UserWarning, match="SHE: 1 of 4 classes have no correctly classified row, .* negative"):
        SHE(head=head).fit_features(train[some], labels[some])
    silent(lambda: SHE(head=head).fit_features(train[some].relu(), labels[some]))


def logit_detectors() -> list[Detector]:
    return [MaxSoftmax(), MaxLogit(), EnergyBased(), EnergyBased(temperature=3), Entropy(), GEN()]


@pytest.mark.parametrize("detector", logit_detectors(), ids=repr)
def test_probabilities_are_no_logits(detector: Detector, generator: torch.Generator) -> None:
    logits = 3 * torch.randn(20, CLASSES, generator=generator)
    with pytest.warns(UserWarning, match=rf"{type(detector).__name__}: the logits .* as probabilities do"):
        detector.predict_features(logits.softmax(1))
    fresh = type(detector)()
    silent(lambda: fresh.predict_features(logits))
    silent(lambda: fresh.predict_features(logits.softmax(1)))  # looked at once
    silent(lambda: type(detector)().predict_features(torch.tensor([[0.0, 1.0]])))  # too few to tell


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_energy_of_log_probabilities(dtype: torch.dtype, generator: torch.Generator) -> None:
    logits = 3 * torch.randn(20, CLASSES, generator=generator)
    for detector in (EnergyBased(), EnergyBased(temperature=100)):
        with pytest.warns(UserWarning, match="EnergyBased: the logits are log-probabilities"):
            detector.predict_features(logits.log_softmax(1).to(dtype))
    for detector in (MaxSoftmax(), Entropy(), GEN(), MaxLogit()):
        silent(lambda detector=detector: detector.predict_features(logits.log_softmax(1)))
    labels = logits.argmax(1)
    silent(lambda: KLMatching().fit_features(logits.log_softmax(1), labels).predict_features(logits.log_softmax(1)))


def test_one_logit(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    one = torch.tensor([[0.5], [-3.0]])
    for detector in (MaxSoftmax(), Entropy(), GEN()):
        with pytest.warns(UserWarning, match="there is one logit, and the softmax of one class is always 1"):
            detector.predict_features(one)
    for detector in (MaxLogit(), EnergyBased()):
        assert torch.equal(silent(lambda detector=detector: detector.predict_features(one)), -one[:, 0].double())
    with pytest.warns(UserWarning, match="GradNorm: there is one logit"):
        GradNorm(head=nn.Linear(WIDTH, 1)).predict_features(rows[0])
    with pytest.warns(UserWarning, match="ODIN: there is one logit"):
        ODIN(nn.Linear(WIDTH, 1)).predict(rows[0])


def test_odin_of_probabilities(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    train, _, _ = rows
    with pytest.warns(UserWarning, match="ODIN: the logits are at least 0 and add up to 1"):
        ODIN(nn.Sequential(head, nn.Softmax(1))).predict(train)


def test_odin_steps_where_float16_underflows(head: nn.Linear, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    """Divided by a temperature of 1000, gradients of weights around 1e-5 are 0 in float16, and so is a step's sign."""
    small = nn.Linear(WIDTH, CLASSES).requires_grad_(False)
    small.weight.copy_(1e-5 * torch.eye(CLASSES, WIDTH))
    detector = ODIN(small.half(), epsilon=0.25)
    x = rows[0][:5].half().requires_grad_()
    moved = detector.moved(x, small(x)) - x.detach()
    assert (moved[:, :CLASSES].abs() > 0.2).all()
    assert moved[:, CLASSES:].eq(0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_the_wrong_sign(sign: int, generator: torch.Generator) -> None:
    labels = torch.arange(300) % CLASSES
    logits = sign * (5 * nn.functional.one_hot(labels, CLASSES) + torch.randn(300, CLASSES, generator=generator))
    if sign > 0:
        silent(lambda: KLMatching().fit_features(logits, labels))
    else:
        with pytest.warns(UserWarning, match=r"KLMatching: the smallest logit is the label's in \d+%"):
            KLMatching().fit_features(logits, labels)
    silent(lambda: KLMatching().fit_features(torch.randn(300, 2, generator=generator), labels))
