"""Figures of a report, each with a title and a caption that explains how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from torch import Tensor

from fastood.train.report.curve_figure import training_curves
from fastood.train.report.differences import compared_arms
from fastood.train.report.error_bar_figure import error_bars
from fastood.train.report.feature_figure import feature_figure
from fastood.train.report.learnt_weights import SourceWeights, extreme_images, weight_label
from fastood.train.report.pool_figures import check_drawable, contact_sheet, weight_distribution
from fastood.train.report.pool_history import effective_sample_size_curve
from fastood.train.report.risk_figures import risk_coverage
from fastood.train.report.score_figures import OperatingPoint, pr_curves, roc_curves, score_histograms
from fastood.train.results.scoring import ArmScores

if TYPE_CHECKING:
    from fastood.data.images.image_set import ImageSet
    from fastood.train.feature_map import FeatureMap

SHEET_IMAGES = 32
"""Images on a contact sheet."""


@dataclass(frozen=True, kw_only=True)
class Illustration:
    """One figure of the report, drawn on demand."""

    name: str
    """File name in the figures/ folder of the run, without suffix."""
    title: str
    caption: str
    draw: Callable[[], Figure]


def score_illustrations(arms: Mapping[str, ArmScores], point: OperatingPoint) -> list[Illustration]:
    """Return histograms, ROC, PR and risk–coverage curves of all arms.

    Args:
        arms: Scores of each arm by its name.
        point: The operating point that the figures mark.
    """
    name = point.name
    versus_tables = (
        ""
        if point.ood_per_id is None
        else "; here it is computed over all images of an OOD set, and can differ by several points from the tables, "
        "which average over draws of fewer images"
    )
    ratio = (
        "all images of each set"
        if point.ood_per_id is None
        else f"the protocol's {point.ood_per_id:g} OOD images per in-distribution image, whatever the size of the set"
    )
    false_positives = {
        "ood": "the in-distribution (grey) images to the right of the line",
        "id": "the OOD (coloured) images to the left of the line",
    }[point.positive]
    return [
        Illustration(
            name="score_histograms",
            title="Histograms: in-distribution against OOD",
            caption="A good detector separates the two histograms: in-distribution (grey) left, OOD (colour) right. "
            f"{name} is the share of {false_positives}{versus_tables}. Each histogram is scaled to its peak, and the "
            "outermost bars include all scores beyond them.",
            draw=lambda: score_histograms(arms, point),
        ),
        Illustration(
            name="roc_curves",
            title="ROC curves",
            caption="Higher and further left is better. The dots show "
            f"{name}, where a curve crosses {100 * point.tpr:g} %; dots of arms that coincide are drawn as rings "
            "inside each other. The horizontal axis is logarithmic because good detectors differ at small rates; its "
            "left end stands for 0. The grey curve is chance.",
            draw=lambda: roc_curves(arms, point),
        ),
        Illustration(
            name="pr_curves",
            title="Precision–recall curves",
            caption="Higher and further right is better; AUPR is the area below. Precision depends on how many OOD "
            f"images there are: it is computed for {ratio}. The grey line is chance.",
            draw=lambda: pr_curves(arms, point),
        ),
        Illustration(
            name="risk_coverage",
            title="Risk and coverage",
            caption="Lower and flatter is better: accepting more images, with higher scores, should not add errors. "
            "Risk counts misclassified in-distribution images and, on the right, accepted OOD images: as "
            "many of each set, and together as many as in-distribution images, as in Figures 3 and 2 of Mohseni et al. "
            f"2020. The dots show the threshold of {name} on that mix. AURC is the area, the mean risk.",
            draw=lambda: risk_coverage(arms, point),
        ),
    ]


def error_bar_illustration(metrics: Mapping[str, Any]) -> Illustration:
    """Return the figure of the metrics of each arm with their intervals."""
    bootstrap = metrics["bootstrap"]
    has_pairs = len(compared_arms(metrics)) > 0
    paired = (
        "Bars of arms that differ significantly can overlap, because all arms see the same images; the tables below "
        "pair them. "
    )
    return Illustration(
        name="error_bars",
        title="Intervals",
        caption=f"Dots are the metrics of all test images, bars their {100 * bootstrap['level']:g} % bootstrap "
        f"intervals: the range of the metric on other images of the same kind. {paired if has_pairs else ''}"
        "Axes are stretched towards 0 and 100, where good detectors differ.",
        draw=lambda: error_bars(metrics),
    )


def curve_illustration(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> Illustration:
    """Return the figure of loss, training accuracy and learning rate of every stage."""
    return Illustration(
        name="training_curves",
        title="Training",
        caption="One point per epoch, or per twentieth of a stage without epochs: the mean loss over its steps, the "
        "fraction of its in-distribution images that were classified correctly during training, and the learning "
        "rate at its end. A loss that does not fall, or an accuracy that stays at chance, means that the network "
        "learns nothing. Losses of different stages are sums of different terms: compare their course, not their "
        "values.",
        draw=lambda: training_curves(stages),
    )


def history_illustration(effective_sample_sizes: Tensor, pool_size: int) -> Illustration:
    """Return the figure of the pool's effective sample size `[T]` after each step."""
    return Illustration(
        name="effective_sample_size",
        title="Effective sample size over time",
        caption="Number of equally weighted images with the same concentration, (Σ w)² / Σ w². The curve should fall, "
        "and level off when the weights have settled on the hard images. If it falls to nearly 0, the learning rate of "
        "the weights is too large, and a handful of images carry the pool.",
        draw=lambda: effective_sample_size_curve(effective_sample_sizes, pool_size),
    )


def feature_illustration(arm: str, label: str, shown: FeatureMap) -> Illustration:
    """Return the figure of the features and of both factors of the score of one arm."""
    return Illustration(
        name=f"features_{arm}",
        title=f"Features: {label}",
        caption="Left: features of test images in the plane of the first two principal components of the "
        "in-distribution ones (grey), and the synthetic features that the boundary was learnt from, which should "
        "surround the grey clusters. Points that overlap in this projection may be far apart, and distant points are "
        "not shown. Right: the two factors of the score, p₁, the classifier's confidence in its class, and p₂, the "
        "discriminator's confidence that the image is in-distribution. Only grey points should be in the upper right "
        "corner; the score is constant along a dashed line.",
        draw=lambda: feature_figure(shown),
    )


def pool_illustrations(sources: Sequence[SourceWeights], background: ImageSet, weights: Tensor) -> list[Illustration]:
    """Return the figures of the weights by source, and of the images with the largest and the smallest weights.

    Raises:
        ValueError: If the images have neither 1 nor 3 channels.
    """
    check_drawable(background)
    most, least = extreme_images(weights, SHEET_IMAGES)
    return [
        Illustration(
            name="weight_distribution",
            title="Learnt weights by source",
            caption="Sources that resemble the in-distribution images should be at the top, right of the dashed line "
            "at the mean of the pool. Heights are logarithmic: a few images far to the right can carry much of the "
            "weight of a source. The bar spans the middle half of the images, the dot is their mean.",
            draw=lambda: weight_distribution(sources),
        ),
        Illustration(
            name="most_weighted",
            title=f"The {len(most)} most weighted images",
            caption="Weight relative to the pool's mean, and source. "
            + (_tie_note(weights, most) or "These should look most like the in-distribution classes.")
            + " Li & Vasconcelos 2020 show the classes at this end in their Figure 5.",
            draw=lambda: contact_sheet(background, weights, most),
        ),
        Illustration(
            name="least_weighted",
            title=f"The {len(least)} least weighted images",
            caption="Weight relative to the pool's mean, and source. "
            + (_tie_note(weights, least) or "The classifier soon became uncertain about such images."),
            draw=lambda: contact_sheet(background, weights, least),
        ),
    ]


def _tie_note(weights: Tensor, shown: Tensor) -> str:
    """Return a sentence on a random choice among images of equal weight; empty if the sheet shows all of them."""
    last = weights[shown[-1]]
    sharing = int((weights == last).sum())
    if sharing == int((weights[shown] == last).sum()):
        return ""
    label = weight_label(float(last / weights.double().mean()))
    note = f"{sharing:,} images share the weight {label}, as those do that were never drawn; the sheet shows a random"
    return f"{note} choice of them."
