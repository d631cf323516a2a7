"""Configurations: to YAML and back, presets."""

from dataclasses import dataclass

import pytest

from fastood import train
from fastood.config import PRESETS, RunConfig, differences, from_dict, to_dict
from fastood.models import ModelConfig
from fastood.training.stage import Schedule


def test_from_dict_picks_the_dataclass_of_a_union_whose_fields_fit():
    @dataclass
    class Holder:
        part: ModelConfig | Schedule | None

    assert from_dict(Holder, {"part": {"epochs": 1, "learning_rate": 0.1}}).part == Schedule(
        epochs=1, learning_rate=0.1
    )
    assert from_dict(Holder, {"part": {"dropout": 0.1}}).part == ModelConfig(dropout=0.1)
    assert from_dict(Holder, {"part": None}).part is None


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_config_survives_yaml(method: str, preset: str):
    config = PRESETS[method, preset]
    assert from_dict(RunConfig, to_dict(config)) == config
    assert differences(to_dict(config), to_dict(config)) == []


def test_presets_decide_the_defaults():
    assert train.parse_command([]).config == PRESETS["resample", "embedded"]
    command = train.parse_command(["--preset=paper", "--method.sample-rate", "0.01"])
    assert command.config.model.name == "wrn-40-4"
    assert command.config.method.sample_rate == 0.01
    assert command.config.data.size == 32
