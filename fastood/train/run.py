"""A run's parts put together from its configuration, judged, and written down."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from fastood.data import DetectionTask, ImageSet, load_task
from fastood.train.arm import Arm
from fastood.train.config import Device, RunConfig, absolute_paths, to_dict, with_absolute_paths
from fastood.train.engine.curve import read_curves
from fastood.train.engine.failure import StageFailedError, StageFailure, failed_arms, learnt_pool_of
from fastood.train.engine.processes import launched_processes, open_fabric, require_equal_shares, without_group
from fastood.train.environment import read_sessions
from fastood.train.method import Method
from fastood.train.methods import MethodConfig
from fastood.train.report import metrics_tables, write_report
from fastood.train.report.table_layout import open_console, print_tables
from fastood.train.results.metrics_document import metrics_document
from fastood.train.results.run_warnings import run_warnings
from fastood.train.results.sanity import merged
from fastood.train.results.scoring import ArmScores, score_arm
from fastood.train.run_folder import RunFolder, naming
from fastood.train.threads import default_threads
from fastood.train.trained_network import TrainedNetwork


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """What "auto" means here.

    Raises:
        ValueError: If a GPU is asked for and there is none.
    """
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise ValueError("device is cuda, but this PyTorch finds no GPU")
    return "cuda" if found and device != "cpu" else "cpu"


def settle(config: RunConfig) -> RunConfig:
    """Write out what would mean something else elsewhere: device, threads, and paths relative to this directory.

    Raises:
        ValueError: If a GPU is asked for and there is none.
    """
    device = resolve_device(config.device)
    threads = default_threads(device=device, network=config.model.name, image_size=config.data.image_size)
    return replace(
        config,
        device=device,
        threads=threads if config.threads is None else config.threads,
        data=absolute_paths(config.data),
        method=with_absolute_paths(config.method),
    )


def require_shareable(config: MethodConfig) -> None:
    """Refuse what several processes cannot train together.

    Raises:
        ValueError: If a batch size is no multiple of the number of processes.
    """
    processes = launched_processes()
    for field in fields(config):
        if field.name.endswith("batch_size"):
            require_equal_shares(f"method.{field.name}", getattr(config, field.name), processes)


def require_background(config: RunConfig) -> None:
    """Refuse a method that trains with background images where none are named.

    Raises:
        ValueError: If they are missing.

    Example:
        >>> from fastood.data import DataConfig
        >>> from fastood.train.methods.outlier_exposure import OEConfig
        >>> require_background(RunConfig(method=OEConfig(), data=DataConfig(in_dist="cifar10", ood=("svhn",))))
        Traceback (most recent call last):
        ...
        ValueError: data.background must name the images that oe trains with, got none: give --data.background \
folder:PATH, the name of a data set or noise
    """
    if config.method.needs_background and config.data.background_spec.kind == "none":
        raise ValueError(
            f"data.background must name the images that {config.method.name} trains with, got none: "
            "give --data.background folder:PATH, the name of a data set or noise"
        )


def small_backgrounds(method: Method, task: DetectionTask, config: MethodConfig) -> list[str]:
    """Return what is to be known of batches that are smaller than the configuration says, before any training.

    Args:
        method: The method.
        task: Its images.
        config: Its hyper-parameters.

    Raises:
        ValueError: If several processes cannot share such a batch.
    """
    processes = launched_processes()
    for stage in method.stages:
        index, size = getattr(stage, "id_index", None), getattr(stage, "batch_size", None)
        if size is not None:
            count = len(task.id_train) if index is None else len(index)
            require_equal_shares(f"the in-distribution batch of stage {stage.name!r}", min(size, count), processes)
    size = getattr(config, "background_batch_size", None)
    if size is None:
        return []
    said = []
    gamma: Any = getattr(config, "sample_rate", None)
    learnt = method.learnt_pool
    for arm in method.arms:
        is_learnt = learnt is not None and arm.name == learnt.arm
        # What the pool will select is drawn by weights that are yet to be learnt.
        count = int(gamma * len(task.background)) if is_learnt else len(method.background_index(arm.name))
        if not 0 < count < size:
            continue
        of = f"{'about ' if is_learnt else ''}{count} of {len(task.background)} background images"
        why = of if gamma is None else f"sample_rate (γ) {gamma} leaves it {of}"
        if processes > 1 and (is_learnt or count % processes):
            raise ValueError(
                f"arm {arm.name!r} cannot be trained by {processes} processes: {why}, fewer than a batch of {size}"
            )
        said.append(f"arm {arm.name!r} trains on all of its background images at every step: {why}, a batch is {size}")
    return said


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A configuration with the images, the method and the device that it names."""

    config: RunConfig
    task: DetectionTask
    method: Method
    fabric: Fabric

    @classmethod
    def prepare(cls, config: RunConfig, *, device: Device | None = None, fabric: Fabric | None = None) -> "Run":
        """Load images and set up method, device and threads; anything wrong with the configuration shows here.

        Args:
            config: What to run.
            device: Where to compute; None takes the configuration's.
            fabric: Device and group of processes that are open already; None opens them.

        Raises:
            FileNotFoundError: If data is missing.
            ValueError: If the data or a value does not fit.
        """
        accelerator = resolve_device(config.device if device is None else device)
        require_background(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        task = load_task(config.data, seed=config.seed)
        drawn = config.protocol.ood_count(len(task.id_test)) or 1  # of a set taken whole
        for name, images in task.ood.items():
            if len(images) < drawn:
                raise ValueError(
                    f"OOD set {name!r} must have the {drawn} images that the protocol draws "
                    f"(protocol.ood_fraction of {len(task.id_test)} test images), got {len(images)}"
                )
        require_shareable(config.method)
        method = config.method.build(config.model, task=task, seed=config.seed)
        if fabric is None:
            fabric = open_fabric(accelerator, precision=config.precision)
        return cls(config=config, task=task, method=method, fabric=fabric)

    def trained(self, model: nn.Module) -> TrainedNetwork:
        """A network at test time, on this process's device."""
        return TrainedNetwork(
            model,
            augment=self.config.augment,
            fabric=without_group(self.fabric, precision=self.config.precision),
            channels_last=self.config.channels_last,
        )

    def embed(self, model: nn.Module, images: ImageSet) -> Tensor:
        """Features `[N, d]` float32 that a `Classifier` gives images at test time."""
        return self.trained(model).features(images)

    def judge(self, folder: RunFolder) -> tuple[dict[str, Any], dict[str, ArmScores]]:
        """Score every arm's stored weights.

        Args:
            folder: Holds weights and pool; the method's pool is loaded from it.

        Returns:
            The contents of metrics.json, with "warnings" if there are any, and the scores of each arm.

        Raises:
            FileNotFoundError: If the run has not come to its end.
            StageFailedError: If no arm can be judged.
            ValueError: If a file is damaged.
        """
        failures = folder.read_failures()
        learnt = learnt_pool_of(self.method, failures)
        if learnt is not None:
            with naming(folder.pool):
                learnt.pool.load_state_dict(folder.read_pool())
        failed = failed_arms(self.method, failures)
        scores = {}
        for arm in self.method.arms:
            if arm.name in failed:
                continue
            found = score_arm(self.trained(self.network(folder, arm)), arm, self.task)
            if (reason := found.undefined()) is None:
                scores[arm.name] = found
            else:
                failed[arm.name] = StageFailure(stage=arm.stage, step=None, steps=None, reason=reason)
        if not scores:
            raise StageFailedError(f"no arm can be judged: {next(iter(failed.values())).describe()}")
        metrics = metrics_document(
            self.method,
            self.task,
            scores,
            protocol=self.config.protocol,
            seed=self.config.seed,
            failed=failed,
            learnt=learnt,
        )
        if warnings := run_warnings(self.method, metrics, scores, read_curves(folder.curves)):
            metrics["warnings"] = warnings
        return metrics, scores

    def network(self, folder: RunFolder, arm: Arm) -> nn.Module:
        """Return an arm's network with its stored weights.

        Raises:
            FileNotFoundError: If the run has not come to its end.
            ValueError: If the file is damaged or its weights are of another network.
        """
        model = next(stage for stage in self.method.stages if stage.name == arm.stage).build_model()
        with naming(folder.weights(arm.name)):
            model.load_state_dict(folder.read_weights(arm.name))
        return model

    def write_results(self, folder: RunFolder, metrics: dict[str, Any], scores: dict[str, ArmScores]) -> None:
        """Write scores, report and, last, metrics.json: where that lies, everything else does."""
        folder.write_scores(scores)
        learnt = self.method.learnt_pool if "pool" in metrics else None
        write_report(
            folder.path,
            metrics=metrics,
            config=to_dict(self.config),
            scores={
                arm: {"id": result.id_scores, "ood": result.ood_scores, "correct": result.correct}
                for arm, result in scores.items()
            },
            feature_maps={arm: result.feature_map for arm, result in scores.items() if result.feature_map is not None},
            pool_weights=None if learnt is None else learnt.pool.weights.cpu(),
            background=None if learnt is None else self.task.background,
            effective_sample_sizes=None if learnt is None else folder.read_pool().get("effective_sample_sizes"),
            curves=read_curves(folder.curves),
            sessions=read_sessions(folder.environment),
        )
        folder.write_metrics(metrics)


def print_table(metrics: dict[str, Any]) -> None:
    """Print the table of a metrics document and its warnings: as wide as the terminal, or as COLUMNS says, or 110."""
    console = open_console()
    print_tables(metrics_tables(metrics, width=console.width))
    labels = {name: arm["label"] for name, arm in metrics["arms"].items()}
    for line in merged(metrics.get("warnings", ()), labels):
        console.print(f"warning: {line}", markup=False, highlight=False)
