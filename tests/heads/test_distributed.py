"""The Gaussian head under DistributedDataParallel, with gloo on the CPU."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastood.losses import ICELoss
from tests.heads.test_mahalanobis import KINDS, trained

WORLD_SIZE = 2


def share(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(8, 5, generator=generator), torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])


def gradients_of_share(rank: int, folder: str) -> None:
    """One process: DDP over its share of the batch, for every kind; the first process keeps the gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    gradients = []
    for kind in KINDS:
        parallel = DistributedDataParallel(trained(kind))
        features, targets = share(rank)
        ICELoss()(parallel(features), targets).backward()
        gradients.append([p.grad for p in parallel.parameters()])
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    dist.destroy_process_group()


def test_gradients_are_the_mean_over_processes(tmp_path: Path) -> None:
    mp.spawn(gradients_of_share, args=(str(tmp_path),), nprocs=WORLD_SIZE)
    for kind, got in zip(KINDS, torch.load(tmp_path / "gradients.pt"), strict=True):
        of_rank = []
        for rank in range(WORLD_SIZE):
            head = trained(kind)
            features, targets = share(rank)
            ICELoss()(head(features), targets).backward()
            of_rank.append([p.grad for p in head.parameters()])
        want = [torch.stack(gradients).mean(0) for gradients in zip(*of_rank, strict=True)]
        torch.testing.assert_close(got, want)
