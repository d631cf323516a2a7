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


def packaged_recipes() -> dict[str, tuple[Path, str | None]]:
    """Return file and variant of every recipe of the package by name: FILE, or FILE-VARIANT where a file has variants.

    Example:
        >>> path, variant = packaged_recipes()["mohseni2020-table1-mnist"]
        >>> path.name, variant
        ('mohseni2020-table1.yaml', 'mnist')
    """
    recipes: dict[str, tuple[Path, str | None]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        variants = yaml.safe_load(path.read_text(encoding="utf-8")).get("variants")
        if variants is None:
            recipes[path.stem] = (path, None)
        else:
            recipes |= {f"{path.stem}-{variant}": (path, variant) for variant in variants}
    return recipes


def find_recipe(recipe: Path) -> tuple[Path, str | None]:
    """Return the file of a recipe and the variant that is named, if one is.

    Args:
        recipe: FILE or FILE:VARIANT, where FILE is a path or the name of one of the papers' recipes; or FILE-VARIANT
            for these. In a clone they may also be called recipes/NAME.yaml.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a recipe.
        ValueError: If two variants are named, as in FILE-VARIANT:VARIANT.

    Example:
        >>> path, variant = find_recipe(Path("li2020-table3a:wrn28-native-1"))
        >>> path.name, variant
        ('li2020-table3a.yaml', 'wrn28-native-1')
    """
    if recipe.exists():
        return recipe, None
    file, _, variant = str(recipe).rpartition(":")
    # The name of a folder may contain a colon, too.
    if file and "/" not in variant:
        path, other = find_recipe(Path(file))
        if other is not None:
            raise ValueError(f"{recipe}: only one variant must be chosen, got {other} and {variant}")
        return path, variant
    recipes, name = packaged_recipes(), recipe.name.removesuffix(".yaml")
    if recipe.parent in (Path(), Path("recipes")):
        if name in recipes:
            return recipes[name]
        if (FOLDER / f"{name}.yaml").is_file():
            return FOLDER / f"{name}.yaml", None
    close = get_close_matches(name, recipes, n=3, cutoff=0.5)
    hint = f"; near it: {', '.join(close)}" if close else f"; recipes are in {FOLDER}"
    raise FileNotFoundError(f"{recipe}: there is no such file, and no recipe of that name{hint}")


def recipe_name(recipe: Path) -> str:
    """Return the name of a recipe as a part of file names.

    Args:
        recipe: A recipe as `find_recipe` takes it.

    Example:
        >>> recipe_name(Path("li2020-table3a:wrn28-native-1")), recipe_name(Path("mine/tables.yaml:small"))
        ('li2020-table3a-wrn28-native-1', 'tables-small')
    """
    file, _, variant = recipe.name.partition(":")
    return "-".join(filter(None, (file.removesuffix(".yaml").removesuffix(".yml"), variant)))


def read_recipe(recipe: Path, *, preset: PresetName = "paper") -> RunConfig:
    """Return the configuration that a YAML file describes; config.yaml of a run is such a file, too.

    A file holds fields of `RunConfig`, of which `method.name` must be there. `variants`, if the file has them, maps
    names to more fields, which take precedence over the file's own; one of them must then be chosen.

    Args:
        recipe: A recipe as `find_recipe` takes it.
        preset: Preset that supplies the fields that the recipe leaves open.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If no variant is chosen and there are some, there is no such variant, or a field is unknown, of
            another type or out of range; the file and the field are named.

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
    path, variant = find_recipe(recipe)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it must hold the fields of a run, got {type(values).__name__}")
        values = _with_variant(values, variant)
        method = values.get("method")
        name = method.get("name") if isinstance(method, Mapping) else None
        if name not in METHODS:
            raise ValueError(f"method.name must be one of {', '.join(METHODS)}, got {shown(name)}")
        return from_dict(RunConfig, merge(to_dict(PRESETS[name, preset]), values))
    except (RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}{'' if variant is None else f':{variant}'}: {error}") from None


def _with_variant(values: Mapping[str, Any], variant: str | None) -> dict[str, Any]:
    """Return the fields of a file with those of the chosen variant.

    Raises:
        ValueError: If a variant must be chosen, or there is none of this name.
    """
    fields = {name: value for name, value in values.items() if name != "variants"}
    if "variants" not in values:
        if variant is not None:
            raise ValueError(f"the file has no variants, got {shown(variant)}")
        return fields
    variants = values["variants"]
    if not isinstance(variants, Mapping) or not all(isinstance(changes, Mapping) for changes in variants.values()):
        raise ValueError(f"variants must map names to fields of a run, got {shown(variants)}")
    # YAML reads names such as 1 and 0.3 as numbers.
    variants = {str(name): changes for name, changes in variants.items()}
    if variant not in variants:
        problem = "one of the variants must be chosen, as in FILE:VARIANT" if variant is None else "no such variant"
        raise ValueError(f"{problem}; there are {', '.join(variants)}")
    return merge(fields, variants[variant])


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested fields of `base`, replaced by those of `changes`.

    Example:
        >>> merge({"seed": 0, "model": {"name": "small-cnn", "dropout": 0.0}}, {"model": {"dropout": 0.3}})
        {'seed': 0, 'model': {'name': 'small-cnn', 'dropout': 0.3}}
    """
    merged = {**base, **changes}
    for name in merged:
        if isinstance(base.get(name), Mapping) and isinstance(changes.get(name), Mapping):
            merged[name] = merge(base[name], changes[name])
    return merged
