"""Config of a run: dataclasses that become command-line options and config.yaml."""

import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastood.common.config_checks import require_choice, shorten, shown
from fastood.data import Augment, DataConfig
from fastood.metrics import Protocol
from fastood.models import ModelConfig
from fastood.train.acceleration import CompileMode
from fastood.train.methods import METHODS, MethodConfig, PresetName
from fastood.train.methods.resample import ResampleConfig

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result; written to config.yaml."""

    seed: int = 0
    """Seed of everything random: splits, initial weights, order, augmentation, draws. 0 or larger."""
    data: DataConfig = field(default_factory=DataConfig)
    """In-distribution, background and OOD images."""
    augment: Augment = field(default_factory=Augment)
    """Augmentation of training images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    method: MethodConfig = field(default_factory=ResampleConfig)
    """Training method and its hyper-parameters."""
    protocol: Protocol = field(default_factory=Protocol)
    """Evaluation protocol of detection."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU if there is one."""
    threads: int | None = None
    """CPU threads, at least 1; the last digits of a result depend on their number. None: 1 for small networks on the
    CPU, whose steps are too short to be shared, otherwise PyTorch's number; config.yaml keeps the number."""
    precision: Precision = "32-true"
    """Arithmetic of the network: float32, or bfloat16 with float32 weights."""
    channels_last: bool = True
    """Memory layout of the network: channels innermost, with which convolutions are fastest. Results agree to
    rounding."""
    compile: CompileMode = "none"
    """Mode of torch.compile for networks that train; results agree to rounding. default: fuse what can be fused;
    reduce-overhead: on a GPU also replay each step's kernels as one CUDA graph. Compiling takes about a minute."""
    ema_decay: float | None = None
    """Decay per step, in (0, 1), of an exponential running average of the weights. Each stage then ends with this
    average, which is evaluated and stored. None, as in the papers, for the weights themselves."""

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            raise ValueError(f"seed must be an int, got {shown(self.seed)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or larger, got {self.seed}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, or None, got {self.threads}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), or None, got {self.ema_decay}")
        require_choice(self, device=Device, precision=Precision, compile=CompileMode)


PRESETS: dict[tuple[str, PresetName], RunConfig] = {
    (name, preset): RunConfig(method=parts.method, data=parts.data, augment=parts.augment, model=parts.model)
    for name, method in METHODS.items()
    for preset, parts in method.presets().items()
}
"""Presets of the command line by method and name: a minute on two CPU cores, or the paper's network and images."""


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a config as plain values, as config.yaml holds it.

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


def from_dict(kind: type[T], values: Mapping[str, Any], *, path: str = "") -> T:
    """Rebuild a configuration dataclass from the plain values of `to_dict`.

    Args:
        kind: The dataclass.
        values: A value for any of its fields; the others keep their defaults.
        path: Names of the fields that lead to the dataclass, joined with dots, for errors.

    Raises:
        ValueError: If a name is not a field of `kind`, or a value is of another type or out of range.

    Example:
        >>> from_dict(ModelConfig, {"name": "wrn-16-2", "depth": 16})
        Traceback (most recent call last):
        ...
        ValueError: ModelConfig has no field 'depth'; it has name, dropout
        >>> from_dict(ModelConfig, {"dropout": "a third"}, path="model")
        Traceback (most recent call last):
        ...
        ValueError: model.dropout must be float, got 'a third'
    """
    hints = get_type_hints(kind)
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ValueError(f"{path or kind.__name__} has no field {shown(name)}; it has {', '.join(known)}")
    rebuilt = {name: _rebuild(hints[name], value, f"{path}.{name}".lstrip(".")) for name, value in values.items()}
    try:
        return kind(**rebuilt)
    except ValueError as error:
        # The error must name a nested field by its path; some parts already do.
        told = not path or str(error).startswith(f"{path}.")
        raise ValueError(str(error) if told else f"{path}: {error}") from None


def _rebuild(annotation: Any, value: Any, path: str) -> Any:
    """Convert a plain value to its field's type: nested dataclasses, paths and tuples."""
    if get_origin(annotation) in (Union, types.UnionType):
        if value is None:
            return None
        *others, annotation = [option for option in get_args(annotation) if option is not type(None)]
        for other in others:
            with suppress(ValueError):
                return _rebuild(other, value, path)
    if isinstance(value, Mapping) and annotation is MethodConfig:
        return from_dict(_method(value), {name: item for name, item in value.items() if name != "name"}, path=path)
    if isinstance(value, Mapping) and is_dataclass(annotation):
        return from_dict(annotation, value, path=path)  # type: ignore[arg-type]
    if get_origin(annotation) is tuple and isinstance(value, list):
        return tuple(_rebuild(get_args(annotation)[0], item, path) for item in value)
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML 1.1 reads 1e-4 as a string
            return float(value)
    _require_type(annotation, value, path)
    return value


def _require_type(annotation: Any, value: Any, path: str) -> None:
    """Raise ValueError if a value is not of its field's type; the field's dataclass checks choices."""
    origin = get_origin(annotation)
    wanted = type(get_args(annotation)[0]) if origin is Literal else origin or annotation
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        name = "a list" if wanted is tuple else "fields" if is_dataclass(wanted) else wanted.__name__
        raise ValueError(f"{path} must be {name}, got {shown(value)}")


def _method(values: Mapping[str, Any]) -> type[MethodConfig]:
    """Return the config class of the method that plain values name."""
    if (name := values.get("name")) not in METHODS:
        raise ValueError(f"method.name must be one of {', '.join(METHODS)}, got {shown(name)}")
    return METHODS[name]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the fields in which two configs differ, as "model.name: small-cnn → wrn-40-4".

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
            found.append(f"{prefix}{name}: {shorten(str(before))} → {shorten(str(after))}")
    return found
