"""The recipes: every one parses, is named in the list, and runs when cut down to seconds."""

import re
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file

import fastood.train.recipe
from fastood.data import Augment, DataConfig
from fastood.data.images.noise import NOISES
from fastood.data.sources.named_sets import NAMED_SETS
from fastood.models import ModelConfig
from fastood.samplers import BackgroundPool
from fastood.train import cli as train
from fastood.train.command import parse_command
from fastood.train.config import RunConfig, to_dict
from fastood.train.engine.schedule import Schedule
from fastood.train.methods import MethodConfig
from fastood.train.recipe import find_recipe, packaged_recipes, read_recipe, recipe_name
from fastood.train.run import Run
from fastood.train.run_folder import RunFolder
from tests.support.tiny_run import tiny_task

FOLDER = Path(fastood.train.recipe.__file__).with_name("recipes")
RECIPES = sorted(packaged_recipes())


@pytest.fixture(scope="module")
def pool_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learnt weights of the tiny background."""
    path = tmp_path_factory.mktemp("pool") / "pool.safetensors"
    save_file(BackgroundPool(160).state_dict(), path)
    return path


def shortened(config: RunConfig, pool_weights: Path) -> RunConfig:
    """One epoch of six small batches by a small network; what is trained, and how, stays."""

    def short(part: Any) -> Any:
        changes: dict[str, Any] = {}
        for entry in fields(part):
            value = getattr(part, entry.name)
            if isinstance(value, Schedule):
                changes[entry.name] = Schedule(epochs=1, learning_rate=0.01)
            elif is_dataclass(value):
                changes[entry.name] = short(value)
            elif entry.name == "steps":
                changes[entry.name] = 20
            elif entry.name in ("batch_size", "background_batch_size"):
                changes[entry.name] = 16
            elif entry.name == "sample_rate":
                changes[entry.name] = 0.3
            elif entry.name == "pool_weights" and value is not None:
                changes[entry.name] = pool_weights
        return replace(part, **changes)

    return RunConfig(
        method=short(config.method),
        model=ModelConfig(name="small-cnn", dropout=0.0),
        data=DataConfig(image_size=8),
        augment=Augment(flip=config.augment.flip),
        protocol=config.protocol,
        device="cpu",
    )


@cache
def train_short(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The metrics of a short run; recipes that differ in images, network or length alone share one."""
    method = config.method.build(config.model, task=tiny_task(), seed=0)
    path = folder / str(len(list(folder.iterdir())))
    fabric = Fabric(accelerator="cpu", devices=1)
    run = Run(config, RunFolder(path), task=tiny_task(), method=method, fabric=fabric)
    run.train()
    evaluation = run.evaluate()
    run.report(evaluation)
    return evaluation.metrics


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_says_what_it_repeats_and_runs(name: str, pool_weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    monkeypatch.setattr("fastood.train.results.error_bars.REPLICATES", 10)
    torch.set_num_threads(1)
    text = find_recipe(Path(name))[0].read_text(encoding="utf-8")
    authors, place = "Li & Vasconcelos|Wu et al.|Mohseni et al.|Pei et al.", "Tables?|Figure|text"
    assert re.match(rf"# ({authors}) 20\d\d, ({place}) ", text)
    assert re.search("^# Open in the paper: ", text, re.MULTILINE)
    config = read_recipe(Path(name))
    images = (config.data.in_dist, config.data.background, *config.data.ood)
    assert all(source.rpartition(":")[2] in (*NAMED_SETS, *NOISES, "none") for source in images)
    assert config.method.needs_background == (config.data.background != "none")
    metrics = train_short(shortened(config, pool_weights), pool_weights.parent)
    assert metrics["method"] == config.method.name
    assert all(0 <= arm["mean"]["auroc"] <= 1 for arm in metrics["arms"].values())


def test_the_list_names_every_recipe():
    rows = re.findall(
        r"^\| `([\w.-]+)` \| .* \| (.*) \|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = [
        f"{file}-{variant}" if variant else file
        for file, variants in rows
        for variant in re.findall(r"`([\w.-]+)`", variants) or [""]
    ]
    assert sorted(named) == RECIPES
    assert len(RECIPES) == 61


def test_the_command_line_wins_over_the_recipe(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nmodel: {dropout: 0.1}\nmethod: {name: oe, sample_rate: 0.2, finetune: {epochs: 4}}\n")
    command = parse_command(["--config", str(path), "--method.sample-rate", "0.4", "--seed=5"])
    config = command.config
    assert (command.method, config.seed, config.method.sample_rate, config.method.finetune.epochs) == ("oe", 5, 0.4, 4)
    assert (config.model.name, config.model.dropout) == ("wrn-40-4", 0.1), "what is left open is the paper's"
    assert parse_command(["oe", f"--config={path}", "--preset=embedded"]).config.model.name == "small-cnn"


def test_a_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path in ("mohseni2020-table1-mnist", "mohseni2020-table1-mnist.yaml", "recipes/mohseni2020-table1-mnist.yaml"):
        assert find_recipe(Path(path)) == (FOLDER / "mohseni2020-table1.yaml", "mnist")
    assert find_recipe(Path("wu2023-table3-cifar10")) == (FOLDER / "wu2023-table3-cifar10.yaml", None)
    mine = Path("mohseni2020-table1-mnist")
    mine.write_text("method: {name: oe}")
    assert find_recipe(mine) == (mine, None), "a file that is there comes first"
    with pytest.raises(FileNotFoundError, match=r"no recipe of that name; near it: mohseni2020-table1-svhn"):
        find_recipe(Path("mohseni2020-table1-svnh"))
    with pytest.raises(FileNotFoundError):
        find_recipe(Path("elsewhere/mohseni2020-table1-mnist.yaml"))


VARIANTS = """
method: {name: oe, finetune: {epochs: 3}}
variants:
  small: {model: {name: wrn-16-2}, method: {finetune: {learning_rate: 0.5}}}
  other: {method: {name: entropy}}
  wrong: {method: {epochs: 3}}
"""


def test_a_variant_changes_fields_of_its_file(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(VARIANTS)
    small, other = (read_recipe(Path(f"{path}:{variant}")) for variant in ("small", "other"))
    assert (small.model.name, other.model.name) == ("wrn-16-2", "wrn-40-4")
    assert (small.method.finetune.epochs, small.method.finetune.learning_rate) == (3, 0.5)
    assert (other.method.name, other.method.finetune.epochs) == ("entropy", 3)
    assert train.parse_command(["--config", f"{path}:small"]).config == small
    assert recipe_name(Path(f"{path}:small")) == "mine-small"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("", "mine.yaml: one of the variants must be chosen, as in FILE:VARIANT; there are small, other, wrong"),
        (":large", "mine.yaml:large: no such variant; there are small, other, wrong"),
        (":wrong", "mine.yaml:wrong: method has no field 'epochs'; it has backgrounds"),
    ],
)
def test_errors_name_the_variants(tmp_path: Path, variant: str, message: str):
    (tmp_path / "mine.yaml").write_text(VARIANTS)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_recipe(tmp_path / f"mine.yaml{variant}")


def test_a_file_without_variants_has_none_to_choose(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("method: {name: oe}")
    with pytest.raises(ValueError, match=r"mine.yaml:small: the file has no variants, got 'small'"):
        read_recipe(tmp_path / "mine.yaml:small")
    (tmp_path / "mine.yaml").write_text("method: {name: oe}\nvariants: [small]")
    with pytest.raises(ValueError, match="variants must map names to fields of a run, got"):
        read_recipe(tmp_path / "mine.yaml:small")


def test_variants_may_be_numbers_and_a_folder_may_have_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("a:b")
    folder.mkdir()
    (folder / "mine.yml").write_text("method: {name: oe}\nvariants: {1: {seed: 1}, 0.3: {seed: 3}}")
    assert [read_recipe(folder / f"mine.yml:{variant}").seed for variant in ("1", "0.3")] == [1, 3]
    assert recipe_name(folder / "mine.yml:0.3") == "mine-0.3"
    with pytest.raises(ValueError, match=r"mine.yml:2: no such variant; there are 1, 0.3"):
        read_recipe(folder / "mine.yml:2")
    for absent in ("a:b/other.yaml", ":small", "other.yaml"):
        with pytest.raises(FileNotFoundError, match=f"^{absent}: there is no such file"):
            read_recipe(Path(absent))


@pytest.mark.parametrize("recipe", ["mohseni2020-table1-mnist:svhn", "mohseni2020-table1:mnist:svhn"])
def test_only_one_variant_can_be_chosen(recipe: str):
    with pytest.raises(ValueError, match=f"^{recipe}: only one variant must be chosen, got mnist and svhn"):
        read_recipe(Path(recipe))


def test_recipes_are_read_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "installed.yaml").write_text("method: {name: oe}")
    monkeypatch.setattr("fastood.train.recipe.FOLDER", tmp_path)
    assert read_recipe(Path("installed")).method.name == "oe"


def test_a_run_is_repeated_from_its_own_configuration(tmp_path: Path):
    folder = RunFolder(tmp_path)
    config = replace(parse_command(["ice"]).config, seed=4, device="cpu")
    folder.write_config(config)
    assert parse_command(["--config", str(folder.config)]).config == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- oe", "mine.yaml: it must hold the fields of a run, got list"),
        ("seed: 1", "mine.yaml: method.name must be one of"),
        ("method: {name: oo}", "mine.yaml: method.name must be one of"),
        ("method: oe", "mine.yaml: method.name must be one of"),
        ("method: {name: oe, epochs: 3}", "mine.yaml: method has no field 'epochs'; it has backgrounds"),
        ("method: {name: oe, finetune: {epochs: 0}}", "mine.yaml: method.finetune: epochs must be at least 1, got 0"),
        ("method: {name: oe, batch_size: 1.5}", "mine.yaml: method.batch_size must be int, got 1.5"),
        ("method: {name: oe, dropout: 1}", "mine.yaml: method.dropout must be bool, got 1"),
        ("method: {name: oe, backgrounds: full}", "mine.yaml: method.backgrounds must be a list, got 'full'"),
        ("method: {name: oe, finetune: 3}", "mine.yaml: method.finetune must be fields, got 3"),
        ("method: {name: oe}\ndata: {in_dist: cifar11}", "mine.yaml: data.in_dist: unknown source 'cifar11'"),
        ("method: {name: oe}\nmodel: {name: wrn-40}", "mine.yaml: model.name: no model is named 'wrn-40'"),
        ("method: {name: oe", "mine.yaml: while parsing"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert train.main(["--config", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_a_recipe_that_is_not_there_or_of_another_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train.main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: oe}")
    assert train.main(["ice", "--config", str(path)]) == 1
    assert f"method must be that of the recipe {path}, oe, got ice" in capsys.readouterr().err


def test_numbers_that_yaml_reads_as_strings(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: msp, training: {learning_rate: 1e-3, epochs: 2}}")
    config = read_recipe(path)
    assert isinstance(config.method, MethodConfig)
    assert to_dict(config)["method"]["training"]["learning_rate"] == 0.001
