"""Stop within an epoch and resume with the same batches: torchdata's StatefulDataLoader over a pool that learns.

    python examples/pool_stateful_loader.py --checkpoint /tmp/checkpoint.pt --stop-after 25
    python examples/pool_stateful_loader.py --checkpoint /tmp/checkpoint.pt

The second command ends with the weights of a run that was never stopped. The state of the loader holds that of the
batch sampler; the pool has its own.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

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


def train(checkpoint: Path | None = None, *, stop_after: int | None = None, epochs: int = 6) -> Tensor:
    """Train from the start or from a checkpoint, and return the weights of the pool.

    Args:
        checkpoint: File to resume from if it exists, and to write when stopped; None for neither.
        stop_after: Number of steps after which to write the checkpoint and to stop; None to train to the end.
        epochs: Epochs of the whole run.
    """
    data, background = toy_data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    criterion = OutlierExposureLoss(weight=0.5, reduction="mean")
    shuffled = RandomSampler(data, generator=torch.Generator().manual_seed(0))
    loader = StatefulDataLoader(data, batch_size=64, sampler=shuffled, drop_last=True)
    pool = BackgroundPool(len(background))
    sampler = BackgroundPoolSampler(pool, 64, num_batches=len(loader), generator=torch.Generator().manual_seed(1))
    # Without worker processes, so that every draw has the weights of its step. Workers draw ahead: what they had drawn
    # is drawn again after resuming, with the weights of the checkpoint.
    background_loader = StatefulDataLoader(background, batch_sampler=sampler)

    parts = {"model": model, "optimizer": optimizer, "pool": pool, "images": loader, "background": background_loader}
    first_epoch = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint)
        first_epoch = state["epoch"]
        for name, part in parts.items():
            part.load_state_dict(state[name])

    steps = 0
    for epoch in range(first_epoch, epochs):
        for (inputs, labels), (index, outliers) in zip(loader, background_loader, strict=True):
            logits = model(torch.cat([inputs, outliers]))
            targets = torch.cat([labels, torch.full_like(index, -1)])
            weights = torch.cat([torch.ones(len(labels)), pool.importance(index)])
            loss, per_sample = criterion.with_per_sample(logits, targets, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.ascend(index, per_sample[len(labels) :], lr=100)
            steps += 1
            if steps == stop_after and checkpoint is not None:
                torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, checkpoint)
                return pool.weights
    return pool.weights


def main() -> None:
    """Train, and print the mean weights of both parts of the background."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="file to resume from if it exists, and to write when stopped")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="write the checkpoint and stop")
    options = parser.parse_args()
    weights = train(options.checkpoint, stop_after=options.stop_after)
    hard, easy = weights[:HARD].mean(), weights[HARD:].mean()
    print(f"mean weight {hard:.6f} of background like the images, {easy:.6f} of the rest")


if __name__ == "__main__":
    main()
