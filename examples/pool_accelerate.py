"""Background resampling in a loop of Hugging Face accelerate, with loaders that accelerate prepares.

    accelerate launch --num_processes 2 examples/pool_accelerate.py
    torchrun --standalone --nproc-per-node 2 examples/pool_accelerate.py

`Accelerator.prepare` divides the batches of a loader among the processes. The sampler must not divide them again: it
takes `rank=0, world_size=1`. `sampler.ascend` gathers the losses of all processes nevertheless.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

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


def train(accelerator: Accelerator, epochs: int = 10) -> Tensor:
    """Train, and return the weights of the pool."""
    data, background = toy_data()
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    criterion = OutlierExposureLoss(weight=0.5, reduction="mean")
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    pool = BackgroundPool(len(background), device=accelerator.device)
    sampler = BackgroundPoolSampler(
        pool,
        64,
        # Batches of all processes together, as in `loader`.
        num_batches=len(loader),
        generator=torch.Generator(accelerator.device).manual_seed(0),
        rank=0,
        world_size=1,
    )
    background_loader = DataLoader(background, batch_sampler=sampler)
    model, optimizer, loader, background_loader = accelerator.prepare(model, optimizer, loader, background_loader)

    for _ in range(epochs):
        for (inputs, labels), (index, outliers) in zip(loader, background_loader, strict=True):
            logits = model(torch.cat([inputs, outliers]))
            targets = torch.cat([labels, torch.full_like(index, -1)])
            weights = torch.cat([torch.ones_like(labels, dtype=torch.float32), pool.importance(index)])
            loss, per_sample = criterion.with_per_sample(logits, targets, weights)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            sampler.ascend(index, per_sample[len(labels) :], lr=100)
    return pool.weights


def main() -> None:
    """Train, and print the mean weights of both parts of the background."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    weights = train(accelerator)
    hard, easy = weights[:HARD].mean(), weights[HARD:].mean()
    rank = accelerator.process_index
    print(f"rank {rank}: mean weight {hard:.6f} of background like the images, {easy:.6f} of the rest")
    accelerator.end_training()


if __name__ == "__main__":
    main()
