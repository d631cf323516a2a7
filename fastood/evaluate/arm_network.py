"""Trained network of an arm, in the form that detectors take."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fastood.console.wording import with_article
from fastood.data import DetectionTask, ImageSet
from fastood.detectors import DetectorSuite
from fastood.detectors.linear_head import last_features_and_logits, recorded_calls
from fastood.train.trained_network import Outputs, TrainedNetwork

GRADIENT_ROWS = 64
"""Images in one batch with gradients, for which a network keeps the outputs of all of its layers."""


class ArmNetwork:
    """Classifier that returns features, and logits of the K in-distribution classes only.

    Reject classes, the last logits, are left out.

    Args:
        network: Trained network of the arm.
        num_classes: K.

    Attributes:
        head: Module that maps features to logits.
        num_reject: Number of logits that are left out.

    Raises:
        TypeError: If the network has no head.
    """

    def __init__(self, network: TrainedNetwork, num_classes: int) -> None:
        head = getattr(network.module, "head", None)
        if not isinstance(head, nn.Module):
            raise TypeError(
                f"its network, {with_article(type(network.module).__name__)}, has no head that logits come from"
            )
        self.network = network
        self.head: nn.Module = head
        self.num_classes = num_classes
        self.num_reject = getattr(head, "out_features", num_classes) - num_classes

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features `[N, d]` and logits `[N, K]` of network input; differentiable if gradients are on."""
        with recorded_calls(self.head) as passed:
            self.network(x)
        features, logits = last_features_and_logits(passed)
        return features, logits[:, : self.num_classes]

    def features(self, x: Tensor) -> Tensor:
        """Compute the features `[N, d]` of network input."""
        return self(x)[0]

    def outputs(self, images: ImageSet) -> Outputs:
        """Compute logits and features of images in one pass, float32 on the CPU."""
        with torch.no_grad():
            features, logits = self.network.over_batches(images, lambda batch: [part.float() for part in self(batch)])
        return Outputs(logits=logits, features=features)

    def gradient_batches(self, images: ImageSet) -> Iterator[Tensor]:
        """Yield images as network input, in batches of at most `GRADIENT_ROWS`."""
        for batch in self.network.batches(images):
            yield from torch.split(batch, GRADIENT_ROWS)

    def outputs_and_perturbed(self, images: ImageSet, suite: DetectorSuite) -> tuple[Outputs, Mapping[str, Tensor]]:
        """Compute logits and features, and the scores of detectors that perturb their input, in one forward pass.

        Args:
            images: N images.
            suite: Detectors on this network; those that fail in any process are in its `failed` afterwards.

        Returns:
            Outputs on the CPU, and scores `[N]` by name of the detectors that perturb inputs.
        """
        names = [name for name, one in suite.detectors.items() if one.reads == "inputs" and name not in suite.failed]

        def of_batch(batch: Tensor) -> list[Tensor]:
            parts = []
            for rows in torch.split(batch, GRADIENT_ROWS):
                features, logits, scores = suite.forward(rows)
                # A detector that fails at one batch is left out; its scores only keep the number of results.
                absent = features.new_full((len(rows),), torch.nan, dtype=torch.float64)
                parts.append([features.float(), logits.float(), *(scores.get(name, absent) for name in names)])
            return [torch.cat(of_rows) for of_rows in zip(*parts, strict=True)]

        features, logits, *scores = self.network.over_batches(images, of_batch)
        return Outputs(logits=logits, features=features), dict(zip(names, scores, strict=True))


def image_sets(task: DetectionTask) -> dict[str, ImageSet]:
    """Return the images that detectors are fitted to ("id_train") and those that they score, by name."""
    return {"id_train": task.id_train, "id_test": task.id_test, **{f"ood/{name}": s for name, s in task.ood.items()}}
