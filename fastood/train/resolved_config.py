"""A session of a run: everything is checked and its folder opened, then stages, judging and results."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from fastood.common.files import remove_temporaries
from fastood.data import DataConfig
from fastood.data.summary import data_summary, summary_lines
from fastood.train.acceleration import require_compiler
from fastood.train.config import RunConfig
from fastood.train.engine.processes import close_group, from_first_process, of_every_process, open_fabric
from fastood.train.environment import end_session
from fastood.train.run import Run, require_background, resolve_device, settle, small_backgrounds
from fastood.train.run_folder import RunFolder, fingerprint
from fastood.train.stages import loader_plan, train_stages
from fastood.train.threads import threads_to_resume


def begin(config: RunConfig, folder: RunFolder, *, resume: bool = False, fabric: Fabric | None = None) -> Run:
    """Check everything that can be checked before the work, and open the run folder.

    Args:
        config: What to run.
        folder: Where it goes; `folder.lock()` keeps other processes out meanwhile.
        resume: Go on with what the folder holds; begin if that is nothing yet.
        fabric: Device and group of processes; None opens them.

    Raises:
        FileExistsError: If the folder exists and `resume` is false, or holds files but no run to resume.
        FileNotFoundError: If data is missing.
        ValueError: If the configuration is out of range or wants what this machine lacks, or it or the images are not
            those of the run to resume.
    """
    asked, settled = config.threads, settle(config)
    require_compiler(settled.compile)
    require_background(settled)
    if fabric is None:
        config = _config_of(settled, folder, resume=resume, threads=asked)
        fabric = open_fabric(resolve_device(config.device), precision=config.precision)
    else:
        config = from_first_process(lambda: _config_of(settled, folder, resume=resume, threads=asked), fabric)
    run = Run.prepare(config, fabric=fabric)
    # Written out like the device: how far ahead batches are drawn is part of the result, and differs between loaders.
    config = replace(config, data=replace(config.data, prefetch_depth=loader_plan(run).prefetch_depth))
    run = replace(run, config=config)
    for warning in small_backgrounds(run.method, run.task, config.method):
        if fabric.is_global_zero:
            print(f"warning: {warning}", file=sys.stderr)
    digests = fingerprint(run.task)
    for rank, other in enumerate(of_every_process(digests, fabric)):
        if other != digests:
            differing = ", ".join(name for name in digests if other.get(name) != digests[name])
            raise ValueError(f"every process must have the same images, process {rank} has others in {differing}")
    summary = data_summary(config.data, run.task)

    def enter() -> None:
        if folder.data.exists():
            folder.require_same_data(digests)
        folder.write_config(config)
        folder.write_data(digests)
        folder.write_data_summary(summary)
        print(*summary_lines(summary), sep="\n", flush=True)

    from_first_process(enter, fabric)
    return run


def _config_of(config: RunConfig, folder: RunFolder, *, resume: bool, threads: int | None) -> RunConfig:
    """Return the configuration to run with, if the folder is one for it; what a kill has left in it is removed.

    Args:
        config: What is asked for, with everything written out.
        folder: The run's folder.
        resume: Go on with what the folder holds.
        threads: The number of threads that was asked for; None for none.
    """
    if resume and folder.config.exists():
        begun = folder.read_config()
        threads = threads_to_resume(threads, begun.threads, config.threads)
        config = replace(config, data=_loading_as_begun(config.data, begun.data), threads=threads)
        folder.require_same_config(config)
        remove_temporaries(folder.path)
        return config
    if resume:
        folder.require_empty()
        print(f"there is no run to resume in {folder.path}: it is begun", file=sys.stderr, flush=True)
    else:
        folder.require_absent()
    if "list" in config.data.kinds and config.data.list_root is None:
        config = replace(config, data=replace(config.data, list_root=Path.cwd()))
    return config


def _loading_as_begun(data: DataConfig, begun: DataConfig) -> DataConfig:
    """Return how to load images for a run that has begun.

    Any loader may go on with a run, for all give the same images; it draws as far ahead as the run began. Lists of
    files count from where they did then, too, and a root that nothing lies under is no difference.
    """
    depth = begun.prefetch_depth if data.prefetch_depth is None else data.prefetch_depth
    list_root = begun.list_root if data.list_root is None else data.list_root
    root = data.root if data.kinds & {"torchvision", "set"} else begun.root
    return replace(data, prefetch_depth=depth, list_root=list_root, root=root)


def complete(run: Run, folder: RunFolder, *, checkpoint_every: int = 200) -> dict[str, Any]:
    """Run every stage, judge every arm, and write what a run leaves.

    An arm whose training fails is named under "failed" in metrics.json, with the step and the reason; it costs no
    other arm.

    Returns:
        The contents of metrics.json; of several processes the first one judges, and the others return nothing.

    Raises:
        StageFailedError: If training fails in every arm.
        OSError: If the folder cannot be written.
        ValueError: If a file of the run is damaged.
        TrainingInterrupted: On Ctrl-C or SIGTERM; the run can be resumed.
    """
    train_stages(run, folder, checkpoint_every=checkpoint_every)
    run.fabric.barrier()
    # Judging may take long, and is for one process alone: nobody waits for it in a group that would lose patience.
    close_group()
    if not run.fabric.is_global_zero:
        return {}
    metrics, scores = run.judge(folder)
    end_session(folder.environment)
    run.write_results(folder, metrics, scores)
    return metrics
