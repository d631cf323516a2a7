"""Train a classifier that knows what it does not know: `python -m fastood.train`."""

import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import tyro
from torch import Tensor

from fastood.config import PRESETS, RunConfig
from fastood.data import DataConfig
from fastood.data.loaders import EncodedImages, LoaderPlan, plan_loader
from fastood.data.summary import data_summary, summary_lines
from fastood.environment import begin_session, end_session
from fastood.methods import METHODS, PresetName
from fastood.names import expanded
from fastood.recipe import read_recipe
from fastood.run_folder import RunFolder, fingerprint
from fastood.runner import Run, print_table, require_background, settle
from fastood.threads import threads_to_resume
from fastood.training.acceleration import require_compiler
from fastood.training.failure import NonFiniteLossError
from fastood.training.loop import run_stage
from fastood.training.method import StageContext
from fastood.training.processes import launched_processes


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a method's arms, judge them side by side, and write a report.

    Without options it needs no download and takes a minute or two on two CPU cores. A run leaves its configuration,
    metrics.json, scores, weights, TensorBoard curves and report.html in OUT/NAME.

    Several GPUs, or CPU processes, share every batch and train what one would:
    torchrun --nproc-per-node 2 -m fastood.train METHOD --name NAME.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """What decides the result."""
    method: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="{" + ",".join(METHODS) + "}",
            help="Comes first, and decides which --method options there are; METHOD --help shows them.\n"
            + "\n".join(f"{name}: {method.summary}." for name, method in METHODS.items()),
        ),
    ] = "resample"
    recipe: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """A recipe, by file or name, or config.yaml of a run: its fields are the defaults, beside the options given here.
    What it leaves open is of the preset paper, unless --preset says otherwise."""
    name: str | None = None
    """Name of the run; by default that of the recipe, or the method and the preset, and the time."""
    out: Path = Path("runs")
    """Folder that holds runs."""
    checkpoint_every: int = 200
    """Training steps between two checkpoints; every stage ends with one."""
    resume: bool = False
    """Go on with the run of this name, stopped at any moment, to the result that it would have had.
    A run that does not exist yet is begun, so that one command can be repeated until it is through."""
    preset: PresetName = "embedded"
    """Where the defaults shown here come from.
    embedded: images that need no download, a small network, the paper's schedule.
    paper: the wide residual network and 32×32 images with flips of the method's paper; name the images with --data."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {self.checkpoint_every}")


def begin(config: RunConfig, folder: RunFolder, *, resume: bool = False) -> Run:
    """Check everything that can be checked before the work, and open the run folder.

    Args:
        config: What to run.
        folder: Where it goes.
        resume: Go on with what the folder holds; begin if that is nothing yet.

    Raises:
        FileExistsError: If the folder exists and `resume` is false, or holds files but no run to resume.
        FileNotFoundError: If data is missing.
        ValueError: If the configuration is out of range or wants what this machine lacks, or it or the images are not
            those of the run to resume.
    """
    asked, config = config.threads, settle(config)
    require_compiler(config.compile)
    require_background(config)
    if resume and folder.config.exists():
        begun = folder.read_config()
        threads = threads_to_resume(asked, begun.threads, config.threads)
        config = replace(config, data=_loading_as_begun(config.data, begun.data), threads=threads)
    elif "list" in config.data.kinds and config.data.list_root is None:
        config = replace(config, data=replace(config.data, list_root=Path.cwd()))
    if not resume:
        folder.require_absent()
    elif folder.config.exists():
        folder.require_same_config(config)
    else:
        folder.require_empty()
    run = Run.prepare(config)
    # Written out like the device: how far ahead batches are drawn is part of the result, and differs between loaders.
    config = replace(config, data=replace(config.data, prefetch_depth=loader_plan(run).prefetch_depth))
    run = replace(run, config=config)
    digests = fingerprint(run.task)
    if folder.data.exists():
        folder.require_same_data(digests)
    summary = data_summary(config.data, run.task)
    # By now every process has found the folder as it was.
    run.fabric.barrier()
    if run.fabric.is_global_zero:
        folder.write_config(config)
        folder.write_data(digests)
        folder.write_data_summary(summary)
        print(*summary_lines(summary), sep="\n", flush=True)
    return run


def _loading_as_begun(data: DataConfig, begun: DataConfig) -> DataConfig:
    """Any loader may go on with a run, for all give the same images; it draws as far ahead as the run began.

    Lists of files count from where they did then, too, and a root that nothing lies under is no difference.
    """
    depth = begun.prefetch_depth if data.prefetch_depth is None else data.prefetch_depth
    list_root = begun.list_root if data.list_root is None else data.list_root
    root = data.root if data.kinds & {"torchvision", "set"} else begun.root
    return replace(data, prefetch_depth=depth, list_root=list_root, root=root)


def loader_plan(run: Run) -> LoaderPlan:
    """How a run's training images get to its device.

    Raises:
        ValueError: If DALI is asked for and not installed, or resident for images that are decoded as they are used.
    """
    images = (run.task.id_train.images, run.task.background.images)
    data = run.config.data
    return plan_loader(
        data.loader,
        data.prefetch_depth,
        image_bytes=sum(part.nbytes for part in images),
        device=run.fabric.device,
        encoded=any(isinstance(part, EncodedImages) for part in images),
    )


def complete(run: Run, folder: RunFolder, *, checkpoint_every: int = 200) -> dict[str, Any]:
    """Run every stage, judge every arm, and write what a run leaves.

    Returns:
        The contents of metrics.json; of several processes the first one judges, and the others return nothing.

    Raises:
        NonFiniteLossError: If training diverges.
        ValueError: If γ of the learnt weights selects no image, or a checkpoint is damaged.
        TrainingInterrupted: On Ctrl-C or SIGTERM; the run can be resumed.
    """
    train_stages(run, folder, checkpoint_every=checkpoint_every)
    if not run.fabric.is_global_zero:
        return {}
    metrics, scores = run.judge(folder)
    end_session(folder.environment)
    run.write_results(folder, metrics, scores)
    return metrics


def train_stages(run: Run, folder: RunFolder, *, checkpoint_every: int) -> None:
    """Run the method's stages, each from its checkpoint if it has one, and store weights and pool."""

    def final_weights(stage: str) -> dict[str, Tensor]:
        state = folder.checkpoints.load(stage)
        assert state is not None, f"stage {stage!r} has not run"
        weights: dict[str, Tensor] = state["model"]
        return weights

    loading = loader_plan(run)
    run.fabric.print(loading, flush=True)
    config = run.config
    context = StageContext(
        task=run.task,
        augment=config.augment,
        seed=config.seed,
        fabric=run.fabric,
        precision=config.precision,
        loading=loading,
        channels_last=config.channels_last,
        compile=config.compile,
        ema_decay=config.ema_decay,
    )
    for stage in run.method.stages:
        model = stage.build_model()
        # A checkpoint of the stage itself holds all that it began with.
        if stage.start_from is not None and not folder.checkpoints.path(stage.name).exists():
            stage.take_over(model, final_weights(stage.start_from), run.embed)
        run_stage(
            stage.begin(model, context),
            checkpoints=folder.checkpoints,
            checkpoint_every=checkpoint_every,
            tensorboard_folder=folder.tensorboard,
            curves=folder.curves,
        )
    if not run.fabric.is_global_zero:
        return
    for arm in run.method.arms:
        folder.write_weights(arm.name, final_weights(arm.stage))
    if (learnt := run.method.learnt_pool) is not None:
        state = {**learnt.pool.state_dict(), "effective_sample_sizes": learnt.effective_sample_sizes}
        folder.write_pool(state, background=run.task.background.sha256())


def parse_command(args: Sequence[str]) -> Command:
    """Read the command line; recipe and preset decide every default that is not given.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If there is no method of this name, or the recipe is of another or cannot be read.

    Example:
        >>> command = parse_command(["ice", "--preset", "paper", "--seed", "3"])
        >>> command.config.model.name, command.config.seed
        ('wrn-34-10', 3)
    """
    method = args[0] if args and not args[0].startswith("-") else None
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    recipe, preset = _given("config", args), _given("preset", args)
    if preset not in (None, *get_args(PresetName)):
        raise ValueError(f"preset must be one of {', '.join(get_args(PresetName))}, got {preset!r}")
    if recipe is None:
        config = PRESETS[method or "resample", cast(PresetName, preset or "embedded")]
    else:
        config = read_recipe(expanded(Path(recipe)), preset=cast(PresetName, preset or "paper"))
    if method not in (None, config.method.name):
        raise ValueError(f"method must be that of the recipe {recipe}, {config.method.name}, got {method}")
    return tyro.cli(
        Command,
        args=args,
        prog="python -m fastood.train",
        default=Command(
            config=config,
            method=config.method.name,
            preset=cast(PresetName, preset or ("embedded" if recipe is None else "paper")),
        ),
        # The default decides which method's options there are.
        config=(tyro.conf.AvoidSubcommands,),
    )


def _given(option: str, args: Sequence[str]) -> str | None:
    """The value of an option on the command line, the last one if there are several."""
    found = [value for name, value in itertools.pairwise(args) if name == f"--{option}"]
    found += [arg.partition("=")[2] for arg in args if arg.startswith(f"--{option}=")]
    return found[-1] if found else None


def check_command(command: Command) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: If they do not.
    """
    if command.resume and command.name is None:
        raise ValueError("resume needs the name of a run: --name NAME --resume")
    if command.name is None and launched_processes() > 1:
        raise ValueError("several processes need the name of the run that they share: --name NAME")
    if command.name is not None and (command.name in ("", "..") or Path(command.name).name != command.name):
        raise ValueError(f"name must be a plain folder name inside --out, got {command.name!r}")
    if not isinstance(command.config.method, METHODS[command.method]):
        raise ValueError(f"the method must come before every option: python -m fastood.train {command.method} …")
    if command.recipe is None and command.preset == "paper" and command.config.data.in_dist == "embedded":
        raise ValueError(
            "preset paper wants images of your own, --data.in-dist, --data.background and --data.ood: "
            "its flips and its wide network are not for the embedded digits"
        )


def main(args: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0 at the end of a run, 1 after an error, 130 if stopped by Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    began = time.monotonic()
    try:
        command = parse_command(args)
        check_command(command)
        kind = f"{command.method}-{command.preset}" if command.recipe is None else command.recipe.stem
        name = command.name or f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = RunFolder(expanded(command.out) / name)
        run = begin(command.config, folder, resume=command.resume)
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped before training began", file=sys.stderr)
        return 130
    run.fabric.print(f"run folder: {folder.path}", flush=True)
    try:
        if run.fabric.is_global_zero:
            line = shlex.join(["python", "-m", "fastood.train", *args])
            device, processes = run.fabric.device.type, run.fabric.world_size
            begin_session(folder.environment, command=line, device=device, processes=processes)
        metrics = complete(run, folder, checkpoint_every=command.checkpoint_every)
    except (NonFiniteLossError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        options = [option for option in args if option != "--resume"]
        named = [] if command.name else ["--name", name]
        again = shlex.join(["python", "-m", "fastood.train", *options, *named, "--resume"])
        print(f"{stopped or 'stopped'}\ngo on with: {again}", file=sys.stderr)
        return 130
    if not run.fabric.is_global_zero:
        return 0
    print_table(metrics)
    print(f"report: {folder.path / 'report.html'}")
    print(f"total: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
