"""Points of BAL's figures (Pei et al. 2022, figures 1, 4 and 5, in any number of dimensions)."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.data import DetectionTask, ImageSet
from fastood.detectors.bal import BoundarySettings
from fastood.detectors.bal.negatives import hard_features, uniform_in_box
from fastood.scores import max_softmax_score
from fastood.train.feature_map import FeatureMap
from fastood.train.methods.bal.classifier_with_gan import BoundaryAwareNetwork
from fastood.train.trained_network import TrainedNetwork

ID_IMAGES, OOD_IMAGES, SYNTHETIC = 1000, 150, 150
"""Maximum number of points of each kind: more would cover one another."""


@torch.no_grad()
def boundary_map(
    network: TrainedNetwork, model: BoundaryAwareNetwork, task: DetectionTask, settings: BoundarySettings, *, seed: int
) -> FeatureMap:
    """Compute features in the plane of their first two principal components, in the discriminator's frame, and odds.

    Args:
        network: The trained network at test time.
        model: Module of the network.
        task: Task with the test images to show.
        settings: Settings of the GAN. Trivial features are shown if they are drawn from a box; here it is the box of
            one batch of test features.
        seed: Seed of the run.
    """
    rng = named_generator(seed, "feature map")
    discriminator, generator = model.discriminator, model.generator
    frame = discriminator.frame
    device = network.device

    def odds_and_coordinates(images: ImageSet, count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(images), generator=rng)[:count].sort().values
        outputs = network.outputs(images.subset(chosen))
        features, classes = outputs.features.to(device), outputs.logits.argmax(1).to(device)
        p2, p1 = discriminator(features, classes).cpu(), -max_softmax_score(outputs.logits).float()
        return torch.stack([p2, p1], dim=1), frame.enter(features)

    id_odds, inside = odds_and_coordinates(task.id_test, ID_IMAGES)
    ood = {name: odds_and_coordinates(images, OOD_IMAGES) for name, images in task.ood.items()}
    labels = torch.randint(discriminator.num_classes, (SYNTHETIC,), generator=rng).to(device)
    noise = torch.randn(SYNTHETIC, generator.noise_dim, generator=rng).to(device)
    epsilon = torch.randn(SYNTHETIC, 1, generator=rng).to(device).abs() * settings.epsilon
    synthetic = {}
    if settings.uniform and settings.sampling == "uniform":
        synthetic["trivial (REM)"] = uniform_in_box(inside[: settings.batch_size], SYNTHETIC, generator=rng)
    if settings.uniform:
        synthetic["hard (RSM)"] = frame.enter(hard_features(discriminator, generator, noise, labels, epsilon))
    plane = _plane(inside)
    return FeatureMap(
        id_plane=plane(inside),
        ood_plane={name: plane(coordinates) for name, (_, coordinates) in ood.items()},
        synthetic_plane={name: plane(coordinates) for name, coordinates in synthetic.items()},
        id_odds=id_odds,
        ood_odds={name: odds for name, (odds, _) in ood.items()},
    )


def _plane(inside: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a projection to the first two principal components of `[n, d]`; with d = 1 the second one is 0."""
    mean = inside.mean(0)
    components = torch.linalg.svd(inside - mean, full_matrices=False)[2][:2]

    def project(coordinates: Tensor) -> Tensor:
        projected = (coordinates - mean) @ components.mT
        return torch.nn.functional.pad(projected, (0, 2 - len(components))).cpu()

    return project
