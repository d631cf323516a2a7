"""The pictures of a report in reading order, each with what to look for in it."""

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
from fastood.train.report.pool_figures import check_drawable, contact_sheet, weight_distribution
from fastood.train.report.pool_history import effective_sample_size_curve
from fastood.train.report.pool_weights import SourceWeights, extreme_images, weight_label
from fastood.train.report.risk_figures import risk_coverage
from fastood.train.report.score_figures import OperatingPoint, pr_curves, roc_curves, score_histograms
from fastood.train.results.scoring import ArmScores

if TYPE_CHECKING:
    from fastood.data.images.image_set import ImageSet
    from fastood.train.feature_map import FeatureMap

SHEET_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Illustration:
    """One picture of the report, drawn on demand."""

    name: str
    """File name in the run's figures/ folder, without its ending."""
    title: str
    caption: str
    draw: Callable[[], Figure]


def score_illustrations(arms: Mapping[str, ArmScores], point: OperatingPoint) -> list[Illustration]:
    """Histograms, ROC, PR and risk–coverage curves of all arms."""
    name = point.name
    beside_tables = (
        ""
        if point.ood_per_id is None
        else "; here it is taken over all images of an OOD set, and can differ by several points from the tables, "
        "which average draws of fewer images"
    )
    ratio = (
        "all images of each set"
        if point.ood_per_id is None
        else f"the protocol's {point.ood_per_id:g} per in-distribution image, whatever the size of the set"
    )
    false_positives = {
        "ood": "the in-distribution (grey) images to the right of the line",
        "id": "the OOD (coloured) images to the left of the line",
    }[point.positive]
    return [
        Illustration(
            name="score_histograms",
            title="Histograms: in-distribution against OOD",
            caption="Look for two heaps that do not overlap: grey on the left, colour on the right. "
            f"{name} is the share of {false_positives}{beside_tables}. Each heap is scaled to its own peak, and the "
            "outermost bars hold whatever lies beyond them.",
            draw=lambda: score_histograms(arms, point),
        ),
        Illustration(
            name="roc_curves",
            title="ROC curves",
            caption="Higher and further left is better. The dots show "
            f"{name}, where a curve crosses {100 * point.tpr:g} %; dots of arms that coincide lie inside each "
            "other. The horizontal axis is logarithmic because good detectors differ at small rates, and its left "
            "end stands for 0. The grey curve is chance.",
            draw=lambda: roc_curves(arms, point),
        ),
        Illustration(
            name="pr_curves",
            title="Precision–recall curves",
            caption="Higher and further right is better; AUPR is the area below. Precision depends on how many OOD "
            f"images there are: it is stated for {ratio}. The grey line is chance.",
            draw=lambda: pr_curves(arms, point),
        ),
        Illustration(
            name="risk_coverage",
            title="Risk and coverage",
            caption="Lower and flatter is better: accepting more images, those that score higher, should not let more "
            "errors in. Risk counts misclassified in-distribution images and, on the right, accepted OOD images: as "
            "many of each set, and together as many as in-distribution images, as in Figures 3 and 2 of Mohseni et al. "
            f"2020. The dots show the threshold of {name} on that mix. AURC is the area, the mean risk.",
            draw=lambda: risk_coverage(arms, point),
        ),
    ]


def error_bar_illustration(metrics: Mapping[str, Any]) -> Illustration:
    """Every arm's metrics with their intervals."""
    bootstrap = metrics["bootstrap"]
    has_pairs = len(compared_arms(metrics)) > 0
    paired = (
        "Bars that overlap can still belong to arms that differ for certain, since all arms see the same images; the "
        "tables below pair them. "
    )
    return Illustration(
        name="error_bars",
        title="Intervals",
        caption=f"Dots are the metrics of all test images, bars their {100 * bootstrap['level']:g} % bootstrap "
        f"intervals: where the metric of other images of the same kind would lie. {paired if has_pairs else ''}"
        "Axes are stretched towards 0 and 100, where good detectors differ.",
        draw=lambda: error_bars(metrics),
    )


def curve_illustration(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> Illustration:
    """Loss, training accuracy and step size of every stage."""
    return Illustration(
        name="training_curves",
        title="Training",
        caption="A point for every epoch, or a twentieth of a stage without epochs: the mean loss of its steps, the "
        "share of its in-distribution images that were classified correctly at their step, and the step size at its "
        "end. A loss that does not fall, or an accuracy that stays at chance, is a network that learns nothing. Losses "
        "of different stages are different sums; compare their course, not their height.",
        draw=lambda: training_curves(stages),
    )


def history_illustration(effective_sample_sizes: Tensor, pool_size: int) -> Illustration:
    """The pool's effective sample size over the steps [T] that moved it."""
    return Illustration(
        name="effective_sample_size",
        title="Effective sample size over time",
        caption="How many images the weights amount to, (Σ w)² / Σ w². A curve that falls and levels off is weights "
        "that have settled on the hard images; one that runs to the bottom is a step size too large for the pool, "
        "which then rests on a handful of images.",
        draw=lambda: effective_sample_size_curve(effective_sample_sizes, pool_size),
    )


def feature_illustration(arm: str, label: str, shown: FeatureMap) -> Illustration:
    """Features in a plane, and both factors of the score, of one arm."""
    return Illustration(
        name=f"features_{arm}",
        title=f"Where the boundary runs: {label}",
        caption="Left, features of test images in the plane in which the in-distribution ones (grey) spread the most, "
        "and the synthetic features that the boundary was learnt from, which should lie around the grey heaps and "
        "between them. A plane is a shadow of many dimensions: what overlaps here may be far apart, and what lies "
        "far off is not shown. Right, what the score is made of: p₁, how sure the classifier is of its class, and p₂, "
        "how sure the discriminator is that the image is in-distribution. Look for grey in the upper right corner "
        "alone; along a dashed line the score is the same.",
        draw=lambda: feature_figure(shown),
    )


def pool_illustrations(sources: Sequence[SourceWeights], background: ImageSet, weights: Tensor) -> list[Illustration]:
    """Weights by source, and the images of most and of least weight; refuses images that cannot be drawn."""
    check_drawable(background)
    most, least = extreme_images(weights, SHEET_IMAGES)
    return [
        Illustration(
            name="weight_distribution",
            title="Learnt weights by source",
            caption="Sources that resemble the in-distribution images should stand at the top, right of the dashed "
            "line at the pool's mean. Heights are logarithmic: a few images far to the right can carry much of "
            "a source's weight. The bar spans the middle half of the images, the dot is their mean.",
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
            + (_tie_note(weights, least) or "The classifier was soon undecided about such images."),
            draw=lambda: contact_sheet(background, weights, least),
        ),
    ]


def _tie_note(weights: Tensor, shown: Tensor) -> str:
    """Says that the choice is random where images off the sheet have the last weight on it; else nothing."""
    last = weights[shown[-1]]
    sharing = int((weights == last).sum())
    if sharing == int((weights[shown] == last).sum()):
        return ""
    label = weight_label(float(last / weights.double().mean()))
    note = f"{sharing:,} images share the weight {label}, as those do that were never drawn; the sheet shows a random"
    return f"{note} choice of them."
