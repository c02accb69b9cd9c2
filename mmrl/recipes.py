"""Where the recipes and the small models are that mmrl ships, in a checkout and in an installed wheel."""

from __future__ import annotations

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


def recipe_name(path: Path) -> str:
    """What a config is called: its file, or its folder if the file is simply config.yaml."""
    return path.resolve().parent.name if path.stem == "config" else path.stem
