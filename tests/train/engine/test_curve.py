"""Training curves: what they hold, lines in a log, and the same entries after a stop."""

import json
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastood.train.engine.checkpoint import CheckpointFolder
from fastood.train.engine.curve import Curve, read_curves, write_curve
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.engine.interrupt import TrainingInterrupted
from fastood.train.engine.loop import run_stage
from fastood.train.engine.training_accuracy import AccuracyCounter
from tests.train.engine.test_loop import make_stage, start, subset


def run(stage_run: ImageStageRun, folder: Path, *, checkpoint_every: int = 5) -> None:
    run_stage(
        stage_run,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        checkpoint_every=checkpoint_every,
        tensorboard_folder=folder / "tensorboard",
        curves=folder / "curves.json",
    )


def test_an_entry_is_the_mean_loss_and_the_accuracy_of_its_epoch(tmp_path: Path):
    """Against the same steps by hand, with logits of the very batches."""
    by_hand = start(make_stage(subset()))
    hits: list[torch.Tensor] = []
    by_hand.model.register_forward_hook(lambda module, inputs, logits: hits.append(logits[:16].argmax(1)))
    losses = [float(by_hand.train_step()) for _ in range(12)]
    labels = torch.cat([by_hand.task.id_train.labels[index] for index in _order(12)])
    right = (torch.cat(hits) == labels).view(2, -1).double().mean(dim=1).tolist()

    run(start(make_stage(subset())), tmp_path)
    entries = read_curves(tmp_path / "curves.json")["stage"]
    assert [entry["step"] for entry in entries] == [6, 12]
    assert [entry["epoch"] for entry in entries] == [1, 2]
    assert [entry["loss"] for entry in entries] == [sum(losses[:6]) / 6, sum(losses[6:]) / 6]
    assert [entry["accuracy"] for entry in entries] == pytest.approx(right)
    assert [entry["learning_rate"] for entry in entries] == pytest.approx([0.05, 0.005])
    written = EventAccumulator(str(tmp_path / "tensorboard" / "stage")).Reload().Scalars("training_accuracy")
    assert [(event.step, event.value) for event in written] == [
        (6, pytest.approx(right[0])),
        (12, pytest.approx(right[1])),
    ]


def _order(steps: int) -> list[torch.Tensor]:
    """In-distribution images of the first steps of the stage."""
    stream = start(make_stage(subset())).order
    return [stream.next() for _ in range(steps)]


@pytest.mark.parametrize("stop_after", [4, 6, 7])
def test_entries_are_the_same_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int):
    run(start(make_stage(subset())), tmp_path / "whole")
    broken = start(make_stage(subset()))
    step = broken.train_step

    def signalled() -> float:
        if broken.step == stop_after - 1:
            signal.raise_signal(signal.SIGINT)
        return step()

    monkeypatch.setattr(broken, "train_step", signalled)
    with pytest.raises(TrainingInterrupted):
        run(broken, tmp_path / "broken")
    run(start(make_stage(subset())), tmp_path / "broken")
    assert (tmp_path / "broken" / "curves.json").read_bytes() == (tmp_path / "whole" / "curves.json").read_bytes()
    # A kill between the last checkpoint and the file.
    (tmp_path / "broken" / "curves.json").unlink()
    run(start(make_stage(subset())), tmp_path / "broken")
    assert (tmp_path / "broken" / "curves.json").read_bytes() == (tmp_path / "whole" / "curves.json").read_bytes()


def test_a_log_has_a_line_per_epoch_and_no_carriage_return(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(start(make_stage(subset())), tmp_path)
    said = capsys.readouterr()
    assert "\r" not in said.out + said.err
    lines = said.out.splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines, 1):
        for part in (f"stage: epoch {epoch}/2", f"step {6 * epoch}/12", "loss ", "training accuracy", "images/s"):
            assert part in line
    assert "learning rate 0.05" in lines[0]
    assert "learning rate 0.005" in lines[1]


def test_a_terminal_has_a_bar_and_no_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fastood.train.engine.progress.on_terminal", lambda: True)
    run(start(make_stage(subset())), tmp_path)
    said = capsys.readouterr()
    assert said.out == ""
    assert "stage:" in said.err
    assert "12/12" in said.err


def test_a_stage_without_epochs_is_cut_into_parts():
    curve = Curve(None, 50)
    for step in range(1, 51):
        curve.add(loss=float(step))
        if curve.ends_at(step):
            curve.close(step, learning_rate=None)
    assert [entry["step"] for entry in curve.entries] == [*range(3, 50, 3), 50]
    assert curve.entries[0] == {"epoch": None, "step": 3, "loss": 2.0, "accuracy": None, "learning_rate": None}


def test_answers_leave_out_reject_classes_and_distances():
    counter = AccuracyCounter(2)
    rejects = torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 9.0], [5.0, 0.0, 0.0]])
    counter.counting(lambda images: images, torch.tensor([1, 1]))(rejects)
    assert counter.take().tolist() == [1, 2]
    counter.counting(lambda images: images, torch.tensor([0, 0]))(torch.tensor([1.0, 2.0]))
    assert counter.take().tolist() == [0, 0]


def test_a_damaged_file_of_curves_is_begun_anew(tmp_path: Path):
    path = tmp_path / "curves.json"
    stages = ("5", '{"a": 3}', '{"a": [1]}', '{"a": [{"epoch": 1}]}', '{"a": [{"step": 1, "loss": "low", "epoch": 1}]}')
    damaged = [f'{{"schema": 1, "stages": {part}}}' for part in stages]
    for content in ("", "[]", '{"schema": 1}', '{"schema": 0, "stages": {"a": []}}', *damaged):
        path.write_text(content)
        assert read_curves(path) == {}
    entry = {"epoch": 1, "step": 2, "loss": 0.5, "accuracy": None, "learning_rate": 0.1}
    write_curve(path, "b", [entry])
    write_curve(path, "a", [entry])
    assert list(json.loads(path.read_text())["stages"]) == ["b", "a"]
