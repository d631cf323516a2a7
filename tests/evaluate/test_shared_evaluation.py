"""Evaluation by 1, 2 and 3 processes: equal bytes, equal parts of the work, and errors on all of them."""

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import fastood.evaluate.detector_scores as scoring
import fastood.train.trained_network as networks
from fastood.data import Augment
from fastood.evaluate import cli as evaluate
from fastood.models import ModelConfig
from fastood.train import cli as train
from fastood.train.engine.group import Group
from fastood.train.engine.processes import open_fabric, without_group
from fastood.train.methods import METHODS
from fastood.train.results.scoring import score_arm
from fastood.train.trained_network import TrainedNetwork
from tests.support.tiny_run import tiny_data_args, tiny_task
from tests.train.engine.test_processes import FORKSERVER

PROCESSES = 3
BATCH, CHUNK = 7, 16
WRITTEN = ("metrics.json", "scores.safetensors", "detectors.json", "features/msp.safetensors")
DETECTORS = ("msp", "klm", "knn", "vim", "she", "mahalanobis", "odin")
FITTING = ("godin", "aec", "reject", "bal", "deep-svdd", "gcpl")
"""Methods whose scorers are more than a function of logits: they fit, move inputs, or read features."""


@contextmanager
def group_of(world_size: int, rank: int, port: int) -> Iterator[None]:
    """Set what torchrun would set; a group of one process is none."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    values |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items() if world_size > 1 else ():
            patch.setenv(name, str(value))
        yield


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Write standard output and errors to files."""
    with (
        path.with_suffix(".out").open("w") as out,
        path.with_suffix(".err").open("w") as errors,
        redirect_stdout(out),
        redirect_stderr(errors),
    ):
        yield


def scores_of_arms(rank: int, folder: Path) -> None:
    """Score every arm of some methods, with initial weights, alone and together with the others."""
    with Group.join():
        fabric = open_fabric("cpu", precision="32-true")
        assert fabric.world_size == PROCESSES
        alone = without_group(fabric, precision="32-true")
        equal = {}
        for name in FITTING:
            config = METHODS[name].embedded()
            method = config.build(ModelConfig(name="small-cnn"), task=tiny_task(), seed=0)
            stages = {stage.name: stage for stage in method.stages}
            for arm in method.arms[:3]:
                model = stages[arm.stage].build_model()
                found = []
                for shared_by in (fabric, None):
                    network = TrainedNetwork(model, augment=Augment(), fabric=alone, shared_by=shared_by)
                    scores = score_arm(network, arm, tiny_task())
                    found.append([scores.id_scores, scores.correct, *scores.ood_scores.values()])
                equal[f"{name}/{arm.name}"] = all(map(torch.equal, *found))
    (folder / f"arms-{rank}.json").write_text(json.dumps(equal))


def evaluate_in_turns(rank: int, ports: list[int], finished: Path, folder: Path) -> None:
    """One of three processes: evaluate a copy of the run with 3, then 2, then 1 of them, in small batches."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    patch.setattr("fastood.evaluate.printing.detectors_figure", lambda document: None)
    patch.setattr("fastood.evaluate.printing.png", lambda figure: b"")
    patch.setattr(networks, "BATCH_SIZE", BATCH)
    patch.setattr(scoring, "CHUNK_ROWS", CHUNK)
    batches: list[int] = []
    normalize = Augment.normalize

    def counted(augment: Augment, images: torch.Tensor) -> torch.Tensor:
        batches.append(len(images))
        return normalize(augment, images)

    def unreadable(augment: Augment, images: torch.Tensor) -> torch.Tensor:
        raise ValueError("image 3 is unreadable")

    def stopped(augment: Augment, images: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    patch.setattr(Augment, "normalize", counted)
    with group_of(PROCESSES, rank, ports[0]):
        scores_of_arms(rank, folder)
    for world_size in (3, 2, 1):
        if rank >= world_size:
            break
        run = folder / str(world_size)
        found: dict[str, Any] = {"codes": [], "batches": []}
        for place, (name, options) in enumerate((("own", ()), ("detectors", ("--detectors", *DETECTORS)))):
            # A store that the first process has not closed yet must not be joined again.
            port = ports[2 * world_size + place]
            batches.clear()
            with group_of(world_size, rank, port), printing_to(folder / f"{name}-{world_size}-{rank}"):
                found["codes"].append(evaluate.main([str(run), "--write", *options]))
            found["batches"].append(len(batches))
        (folder / f"{world_size}-{rank}.json").write_text(json.dumps(found))
    if rank < 2:
        patch.setattr(Augment, "normalize", unreadable if rank == 1 else normalize)
        with group_of(2, rank, ports[1]), printing_to(folder / f"broken-{rank}"):
            (folder / f"broken-{rank}.json").write_text(json.dumps(evaluate.main([str(finished), "--write"])))
        patch.setattr(Augment, "normalize", stopped if rank == 1 else normalize)
        with group_of(2, rank, ports[8]), printing_to(folder / f"stopped-{rank}"):
            (folder / f"stopped-{rank}.json").write_text(json.dumps(evaluate.main([str(finished), "--write"])))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of seconds."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
        assert train.main(["msp", *tiny_data_args(folder), "--method.training.epochs", "2"]) == 0
    return folder / "runs" / "run"


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a copy of the run for each number of processes that has evaluated it."""
    folder = tmp_path_factory.mktemp("shared")
    for world_size in (1, 2, 3):
        shutil.copytree(finished, folder / str(world_size))
    sockets = [socket.socket() for _ in range(9)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    group = [
        FORKSERVER.Process(target=evaluate_in_turns, args=(rank, ports, finished, folder)) for rank in range(PROCESSES)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(timeout=240)
    assert [process.exitcode for process in group] == [0] * PROCESSES, (folder / "own-3-0.err").read_text()
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_writes_the_bytes_of_one(folder: Path, world_size: int) -> None:
    for name in WRITTEN:
        assert (folder / str(world_size) / name).read_bytes() == (folder / "1" / name).read_bytes(), name
    for rank in range(world_size):
        assert read(folder / f"{world_size}-{rank}.json")["codes"] == [0, 0]
        for name in ("own", "detectors"):
            printed, alone = (
                (folder / f"{name}-{those}.out").read_text().splitlines() for those in (f"{world_size}-{rank}", "1-0")
            )
            # Every process but the first is silent; the last line names the files.
            assert printed[:-1] == (alone[:-1] if rank == 0 else [])
            assert bool(printed) == (rank == 0)


def test_each_process_computes_its_share_of_the_batches(folder: Path) -> None:
    """Of 32, 40 and 40 test images, and of 32 that are observed for warnings: 5, 6, 6 and 5 batches."""
    batches = {
        world_size: [read(folder / f"{world_size}-{rank}.json")["batches"][0] for rank in range(world_size)]
        for world_size in (1, 2, 3)
    }
    assert batches == {1: [22], 2: [12, 10], 3: [8, 8, 6]}


def test_arms_that_fit_or_move_inputs_score_as_one_process(folder: Path) -> None:
    for rank in range(PROCESSES):
        equal = read(folder / f"arms-{rank}.json")
        assert {name.split("/")[0] for name in equal} == set(FITTING)
        assert all(equal.values()), equal


def test_an_error_of_one_process_is_one_of_all(finished: Path, folder: Path) -> None:
    for rank in range(2):
        assert read(folder / f"broken-{rank}.json") == 1
        assert "error: image 3 is unreadable" in (folder / f"broken-{rank}.err").read_text()
    assert (finished / "metrics.json").read_bytes() == (folder / "1" / "metrics.json").read_bytes()


def test_a_process_that_is_stopped_ends_the_others(folder: Path) -> None:
    assert [read(folder / f"stopped-{rank}.json") for rank in range(2)] == [1, 130]
    assert "has failed: it was stopped" in (folder / "stopped-0.err").read_text()
    assert "stopped; nothing was written" in (folder / "stopped-1.err").read_text()
