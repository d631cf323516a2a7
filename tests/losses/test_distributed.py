"""The losses under DistributedDataParallel, with gloo on the CPU."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.ops.test_registration import Head, head_and_inputs
from tests.support.loss_modules import LOSS_MODULES, LossModule

WORLD_SIZE = 2


def share_of(module: LossModule, rank: int) -> tuple[Head, tuple[Tensor, ...]]:
    head, inputs = head_and_inputs(module, "cpu")
    return head, tuple(x[rank::WORLD_SIZE].contiguous() for x in inputs)


def gradients_of_share(rank: int, folder: str) -> None:
    """One process: DDP over its share of the batch, for every loss; the first process keeps the gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    gradients = []
    for module in LOSS_MODULES:
        head, inputs = share_of(module, rank)
        parallel = DistributedDataParallel(head)
        parallel(*inputs).backward()
        gradients.append([p.grad for p in head.parameters()])
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    dist.destroy_process_group()


def test_gradients_are_the_mean_over_processes(tmp_path: Path) -> None:
    mp.spawn(gradients_of_share, args=(str(tmp_path),), nprocs=WORLD_SIZE)
    got = torch.load(tmp_path / "gradients.pt")
    for module, gradients in zip(LOSS_MODULES, got, strict=True):
        of_rank = []
        for rank in range(WORLD_SIZE):
            head, inputs = share_of(module, rank)
            head(*inputs).backward()
            of_rank.append([p.grad for p in head.parameters()])
        want = [torch.stack(shares).mean(0) for shares in zip(*of_rank, strict=True)]
        torch.testing.assert_close(gradients, want, msg=lambda text, name=str(module): f"{name}: {text}")
