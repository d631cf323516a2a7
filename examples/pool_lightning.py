"""Background resampling under the Lightning Trainer with two processes: losses are fed back to the pool each step.

    python examples/pool_lightning.py

The sampler is made in `train_dataloader`, where Lightning records the arguments of batch samplers and can rebuild them.
A sampler that is made elsewhere needs `Trainer(use_distributed_sampler=False)`.
"""

import argparse

import lightning
import torch
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


class Resampling(lightning.LightningModule):
    """Classifier that is trained with the background that fools it most."""

    def __init__(self) -> None:
        super().__init__()
        self.data, self.background = toy_data()
        self.model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
        self.criterion = OutlierExposureLoss(weight=0.5, reduction="mean")
        # Replicas that stay equal. On a GPU both take a device: BackgroundPool(…, device="cuda"), Generator("cuda").
        self.pool = BackgroundPool(len(self.background))
        # One seed for all ranks: they divide the draws of one generator.
        self.generator = torch.Generator().manual_seed(0)

    def train_dataloader(self) -> dict[str, DataLoader]:
        """Return a loader of images, which Lightning divides among the ranks, and one of background."""
        self.sampler = BackgroundPoolSampler(self.pool, 64, num_batches=16, generator=self.generator)
        return {
            "images": DataLoader(self.data, batch_size=64, shuffle=True, drop_last=True),
            "background": DataLoader(self.background, batch_sampler=self.sampler),
        }

    def training_step(self, batch: dict[str, list[Tensor]]) -> Tensor:
        """Return the loss of a mixed batch, and let the pool learn from the losses of its background."""
        (inputs, labels), (index, outliers) = batch["images"], batch["background"]
        logits = self.model(torch.cat([inputs, outliers]))
        targets = torch.cat([labels, torch.full_like(index, -1)])
        weights = torch.cat([torch.ones_like(labels, dtype=torch.float32), self.pool.importance(index).to(self.device)])
        loss, per_sample = self.criterion.with_per_sample(logits, targets, weights)
        self.sampler.ascend(index, per_sample[len(labels) :], lr=100)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD over the network."""
        return torch.optim.SGD(self.model.parameters(), lr=0.2)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Store the pool, which is no parameter of the module."""
        checkpoint["pool"] = self.pool.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Load the pool."""
        self.pool.load_state_dict(checkpoint["pool"])


def main() -> None:
    """Train on two processes, and print the mean weights of both parts of the background on each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=options.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    module = Resampling()
    trainer.fit(module)
    weights = module.pool.weights
    hard, easy = weights[:HARD].mean(), weights[HARD:].mean()
    print(f"rank {trainer.global_rank}: mean weight {hard:.6f} of background like the images, {easy:.6f} of the rest")


if __name__ == "__main__":
    main()
