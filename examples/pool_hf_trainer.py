"""Background resampling under the Trainer of Hugging Face transformers.

    torchrun --standalone --nproc-per-node 2 examples/pool_hf_trainer.py

The loader of the Trainer draws the background; its collator adds as many in-distribution examples to each batch.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

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


class MixedBatch:
    """Collator that adds in-distribution examples to background examples.

    Args:
        data: In-distribution examples with labels.
        generator: Source of their draws; another one on each rank.
    """

    def __init__(self, data: TensorDataset, generator: torch.Generator) -> None:
        self.data, self.generator = data, generator

    def __call__(self, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return inputs, labels (-1 for background) and the indices of the background."""
        index, outliers = (torch.stack(column) for column in zip(*rows, strict=True))
        inputs, labels = self.data[torch.randint(len(self.data), (len(rows),), generator=self.generator)]
        labels = torch.cat([labels, torch.full_like(index, -1)])
        return {"inputs": torch.cat([inputs, outliers]), "labels": labels, "index": index}


class ResamplingTrainer(Trainer):
    """Trainer that draws the background from a pool, and lets the pool learn from the losses.

    Args:
        sampler: Batch sampler of the pool.
        kwargs: Arguments of `Trainer`.
    """

    def __init__(self, *, sampler: BackgroundPoolSampler, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampler = sampler
        self.criterion = OutlierExposureLoss(weight=0.5, reduction="mean")

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader whose batches the sampler, not the Trainer, divides among the ranks."""
        return DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss of a mixed batch, and let the pool learn from its background."""
        labels, index, pool = inputs["labels"], inputs["index"], self.sampler.pool
        logits = model(inputs["inputs"])
        weights = torch.cat([torch.ones_like(index, dtype=torch.float32), pool.importance(index).to(logits.device)])
        loss, per_sample = self.criterion.with_per_sample(logits, labels, weights)
        if model.training:
            self.sampler.ascend(index, per_sample[labels < 0], lr=100)
        return (loss, logits) if return_outputs else loss


def main() -> None:
    """Train, and print the mean weights of both parts of the background."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            ddp_backend=None if torch.cuda.is_available() else "gloo",
            num_train_epochs=10,
            learning_rate=1e-2,
            optim="adamw_torch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        data, background = toy_data()
        pool = BackgroundPool(len(background))
        trainer = ResamplingTrainer(
            model=nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)),
            args=arguments,
            train_dataset=background,
            data_collator=MixedBatch(data, torch.Generator().manual_seed(arguments.process_index)),
            # One seed for all ranks: they divide the draws of one generator.
            sampler=BackgroundPoolSampler(pool, 64, num_batches=16, generator=torch.Generator().manual_seed(0)),
        )
        trainer.train()
    hard, easy = pool.weights[:HARD].mean(), pool.weights[HARD:].mean()
    rank = arguments.process_index
    print(f"rank {rank}: mean weight {hard:.6f} of background like the images, {easy:.6f} of the rest")


if __name__ == "__main__":
    main()
