"""The losses that pytorch-ood has as well, called as there: same values where the means are the same."""

import math

import pytest
import torch
from torch import Tensor

from fastood import losses

pood = pytest.importorskip("pytorch_ood.loss", reason="pytorch-ood is not installed")

K = 5


def batch(dense: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (6, K, 3, 4) if dense else (32, K)
    targets = torch.randint(-2, K, (6, 3, 4) if dense else (32,), generator=generator)
    return 4 * torch.randn(shape, generator=generator), targets


def gradient(loss: object, logits: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, *others)
    value.sum().backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("floating", [False, True])
def test_energy_regularized_loss(reduction: str, dense: bool, floating: bool) -> None:
    logits, targets = batch(dense)
    arguments = {"alpha": 0.3, "margin_in": -6.0, "margin_out": -3.0, "reduction": reduction}
    got = gradient(losses.EnergyRegularizedLoss(**arguments), logits, targets.float() if floating else targets)
    want = gradient(pood.EnergyRegularizedLoss(**arguments), logits, targets)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    ours, theirs = losses.EnergyRegularizedLoss(), pood.EnergyRegularizedLoss()
    assert (ours.weight, ours.margin_in, ours.margin_out) == (theirs.alpha, theirs.m_in, theirs.m_out)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("name", ["OutlierExposureLoss", "EntropicOpenSetLoss"])
def test_terms_differ_by_log_k(name: str, reduction: str, dense: bool) -> None:
    """Their background term keeps α log K, a constant."""
    logits, targets = batch(dense)
    arguments = {"alpha": 0.3} if name == "OutlierExposureLoss" else {}
    factor = arguments.get("alpha", 1.0)
    got, of_logits = gradient(getattr(losses, name)(**arguments, reduction=reduction), logits, targets)
    want, wanted = gradient(getattr(pood, name)(**arguments, reduction=reduction), logits, targets)
    constant = factor * math.log(K) * (targets < 0)
    torch.testing.assert_close(got + (constant if reduction == "none" else constant.sum()), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(of_logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_objectosphere(reduction: str) -> None:
    logits, targets = batch()
    features = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    arguments = {"alpha": 0.3, "xi": 2.0, "reduction": reduction}
    got, of_logits = gradient(losses.ObjectosphereLoss(**arguments), logits, features, targets)
    want, wanted = gradient(pood.ObjectosphereLoss(**arguments), logits, features, targets)
    constant = math.log(K) * (targets < 0)
    torch.testing.assert_close(got + (constant if reduction == "none" else constant.sum()), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(of_logits, wanted, rtol=1e-4, atol=1e-5)


def test_their_joint_mean_is_a_sum_over_the_number_of_rows() -> None:
    logits, targets = batch()
    got = losses.OutlierExposureLoss(alpha=0.5, reduction="sum")(logits, targets) / len(targets)
    want = pood.OutlierExposureLoss(alpha=0.5)(logits, targets) - 0.5 * math.log(K) * (targets < 0).float().mean()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_deep_svdd_on_their_distances() -> None:
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    theirs = pood.DeepSVDDLoss(n_dim=3, center=torch.zeros(3))
    torch.testing.assert_close(losses.DeepSVDDLoss()(features.square().sum(1)), theirs(features))
    with pytest.raises(ValueError, match=r"^distances must be \[N\] .*HypersphereHead"):
        losses.DeepSVDDLoss()(features)


def test_two_names_of_one_setting() -> None:
    assert losses.OutlierExposureLoss(alpha=0.25).weight == 0.25
    with pytest.raises(TypeError, match=r"^weight and alpha are one setting, got both"):
        losses.OutlierExposureLoss(0.3, alpha=0.4)
    with pytest.raises(TypeError, match=r"^min_magnitude or xi must be given, got both"):
        losses.ObjectosphereLoss(1.0, 1.0, xi=2.0)
    with pytest.raises(TypeError, match=r"^magnitude_weight or alpha must be given, got neither"):
        losses.ObjectosphereLoss(xi=2.0)
