"""Outlier exposure and its kin: every loss by hand, parts of the background, learnt weights from another run."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastood.models import ModelConfig
from fastood.samplers import BackgroundPool
from fastood.train import cli as train
from fastood.train.engine.objective import Batch
from fastood.train.methods import METHODS
from fastood.train.methods.outlier_exposure import EnergyConfig, Exposure, ExposureConfig, ObjectosphereConfig, OEConfig
from fastood.train.methods.outlier_losses import OutlierLossConfig
from fastood.train.run_folder import RunFolder
from fastood.train.trained_network import Outputs
from tests.support.tiny_run import tiny_args, tiny_task

SMALL = ModelConfig(name="small-cnn", dropout=0.0)


def method(config: ExposureConfig) -> Exposure:
    return config.build(SMALL, task=tiny_task(), seed=0)


class Given(nn.Module):
    """A network that puts out the same whatever it sees."""

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        super().__init__()
        self.outputs = Outputs(logits=logits, features=features)

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs.logits

    def forward_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.outputs.logits, self.outputs.features

    def mark_forward_method(self, name: str) -> None:
        """As Fabric's."""


@pytest.mark.parametrize("kind", ["oe", "entropy", "energy", "objectosphere"])
def test_each_loss_and_score_by_hand(kind: str, generator: torch.Generator):
    """Two in-distribution and one background row, the last of importance 2."""
    v = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    f, energy, length = v.softmax(1), -v.logsumexp(1), z.norm(dim=1)
    cross_entropy = -(f[0, 2].log() + f[1, 4].log()) / 2
    hinge = ((energy[:2] + 2).clamp_min(0) ** 2).mean()
    want = {
        "oe": cross_entropy + 0.5 * 2 * (-f[2].log().mean() - math.log(5)),
        "entropy": cross_entropy + 0.5 * 2 * ((f[2] * f[2].log()).sum() + math.log(5)),
        "energy": cross_entropy + 0.1 * (hinge + 2 * (1 - energy[2]).clamp_min(0) ** 2),
        "objectosphere": cross_entropy
        + 2 * (-f[2].log().mean() - math.log(5))
        + 0.3 * (((3 - length[:2]).clamp_min(0) ** 2).mean() + 2 * length[2] ** 2),
    }[kind]
    config = OutlierLossConfig(kind=kind, margin_id=-2, margin_background=1, min_magnitude=3, magnitude_weight=0.3)
    batch = Batch(
        images=torch.zeros(3, 1), labels=torch.tensor([2, 4, -1]), importance=torch.tensor([1.0, 1.0, 2.0]).double()
    )
    loss, per_sample = config.objective()(Given(v, z), batch)
    torch.testing.assert_close(loss, want)
    assert per_sample.shape == (3,)

    outputs = Outputs(logits=v, features=z)
    network = SimpleNamespace(logits=lambda images: v, outputs=lambda images: outputs)
    predicted = config.scorer()(network, None)(None)
    ranks = {"energy": energy, "objectosphere": -f.amax(1) * length}.get(kind, -f.amax(1))
    assert torch.equal(predicted.scores.argsort(), ranks.argsort())
    assert torch.equal(predicted.classes, v.argmax(1))


def test_methods_differ_by_their_loss_alone():
    configs = [METHODS[name]() for name in ("oe", "entropy", "energy", "objectosphere")]
    assert [config.loss.kind for config in configs] == ["oe", "entropy", "energy", "objectosphere"]
    assert [config.loss.weight_of_kind for config in configs] == [0.5, 0.5, 0.1, 1.0]
    assert len({repr(replace(config, loss=OutlierLossConfig())).partition("(")[2] for config in configs}) == 1


def test_parts_of_the_background_are_arms_of_the_same_length():
    exposure = method(OEConfig(backgrounds=("none", "random", "full"), sample_rate=0.3))
    assert [arm.name for arm in exposure.arms] == ["none", "random", "full"]
    assert exposure.baseline == "random"
    assert exposure.learnt_pool is None
    pretrain, *finetunes = exposure.stages
    assert {stage.start_from for stage in finetunes} == {pretrain.name}
    assert {stage.rng_name for stage in finetunes} == {"finetune"}
    sizes = [len(exposure.background_index(arm.name)) for arm in exposure.arms]
    assert sizes[0] == 0
    assert 30 < sizes[1] < 70
    assert sizes[2] == 160


def test_objectosphere_has_no_bias():
    """Features of length zero must have the uniform distribution."""
    first, second = (method(ObjectosphereConfig()).build_classifier() for _ in range(2))
    assert first.head.bias is None
    assert torch.equal(first.head.weight, second.head.weight)
    assert method(EnergyConfig()).build_classifier().head.bias is not None


def write_weights(path: Path, weights: Tensor) -> Path:
    save_file(dict(BackgroundPool.from_weights(weights, epsilon=0.5).state_dict()), path)
    return path


def test_learnt_weights_of_other_images_of_the_same_number_are_refused(tmp_path: Path):
    """The embedded background of another seed has as many images, of which hardly any stands at its place."""
    mine = tiny_task().background.sha256()
    state = dict(BackgroundPool(160).state_dict())
    runs = {name: RunFolder(tmp_path / name) for name in ("same", "other", "old", "old other", "lost")}
    for name in ("same", "other"):
        runs[name].write_pool(state, background=mine if name == "same" else "f" * 64)
    for name in ("old", "old other", "lost"):
        runs[name].path.mkdir()
        save_file(state, runs[name].pool)
    runs["old"].data.write_text(json.dumps({"background": mine}))
    runs["old other"].data.write_text(json.dumps({"background": "f" * 64}))

    def config(name: str) -> OEConfig:
        return OEConfig(backgrounds=("resampled",), pool_weights=runs[name].pool)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("same", "old"):
            assert len(method(config(name)).background_index("resampled")) > 0
    for name in ("other", "old other"):
        with pytest.raises(ValueError, match=rf"have sha256 {mine}, got .*{name}/pool.* of images with sha256 f{{64}}"):
            method(config(name))
    with pytest.warns(UserWarning, match=r"lost/pool.safetensors do not say to which background images they belong"):
        method(config("lost"))


def test_learnt_weights_choose_the_background_of_another_loss(tmp_path: Path):
    weights = torch.full((160,), 1e-6)
    weights[:16] = 1.0
    path = write_weights(tmp_path / "pool.safetensors", weights)
    exposure = method(EnergyConfig(backgrounds=("random", "resampled"), sample_rate=0.1, pool_weights=path))
    chosen = exposure.background_index("resampled")
    assert set(chosen.tolist()) == set(range(16))
    assert exposure.stages[-1].background(None).draw().index.max() < 16
    assert [stage.name for stage in exposure.stages] == ["pretrain", "finetune-random", "finetune-resampled"]


def test_wrong_weights_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="resampled needs pool_weights"):
        method(OEConfig(backgrounds=("resampled",)))
    short = write_weights(tmp_path / "short.safetensors", torch.ones(80))
    with pytest.raises(ValueError, match=r"pool_weights must be of the 160 background images, got .*: of 80 images"):
        method(OEConfig(backgrounds=("resampled",), pool_weights=short))
    other = tmp_path / "other.safetensors"
    save_file({"weights": torch.ones(160)}, other)
    with pytest.raises(ValueError, match=r"got .*other.safetensors: no weights"):
        method(OEConfig(backgrounds=("resampled",), pool_weights=other))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(other.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"pool_weights must be pool.safetensors of a run, got .*torn"):
        method(OEConfig(backgrounds=("resampled",), pool_weights=torn))
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors"):
        method(OEConfig(backgrounds=("resampled",), pool_weights=tmp_path / "absent.safetensors"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "msp", "kind must be one of oe, entropy, energy, objectosphere, got 'msp'"),
        ("weight", -1.0, "weight must be finite and at least 0, got -1.0"),
        ("margin_id", -5.0, "margin_id must be below margin_background -5.0, got -5.0"),
        ("min_magnitude", 0.0, "min_magnitude must be finite and above 0, got 0.0"),
        ("magnitude_weight", math.inf, "magnitude_weight must be finite and above 0, got inf"),
    ],
)
def test_loss_errors_name_the_field(field: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        OutlierLossConfig(**{field: value})


def tiny_options(folder: Path, *, name: str) -> list[str]:
    """The tiny run without the options that only resampling has."""
    options = tiny_args(folder, name=name)
    i = options.index("--method.reweight.epochs")
    return [*options[:i], *options[i + 2 :]]


def test_weights_of_a_run_go_into_runs_of_other_methods(tmp_path: Path):
    """Resampling, then its weights under another loss: the same images are chosen, and the run can be judged again."""
    assert train.main(["resample", *tiny_args(tmp_path, name="learn")]) == 0
    pool = tmp_path / "runs" / "learn" / "pool.safetensors"
    for name in ("entropy", "objectosphere"):
        backgrounds = ["--method.backgrounds", "random", "resampled", "--method.pool-weights", str(pool)]
        assert train.main([name, *tiny_options(tmp_path, name=name), *backgrounds]) == 0
        metrics = json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
        assert metrics["method"] == name
        assert list(metrics["arms"]) == ["random", "resampled"]
    learnt = json.loads((tmp_path / "runs" / "learn" / "metrics.json").read_text())
    assert metrics["arms"]["resampled"]["background_size"] == learnt["arms"]["resampled"]["background_size"]


def test_msp_is_cross_entropy_alone(tmp_path: Path):
    options = tiny_args(tmp_path)
    i, j = options.index("--method.sample-rate"), options.index("--data.ood")
    assert train.main(["msp", *options[:i], "--method.training.epochs", "2", *options[j:]]) == 0
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    assert metrics["arms"]["msp"]["background_size"] == 0
    assert metrics["arms"]["msp"]["accuracy"] > 0.3
