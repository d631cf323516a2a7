"""The training loop: one step by hand, its modes, its streams, how it stops and goes on."""

import math
import re
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from fastood.data import Augment
from fastood.losses import OutlierExposureLoss
from fastood.models import Classifier, build_model
from fastood.samplers import BackgroundPool
from fastood.train.engine.adversarial import AdversarialBackground
from fastood.train.engine.background import SubsetBackground
from fastood.train.engine.checkpoint import CheckpointFolder
from fastood.train.engine.failure import NonFiniteLossError
from fastood.train.engine.image_stage import ImageStage, ImageStageRun
from fastood.train.engine.interrupt import TrainingInterrupted
from fastood.train.engine.loop import run_stage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import StageContext
from fastood.train.engine.stream import EpochStream
from tests.support.tiny_run import tiny_task

SCHEDULE = Schedule(epochs=2, learning_rate=0.05, decay_every=1, weight_decay=0.01)


def make_stage(background=None, *, schedule=SCHEDULE, alpha=0.5, **options) -> ImageStage:
    loss = OutlierExposureLoss(weight=alpha, reduction="mean")
    options = {"name": "stage", "rng_name": "stage", "batch_size": 16, "build_model": small_cnn} | options
    return ImageStage(schedule=schedule, objective=lambda: LogitObjective(loss), background=background, **options)


def small_cnn(dropout: float = 0.0) -> Classifier:
    return build_model(
        "small-cnn",
        num_classes=4,
        in_channels=1,
        image_size=8,
        dropout=dropout,
        generator=torch.Generator().manual_seed(5),
    )


def start(stage: ImageStage, *, dropout: float = 0.0) -> ImageStageRun:
    model = small_cnn(dropout)
    fabric = Fabric(accelerator="cpu", devices=1)
    context = StageContext(task=tiny_task(), augment=Augment(padding=0), seed=0, fabric=fabric)
    return stage.begin(model, context)


def adversarial(pool: BackgroundPool, *, learning_rate: float = 100.0):
    return lambda context: AdversarialBackground(
        pool, batch_size=24, learning_rate=learning_rate, generator=torch.Generator().manual_seed(1)
    )


def subset(count: int = 40, batch_size: int = 16):
    return lambda context: SubsetBackground(
        torch.arange(count), batch_size=batch_size, generator=torch.Generator().manual_seed(1)
    )


def run(stage_run: ImageStageRun, folder: Path, *, checkpoint_every: int = 5) -> None:
    run_stage(
        stage_run,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        checkpoint_every=checkpoint_every,
        tensorboard_folder=folder / "tensorboard",
    )


class RecordingBackground(AdversarialBackground):
    """Remembers its last draw and the importance it gave."""

    def draw(self):
        self.drawn = super().draw()
        return self.drawn

    def importance(self, index):
        self.given = super().importance(index)
        return self.given


def test_reweighting_is_algorithm_1_with_autograd_over_every_weight():
    """Network and pool against plain autograd of the formulas: eq. 4, 5, supplementary eq. 10 and 12."""
    epsilon, alpha, eta_w = 0.5, 0.7, 100.0
    pool = BackgroundPool(160, epsilon=epsilon, momentum=0.9)
    source = RecordingBackground(pool, batch_size=24, learning_rate=eta_w, generator=torch.Generator())
    actual = start(make_stage(lambda context: source, alpha=alpha, batch_norm="eval"))
    images, background = actual.task.id_train, actual.task.background

    model = start(make_stage()).model.double().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    omega = pool.state_dict()["omega"].double().requires_grad_()
    weight_optimizer = torch.optim.SGD([omega], lr=eta_w, momentum=0.9, maximize=True)
    order = EpochStream(len(images), 16, torch.Generator())
    order.load_state_dict(actual.order.state_dict())

    for _ in range(5):
        loss = actual.train_step()

        id_index, index, importance = order.next(), source.drawn.index, source.given
        w = F.softplus(omega)
        r = w.pow(epsilon).sum() / w.sum() * w[index].pow(1 - epsilon)
        torch.testing.assert_close(r.float(), importance, rtol=1e-4, atol=1e-6)
        pixels = torch.cat([images.images[id_index], background.images[index]]).double()
        log_f = model((pixels / 255 - 0.5) / 0.25).log_softmax(dim=1)
        l_in = -log_f[torch.arange(16), images.labels[id_index]].mean()
        l_uni = -log_f[16:].mean(dim=1) - math.log(4)
        assert loss == pytest.approx((l_in + alpha * (r * l_uni).mean()).item(), rel=1e-4)

        optimizer.zero_grad()
        (l_in + alpha * (r.detach() * l_uni).mean()).backward()
        weight_optimizer.zero_grad()
        (r * l_uni.detach()).mean().backward()
        optimizer.step()
        weight_optimizer.step()

    moved = pool.state_dict()["omega"].double()
    assert (moved - moved.mean()).abs().max() > 0.1
    torch.testing.assert_close(moved, omega.detach(), rtol=1e-3, atol=1e-4)
    for expected, parameter in zip(model.parameters(), actual.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-3, atol=1e-5)


def test_learning_rate_follows_the_schedule(tmp_path: Path):
    stage_run = start(make_stage())
    rates = []
    for _ in range(stage_run.total_steps):
        stage_run.train_step()
        rates.append(stage_run.optimizer.param_groups[0]["lr"])
    assert rates == [0.05] * 6 + [pytest.approx(0.005)] * 6


def test_batch_norm_in_eval_mode_keeps_its_statistics(tmp_path: Path):
    for mode, kept in [("eval", True), ("train", False)]:
        stage_run = start(make_stage(subset(), batch_norm=mode))
        before = {name: value.clone() for name, value in stage_run.model.named_buffers()}
        weight = stage_run.model.body[1].weight.detach().clone()
        run(stage_run, tmp_path / mode)
        same = [torch.equal(value, before[name]) for name, value in stage_run.model.named_buffers()]
        assert all(same) if kept else not any(same)
        assert not torch.equal(stage_run.model.body[1].weight, weight), "its scale still learns"


def test_dropout_can_be_off_while_training():
    assert not start(make_stage(dropout=False), dropout=0.5).model.dropout.training
    assert start(make_stage(), dropout=0.5).model.dropout.training


def test_global_random_state_is_left_alone(tmp_path: Path):
    before = torch.get_rng_state()
    run(start(make_stage(), dropout=0.5), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_stream_goes_on_in_the_middle_of_an_epoch():
    stream = EpochStream(10, 3, torch.Generator().manual_seed(0))
    for _ in range(5):
        stream.next()
    state = stream.state_dict()
    ahead = [stream.next().tolist() for _ in range(7)]
    other = EpochStream(10, 3, torch.Generator().manual_seed(9))
    other.load_state_dict(state)
    assert [other.next().tolist() for _ in range(7)] == ahead


def test_stream_covers_an_epoch_without_repetition():
    stream = EpochStream(7, 3, torch.Generator().manual_seed(0))
    epochs = [torch.cat([stream.next(), stream.next()]) for _ in range(20)]
    assert all(len(epoch.unique()) == 6 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1
    assert len(EpochStream(2, 3, torch.Generator()).next()) == 2, "a small set is one batch"


@pytest.mark.parametrize("make_background", [None, subset, lambda: adversarial(BackgroundPool(160))])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_stage_goes_on_as_if_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_background, number: signal.Signals
):
    def fresh() -> ImageStageRun:
        stage = make_stage(None if make_background is None else make_background())
        return start(stage, dropout=0.5)

    whole = fresh()
    run(whole, tmp_path / "whole")
    broken = fresh()
    step = broken.train_step

    def signalled() -> float:
        if broken.step == 6:
            signal.raise_signal(number)
        return step()

    monkeypatch.setattr(broken, "train_step", signalled)
    with pytest.raises(TrainingInterrupted, match="stopped in stage 'stage' after step 7"):
        run(broken, tmp_path / "broken")
    resumed = fresh()
    run(resumed, tmp_path / "broken")
    assert resumed.step == whole.step == 12
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    if whole.background is not None and isinstance(whole.background, AdversarialBackground):
        assert torch.equal(resumed.background.pool.weights, whole.background.pool.weights)


@pytest.mark.parametrize("moment", ["last checkpoint", "finished stage"])
def test_a_signal_at_the_end_of_a_stage_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    if moment == "finished stage":
        run(start(make_stage()), tmp_path)
    name = "save" if moment == "last checkpoint" else "load"
    original = getattr(CheckpointFolder, name)

    def signalled(*args: object) -> object:
        if name == "load" or args[2]["step"] == 12:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(CheckpointFolder, name, signalled)
    with pytest.raises(TrainingInterrupted, match="after step 12"):
        run(start(make_stage()), tmp_path)
    assert (tmp_path / "checkpoints" / "stage.pt").exists()


def test_a_checkpoint_of_another_length_or_damaged_is_refused(tmp_path: Path):
    longer = start(make_stage(schedule=Schedule(epochs=3, learning_rate=0.05)))
    with pytest.raises(ValueError, match="stage 'stage' must be of 12 steps, got 18"):
        start(make_stage()).load_state_dict(longer.state_dict())
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save("stage", longer.state_dict())
    whole = checkpoints.path("stage").read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        checkpoints.path("stage").write_bytes(content)
        with pytest.raises(ValueError, match=r"stage\.pt is damaged"):
            checkpoints.load("stage")


@pytest.mark.parametrize("ahead", [1, 4])
def test_draws_ahead_do_not_see_the_steps_between(ahead: int):
    def drawn(losses: float) -> list[list[int]]:
        source = AdversarialBackground(
            BackgroundPool(160),
            batch_size=8,
            learning_rate=100.0,
            generator=torch.Generator().manual_seed(1),
            batches_ahead=ahead,
        )
        batches = []
        for _ in range(8):
            batches.append(source.draw().index.tolist())
            source.observe(torch.arange(8), torch.full((8,), losses))
        return batches

    quiet, moved = drawn(0.0), drawn(50.0)
    assert quiet[:ahead] == moved[:ahead]
    assert quiet[ahead] != moved[ahead]


def test_draws_ahead_go_on_where_they_were_saved():
    def fresh(seed: int) -> AdversarialBackground:
        generator = torch.Generator().manual_seed(seed)
        return AdversarialBackground(
            BackgroundPool(160), batch_size=8, learning_rate=100.0, generator=generator, batches_ahead=4
        )

    whole, resumed = fresh(1), fresh(2)
    whole.draw()
    resumed.load_state_dict(whole.state_dict())
    assert [whole.draw().index.tolist() for _ in range(6)] == [resumed.draw().index.tolist() for _ in range(6)]


def test_a_finished_stage_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = start(make_stage())
    run(whole, tmp_path)
    # A kill came between the last checkpoint and the removal of the slices of the one before.
    (tmp_path / "checkpoints" / "stage.slices-000000005").mkdir()
    again = start(make_stage())
    monkeypatch.setattr(again, "train_step", lambda: pytest.fail("ran again"))
    run(again, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["stage.pt"]
    assert torch.equal(again.model.head.weight, whole.model.head.weight)


def test_divergence_names_step_images_and_checkpoint(tmp_path: Path):
    pool = BackgroundPool(160)
    schedule = Schedule(epochs=2, learning_rate=1e30)
    stage_run = start(make_stage(adversarial(pool), schedule=schedule, batch_norm="eval"))
    with pytest.raises(NonFiniteLossError) as caught:
        run(stage_run, tmp_path)
    message = str(caught.value)
    assert f"stage 'stage', step {stage_run.step} of 12: the loss is" in message
    drawn = r"\d+, \d+, \d+ and {} more"
    assert re.search(f"in-distribution images {drawn.format(13)}; background images {drawn.format(21)};", message)
    assert "no checkpoint yet" in message
    assert pool.weights.isfinite().all()


def test_divergence_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stage_run = start(make_stage())
    step = stage_run.train_step

    def poisoned() -> float:
        loss = step()
        if stage_run.step == 10:
            stage_run.model.head.bias.data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(stage_run, "train_step", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"head\.bias is not finite; the last good checkpoint is .*stage\.pt"):
        run(stage_run, tmp_path)
    saved = CheckpointFolder(tmp_path / "checkpoints").load("stage")
    assert saved["step"] == 5
    assert saved["model"]["head.bias"].isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("weight_decay", math.inf),
        ("decay_every", 0),
        ("decay_factor", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
    ],
)
def test_schedule_errors_name_the_field(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field} must be .*got {value}"):
        Schedule(**({"epochs": 1, "learning_rate": 0.1} | {field: value}))
