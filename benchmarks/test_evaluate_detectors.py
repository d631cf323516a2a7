"""Ten detectors on six OOD sets with five draws: one pass of the network compared with one per detector."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from evaluate_detectors_peers import NAMES, Work, one_pass, peers
from harness import Comparison, Run, compare

from fastood.models import build_model

Record = Callable[[Comparison, Run], None]
CLASSES, SIDE = 10, 32
TRAIN, ID_TEST, OOD = 300, 200, 80
SETS = 6


def sample(network: str, by: int) -> Work:
    """Draw images of coloured noise, with the answers of the network as labels, so that every class has images."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = build_model(network, num_classes=CLASSES, in_channels=3, image_size=SIDE).eval()

    def images(count: int, shift: float) -> torch.Tensor:
        colours = torch.randn(count, 3, 1, 1, generator=generator)
        return colours + (1 + shift) * torch.randn(count, 3, SIDE, SIDE, generator=generator)

    train = images(TRAIN // by, 0)
    with torch.no_grad():
        # Whiten the features, so that the head finds all classes about equally likely.
        features = model.features(train)
        whitening = torch.linalg.inv(torch.linalg.cholesky(features.T.cov() + 1e-4 * torch.eye(model.feature_dim)))
        model.head.weight.copy_(torch.randn(CLASSES, model.feature_dim, generator=generator) @ whitening)
        model.head.bias.copy_(-model.head.weight @ features.mean(0))
        labels = model(train).argmax(1)
    assert len(labels.unique()) == CLASSES
    ood = {f"set {number}": images(OOD // by, 0.1 * (number + 1)) for number in range(SETS)}
    return Work(model=model, train=train, labels=labels, id_test=images(ID_TEST // by, 0), ood=ood)


@pytest.mark.parametrize("network", ["small-cnn", "wrn-16-2"])
def test_evaluate(
    network: str, device: str, budget: dict[str, float], record: Record, request: pytest.FixtureRequest
) -> None:
    if device == "cuda":
        pytest.skip("the peers score on the CPU")
    if network != "small-cnn" and not request.config.getoption("--all-shapes"):
        pytest.skip("half an hour; with --all-shapes")
    work = sample(network, 4 if request.config.getoption("--quick") else 1)
    expected, on_whole_sets = one_pass(work), one_pass(work, "wu2023")
    providers: dict[str, Run] = {"fastood": lambda: one_pass(work)}
    for name, peer in peers().items():
        check_agreement(name, peer(work), on_whole_sets if name == "pytorch-ood" else expected)
        providers[name] = lambda peer=peer: peer(work)
    comparison = compare(
        f"{len(NAMES)} detectors x {SETS} OOD sets x 5 draws, with fitting",
        f"{network}, {len(work.train)} + {len(work.id_test)} + {SETS}x{len(work.ood['set 0'])} images of {SIDE}x{SIDE}",
        providers,
        subject="fastood",
        **budget,
    )
    record(comparison, providers["fastood"])


def check_agreement(name: str, found: dict[str, float], expected: dict[str, float]) -> None:
    """Check that peers compute the same metrics.

    pytorch-ood inverts covariances without shrinkage, and takes eigenvectors in float32, which moves ViM's scores of
    this network, whose features are close to one line.
    """
    for detector, value in expected.items():
        if name == "pytorch-ood" and detector in ("mahalanobis", "vim"):
            continue
        assert found[detector] == pytest.approx(value, abs=1e-3 if name == "pytorch-ood" else 1e-6), (name, detector)
