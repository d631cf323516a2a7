"""Figure of selective classification: risk of the accepted images over coverage."""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fastood.metrics import RiskCoverageCurve, risk_coverage_curve
from fastood.train.report.score_figures import OperatingPoint
from fastood.train.report.style import INK, arm_styles, literal, new_figure
from fastood.train.results.scoring import ArmScores

NOISY_BELOW = 0.02
"""Coverage below which the risk, being of few images, is ignored for the upper limit of the axis."""


def risk_coverage(arms: Mapping[str, ArmScores], point: OperatingPoint) -> Figure:
    """Draw risk over coverage of all arms: of in-distribution images alone, and mixed with OOD images.

    The mix has as many OOD as ID images, and equally many of each set, as figure 2 of Mohseni et al. 2020
    (https://ojs.aaai.org/index.php/AAAI/article/view/5966); the other panel is their figure 3. Dots mark the operating
    point on the mix.

    Args:
        arms: Scores of each arm by its name.
        point: The operating point to mark.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 2, size=(9.2, 4.2))
    alone, mixed = axes[0]
    styles = arm_styles(arms)
    for ax, is_mixed in ((alone, False), (mixed, True)):
        highest = 0.0
        for arm, scores in arms.items():
            curve = _curve(scores, is_mixed=is_mixed)
            # Where coverage does not grow, only OOD images are accepted: a vertical line that the area does not count.
            gained = curve.coverage.diff(prepend=curve.coverage.new_zeros(1)) > 0
            coverage, risk = curve.coverage[gained], curve.risk[gained]
            highest = max(highest, float(risk[coverage >= NOISY_BELOW].max()))
            colour, style = styles[arm]
            label = f"{literal(scores.label)}: AURC {100 * curve.aurc:.2f} %"
            ax.plot(coverage, risk, color=colour, linestyle=style, linewidth=1.7, label=label)
            if is_mixed:
                at = _operating_index(curve, point)
                ax.plot(curve.coverage[at], curve.risk[at], "o", color=colour, markersize=6, clip_on=False, zorder=5)
        _finish(ax, highest)
    alone.set_title("in-distribution images alone", fontsize=10, color=INK)
    mixed.set_title("with as many OOD images", fontsize=10, color=INK)
    figure.supxlabel("coverage (ID images accepted)", fontsize=9.5, color=INK)
    figure.supylabel("risk (accepted images that are wrong)", fontsize=9.5, color=INK)
    return figure


def _curve(scores: ArmScores, *, is_mixed: bool) -> RiskCoverageCurve:
    if not is_mixed:
        return risk_coverage_curve(scores.id_scores, correct=scores.correct)
    return risk_coverage_curve(
        scores.id_scores, correct=scores.correct, ood_scores=list(scores.ood_scores.values()), ood_per_id=1.0
    )


def _operating_index(curve: RiskCoverageCurve, point: OperatingPoint) -> int:
    """Return the last threshold that rejects enough OOD images, or the first that accepts enough ID images."""
    if point.positive == "id":
        return int(torch.searchsorted(curve.coverage, point.tpr))
    # Fractions of a mix are sums of rounded weights: allow for their error.
    return max(int(torch.searchsorted(curve.ood_accepted, 1 - point.tpr + 1e-12, right=True)) - 1, 0)


def _finish(ax: Axes, highest: float) -> None:
    ax.set_xlim(0, 1)
    ax.set_ylim(0, min(1.0, max(1.15 * highest, 1e-3)))
    # One formatter per axis: it takes its decimals from the axis that it was set on last.
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax.legend(loc="upper left", frameon=False, fontsize=8, handlelength=2.6)
