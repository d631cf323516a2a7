"""Shuffled orders that are computed batch by batch, without a table."""

import pytest
import torch

from fastood.train.engine import stream
from fastood.train.engine.stream import EpochStream, permuted


def keys(seed: int) -> torch.Tensor:
    return torch.randint(2**31 - 1, (8, 2), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_every_place_has_its_own_image(size: int) -> None:
    images = permuted(torch.arange(size), size, keys(size))
    assert images.sort().values.tolist() == list(range(size))
    # A place has the same image, whichever others are asked for with it.
    assert torch.equal(permuted(torch.arange(size)[size // 2 :], size, keys(size)), images[size // 2 :])


def test_places_and_images_are_unrelated() -> None:
    """Of 10^5 images: which part of the set a place gets, and what a neighbour gets, is as if drawn."""
    size = 100_000
    images = permuted(torch.arange(size), size, keys(1)).double()
    # Correlation of two independent orders has a standard deviation of 1 / sqrt(N).
    ranks = torch.arange(size).double()
    for first, second in ((ranks, images), (images[:-1], images[1:]), (images % 2, ranks % 2), (images % 256, ranks)):
        assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / size**0.5
    # Counts of images by tenth of the places and tenth of the set: chi-square with 81 degrees of freedom.
    table = torch.bincount((ranks // 10_000 * 10 + images // 10_000).long(), minlength=100).double()
    assert float(((table - 1000) ** 2 / 1000).sum()) < 81 + 5 * (2 * 81) ** 0.5


def test_places_are_small_and_far() -> None:
    """Of 2^40 images: each in range, none twice."""
    size = 2**40 + 12345
    place = torch.cat([torch.arange(1000), size - 1 - torch.arange(1000)])
    images = permuted(place, size, keys(2))
    assert len(images.unique()) == 2000
    assert 0 <= images.min() < size // 100
    assert size - size // 100 < images.max() < size


def test_a_large_set_is_shuffled_without_a_table_and_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGEST_PERMUTATION", 10)
    whole = EpochStream(101, 10, torch.Generator().manual_seed(0))
    epochs = [torch.cat([whole.next() for _ in range(10)]) for _ in range(3)]
    assert all(len(epoch.unique()) == 100 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    for _ in range(4):
        whole.next()
    state = whole.state_dict()
    ahead = [whole.next().tolist() for _ in range(13)]
    resumed = EpochStream(101, 10, torch.Generator().manual_seed(7))
    resumed.load_state_dict(state)
    assert [resumed.next().tolist() for _ in range(13)] == ahead
