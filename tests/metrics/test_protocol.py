"""The evaluation protocol: its draws, its counts and what its results say."""

from math import nan

import numpy as np
import pytest
import torch

from fastood.metrics import Protocol, detection_metrics, evaluate_protocol


def normal(count, *, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(count, generator=generator, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_protocol_repeats_the_metrics_of_its_draws():
    id_scores, ood_scores = normal(500), {"a": normal(300, shift=1.0, seed=1), "b": normal(100, seed=2)}
    results = evaluate_protocol(id_scores, ood_scores, generator=generator())

    own = generator()
    for name, scores in ood_scores.items():
        draws = [
            detection_metrics(id_scores, scores[torch.randperm(len(scores), generator=own)[:100]]) for _ in range(5)
        ]
        for metric, value in results[name].metrics().items():
            values = [getattr(draw, metric) for draw in draws]
            assert value.mean == pytest.approx(np.mean(values), abs=1e-12)
            assert value.std == pytest.approx(np.std(values), abs=1e-12)
    assert list(results) == ["a", "b"]
    # Drawing 100 of 100 without replacement is the whole set each time.
    assert results["b"].auroc.std == 0
    assert results["a"].auroc.std > 0


def test_protocol_result_says_what_it_depends_on():
    protocol = Protocol(name="mine", ood_fraction=0.1, repeats=3, positive="id")
    result = evaluate_protocol(normal(500), {"a": normal(60)}, protocol=protocol, generator=generator())["a"]
    assert result.protocol == "mine"
    assert result.as_dict() == {
        "auroc": {"mean": result.auroc.mean, "std": result.auroc.std},
        "aupr": {"mean": result.aupr.mean, "std": result.aupr.std},
        "fpr95": {"mean": result.fpr95.mean, "std": result.fpr95.std},
        "positive": "id",
        "id_count": 500,
        "ood_count": 50,
        "repeats": 3,
    }


def test_protocol_depends_on_its_generator_only():
    id_scores, ood_scores = normal(500), {"a": normal(300, shift=1.0, seed=1)}
    first = evaluate_protocol(id_scores, ood_scores, generator=generator())
    torch.rand(7)
    assert evaluate_protocol(id_scores, ood_scores, generator=generator()) == first
    assert evaluate_protocol(id_scores, ood_scores, generator=generator(1)) != first


@pytest.mark.parametrize(("fraction", "id_count", "expected"), [(0.2, 9999, 1999), (0.29, 100, 29), (1.5, 10, 15)])
def test_ood_count_rounds_down_in_decimal(fraction, id_count, expected):
    assert Protocol(name="mine", ood_fraction=fraction).ood_count(id_count) == expected


def test_small_ood_set_is_an_error_that_names_it_and_draws_nothing():
    source = generator()
    before = source.get_state()
    with pytest.raises(ValueError, match=r"ood_scores\['tiny'\] has 99 images, but protocol 'li2020' draws 100"):
        evaluate_protocol(normal(500), {"fine": normal(200), "tiny": normal(99)}, generator=source)
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize(
    ("ood_scores", "error", "words"),
    [
        ({}, ValueError, "must hold at least one OOD set"),
        ({"a": torch.tensor([nan] * 20, dtype=torch.float64)}, ValueError, r"ood_scores\['a'\] holds 20 NaN"),
        ({"a": torch.ones(20)}, TypeError, r"id_scores and ood_scores\['a'\] must share one dtype"),
    ],
)
def test_protocol_refuses_bad_scores(ood_scores, error, words):
    with pytest.raises(error, match=words):
        evaluate_protocol(normal(50), ood_scores, generator=generator())


@pytest.mark.parametrize(
    ("field", "value"),
    [("ood_fraction", 0.0), ("ood_fraction", nan), ("repeats", 0), ("tpr", 0.0), ("positive", "background")],
)
def test_protocol_refuses_bad_fields(field, value):
    with pytest.raises(ValueError, match=field):
        Protocol(**{field: value})


def test_protocol_refuses_so_few_id_images_that_no_ood_image_is_drawn():
    with pytest.raises(ValueError, match="leaves no OOD image"):
        Protocol().ood_count(4)


def test_a_changed_protocol_cannot_go_by_the_name_of_another():
    with pytest.raises(ValueError, match=r"not be li2020, which has ood_fraction 0.2, positive 'ood'"):
        Protocol(ood_fraction=0.5, positive="id")
