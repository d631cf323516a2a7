"""Detectors fitted by several processes, with gloo on the CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from fastood.common import gathering
from fastood.common.distributed import exchange
from fastood.detectors import DETECTORS, LinearHeadModel, MahalanobisDetector, build_detectors, gather_rows
from tests.detectors.test_mahalanobis import sample

WORLD_SIZE = 2
SETTINGS = [{"relative": True}, {"covariance": "per_class", "normalize": True}]


def scores_of_both(rank: int, folder: str) -> None:
    """One process: fit to its share, score in between, add up, score again."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    features, labels = sample()
    scores = []
    for settings in SETTINGS:
        detector = MahalanobisDetector(**settings).partial_fit(features[rank::WORLD_SIZE], labels[rank::WORLD_SIZE])
        alone = detector.predict_features(features)
        scores.append((alone, detector.all_reduce().predict_features(features)))
    torch.save(scores, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_every_process_scores_as_one_that_saw_all(tmp_path: Path) -> None:
    mp.spawn(scores_of_both, args=(str(tmp_path),), nprocs=WORLD_SIZE)
    features, labels = sample()
    for i, settings in enumerate(SETTINGS):
        want = MahalanobisDetector(**settings).fit_features(features, labels).predict_features(features)
        for rank in range(WORLD_SIZE):
            alone, together = torch.load(tmp_path / f"{rank}.pt")[i]
            torch.testing.assert_close(together, want)
            assert not torch.allclose(alone, want)


SHARES = (0, 90, 30)
"""Rows of each of three processes; the first has none."""


def head() -> nn.Linear:
    layer = nn.Linear(4, 3)
    generator = torch.Generator().manual_seed(2)
    for tensor in (layer.weight, layer.bias):
        tensor.data = torch.randn(tensor.shape, generator=generator)
    return layer


def rows() -> dict[str, Tensor]:
    features = torch.randn(sum(SHARES), 4, generator=torch.Generator().manual_seed(1)).abs()
    return {"features": features, "logits": head()(features).detach(), "labels": torch.arange(len(features)) % 3}


def raises_alike(call: Callable[[], object], message: str) -> None:
    """Require one ValueError on every process, word for word."""
    with pytest.raises(ValueError, match=message) as found:
        call()
    assert len(set(exchange(str(found.value)))) == 1


def fits_of_three(rank: int, folder: str) -> None:
    """One process: fit every detector to the rows of all; then processes that differ."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SHARES))
    gathering.PIECE_BYTES, whole = 3 * 100, rows()
    own = {name: part.split(SHARES)[rank] if SHARES[rank] else None for name, part in whole.items()}
    found = gather_rows(**own)
    assert all(torch.equal(found[name], part) for name, part in whole.items())
    names = [name for name, detector in DETECTORS.items() if name != "odin"]
    of_all, alone = (build_detectors(LinearHeadModel(head()), names) for _ in range(2))
    for name, detector in of_all.items():
        for fitted, part in ((detector, found), (alone[name], whole)):
            fitted.fit_features(part[fitted.reads], part["labels"])
        scores = [fitted.predict_features(whole[fitted.reads]) for fitted in (detector, alone[name])]
        assert torch.equal(*scores), name

    features, labels = torch.ones(5, 4), torch.zeros(5, dtype=torch.int64)
    for given, message in (
        (
            {"features": features[:, : 3 + (rank == 2)]},
            r"rows of the same shape .* got \[3\] on rank 0 and \[4\] on rank 2",
        ),
        ({"logits": torch.ones(2, 3 + (rank == 1))}, r"logits must have rows of the same shape .* \[4\] on rank 1"),
        ({"features": features.double() if rank else features}, "float32 on rank 0 and torch.float64 on rank 1"),
        ({"features": features, "labels": labels[rank:]}, "labels must have as many rows as features .* got 4 and 5"),
        ({"labels": labels if rank else torch.tensor(3)}, r"labels must be a tensor \[N, ...\] .* on rank 0"),
        ({"labels": labels if rank else [1, 2]}, r"labels must be a tensor \[N, ...\] .* on rank 0"),
    ):
        raises_alike(lambda given=given: gather_rows(**given), message)
    assert len(gather_rows(features=None)["features"]) == 0

    state = {"weight": torch.full((2, 3), float(rank)).T, "steps": torch.tensor(rank), "none": torch.empty(0)}
    gathering.broadcast_tensors(state)
    assert not state["weight"].any()
    assert int(state["steps"]) == 0
    dist.destroy_process_group()


def test_every_detector_fits_to_the_rows_of_all_processes(tmp_path: Path) -> None:
    mp.spawn(fits_of_three, args=(str(tmp_path),), nprocs=len(SHARES))


def test_rows_are_returned_without_a_group() -> None:
    assert list(gather_rows(features=torch.ones(1, 2), labels=None)) == ["features"]
