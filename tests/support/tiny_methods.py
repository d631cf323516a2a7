"""A tiny run of every method: two epochs of each of its stages."""

from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from fastood.train.methods import METHODS
from tests.support.tiny_run import tiny_data_args

_TINY = {"epochs": "2", "batch_size": "16", "background_batch_size": "16", "sample_rate": "0.3"}


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def tiny_method_args(folder: Path, method: str, *, device: str, name: str | None = None) -> list[str]:
    """The command line of a run without dropout, whose draws would depend on the device."""
    options = []
    for field in fields(METHODS[method]):
        value = _default(field)
        parts = {f.name: f"{field.name}.{f.name}" for f in fields(value)} if is_dataclass(value) else {}
        for part, path in {field.name: field.name, **parts}.items():
            if part in _TINY:
                options += [f"--method.{path.replace('_', '-')}", _TINY[part]]
    data = tiny_data_args(folder)
    for option, setting in {"--device": device, "--model.dropout": "0", "--name": name or f"{method}-{device}"}.items():
        data[data.index(option) + 1] = setting
    return [method, *data, *options]
