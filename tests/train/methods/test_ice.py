"""ICE and its companions: what each arm trains with, how fine-tuning begins, a run from the command line."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastood.data import ImageSet
from fastood.evaluate import cli as evaluate
from fastood.heads import CholeskyMahalanobisHead
from fastood.models import Classifier, ModelConfig
from fastood.train import cli as train
from fastood.train.config import PRESETS
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.schedule import Schedule
from fastood.train.methods.ice import ICE, RECIPES, ICEConfig
from tests.support.tiny_run import tiny_args, tiny_task, train_until_killed

SMALL = ModelConfig(name="small-cnn", dropout=0.0)
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["fastood.train"])


def method(**options: object) -> ICE:
    return ICE(ICEConfig(**options), model=SMALL, task=tiny_task(), seed=0)


def embed(model: Classifier, images: ImageSet) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model.features(images.images.float() / 255)


def test_defaults_are_the_papers():
    config = ICEConfig()
    assert (config.finetune.epochs, config.finetune.learning_rate, config.finetune.decay) == (10, 0.01, "cosine")
    assert (config.scratch.epochs, config.scratch.learning_rate, config.scratch.decay) == (100, 0.1, "step")
    assert (config.batch_size, config.background_batch_size) == (128, 256)
    assert (config.outlier_weight, config.energy_weight) == (0.5, 0.1)
    assert (config.margin_id, config.margin_background) == (-23, -5)
    assert PRESETS["ice", "paper"].model.name == "wrn-34-10"


@pytest.mark.parametrize("arm", RECIPES)
def test_an_arm_is_its_papers_loss_and_score(arm: str, generator: torch.Generator):
    """One in-distribution and one background row, by hand."""
    config = ICEConfig(likelihood_weight=0.3, outlier_weight=0.6, energy_weight=0.2, margin_id=-3, margin_background=1)
    h = -torch.rand(2, 5, generator=generator, dtype=torch.float64) - 0.1
    log_f, energy, largest = torch.log_softmax(h, 1), -torch.logsumexp(h, 1), h.amax(1)
    cross_entropy = -log_f[0, 2]
    want = {
        "plain": cross_entropy,
        "oe": cross_entropy + 0.6 * (-log_f[1].mean() - math.log(5)),
        "energy": cross_entropy + 0.2 * ((energy[0] + 3).clamp_min(0) ** 2 + (1 - energy[1]).clamp_min(0) ** 2),
        "ice": cross_entropy + 0.3 * (-h[0, 2] - torch.log(1 - largest[1].exp())),
        "ice-minus": cross_entropy - 0.3 * torch.log(1 - largest[1].exp()),
        "sigmoid": cross_entropy - 0.3 * (torch.sigmoid(h[0, 2]).log() + torch.log(1 - torch.sigmoid(largest[1]))),
        "energy-gaussian": cross_entropy + 0.2 * (energy[0].clamp_min(0) ** 2 + (5 - energy[1]).clamp_min(0) ** 2),
    }[arm]
    torch.testing.assert_close(RECIPES[arm].loss(config)(h, torch.tensor([2, -1])), want)
    ranks = {"plain": -log_f.amax(1), "oe": -log_f.amax(1), "energy": energy, "energy-gaussian": energy}
    assert torch.equal(RECIPES[arm].score(h).argsort(), ranks.get(arm, -largest).argsort())
    assert RECIPES[arm].gaussian == (arm in ("ice", "ice-minus", "energy-gaussian"))


def test_fine_tuning_starts_every_arm_from_one_network():
    ice = method(arms=("plain", "oe", "ice"))
    pretrain, *arms = ice.stages
    assert [stage.name for stage in arms] == ["plain", "oe", "ice"]
    assert (pretrain.start_from, pretrain.background) == (None, None)
    assert {stage.start_from for stage in arms} == {"pretrain"}
    assert {(stage.schedule, stage.rng_name) for stage in arms} == {(ice.config.finetune, "arms")}
    assert [stage.background is None for stage in arms] == [True, False, False]
    assert arms[1].background(None).draw().index.equal(arms[2].background(None).draw().index), (
        "the same background in the same order"
    )
    assert [len(ice.background_index(arm.name)) for arm in arms] == [0, 160, 160]
    assert ice.learnt_pool is None


def test_from_scratch_trains_each_arm_from_the_start():
    stages = method(arms=("oe", "ice"), training="from-scratch").stages
    assert [(stage.name, stage.start_from) for stage in stages] == [("oe", None), ("ice", None)]
    assert stages[0].schedule == ICEConfig().scratch
    heads = [stage.build_model().head for stage in stages]
    assert isinstance(heads[0], nn.Linear)
    assert isinstance(heads[1], CholeskyMahalanobisHead)
    first, second = (stages[1].build_model().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_gaussian_head_begins_with_the_features_of_the_training_images():
    ice, task = method(arms=("ice",)), tiny_task()
    pretrain, stage = ice.stages
    trained = pretrain.build_model()
    with torch.no_grad():
        trained.body[0].weight.add_(0.1)
    model = stage.build_model()
    stage.take_over(model, trained.state_dict(), embed)
    assert torch.equal(model.body[0].weight, trained.body[0].weight)
    features = embed(trained, task.id_train)
    for label in range(4):
        torch.testing.assert_close(model.head.means[label], features[task.id_train.labels == label].mean(0))
    own = -model.head(features).gather(1, task.id_train.labels[:, None])
    assert 0.3 < own.mean().item() < 3, "where exp(h) has a slope"


def test_weights_of_a_gaussian_head_that_decay_harms_do_not_decay():
    model = method(arms=("ice",), training="from-scratch").stages[0].build_model()
    decaying, kept = Schedule(epochs=1, learning_rate=0.1, weight_decay=0.5).build_optimizer(model).param_groups
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
    assert {id(p) for p in kept["params"]} == {id(model.head.means), id(model.head.covariance.log_scale)}
    assert len(decaying["params"]) + len(kept["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("arms", (), "arms must name at least one of plain, oe, .*, got none"),
        ("arms", ("ice", "ice"), "arms must differ, got ice, ice"),
        ("arms", ("ice", "msp"), "arms must be of plain, oe, .*, got 'msp'"),
        ("training", "never", "training must be one of fine-tune, from-scratch, got 'never'"),
        ("covariance", "low_rank", "covariance must be one of full, diagonal, got 'low_rank'"),
        ("likelihood_weight", -1.0, "likelihood_weight must be finite and at least 0, got -1.0"),
        ("energy_weight", math.inf, "energy_weight must be finite and at least 0, got inf"),
        ("margin_id", 0.0, r"margin_id must be below margin_background -5.0, got 0.0"),
        ("background_batch_size", 0, "background_batch_size must be at least 1, got 0"),
        ("batch_norm", "frozen", "batch_norm must be one of eval, train, got 'frozen'"),
    ],
)
def test_config_errors_name_the_field(field: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        ICEConfig(**{field: value})


def test_unknown_arm():
    with pytest.raises(ValueError, match="arm must be one of plain, oe, energy, ice, got 'bce'"):
        method().background_index("bce")


ARMS = ("plain", "oe", "energy", "ice", "ice-minus", "sigmoid", "energy-gaussian")


def ice_args(folder: Path, *, out: Path | None = None) -> list[str]:
    """Command line of a run of seconds with every arm."""
    options = tiny_args(folder, out=out)
    pairs = [(options[i], options[i + 1]) for i in range(0, options.index("--data.ood"), 2)]
    kept = [part for pair in pairs if not pair[0].startswith(("--method.sample", "--method.reweight")) for part in pair]
    kept[kept.index("--method.finetune.epochs") + 1] = "10"
    return ["ice", *kept, *options[options.index("--data.ood") :], "--method.arms", *ARMS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unbroken run, with its report."""
    folder = tmp_path_factory.mktemp("ice")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train.main(ice_args(folder)) == 0
    torch.set_num_threads(threads)
    return folder / "runs" / "run"


def test_every_arm_learns(finished: Path):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["method"] == "ice"
    assert "pool" not in metrics
    assert not (finished / "pool.safetensors").exists()
    assert tuple(metrics["arms"]) == ARMS
    for arm, result in metrics["arms"].items():
        assert result["accuracy"] > 0.5, f"{arm}: chance is 0.25"
        assert result["background_size"] == (0 if arm == "plain" else 80)
    for arm in ("oe", "ice"):
        assert metrics["arms"][arm]["mean"]["auroc"] > 0.6, f"{arm}: chance is 0.5"
    assert "covariance.log_scale" in "".join(load_file(finished / "models" / "ice.safetensors"))
    assert (finished / "report.html").stat().st_size > 1000


def test_evaluate_repeats_the_table(finished: Path, capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert evaluate.main([str(finished)]) == 0
    torch.set_num_threads(threads)
    assert "the same as metrics.json, to the last digit" in capsys.readouterr().out


def test_a_killed_run_resumes_to_the_same_result(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = ice_args(tmp_path)
    killed = FORKSERVER.Process(target=train_until_killed, args=(args, "ice", 7, "between steps"))
    killed.start()
    killed.join()
    assert killed.exitcode == -9
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train.main([*args, "--resume"]) == 0
    torch.set_num_threads(threads)
    for file in ("metrics.json", "scores.safetensors", "models/ice.safetensors"):
        assert (tmp_path / "runs" / "run" / file).read_bytes() == (finished / file).read_bytes()


def test_the_method_comes_first(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert train.main(["--out", str(tmp_path / "runs"), "ice"]) == 1
    assert "the method must come before every option" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_help_shows_the_options_of_the_method(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        train.main(["ice", "--help-all"])
    text = capsys.readouterr().out
    assert "--method.likelihood-weight" in text
    assert "--method.sample-rate" not in text


def test_stage_takes_over_all_weights_by_default():
    source = method(arms=("oe",)).stages[1]
    assert isinstance(source, ImageStage)
    model, weights = source.build_model(), source.build_model().state_dict()
    weights["head.bias"] = weights["head.bias"] + 1
    source.take_over(model, weights, embed)
    assert torch.equal(model.head.bias, weights["head.bias"])
