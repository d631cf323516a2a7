"""Background resampling in a plain loop with DistributedDataParallel: ranks share one pool and one stream of draws.

    torchrun --standalone --nproc-per-node 2 examples/pool_ddp.py

Without torchrun it runs in one process. Every rank draws a part of the same draws, and `sampler.ascend` gathers the
losses of all ranks, so that the pools of the ranks stay equal.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from fastood.losses import OutlierExposureLoss
from fastood.samplers import BackgroundPool, BackgroundPoolSampler

HARD = 200
"""Background examples that resemble the classes; the network learns the others fast."""


def toy_data() -> tuple[TensorDataset, TensorDataset]:
    """Return the in-distribution examples with labels, and the indices of the background with its examples."""
    draws = torch.Generator().manual_seed(0)
    images, background = torch.randn(2048, 32, generator=draws), torch.randn(2000, 32, generator=draws)
    background[HARD:] += 3
    return TensorDataset(images, images[:, :10].argmax(1)), TensorDataset(torch.arange(len(background)), background)


def train(epochs: int = 10) -> Tensor:
    """Train, and return the weights of the pool."""
    device = torch.device("cuda", dist.get_node_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    data, background = toy_data()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    criterion = OutlierExposureLoss(weight=0.5, reduction="mean")

    own_part = DistributedSampler(data)
    loader = DataLoader(data, batch_size=64, sampler=own_part, drop_last=True)
    # One seed for all ranks: they divide the draws of one generator.
    generator = torch.Generator(device).manual_seed(0)
    pool = BackgroundPool(len(background), device=device)
    sampler = BackgroundPoolSampler(pool, 64, num_batches=len(loader), generator=generator)
    background_loader = DataLoader(background, batch_sampler=sampler)

    for epoch in range(epochs):
        own_part.set_epoch(epoch)
        for (inputs, labels), (index, outliers) in zip(loader, background_loader, strict=True):
            inputs, labels, index = inputs.to(device), labels.to(device), index.to(device)
            logits = model(torch.cat([inputs, outliers.to(device)]))
            targets = torch.cat([labels, torch.full_like(index, -1)])
            weights = torch.cat([torch.ones(len(labels), device=device), pool.importance(index)])
            loss, per_sample = criterion.with_per_sample(logits, targets, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.ascend(index, per_sample[len(labels) :], lr=100)
    return pool.weights


def main() -> None:
    """Train, and print the mean weights of both parts of the background."""
    if dist.is_torchelastic_launched():
        dist.init_process_group()
    else:
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    weights = train()
    hard, easy = weights[:HARD].mean(), weights[HARD:].mean()
    print(f"rank {dist.get_rank()}: mean weight {hard:.6f} of background like the images, {easy:.6f} of the rest")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
