"""Where the recipes and the small models are that mmrl ships, in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
from pathlib import Path

HERE = Path(__file__).resolve().parent


def recipes_folder() -> Path:
    """Where the recipes are: beside the package in a checkout, inside it when installed."""
    inside = HERE / "recipes"
    return inside if inside.is_dir() else HERE.parent / "configs"


def find_asset(name: str) -> str:
    """A model or data path: as given if it exists, else one of the small things that mmrl ships
    ("assets/..."), else the name unchanged (a hub name)."""
    if Path(name).exists() or not name.startswith("assets/"):
        return name
    inside = HERE / name
    return str(inside if inside.exists() else HERE.parent / name)


def existing_asset(name: str) -> str:
    """Where the model `name` is.

    Raises:
        FileNotFoundError: it is one of mmrl's own small models, and is not there.
    """
    found = find_asset(name)
    if name.startswith("assets/") and not Path(found).exists():
        recipe = "/".join([*Path(name).parts[1:-1], f"warmup_{Path(name).name}"])
        raise FileNotFoundError(f"policy.model {name!r} is not there: make it with `mmrl warmup {recipe}`")
    return found


def find_config(name: str) -> Path:
    """A config file, or a recipe by name such as `vision/cls_rl`."""
    path = Path(name)
    if path.is_file():
        return path
    recipe = recipes_folder() / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return recipe if recipe.is_file() else path


def nearest(name: str) -> str:
    """`did you mean 'vision/cls_rl'?` for a config that is not there: of the recipes and the files here; or nothing."""
    here = [str(path) for path in sorted(Path(name).parent.glob("*.y*ml"))]
    recipes = [f"{path.parent.name}/{path.stem}" for path in sorted(recipes_folder().glob("*/*.yaml"))]
    near = difflib.get_close_matches(name, [*here, *recipes], n=1, cutoff=0.7)
    return f"did you mean {near[0]!r}? " if near else ""


def recipe_name(path: Path) -> str:
    """What a config is called: its file, or its folder if the file is simply config.yaml."""
    return path.resolve().parent.name if path.stem == "config" else path.stem
