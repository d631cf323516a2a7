"""How outlier losses move features: the 2-D toy of Wu et al. 2023, figure 3.

    python examples/feature_shift.py --out docs/feature_shift.png

Two classes and a cloud of outliers are points in the plane that gradient descent moves, as a network would move its
features. Every loss starts from the same points and from the discriminant that fits them: outlier exposure and energy
training from the linear one (eq. 0.9), ICE from the Gaussian classes themselves (eq. 0.11).
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastood.heads import CholeskyMahalanobisHead
from fastood.losses import EnergyLoss, ICELoss, MixedBatchLoss, OutlierExposureLoss

POINTS = 120
"""Points of each class; there are at most half as many again of outliers."""
MEANS = torch.tensor([[-2.5, 0.0], [2.5, 0.0]])
SPREAD = 0.7


@dataclass(frozen=True)
class Shift:
    """Points before and after gradient descent on one loss."""

    title: str
    """Name of the loss."""
    before: Tensor
    """Positions `[N, 2]` at the start."""
    after: Tensor
    """Positions `[N, 2]` at the end."""
    path: Tensor
    """Positions `[steps + 1, N, 2]`."""
    labels: Tensor
    """Classes, int64 `[N]`, -1 for outliers."""


def sample_points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw two Gaussian classes and outliers around them: features `[N, 2]`, labels int64 `[N]`, -1 for outliers."""
    classes = [mean + SPREAD * torch.randn(POINTS, 2, generator=generator) for mean in MEANS]
    angle = 2 * math.pi * torch.rand(3 * POINTS // 2, generator=generator)
    radius = 2.2 + 2.2 * torch.rand(len(angle), generator=generator)
    outliers = radius[:, None] * torch.stack([1.2 * angle.cos(), angle.sin()], dim=1)
    # Points inside a class are not outliers.
    outliers = outliers[torch.cdist(outliers, MEANS).amin(1) > 2.2 * SPREAD]
    labels = torch.cat([torch.full((POINTS,), 0), torch.full((POINTS,), 1), torch.full((len(outliers),), -1)])
    return torch.cat([*classes, outliers]), labels


def linear_discriminant(features: Tensor, labels: Tensor) -> nn.Linear:
    """Return the linear head of Gaussian classes with a shared covariance (Wu et al. 2023, eq. 0.9)."""
    inside = labels >= 0
    means = torch.stack([features[labels == label].mean(0) for label in (0, 1)])
    centred = features[inside] - means[labels[inside]]
    precision = torch.linalg.inv(centred.T @ centred / len(centred))
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(means @ precision)
        head.bias.copy_(-0.5 * (means @ precision * means).sum(1))
    return head


def move(title: str, head: nn.Module, criterion: MixedBatchLoss, start: Tensor, labels: Tensor, steps: int) -> Shift:
    """Move points and head by gradient descent on a loss."""
    features = start.clone().requires_grad_()
    # The loss is a mean over points: undo the division, so that the step of a point does not depend on their number.
    groups = [{"params": [features], "lr": 0.05 * POINTS}, {"params": list(head.parameters()), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    path = [start]
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(head(features), labels).backward()
        optimizer.step()
        path.append(features.detach().clone())
    return Shift(title, start, path[-1], torch.stack(path), labels)


def feature_shifts(*, steps: int = 60, seed: int = 0) -> list[Shift]:
    """Move the same points by each loss."""
    # 1. Two classes, and outliers around them.
    start, labels = sample_points(torch.Generator().manual_seed(seed))
    inside = labels >= 0
    # 2. Losses, each with the discriminant that fits the points at the start.
    runs: list[tuple[str, Callable[[], nn.Module], MixedBatchLoss]] = [
        ("Plain", lambda: linear_discriminant(start, labels), OutlierExposureLoss(0.0)),
        ("Outlier exposure", lambda: linear_discriminant(start, labels), OutlierExposureLoss(1.0)),
        ("Energy", lambda: linear_discriminant(start, labels), EnergyLoss(0.3)),
        (
            "ICE",
            lambda: CholeskyMahalanobisHead.from_features(start[inside], labels[inside]),
            ICELoss(1.0),
        ),
    ]
    # 3. Gradient descent on points and discriminant.
    return [move(title, make(), criterion, start, labels, steps) for title, make, criterion in runs]


def draw(shifts: list[Shift], out: Path) -> None:
    """Draw one panel per loss, with a faint path and the end position of each point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {0: "#1f6fb4", 1: "#d9822b", -1: "#7a7a80"}
    names = {0: "class 0", 1: "class 1", -1: "outliers"}
    ends = torch.cat([shift.path.flatten(0, 1) for shift in shifts])
    limit = 1.05 * float(ends.abs().quantile(0.999))
    figure, axes = plt.subplots(1, len(shifts), figsize=(3 * len(shifts), 3.6), layout="constrained")
    for axis, shift in zip(axes, shifts, strict=True):
        for label, colour in colours.items():
            of_label = shift.labels == label
            for point in shift.path[:, of_label].unbind(1):
                axis.plot(*point.T, color=colour, alpha=0.13, linewidth=0.8)
            axis.scatter(*shift.after[of_label].T, s=7, color=colour, label=names[label], linewidths=0)
        axis.set_title(shift.title, fontsize=11)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, markerscale=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def main() -> None:
    """Move the points and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/feature_shift.png"), help="file of the figure")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw(feature_shifts(steps=options.steps, seed=options.seed), options.out)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
