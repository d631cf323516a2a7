"""The report's figures: what is drawn is what was measured, and degenerate input can be drawn."""

import io

import numpy as np
import pytest
import torch

from fastood.data.images.image_set import ImageSet
from fastood.metrics import detection_metrics
from fastood.train.report.error_bar_figure import error_bars
from fastood.train.report.learnt_weights import extreme_images, relative_weights, weights_by_source
from fastood.train.report.pool_figures import contact_sheet
from fastood.train.report.risk_figures import risk_coverage
from fastood.train.report.score_figures import OperatingPoint, pr_curves, roc_curves, score_histograms
from fastood.train.results.scoring import ArmScores


def make_scores(shift, *, seed):
    generator = torch.Generator().manual_seed(seed)
    return (shift + torch.randn(200, generator=generator)).exp()


@pytest.fixture
def arms():
    return {
        arm: ArmScores(
            label=f"{arm}, γ = 1 %",
            id_scores=make_scores(0.0, seed=1),
            ood_scores={"a $x$": make_scores(shift, seed=2), "b": make_scores(2.0, seed=3)},
            correct=torch.arange(200) % 10 > 0,
        )
        for arm, shift in (("none", 1.0), ("resampled", 2.0))
    }


@pytest.fixture
def background():
    generator = torch.Generator().manual_seed(5)
    return ImageSet(
        name="pool",
        images=torch.randint(256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8),
        labels=torch.full((60,), -1),
        source=torch.arange(60) % 3,
        source_names=("letters", "photographs", "noise $\\frac$"),
    )


@pytest.fixture
def weights(background):
    generator = torch.Generator().manual_seed(6)
    return torch.rand(60, generator=generator, dtype=torch.float64) + 2.0 * (background.source == 1)


def test_error_bars_end_where_the_intervals_do():
    def interval(low):
        return {"estimate": low + 0.01, "low": low, "high": low + 0.03}

    lows = {"none": {"near": 0.2, "far $": 0.5}, "ice": {"near": 0.3, "far $": 0.6}}
    arms = {
        arm: {
            "label": arm,
            "ood": {
                name: {"interval": dict.fromkeys(("auroc", "aupr", "fpr95"), interval(low))}
                for name, low in sets.items()
            },
        }
        for arm, sets in lows.items()
    }
    figure = error_bars({"protocol": {"tpr": 0.95}, "in_distribution": {"test": 100}, "arms": arms})
    assert len(figure.axes) == 3
    for ax in figure.axes:
        bars = [segment for collection in ax.collections for segment in collection.get_segments()]
        ends = [(segment[0][0], segment[1][0]) for segment in bars]
        expected = [(low, low + 0.03) for sets in lows.values() for low in sets.values()]
        assert np.allclose(ends, expected)
        # Sets stand apart, with the arms of each in one order below one another.
        heights = [segment[0][1] for segment in bars]
        assert heights[0] < heights[2] < 0.5 < heights[1] < heights[3]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["near", "far \\$"]


def test_error_bars_of_perfect_detectors_can_be_drawn():
    perfect = {"estimate": 1.0, "low": 1.0, "high": 1.0}
    none = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    arms = {"ice": {"label": "ICE", "ood": {"far": {"interval": {"auroc": perfect, "aupr": perfect, "fpr95": none}}}}}
    figure = error_bars({"protocol": {"tpr": 0.95}, "in_distribution": {"test": 100}, "arms": arms})
    figure.canvas.draw()
    labels = [[label.get_text() for label in ax.get_xticklabels()] for ax in figure.axes]
    assert ["0" in labels[0], "≥ 99.999" in labels[1], "≥ 99.999" in labels[2]] == [True] * 3


def test_arms_of_very_different_scores_have_axes_of_their_own(arms):
    point = OperatingPoint(positive="ood", tpr=0.95, ood_per_id=0.2)
    shared = score_histograms(arms, point)
    assert len({ax.get_xlim() for ax in shared.axes}) == 1
    assert "own" not in shared._supxlabel.get_text()
    scores = arms["none"]
    wide = ArmScores(
        label="wide",
        id_scores=-100 * scores.id_scores,
        ood_scores={name: -100 * values for name, values in scores.ood_scores.items()},
        correct=scores.correct,
    )
    apart = score_histograms({**arms, "wide": wide}, point)
    limits = [ax.get_xlim() for ax in apart.axes]
    assert limits[0] == limits[1] != limits[4] == limits[5]
    assert "each arm's own" in apart._supxlabel.get_text()


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_histograms_state_the_fpr_of_each_panel(arms, positive):
    figure = score_histograms(arms, OperatingPoint(positive=positive, tpr=0.95, ood_per_id=0.2))
    expected = [
        detection_metrics(scores.id_scores, ood, positive=positive).fpr95
        for scores in arms.values()
        for ood in scores.ood_scores.values()
    ]
    assert [ax.texts[0].get_text() for ax in figure.axes] == [f"FPR95  {100 * fpr:.1f} %" for fpr in expected]


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_roc_dots_stand_at_the_fpr(arms, positive):
    figure = roc_curves(arms, OperatingPoint(positive=positive, tpr=0.95, ood_per_id=0.2))
    for ax, name in zip(figure.axes, ["a $x$", "b"], strict=True):
        dots = [line for line in ax.lines if line.get_marker() == "o"]
        for dot, scores in zip(dots, arms.values(), strict=True):
            fpr = detection_metrics(scores.id_scores, scores.ood_scores[name], positive=positive).fpr95
            assert dot.get_xdata()[0] == pytest.approx(max(fpr, 0.5 / 200))
            assert dot.get_ydata()[0] >= 0.95


def test_precision_is_drawn_at_the_ratio_of_the_protocol(arms):
    figure = pr_curves(arms, OperatingPoint(positive="ood", tpr=0.95, ood_per_id=0.25))
    # Where everything is flagged, precision is the positives' share: 0.25 OOD images to 1 ID image.
    assert all(line.get_ydata()[-1] == pytest.approx(0.2) for line in figure.axes[0].lines)


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_risk_coverage_dots_stand_where_the_mix_is_read(arms, positive):
    figure = risk_coverage(arms, OperatingPoint(positive=positive, tpr=0.95, ood_per_id=0.2))
    alone, mixed = figure.axes
    assert [text.get_text().split(": ")[0] for text in mixed.get_legend().get_texts()] == [
        scores.label for scores in arms.values()
    ]
    assert alone.lines[0].get_ydata()[-1] == pytest.approx(0.1)
    dots = [line for line in mixed.lines if line.get_marker() == "o"]
    for dot, scores in zip(dots, arms.values(), strict=True):
        coverage = float(dot.get_xdata()[0])
        if positive == "ood":
            # Both sets have as many images: the mix is both of them.
            fpr = detection_metrics(scores.id_scores, torch.cat(list(scores.ood_scores.values()))).fpr95
            assert coverage == pytest.approx(1 - fpr)
        else:
            assert coverage == pytest.approx(0.95)


@pytest.mark.parametrize(
    "scores",
    [torch.zeros(30), torch.full((30,), torch.inf), torch.cat([torch.zeros(15), torch.full((15,), -torch.inf)])],
    ids=["constant", "infinite", "mixed"],
)
def test_degenerate_scores_can_be_drawn(scores):
    ood_scores = {"same": scores, "finite": torch.ones(9)}
    arms = {"none": ArmScores(label="none", id_scores=scores, ood_scores=ood_scores, correct=torch.arange(30) > 2)}
    point = OperatingPoint(positive="ood", tpr=0.95, ood_per_id=0.2)
    for draw in (score_histograms, roc_curves, pr_curves, risk_coverage):
        draw(arms, point).savefig(io.BytesIO(), format="png", dpi=40)


def test_extreme_images_are_the_true_ends():
    weights = torch.tensor([3.0, 1.0, 7.0, 2.0, 5.0, 6.0])
    most, least = extreme_images(weights, 3)
    assert most.tolist() == [2, 5, 4]
    assert least.tolist() == [1, 3, 0]
    assert [len(part) for part in extreme_images(weights, 99)] == [6, 6]


def test_contact_sheet_draws_the_images_with_their_weights(background, weights):
    most, _ = extreme_images(weights, 9)
    figure = contact_sheet(background, weights, most)
    assert len(figure.axes) == 9
    relative = relative_weights(weights)
    for ax, position in zip(figure.axes, most.tolist(), strict=True):
        drawn = np.asarray(ax.images[0].get_array())[..., 0]
        np.testing.assert_array_equal(drawn, background.images[position, 0])
        caption = " ".join(text.get_text() for text in ax.texts)
        assert caption.startswith(f"× {float(relative[position]):.2f}")
        source = background.source_names[int(background.source[position])]
        assert source.replace("$", r"\$").split()[0] in caption


def test_colour_images_keep_their_colours():
    images = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    background = ImageSet(
        name="pool",
        images=images,
        labels=torch.full((2,), -1),
        source=torch.zeros(2, dtype=torch.int64),
        source_names=("a",),
    )
    figure = contact_sheet(background, torch.tensor([1.0, 2.0]), torch.tensor([1]))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[1].permute(1, 2, 0))


def test_weights_by_source_are_relative_and_ordered(background, weights):
    sources = weights_by_source(weights, background)
    every = torch.cat([source.weights for source in sources])
    assert float(every.mean()) == pytest.approx(1.0)
    assert sorted(every.tolist()) == pytest.approx(sorted(relative_weights(weights).tolist()))
    assert [source.mean for source in sources] == sorted((source.mean for source in sources), reverse=True)


@pytest.mark.parametrize(
    "weights", [torch.zeros(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, torch.nan]), torch.ones(2, 2)]
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="pool weights must be"):
        relative_weights(weights)
