"""Recipes: files that name the fields in which a run differs from its method's preset."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from fastood.common.config_checks import shown
from fastood.train.config import PRESETS, RunConfig, from_dict, to_dict
from fastood.train.methods import METHODS, PresetName

FOLDER = Path(__file__).with_name("recipes")
"""Folder of the papers' recipes, part of the package."""


def find_recipe(path: Path) -> Path:
    """Return the file of a recipe.

    Args:
        path: A file, or one of the papers' recipes: by name, or as it is called in a clone, recipes/NAME.yaml.

    Raises:
        FileNotFoundError: If there is neither.

    Example:
        >>> find_recipe(Path("mohseni2020-table1-mnist")).name
        'mohseni2020-table1-mnist.yaml'
    """
    if path.exists():
        return path
    if path.parent in (Path(), Path("recipes")):
        name = path.name.removesuffix(".yaml")
        if (FOLDER / f"{name}.yaml").is_file():
            return FOLDER / f"{name}.yaml"
    known = sorted(recipe.stem for recipe in FOLDER.glob("*.yaml"))
    close = get_close_matches(path.name.removesuffix(".yaml"), known, n=3, cutoff=0.5)
    hint = f"; near it: {', '.join(close)}" if close else ""
    raise FileNotFoundError(f"{path}: there is no such file, and no recipe of that name{hint}")


def read_recipe(path: Path, *, preset: PresetName = "paper") -> RunConfig:
    """The configuration that a YAML file describes; config.yaml of a run is one, too.

    Args:
        path: A file of the fields of `RunConfig`, of which `method.name` must be there, as `find_recipe` takes it.
        preset: Where the fields come from that are not.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If a field is unknown, of another type or out of range; the file and the field are named.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.yaml"
        >>> _ = path.write_text("method: {name: oe, finetune: {epochs: 3}}")
        >>> config = read_recipe(path)
        >>> config.method.name, config.method.finetune.epochs, config.model.name
        ('oe', 3, 'wrn-40-4')
        >>> _ = path.write_text("method: {name: oe, finetune: {epochs: many}}")
        >>> read_recipe(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: .../mine.yaml: method.finetune.epochs must be int, got 'many'
    """
    path = find_recipe(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it must hold the fields of a run, got {type(values).__name__}")
        method = values.get("method")
        name = method.get("name") if isinstance(method, Mapping) else None
        if name not in METHODS:
            raise ValueError(f"method.name must be one of {', '.join(METHODS)}, got {shown(name)}")
        return from_dict(RunConfig, merge(to_dict(PRESETS[name, preset]), values))
    except (RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields, those of `changes` in place of those of `base`.

    Example:
        >>> merge({"seed": 0, "model": {"name": "small-cnn", "dropout": 0.0}}, {"model": {"dropout": 0.3}})
        {'seed': 0, 'model': {'name': 'small-cnn', 'dropout': 0.3}}
    """
    merged = {**base, **changes}
    for name in merged:
        if isinstance(base.get(name), Mapping) and isinstance(changes.get(name), Mapping):
            merged[name] = merge(base[name], changes[name])
    return merged
