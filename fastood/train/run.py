"""A run of a method: opened once, then trained, evaluated and reported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastood.common.gathering import broadcast_tensors
from fastood.data import DetectionTask, ImageSet, load_task
from fastood.data.loaders import EncodedImages, LoaderPlan, plan_loader
from fastood.data.summary import data_summary, summary_lines
from fastood.train.arm import Arm
from fastood.train.config import Device, RunConfig, to_dict
from fastood.train.engine.curve import read_curves
from fastood.train.engine.failure import StageFailure
from fastood.train.engine.group import Group
from fastood.train.engine.processes import (
    attempt_on_all,
    from_first_process,
    of_every_process,
    open_fabric,
    without_group,
)
from fastood.train.engine.shared_folder import is_folder_shared
from fastood.train.engine.stage import StageContext
from fastood.train.environment import begin_session, end_session, is_restarted, read_sessions
from fastood.train.evaluation import Evaluation, evaluate_scores, score_arms
from fastood.train.method import Method
from fastood.train.report import LearntWeights, write_report
from fastood.train.requirements import check_config, require_background, require_enough_ood, small_backgrounds
from fastood.train.resolved_config import config_to_run, resolve, resolve_device
from fastood.train.run_folder import RunFolder, fingerprint, naming
from fastood.train.shared_work import is_group_open
from fastood.train.stages import train_stages
from fastood.train.trained_network import TrainedNetwork

T = TypeVar("T")


class Run:
    """A run: its config, images, method and device, and the folder that it is written to.

    `Run.open` begins or resumes a run, `Run.load` opens a finished one. Call `close`, or use the run as a context
    manager: until then the folder is locked and the group of processes is open.

    Args:
        config: All settings that determine the result.
        folder: Where the run is written.
        task: Images to train on and to evaluate with.
        method: Stages to train and arms to evaluate.
        fabric: Device and group of processes.

    Example:
        Train and evaluate a method from Python; with several processes each one executes this code:

        >>> from pathlib import Path
        >>> from fastood.train.config import PRESETS
        >>> from fastood.train.run import Run
        >>> with Run.open(PRESETS["msp", "embedded"], Path("runs/mine")) as run:  # doctest: +SKIP
        ...     run.train()
        ...     evaluation = run.evaluate()
        ...     if evaluation is not None:  # it is None in all processes but the first
        ...         run.report(evaluation)
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, *, task: DetectionTask, method: Method, fabric: Fabric
    ) -> None:
        self.config = config
        self.folder = folder
        self.task = task
        self.method = method
        self.fabric = fabric
        self._held = ExitStack()
        self._in_session = False
        self._is_sharing = fabric.world_size > 1

    @classmethod
    def open(cls, config: RunConfig, path: Path, *, resume: bool = False, command: str | None = None) -> Self:
        """Begin a run or resume one: check everything that can be checked before training, and write its config.

        Args:
            config: The config.
            path: The run's folder.
            resume: Resume the run in the folder; begin it if there is none.
            command: Command line to record in environment.json; None records none.

        Raises:
            BlockingIOError: If another process is writing the run.
            ConnectionError: If a process of the launcher cannot be reached.
            FileExistsError: If the folder exists and `resume` is false, or it holds files but no run to resume.
            FileNotFoundError: If images are missing.
            ValueError: If the config is out of range, requires something that this machine lacks, or it or the images
                are not those of the run to resume.
        """
        folder = RunFolder(path)
        with ExitStack() as held:
            held.enter_context(Group.join())

            def check() -> RunConfig:
                check_config(config)
                return resolve(config)

            asked = attempt_on_all("the check of the config", check)
            held.callback(torch.set_num_threads, torch.get_num_threads())

            def enter() -> RunConfig:
                going_on = resume or is_restarted(folder.environment)
                held.enter_context(folder.lock(exist_ok=going_on))
                return config_to_run(asked, folder, resume=going_on, threads=config.threads)

            fabric = open_fabric(resolve_device(asked.device), precision=config.precision)
            # The first process alone reads and writes the folder.
            resolved = from_first_process(enter, fabric)
            share = (fabric.global_rank, fabric.world_size) if divides_background(resolved, fabric) else None

            # Images may be missing on one machine alone, while the other processes wait for this one.
            parts = attempt_on_all("opening the images", partial(_load_parts, resolved, share=share))
            run = cls(resolved, folder, **parts, fabric=fabric)
            plan = attempt_on_all("the choice of a loader", lambda: run.loading)
            # The same loader on every process, although the slice of the last one may be smaller.
            run.loading = from_first_process(lambda: plan, fabric)
            run._look_for_shared_folder()
            # The number of batches drawn ahead is part of the result, and its default differs between loaders.
            run.config = replace(resolved, data=replace(resolved.data, prefetch_depth=run.loading.prefetch_depth))
            run._write_beginning()
            if command is not None:
                device, processes = fabric.device.type, fabric.world_size
                begin = partial(begin_session, folder.environment, command=command, device=device, processes=processes)
                from_first_process(begin, fabric)
            run._held, run._in_session = held.pop_all(), command is not None
        return run

    @classmethod
    def load(cls, config: RunConfig, folder: RunFolder, *, device: Device | None = None, write: bool = False) -> Self:
        """Open a finished run to evaluate it again; several processes share the work.

        Every process reads the images and their digests in the folder; the first one alone reads the other files. The
        compiler and the loader of the run are needed for training alone, and may be missing.

        Args:
            config: The run's config, `folder.read_config()`; the protocol may be another.
            folder: The run's folder.
            device: Device to compute on; None for that of the config.
            write: Whether results are to be written; the folder is then locked until the run is closed.

        Raises:
            BlockingIOError: If `write` is set and another process is writing the run.
            FileNotFoundError: If images, or the digests of the run's images, are missing.
            ValueError: If the images are not those of the run, or the config does not fit this machine.
        """
        with ExitStack() as held:
            held.enter_context(Group.join())

            def check() -> Literal["cpu", "cuda"]:
                require_background(config)
                return resolve_device(config.device if device is None else device)

            accelerator = attempt_on_all("the check of the config", check)
            held.callback(torch.set_num_threads, torch.get_num_threads())
            fabric = open_fabric(accelerator, precision=config.precision)

            def enter() -> None:
                if write:
                    held.enter_context(folder.lock())

            from_first_process(enter, fabric)

            def load() -> dict[str, Any]:
                parts = _load_parts(config)
                folder.require_same_data(fingerprint(parts["task"]))
                return parts

            # Images may be missing or differ on one machine alone, and the other processes would wait for its own.
            run = cls(config, folder, **attempt_on_all("opening the images", load), fabric=fabric)
            run._held = held.pop_all()
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Unlock the folder, restore PyTorch's number of threads, and leave the group of processes.

        A process without further work waits for the last one, unless the caller set up the group.
        """
        self._held.close()

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of its group, which alone computes metrics and writes files of the run.

        Slices of a divided pool are the exception: each process stores its slice in the folder if it sees the folder.
        """
        return self.fabric.is_global_zero

    @cached_property
    def loading(self) -> LoaderPlan:
        """How training images get to the device.

        Raises:
            ValueError: If DALI is asked for and not installed, or resident for images that are decoded on use.
        """
        data, images = self.config.data, (self.task.id_train.images, self.task.background.images)
        return plan_loader(
            data.loader,
            data.prefetch_depth,
            image_bytes=sum(part.nbytes for part in images),
            device=self.fabric.device,
            encoded=any(isinstance(part, EncodedImages) for part in images),
        )

    def train(self, *, checkpoint_every: int = 200) -> None:
        """Train every stage, each from its checkpoint if there is one, and store the arms' weights and the pool.

        A failed stage excludes the arms that depend on it, and no others; they are named under "failed" in
        metrics.json. The group of processes stays open until `close`.

        Args:
            checkpoint_every: Steps between two checkpoints.

        Raises:
            StageFailedError: If training fails in every arm.
            OSError: If the folder cannot be written.
            ValueError: If a checkpoint is damaged.
            TrainingInterrupted: On Ctrl-C, SIGTERM or SIGUSR1; the run can be resumed.
        """
        config = self.config
        self.fabric.print(self.loading, flush=True)
        context = StageContext(
            task=self.task,
            augment=config.augment,
            seed=config.seed,
            fabric=self.fabric,
            precision=config.precision,
            loading=self.loading,
            channels_last=config.channels_last,
            compile=config.compile,
            ema_decay=config.ema_decay,
        )
        train_stages(self.method, self.folder, context, embed=self.embed, checkpoint_every=checkpoint_every)
        self.fabric.barrier()

    def evaluate(self) -> Evaluation | None:
        """Score the test images with every arm's stored weights, and compute the metrics.

        Several processes share the forward passes, with the bits of one process. If they have divided the background,
        the first one then reads all of it, since metrics and report describe the whole.

        Returns:
            The results; None in all processes but the first.

        Raises:
            FileNotFoundError: If the run has not been trained.
            StageFailedError: If no arm has scores.
            ValueError: If a file is damaged or an image unreadable; on every process.
        """
        failures = self.failures()
        scores, failed = score_arms(self.method, self.task, failures, lambda arm: self.trained(self.network(arm)))
        self.end_sharing()
        if not self.is_first:
            return None
        task, method = self._whole
        return evaluate_scores(
            method, task, scores, config=self.config, folder=self.folder, failures=failures, failed=failed
        )

    def report(self, evaluation: Evaluation) -> None:
        """Write scores, report.html and, last, metrics.json: a run that has it has everything else.

        Raises:
            OSError: If the folder cannot be written.
        """
        folder, metrics, scores = self.folder, evaluation.metrics, evaluation.scores
        if self._in_session:
            end_session(folder.environment)
            # Results may be written again: the session ended with the first ones.
            self._in_session = False
        folder.write_scores(scores)
        task, method = self._whole
        learnt = method.learnt_pool if "pool" in metrics else None
        pool = None
        if learnt is not None:
            pool = LearntWeights(
                weights=learnt.pool.weights.cpu(),
                images=task.background,
                effective_sample_sizes=folder.read_pool().get("effective_sample_sizes"),
            )
        write_report(
            folder.path,
            metrics,
            scores,
            config=to_dict(self.config),
            pool=pool,
            curves=read_curves(folder.curves),
            sessions=read_sessions(folder.environment),
        )
        folder.write_metrics(metrics)

    def failures(self) -> dict[str, StageFailure]:
        """Return the failures of stages by name, which the first process reads for all."""
        return self._from_first(self.folder.read_failures)

    def end_sharing(self) -> None:
        """Wait for all processes; after it the first one computes metrics and writes alone.

        The others wait for it in `close`, without a collective and without a timeout.
        """
        if self._shares:
            self.fabric.barrier()
        self._is_sharing = False

    @property
    def _shares(self) -> bool:
        """Whether all processes take part in each pass over images, and in each read of the folder."""
        return self._is_sharing and is_group_open(self.fabric)

    @cached_property
    def _whole(self) -> tuple[DetectionTask, Method]:
        """Images and method with the whole background, even if this process has a slice of it."""
        if self.task.share is None:
            return self.task, self.method
        parts = _load_parts(self.config)
        return parts["task"], parts["method"]

    def _look_for_shared_folder(self) -> None:
        """Test whether every process sees the run's folder; if so, each can store its slice of the pool there."""
        if self.task.share is not None and self.method.learnt_arm is not None:
            self.folder.checkpoints.is_shared = is_folder_shared(self.folder.path, self.fabric)
            if not self.folder.checkpoints.is_shared:
                self.fabric.print(
                    f"the processes do not share {self.folder.path}: the first one stores the whole pool", flush=True
                )

    def trained(self, model: nn.Module) -> TrainedNetwork:
        """Return a network for evaluation on this process's device; the processes share its batches."""
        return TrainedNetwork(
            model,
            augment=self.config.augment,
            fabric=without_group(self.fabric, precision=self.config.precision),
            channels_last=self.config.channels_last,
            shared_by=self.fabric if self._shares else None,
        )

    def embed(self, model: nn.Module, images: ImageSet) -> Tensor:
        """Return the features of images in evaluation mode, float32 `[N, d]`."""
        return self.trained(model).features(images)

    def network(self, arm: Arm) -> nn.Module:
        """Return an arm's network with its stored weights, which the first process reads for all.

        Raises:
            FileNotFoundError: If the run has not been trained.
            ValueError: If the file is damaged or its weights are of another network.
        """
        model = next(stage for stage in self.method.stages if stage.name == arm.stage).build_model()

        def load() -> None:
            with naming(self.folder.weights(arm.name)):
                model.load_state_dict(self.folder.read_weights(arm.name))

        self._from_first(load)
        if self._shares:
            broadcast_tensors(model.state_dict())
        return model

    def _from_first(self, make: Callable[[], T]) -> T:
        """Return the result of the first process, or of this one if the processes no longer share the work."""
        return from_first_process(make, self.fabric) if self._shares else make()

    def _write_beginning(self) -> None:
        """Check that all processes have the run's images, and write config and images' digests into its folder."""
        for warning in small_backgrounds(self.method, self.task, self.config.method):
            if self.is_first:
                print(f"warning: {warning}", file=sys.stderr)
        digests = attempt_on_all("reading the images", lambda: fingerprint(self.task))
        for rank, other in enumerate(of_every_process(digests, self.fabric)):
            if other != digests:
                differing = ", ".join(name for name in digests if other.get(name) != digests[name])
                raise ValueError(f"every process must have the same images, process {rank} has others in {differing}")
        summary = data_summary(self.config.data, self.task)

        def write() -> None:
            self.folder.write_beginning(self.config, digests=digests, data_summary=summary)
            print(*summary_lines(summary), sep="\n", flush=True)

        from_first_process(write, self.fabric)


def divides_background(config: RunConfig, fabric: Fabric) -> bool:
    """Return whether the processes of a run divide the background images among them."""
    return fabric.world_size > 1 and config.method.divides_background and config.method.needs_background


def _load_parts(config: RunConfig, *, share: tuple[int, int] | None = None) -> dict[str, Any]:
    """Load the images of a config and build its method, on the number of threads that it names.

    Args:
        config: The config.
        share: Rank and number of the processes that divide the background; None for all of it.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    task = load_task(config.data, seed=config.seed, share=share)
    require_enough_ood(task, config.protocol)
    return {"task": task, "method": config.method.build(config.model, task=task, seed=config.seed)}
