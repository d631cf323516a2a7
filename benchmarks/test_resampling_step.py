"""A step of background resampling, with its network, compared with the way of the authors' code.

That way, written anew for today's PyTorch: two DataLoaders of one image at a time, draws from weights as they were when
the epoch began, and a backward pass through the network for the weights in addition to that for the network. A call is
an epoch of a few steps, so that no provider's workers run in another's time; drawing the stale epoch is not timed.

"network alone" is a forward and a backward pass over the same number of images, already in place: what is left of a
step is its ratio below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from harness import Comparison, Run, compare
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from fastood.data import Augment, DetectionTask, ImageSet
from fastood.losses import OutlierExposureLoss
from fastood.models import build_model
from fastood.samplers import BackgroundPool
from fastood.train.engine.adversarial import AdversarialBackground
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import StageContext

Record = Callable[[Comparison, Run], None]
SIZE, CLASSES, BATCH, STEPS = 32, 10, 128, 2
ALPHA, LEARNING_RATE, WEIGHT_LEARNING_RATE = 0.5, 0.001, 100.0
TRAINING = v2.Compose(
    [
        v2.ToImage(),
        v2.RandomCrop(SIZE, padding=4),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.25] * 3),
    ]
)


def network(name: str) -> nn.Module:
    """Return the network in eval mode, as the authors' code has it while it reweights."""
    model = build_model(
        name, num_classes=CLASSES, in_channels=3, image_size=SIZE, generator=torch.Generator().manual_seed(0)
    )
    return model.eval()


def images(count: int, *, labelled: bool) -> ImageSet:
    """Return images of noise; a step takes the same time on any image."""
    generator = torch.Generator().manual_seed(count)
    return ImageSet(
        name="noise",
        images=torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator),
        labels=torch.arange(count) % CLASSES if labelled else torch.full((count,), -1),
        source=torch.zeros(count, dtype=torch.int64),
        source_names=("noise",),
        class_names=tuple(map(str, range(CLASSES))) if labelled else (),
    )


def ours(name: str, task: DetectionTask, device: str, *, batch: int) -> Run:
    """Return steps of the trainer."""
    stage = ImageStage(
        name="reweight",
        rng_name="reweight",
        schedule=Schedule(epochs=1_000_000, learning_rate=LEARNING_RATE, decay_every=None),
        build_model=lambda: network(name),
        objective=lambda: LogitObjective(OutlierExposureLoss(weight=ALPHA, reduction="mean")),
        batch_size=batch,
        background=lambda context: AdversarialBackground(
            BackgroundPool(len(task.background), epsilon=0.5, momentum=0.9, device=context.fabric.device),
            batch_size=batch,
            learning_rate=WEIGHT_LEARNING_RATE,
            generator=torch.Generator(context.fabric.device).manual_seed(0),
        ),
        batch_norm="eval",
        dropout=False,
    )
    fabric = Fabric(accelerator=device, devices=1)
    run = stage.begin(stage.build_model(), StageContext(task=task, augment=Augment(flip=True), seed=0, fabric=fabric))

    def steps() -> None:
        for _ in range(STEPS):
            run.train_step()

    return steps


class OneByOne(Dataset[tuple[Tensor, Tensor, int]]):
    """Data set of image, label and index, as in the authors' code."""

    def __init__(self, data: ImageSet) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return TRAINING(self._data.images[index]), self._data.labels[index], index


class StaleEpoch(Sampler[int]):
    """Sampler of indices that are drawn before the epoch."""

    def __init__(self, index: list[int]) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[int]:
        return iter(self._index)


def authors_way(name: str, task: DetectionTask, device: str, *, batch: int, workers: int, channels_last: bool) -> Run:
    """Step both losses by autograd, each with its own backward pass, in the order that PyTorch requires today."""
    model = network(name).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    theta = torch.zeros(len(task.background), device=device, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    weight_optimizer = torch.optim.SGD([theta], lr=WEIGHT_LEARNING_RATE, momentum=0.9, maximize=True)
    loaders = [
        DataLoader(
            OneByOne(data),
            batch,
            sampler=StaleEpoch(torch.randint(len(data), (STEPS * batch,)).tolist()),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
        )
        for data in (task.id_train, task.background)
    ]

    def steps() -> None:
        for (id_images, labels, _), (background, _, index) in zip(*loaders, strict=True):
            both = torch.cat([id_images.to(device, non_blocking=True), background.to(device, non_blocking=True)])
            index = index.to(device, non_blocking=True)
            logits = model(both)
            cross_entropy = F.cross_entropy(logits[:batch], labels.to(device, non_blocking=True))
            uniformity = -logits[batch:].log_softmax(dim=1).mean(dim=1)
            weights = F.softplus(theta)
            scale = weights.sqrt().mean() / weights.mean().sqrt()
            importance = scale * (weights[index] / weights.mean()).sqrt()
            weight_optimizer.zero_grad()
            (ALPHA * (importance * uniformity).mean()).backward(retain_graph=True)
            weight_optimizer.step()
            optimizer.zero_grad()
            (cross_entropy + ALPHA * (importance.detach() * uniformity).mean()).backward()
            optimizer.step()

    return steps


def network_alone(name: str, device: str, *, batch: int) -> Run:
    """Run forward and backward passes only."""
    model = network(name).to(device, memory_format=torch.channels_last)
    images = torch.randn(2 * batch, 3, SIZE, SIZE).to(device).contiguous(memory_format=torch.channels_last)
    gradient = torch.full((2 * batch, CLASSES), 1e-3, device=device)

    def steps() -> None:
        for _ in range(STEPS):
            model.zero_grad()
            model(images).backward(gradient)

    return steps


def task_of(*, scale: int = 1) -> DetectionTask:
    """Return a task of noise; `scale` divides its numbers of images."""
    return DetectionTask(
        id_train=images(10_000 // scale, labelled=True),
        id_test=images(100, labelled=True),
        background=images(50_000 // scale, labelled=False),
        ood={"noise": images(200, labelled=False)},
    )


def providers_of(name: str, task: DetectionTask, device: str, *, batch: int) -> dict[str, Run]:
    """Return the trainer's steps, the authors' in several settings, and the network alone."""

    def authors(workers: int, *, channels_last: bool) -> Run:
        return authors_way(name, task, device, batch=batch, workers=workers, channels_last=channels_last)

    return {
        "fastood": ours(name, task, device, batch=batch),
        "authors' way": authors(0, channels_last=False),
        "authors' way, channels last": authors(0, channels_last=True),
        "authors' way, channels last, 1+1 workers": authors(1, channels_last=True),
        "network alone": network_alone(name, device, batch=batch),
    }


@pytest.mark.parametrize("name", ["small-cnn", "wrn-16-1"])
def test_resampling_step(name: str, device: str, tiny: bool, budget: dict[str, float], record: Record) -> None:
    batch = 4 if tiny else BATCH
    providers = providers_of(name, task_of(scale=50 if tiny else 1), device, batch=batch)
    shape = f"{name}, {STEPS} steps of {batch}+{batch}"
    comparison = compare("resampling step", shape, providers, subject="fastood", device=device, **budget)
    record(comparison, providers["fastood"])
