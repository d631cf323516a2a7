"""Many detectors at once: the numbers of one protocol call for each, from as few calls of the metrics as can be."""

import pytest
import torch

from fastood.metrics import PROTOCOLS, evaluate_detectors, evaluate_protocol, many_detectors


@pytest.fixture
def scores(generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Three detectors, three sets, two of them of one size, with ties."""
    sets = {"a": 60, "b": 90, "c": 60}
    draws = {name: torch.randn(3, count, generator=generator).mul(4).round() + 2 for name, count in sets.items()}
    return torch.randn(3, 100, generator=generator).mul(4).round().double(), {n: s.double() for n, s in draws.items()}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_as_one_by_one(name: str, scores: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> None:
    id_scores, ood_scores = scores
    if name == "odin":  # which finds no threshold at its TPR where there are as many ties
        id_scores = torch.linspace(-5, 5, 100).double().expand(3, 100)
    found = evaluate_detectors(id_scores, ood_scores, protocol=name, generator=torch.Generator().manual_seed(7))
    assert len(found) == 3
    for detector, results in enumerate(found):
        own = {name: of_set[detector] for name, of_set in ood_scores.items()}
        seeded = torch.Generator().manual_seed(7)
        assert results == evaluate_protocol(id_scores[detector], own, protocol=name, generator=seeded)


def test_metrics_are_computed_once(
    scores: tuple[torch.Tensor, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    shapes = []
    real = many_detectors.detection_metrics

    def counted(id_scores: torch.Tensor, ood_scores: torch.Tensor, **settings: object) -> object:
        shapes.append(tuple(ood_scores.shape))
        return real(id_scores, ood_scores, **settings)

    monkeypatch.setattr(many_detectors, "detection_metrics", counted)
    evaluate_detectors(*scores, generator=generator)
    assert shapes == [(3, 3, 5, 20)]
    shapes.clear()
    evaluate_detectors(*scores, protocol="wu2023", generator=generator)
    assert shapes == [(3, 2, 1, 60), (3, 1, 1, 90)]


def test_what_is_refused(generator: torch.Generator) -> None:
    state = generator.get_state()
    for id_shape, ood_shape, message in [
        ((50,), (2, 50), r"id_scores must be \[D, N\] with D of at least 1, got shape \(50,\)"),
        ((0, 50), (0, 50), r"id_scores must be \[D, N\] with D of at least 1, got shape \(0, 50\)"),
        ((2, 50), (3, 50), r"ood_scores\['x'\] must have 2 rows as id_scores, got 3"),
        ((2, 50), (2, 9), r"ood_scores\['x'\] has 9 images, but protocol 'li2020' draws 10"),
        ((2, 50), (20,), r"ood_scores\['x'\] must have 2 rows as id_scores, got 20"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_detectors(torch.zeros(id_shape), {"x": torch.zeros(ood_shape)}, generator=generator)
    with pytest.raises(ValueError, match="ood_scores must hold at least one OOD set"):
        evaluate_detectors(torch.zeros(2, 50), {}, generator=generator)
    assert torch.equal(generator.get_state(), state)
