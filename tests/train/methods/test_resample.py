"""Background resampling: its stages, arms and selection, and the paper's hyper-parameters."""

from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric

from fastood.common.seeding import named_generator
from fastood.data import Augment
from fastood.models import ModelConfig
from fastood.scores import max_softmax_score
from fastood.train.engine.failure import StageFailedError
from fastood.train.engine.objective import Batch
from fastood.train.engine.stage import StageContext
from fastood.train.engine.stage_batches import StepImages
from fastood.train.methods.resample import Resample, ResampleConfig
from tests.support.tiny_run import tiny_task

SMALL = ModelConfig(name="small-cnn", dropout=0.0)


def method(seed: int = 0, **options: float) -> Resample:
    config = ResampleConfig(**({"sample_rate": 0.3} | options))
    return Resample(config, model=SMALL, task=tiny_task(), seed=seed)


def test_defaults_are_the_papers():
    config = ResampleConfig()
    assert (config.pretrain.epochs, config.pretrain.learning_rate, config.pretrain.decay_every) == (100, 0.1, 30)
    assert (config.finetune.epochs, config.finetune.learning_rate, config.finetune.decay_every) == (50, 0.001, 30)
    assert (config.reweight.learning_rate, config.weight_learning_rate) == (0.001, 100)
    for schedule in (config.pretrain, config.reweight, config.finetune):
        assert (schedule.momentum, schedule.weight_decay, schedule.decay_factor) == (0.9, 5e-4, 0.1)
    assert (config.sample_rate, config.epsilon, config.outlier_weight) == (0.1, 0.5, 0.5)
    assert (config.batch_size, config.background_batch_size) == (128, 128)
    assert (ModelConfig().name, ModelConfig().dropout_rate) == ("wrn-40-4", 0.3)


def test_every_arm_starts_from_pretraining_and_takes_the_same_steps():
    resample = method()
    pretrain, reweight, *finetunes = resample.stages
    assert pretrain.start_from is None
    assert pretrain.background is None
    assert [arm.stage for arm in resample.arms] == [stage.name for stage in finetunes]
    assert [arm.name for arm in resample.arms] == ["none", "random", "resampled", "full"]
    assert {stage.start_from for stage in (reweight, *finetunes)} == {"pretrain"}
    assert {stage.schedule for stage in finetunes} == {resample.config.finetune}
    assert [stage.background is None for stage in finetunes] == [True, False, False, False]


def on_cpu() -> StageContext:
    """Return the context of stages in one process on the CPU."""
    return StageContext(task=tiny_task(), augment=Augment(), seed=0, fabric=Fabric(accelerator="cpu", devices=1))


def test_arms_see_the_same_in_distribution_pixels(monkeypatch: pytest.MonkeyPatch):
    resample = method()
    seen = []
    for stage in resample.stages[2:]:
        run = stage.begin(resample.build_classifier(), on_cpu())
        served, pixels = run.batches.next, []

        def recorded(served=served, pixels=pixels) -> tuple[Batch, StepImages]:
            batch, images = served()
            pixels.append(batch.images[: images.id_count])
            return batch, images

        monkeypatch.setattr(run.batches, "next", recorded)
        for _ in range(3):
            run.train_step()
        seen.append(torch.stack(pixels))
    assert seen[0].shape == (3, 96, 1, 8, 8)
    assert all(torch.equal(seen[0], pixels) for pixels in seen[1:])


def test_an_arm_that_draws_nothing_is_refused():
    """Of 160 images γ = 1 / 160 keeps none with probability 0.37."""
    refused = {"random": 0, "resampled": 0}
    for seed in range(20):
        generator = named_generator(seed, "select", "random")
        if not (torch.rand(160, generator=generator) < 1 / 160).any():
            refused["random"] += 1
            with pytest.raises(ValueError, match=r"sample_rate .* left the random arm none"):
                method(seed, sample_rate=1 / 160)
            continue
        resample = method(seed, sample_rate=1 / 160)
        if len(resample.background_index("resampled")) == 0:
            refused["resampled"] += 1
            with pytest.raises(StageFailedError, match=r"sample_rate .* left the resampled arm none"):
                resample.stages[4].background(on_cpu())
    assert all(0 < count < 20 for count in refused.values())


@pytest.mark.parametrize(("refresh", "ahead"), [("step", 1), ("epoch", 6)])
def test_sampler_refresh_decides_how_far_draws_run_ahead(refresh: str, ahead: int):
    resample = method(sampler_refresh=refresh, batch_size=16)
    assert resample.stages[1].background(on_cpu()).batches_ahead == ahead


def test_arms_keep_their_part_of_the_background():
    resample = method()
    heavy = torch.arange(0, 160, 8)
    for _ in range(30):
        resample.pool.ascend(heavy, torch.ones(len(heavy)), lr=100.0)
    assert len(resample.background_index("none")) == 0
    assert torch.equal(resample.background_index("full"), torch.arange(160))
    kept = resample.background_index("resampled")
    assert set(heavy.tolist()) <= set(kept.tolist()), "p = min(1, γ N w / Σ w) is 1 for the heavy ones"
    assert len(kept) < 0.3 * 160
    assert torch.equal(kept, resample.background_index("resampled"))


def test_random_arm_is_uniform_and_ignores_the_pool():
    counts = torch.zeros(160)
    for seed in range(200):
        resample = method(seed)
        counts[resample.background_index("random")] += 1
    share = counts / 200
    assert share.mean().item() == pytest.approx(0.3, abs=0.01)
    assert share.std().item() == pytest.approx((0.3 * 0.7 / 200) ** 0.5, rel=0.25)
    before = resample.background_index("random")
    resample.pool.ascend(torch.tensor([0]), torch.ones(1), lr=1e4)
    assert torch.equal(resample.background_index("random"), before)


def test_initial_weights_depend_on_the_seed_alone():
    weights = [method(seed).build_classifier().head.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_score_is_the_maximum_softmax(generator: torch.Generator):
    logits = torch.randn(5, 4, generator=generator)
    network = SimpleNamespace(logits=lambda images: logits)
    for arm in method().arms:
        predicted = arm.scorer(network, tiny_task())(tiny_task().id_test)
        assert torch.equal(predicted.scores, max_softmax_score(logits))
        assert torch.equal(predicted.classes, logits.argmax(dim=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0.0),
        ("sample_rate", 1.01),
        ("sample_rate", float("nan")),
        ("outlier_weight", -0.5),
        ("outlier_weight", float("inf")),
        ("weight_learning_rate", float("inf")),
        ("epsilon", 1.0),
        ("initial_weight", 0.0),
        ("weight_learning_rate", 0.0),
        ("weight_momentum", 1.0),
        ("batch_size", 0),
        ("background_batch_size", 0),
        ("batch_norm", "frozen"),
        ("sampler_refresh", "never"),
    ],
)
def test_config_errors_name_the_field(field: str, value: float | str):
    with pytest.raises(ValueError, match=rf"{field}.* must be .*got {value!r}"):
        ResampleConfig(**{field: value})


def test_a_rate_that_keeps_less_than_one_image_is_refused():
    with pytest.raises(ValueError, match=r"0\.005 of 160 background images is less than one image"):
        method(sample_rate=0.005)


def test_unknown_arm():
    with pytest.raises(ValueError, match="arm must be one of none, random, resampled, full, got 'half'"):
        method().background_index("half")


def test_sparse_steps_take_the_momentum_at_once():
    """An image that is drawn once moves as far as by exact steps whose other gradients vanish."""
    chosen = {mode: method(ascent=mode) for mode in ("exact", "sparse")}
    sources = {mode: resample.stages[1].background(on_cpu()) for mode, resample in chosen.items()}
    assert {mode: source.mode for mode, source in sources.items()} == {"exact": "exact", "sparse": "sparse"}
    start = float(sources["exact"].pool.state_dict()["omega"][3])
    sources["exact"].learning_rate /= 1000  # small steps: the gradient stays what it is
    sources["sparse"].learning_rate /= 1000
    for source in sources.values():
        source.observe(torch.tensor([3]), torch.ones(1))
    for _ in range(200):
        sources["exact"].observe(torch.tensor([5]), torch.zeros(1))
    moved = {mode: float(source.pool.state_dict()["omega"][3]) - start for mode, source in sources.items()}
    assert moved["sparse"] == pytest.approx(moved["exact"], rel=1e-3)
    assert moved["sparse"] > 0


@pytest.mark.parametrize(("size", "mode"), [(999_999, "exact"), (1_000_000, "sparse")])
def test_the_size_of_the_pool_decides_how_weights_move(size: int, mode: str):
    resample = method()
    resample.task = SimpleNamespace(background_size=size)
    assert resample.ascent_mode == mode
