"""How boundary aware learning closes the boundary around the data: the 2-D toy of Pei et al. 2022, figures 1 and 5.

    python examples/boundary_closing.py --out docs/boundary_closing.png

A small network classifies two Gaussian classes with high confidence almost everywhere. A generator and a discriminator
are then trained on the points themselves as features. In the end, the product of softmax and discriminator is high only
near the data. (Pei et al. 2022, https://arxiv.org/abs/2112.11648)
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastood.detectors.bal import BoundarySettings, BoundaryTraining, FeatureBank, boundary_score
from fastood.detectors.bal.build import build_gan

POINTS = 1000
"""Points of each class."""
MEANS = torch.tensor([[-2.0, -1.0], [2.0, 1.0]])
SPREAD = torch.tensor([0.5, 0.8])
SIDE = 6.0
"""Half the side of the plane that is shown."""
SETTINGS = BoundarySettings(
    steps=1800, batch_size=128, hidden=64, embedding=16, noise_dim=8, learning_rate=1e-3, mode_seeking_weight=0.3
)


@dataclass(frozen=True)
class Closing:
    """Points, scores on a grid, and negative features at several steps of the training."""

    features: Tensor
    """Points `[N, 2]`."""
    labels: Tensor
    """Classes, int64 `[N]`."""
    confidence: Tensor
    """Maximum softmax p₁ on the grid, `[G, G]`."""
    product: list[Tensor]
    """p₁ p₂ on the grid, `[G, G]`, at each of `steps`."""
    trivial: Tensor
    """Uniform features of REM, `[M, 2]`."""
    hard: list[Tensor]
    """Features of RSM, `[M, 2]`, at each of `steps`."""
    steps: list[int]
    """Steps of the training that are shown."""


def sample_points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw two Gaussian classes: features `[N, 2]` and labels int64 `[N]`."""
    labels = torch.arange(2 * POINTS) % 2
    return MEANS[labels] + SPREAD[labels][:, None] * torch.randn(2 * POINTS, 2, generator=generator), labels


def train_classifier(features: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
    """Train three layers with cross-entropy, as in the paper, and freeze them."""
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    for layer in (model[0], model[2], model[4]):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    return model.requires_grad_(False)


def grid(points: int = 161) -> Tensor:
    """Return the points `[points², 2]` of a grid on the plane, row by row from the bottom."""
    line = torch.linspace(-SIDE, SIDE, points)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def close_boundary(*, settings: BoundarySettings = SETTINGS, seed: int = 0) -> Closing:
    """Train classifier and GAN, and record scores and negative features at three steps."""
    # 1. Two classes in the plane, and a classifier that is frozen after its training.
    draws = torch.Generator().manual_seed(seed)
    features, labels = sample_points(draws)
    classifier = train_classifier(features, labels, draws)
    # 2. Generator and discriminator; features are the points themselves.
    discriminator, generator_network = build_gan(2, 2, settings, generator=draws)
    training = BoundaryTraining(
        FeatureBank(features, labels),
        discriminator=discriminator,
        generator_network=generator_network,
        settings=settings,
        generator=draws,
    )
    # 3. Train, and score the plane on the way.
    plane = grid()
    logits = classifier(plane)
    shape = (int(len(plane) ** 0.5), -1)
    recorded = [training.total_steps // 60, training.total_steps // 6, training.total_steps]
    product, hard = [], []
    while training.steps < training.total_steps:
        training.step()
        if training.steps in recorded:
            with torch.no_grad():
                accepted = discriminator(plane, logits.argmax(1))
            product.append((-boundary_score(logits, accepted)).exp().view(shape))
            hard.append(training.hard_features(400)[0])
    return Closing(
        features=features,
        labels=labels,
        confidence=logits.softmax(1).amax(1).view(shape),
        product=product,
        trivial=training.trivial_features(features, 400)[0],
        hard=hard,
        steps=recorded,
    )


def draw(closing: Closing, out: Path) -> None:
    """Draw the scores in the upper row and the negative features in the lower row, one column per recorded step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    upper = [("Softmax p₁", closing.confidence)]
    upper += [(f"p₁ · p₂, step {step}", value) for step, value in zip(closing.steps, closing.product, strict=True)]
    lower = [("Trivial (REM)", closing.trivial)]
    lower += [(f"Hard (RSM), step {step}", value) for step, value in zip(closing.steps, closing.hard, strict=True)]
    extent = (-SIDE, SIDE, -SIDE, SIDE)
    for axis, (title, value) in zip(axes[0], upper, strict=True):
        image = axis.imshow(value, origin="lower", extent=extent, vmin=0, vmax=1, cmap="viridis")
        axis.scatter(*closing.features[:300].T, s=2, color="white", alpha=0.6, linewidths=0)
        axis.set_title(title, fontsize=11)
    for axis, (title, value) in zip(axes[1], lower, strict=True):
        for label, colour in ((0, "#1f6fb4"), (1, "#d9822b")):
            axis.scatter(*closing.features[closing.labels == label][:300].T, s=4, color=colour, linewidths=0)
        axis.scatter(*value.T, s=6, color="#c0392b", marker="x", linewidths=0.6)
        axis.set_title(title, fontsize=11)
    for axis in axes.flat:
        axis.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), aspect="equal", xticks=[], yticks=[])
    figure.colorbar(image, ax=axes[0], shrink=0.9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Train and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/boundary_closing.png"), help="file of the figure (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw(close_boundary(seed=options.seed), options.out)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
