"""Training accuracy, counted from the logits that the loss is computed from."""

from typing import Any

import torch
from torch import Tensor


class AccuracyCounter:
    """Number of correctly classified in-distribution images of training batches.

    The count stays on the device of the logits, so that no step waits for it.

    Args:
        num_classes: K; logits beyond the first K, those of reject classes, are ignored.

    Example:
        >>> counter = AccuracyCounter(2)
        >>> network = counter.counting(lambda images: images, torch.tensor([0, 1, 1]))
        >>> _ = network(torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [0.0, 0.0]]))
        >>> counter.take().tolist(), counter.take().tolist()
        ([2, 3], [0, 0])
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._correct: Tensor | None = None
        self._total = 0

    def counting(self, network: Any, labels: Tensor) -> "CountingNetwork":
        """Return a network for one step that compares its logits with the labels `[n]` of the batch's first n rows."""
        return CountingNetwork(network, labels, self)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count the correct rows among the first n of logits `[B, K or more]`, by labels int64 `[n]`."""
        predicted = logits.detach()[: len(labels), : self.num_classes].argmax(dim=1)
        correct = (predicted == labels).sum()
        self._correct = correct if self._correct is None else self._correct + correct
        self._total += len(labels)

    def take(self) -> Tensor:
        """Return correct and all images since the last call, int64 `[2]`; both 0 if nothing was classified."""
        if self._correct is None:
            return torch.zeros(2, dtype=torch.int64)
        counts = torch.stack([self._correct, torch.full_like(self._correct, self._total)])
        self._correct, self._total = None, 0
        return counts


class CountingNetwork:
    """A network, as an objective calls it, that counts correct logits in passing.

    Args:
        network: The network; other attributes are looked up in it.
        labels: Classes int64 `[n]` of the first n rows.
        counter: Counts correct rows.
    """

    def __init__(self, network: Any, labels: Tensor, counter: AccuracyCounter) -> None:
        self._network = network
        self._labels = labels
        self._counter = counter

    def __call__(self, *inputs: Any) -> Any:
        """Return the output of the network; logits `[B, K]` are counted, distances `[B]` are not."""
        output = self._network(*inputs)
        if isinstance(output, torch.Tensor) and output.ndim == 2:
            self._counter.add(output, self._labels)
        return output

    def forward_outputs(self, *inputs: Any) -> Any:
        """Return logits and features of a `Classifier`."""
        outputs = self._network.forward_outputs(*inputs)
        self._counter.add(outputs[0], self._labels)
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)
