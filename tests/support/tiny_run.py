"""A run of seconds: four classes of 8×8 images, a pool of 80, two OOD sets, a few steps per stage."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fastood.data import DetectionTask, ImageSet
from fastood.train import cli as train
from fastood.train.engine.image_stage import ImageStageRun

STAGES = ("pretrain", "reweight", "finetune-none", "finetune-random", "finetune-resampled", "finetune-full")
STEPS = 12
"""Steps of every stage: 2 epochs of 6 batches."""


def bars(count: int, *, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images uint8 [N, 8, 8] with two bright rows that tell the class, and labels [N]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 190, (count, 8, 8))
    labels = np.arange(count) % classes
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 60
    return images.astype(np.uint8), labels


def tiny_task() -> DetectionTask:
    """The task in memory."""

    def image_set(name: str, images: np.ndarray, labels: np.ndarray | None = None) -> ImageSet:
        return ImageSet(
            name=name,
            images=torch.from_numpy(images)[:, None],
            labels=torch.full((len(images),), -1) if labels is None else torch.from_numpy(labels),
            source=torch.arange(len(images)) % 2,
            source_names=("even", "odd"),
            class_names=() if labels is None else ("a", "b", "c", "d"),
        )

    noise = np.random.default_rng(3).integers(0, 256, (80, 8, 8)).astype(np.uint8)
    return DetectionTask(
        id_train=image_set("bars", *bars(96, classes=4, seed=0)),
        id_test=image_set("bars", *bars(32, classes=4, seed=1)),
        background=image_set("noise and stripes", np.concatenate([noise, bars(80, classes=3, seed=2)[0].mT])),
        ood={"noise": image_set("noise", noise[:40])},
    )


def tiny_args(folder: Path, *, name: str = "run", out: Path | None = None) -> list[str]:
    """Command line of the run; writes its images into `folder`."""
    images, labels = bars(128, classes=4, seed=0)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "background.npy", np.random.default_rng(1).integers(0, 256, (80, 8, 8)).astype(np.uint8))
    np.save(folder / "stripes.npy", bars(40, classes=4, seed=2)[0].mT)
    options = {
        "name": name,
        "out": folder / "runs" if out is None else out,
        "device": "cpu",
        "checkpoint-every": 5,
        "data.in-dist": f"npy:{folder}/images.npy,{folder}/labels.npy",
        "data.background": f"npy:{folder}/background.npy",
        "data.test-fraction": 0.25,
        "data.image-size": 8,
        "data.noise-size": 40,
        "model.name": "small-cnn",
        "model.dropout": 0.2,
        "method.sample-rate": 0.3,
        "method.batch-size": 16,
        "method.background-batch-size": 16,
        "method.pretrain.epochs": 2,
        "method.reweight.epochs": 2,
        "method.finetune.epochs": 2,
        "method.finetune.learning-rate": 0.05,
    }
    flat = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    return [*flat, "--data.ood", f"stripes=npy:{folder}/stripes.npy", "noise=gaussian"]


def tiny_data_args(folder: Path) -> list[str]:
    """The same command line without the options of the method."""
    options = tiny_args(folder)
    return [*options[: options.index("--method.sample-rate")], *options[options.index("--data.ood") :]]


def train_until_killed(args: list[str], stage: str, step: int, moment: str) -> None:
    """Train in this process and SIGKILL it: at a step of a stage, while writing its checkpoint, or when judging."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    train_step, replace = ImageStageRun.train_step, Path.replace

    def kill(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_at_step(run: ImageStageRun) -> float:
        if (run.stage.name, run.step) == (stage, step):
            if moment == "between steps":
                kill()
            # The network has moved by then, the pool has not.
            patch.setattr(run.background, "observe", kill)
        return train_step(run)

    def kill_before_replacing(path: Path, target: Path) -> Path:
        if target.name == f"{stage}.pt" and target.exists():
            kill()
        return replace(path, target)

    if moment in ("between steps", "between updates"):
        patch.setattr(ImageStageRun, "train_step", kill_at_step)
    elif moment == "checkpoint half written":
        patch.setattr(Path, "replace", kill_before_replacing)
    elif moment == "judging":
        patch.setattr("fastood.train.evaluation.score_arm", kill)
    train.main(args)


def finished_run(folder: Path) -> Path:
    """Train the tiny run to its end, without its report; return its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
        assert train.main(tiny_args(folder)) == 0
    return folder / "runs" / "run"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
