"""Configurations: to YAML and back, presets."""

from dataclasses import dataclass

import pytest

from fastood.train.command import parse_command
from fastood.train.config import PRESETS, RunConfig, differences, from_dict, to_dict
from fastood.train.engine.schedule import Schedule


def test_from_dict_takes_the_method_that_is_named():
    values = to_dict(PRESETS["energy", "embedded"])
    assert values["method"]["name"] == "energy"
    assert from_dict(RunConfig, values).method == PRESETS["energy", "embedded"].method
    with pytest.raises(ValueError, match=r"method.name must be one of .*resample.*, got 'elergy'"):
        from_dict(RunConfig, {"method": {"name": "elergy"}})


def test_from_dict_takes_none_or_a_dataclass():
    @dataclass
    class Holder:
        part: Schedule | None

    assert from_dict(Holder, {"part": {"epochs": 1, "learning_rate": 0.1}}).part == Schedule(
        epochs=1, learning_rate=0.1
    )
    assert from_dict(Holder, {"part": None}).part is None


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_config_survives_yaml(method: str, preset: str):
    config = PRESETS[method, preset]
    assert from_dict(RunConfig, to_dict(config)) == config
    assert differences(to_dict(config), to_dict(config)) == []


def test_presets_decide_the_defaults():
    assert parse_command([]).config == PRESETS["resample", "embedded"]
    command = parse_command(["--preset=paper", "--method.sample-rate", "0.01"])
    assert command.config.model.name == "wrn-40-4"
    assert command.config.method.sample_rate == 0.01
    assert command.config.data.size == 32
