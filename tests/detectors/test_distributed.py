"""Detectors fitted by two processes, with gloo on the CPU."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastood.detectors import MahalanobisDetector
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
