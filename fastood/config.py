"""The configuration of a run: dataclasses that become command-line options and config.yaml."""

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastood.data import Augment, DataConfig
from fastood.methods import METHODS, MethodConfig, PresetName
from fastood.methods.resample import ResampleConfig
from fastood.metrics import Protocol
from fastood.models import ModelConfig

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result; written to config.yaml."""

    seed: int = 0
    """Decides everything random: splits, initial weights, order, augmentation, draws. 0 or larger."""
    data: DataConfig = field(default_factory=DataConfig)
    """In-distribution, background and OOD images."""
    augment: Augment = field(default_factory=Augment)
    """What training images go through."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    method: MethodConfig = field(default_factory=ResampleConfig)
    """How it is trained."""
    protocol: Protocol = field(default_factory=Protocol)
    """How detection is evaluated."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    precision: Precision = "32-true"
    """Arithmetic of the network: float32, or bfloat16 with float32 weights."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or larger, got {self.seed}")
        for name, kind in (("device", Device), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")


PRESETS: dict[tuple[str, PresetName], RunConfig] = {
    (name, preset): RunConfig(method=parts.method, data=parts.data, augment=parts.augment, model=parts.model)
    for name, method in METHODS.items()
    for preset, parts in method.presets().items()
}
"""Starting points for the command line: a minute on two CPU cores, or the paper's network and images."""


def absolute_paths(data: DataConfig) -> DataConfig:
    """The same images, named so that they are found from any directory.

    Example:
        >>> absolute_paths(DataConfig(in_dist="folder:/data/cats", background="gaussian", ood=("x=npy:/x.npy",))).ood
        ('x=npy:/x.npy',)
    """

    def absolute(source: str) -> str:
        parts = re.fullmatch(r"([^=:]*=)?(folder|npy):(.*)", source, re.DOTALL)
        if parts is None:
            return source
        paths = parts[3].split(",") if parts[2] == "npy" else [parts[3]]
        return f"{parts[1] or ''}{parts[2]}:{','.join(str(Path(path).absolute()) for path in paths)}"

    return replace(
        data,
        in_dist=absolute(data.in_dist),
        in_dist_test=None if data.in_dist_test is None else absolute(data.in_dist_test),
        background=absolute(data.background),
        ood=tuple(absolute(source) for source in data.ood),
        root=data.root.absolute(),
    )


def with_absolute_paths(method: MethodConfig) -> MethodConfig:
    """The same hyper-parameters, files among them named so that they are found from any directory."""
    paths = {entry.name: getattr(method, entry.name) for entry in fields(method)}
    return replace(method, **{name: path.absolute() for name, path in paths.items() if isinstance(path, Path)})


def to_dict(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values, as config.yaml holds it.

    Example:
        >>> to_dict(PRESETS["resample", "paper"])["model"]
        {'name': 'wrn-40-4', 'dropout': None}
    """

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            named = {"name": value.name} if isinstance(value, MethodConfig) else {}
            return named | {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    values: dict[str, Any] = plain(config)
    return values


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Rebuild a configuration dataclass from the plain values of `to_dict`.

    Args:
        kind: The dataclass.
        values: A value for any of its fields; the others keep their defaults.

    Raises:
        ValueError: If a name is no field of `kind`, or a value is out of range.

    Example:
        >>> from_dict(ModelConfig, {"name": "wrn-16-2", "depth": 16})
        Traceback (most recent call last):
        ...
        ValueError: ModelConfig has no field 'depth'; it has name, dropout
    """
    hints = get_type_hints(kind)
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ValueError(f"{kind.__name__} has no field {name!r}; it has {', '.join(known)}")
    return kind(**{name: _rebuild(hints[name], value) for name, value in values.items()})


def _rebuild(annotation: Any, value: Any) -> Any:
    """A plain value as its field's type wants it: nested dataclasses, paths and tuples."""
    if get_origin(annotation) in (Union, types.UnionType):
        if value is None:
            return None
        annotation = next(option for option in get_args(annotation) if option is not type(None))
    if isinstance(value, Mapping) and annotation is MethodConfig:
        return from_dict(_method(value), {name: item for name, item in value.items() if name != "name"})
    if isinstance(value, Mapping) and is_dataclass(annotation):
        return from_dict(annotation, value)  # type: ignore[arg-type]
    if isinstance(value, list):
        item = (get_args(annotation) or (Any,))[0]
        return tuple(_rebuild(item, entry) for entry in value)
    return Path(value) if annotation is Path and isinstance(value, str) else value


def _method(values: Mapping[str, Any]) -> type[MethodConfig]:
    """The configuration of the method that plain values name."""
    if (name := values.get("name")) not in METHODS:
        raise ValueError(f"method.name must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two configurations differ, as "model.name: small-cnn → wrn-40-4".

    Example:
        >>> differences({"seed": 0, "model": {"dropout": 0.3}}, {"seed": 0, "model": {"dropout": 0.0}})
        ['model.dropout: 0.3 → 0.0']
    """
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before} → {after}")
    return found
