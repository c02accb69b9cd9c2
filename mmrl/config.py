"""YAML to typed experiments. Frozen dataclasses are the schema; jsonargparse checks and builds them; this
thin layer adds refusal of duplicate keys, `key=value` overrides, suggestions for misspelt keys and recipes
by name. Loading a config imports the code it names: run only configs you trust.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jsonargparse
import yaml

from mmrl.experiment import Experiment
from mmrl.yaml_files import ConfigError, apply_override, read_yaml

DOMAINS = ("vision", "diffusion", "vla")
HERE = Path(__file__).resolve().parent
SOURCE_CONFIG = "_config"


@dataclass(frozen=True)
class Loaded:
    """A config, checked and built."""

    experiment: Experiment
    resolved: str
    """YAML that reproduces it, overrides and defaults included."""
    recipe: str


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


def find_config(name: str) -> Path:
    """A config file, or a recipe by name such as `vision/cls_rl`."""
    path = Path(name)
    if path.is_file():
        return path
    recipe = recipes_folder() / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return recipe if recipe.is_file() else path


def load(name: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override, check and build a config.

    Raises:
        ConfigError: anything is wrong with it; nothing has been run yet.
    """
    path = find_config(name)
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    for folder in (str(Path.cwd()), str(path.resolve().parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    recipe = str(raw.pop("recipe", path.stem))
    kind = _experiment_class(raw.pop("experiment", None), path)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{SOURCE_CONFIG}", type=kind)
    try:
        parsed = parser.parse_object({SOURCE_CONFIG: _spelt_out(raw)})
        experiment = getattr(parser.instantiate(parsed), SOURCE_CONFIG)
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {_explain(error, kind, raw)}") from error
    dumped = yaml.safe_load(parser.dump(parsed, skip_none=False))[SOURCE_CONFIG]
    dumped = dumped.get("init_args", dumped)
    header = {"experiment": f"{kind.__module__}.{kind.__qualname__}", "recipe": recipe}
    return Loaded(experiment, yaml.safe_dump({**header, **dumped}, sort_keys=False), recipe)


def _experiment_class(name: object, path: Path) -> type[Experiment]:
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}: the key `experiment` is missing: give one of {', '.join(DOMAINS)}, or a dotted class"
        )
    module, _, attribute = (f"{name}.experiments.Experiment" if "." not in name else name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing.split(".")[0] == name:
            raise ConfigError(
                f"{path}: experiment {name!r} is not one of {', '.join(DOMAINS)} as installed here, nor a dotted class"
            ) from error
        domain = name.split(".")[0]
        raise ConfigError(
            f'{path}: experiment {domain!r} needs {missing!r}, which is not installed: `pip install ".[{domain}]"`'
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{path}: experiment {name!r}: {module} has no {attribute}") from error
    if not (isinstance(found, type) and issubclass(found, Experiment)):
        raise ConfigError(f"{path}: experiment {name!r} is not a mmrl.experiment.Experiment")
    return found


def _spelt_out(node: object) -> object:
    """Every class path with all plain defaults of that class as explicit `init_args`. Without this, a field
    whose default is another class would hand that class's arguments on to the one that was named."""
    if isinstance(node, list):
        return [_spelt_out(child) for child in node]
    if isinstance(node, str) and dataclasses.is_dataclass(_import(node)):
        node = {"class_path": node}
    if not isinstance(node, dict):
        return node
    node = {key: _spelt_out(child) for key, child in node.items() if key != "class_path"} | (
        {"class_path": node["class_path"]} if "class_path" in node else {}
    )
    kind = _import(str(node.get("class_path", "")))
    if kind is not None and dataclasses.is_dataclass(kind):
        plain = (int, float, str, bool, type(None), tuple)
        defaults = {f.name: f.default for f in dataclasses.fields(kind) if isinstance(f.default, plain)}
        given = node.get("init_args") or {}
        node["init_args"] = {**{n: list(d) if isinstance(d, tuple) else d for n, d in defaults.items()}, **given}
    return node


def _explain(error: Exception, kind: type, raw: Mapping[str, object]) -> str:
    """One sentence with the key, and for a misspelt one the nearest that exists."""
    text = " ".join(str(error).replace(f"{SOURCE_CONFIG}.", "").replace("Parser key ", "").split())
    unknown = re.search(r"(?:does not accept option|Option) '([\w.]+)'", text)
    if unknown is None:
        return re.sub(r"<class '([\w.]+)'>", r"\1", text)
    key = unknown.group(1)
    owner = re.search(r"given class_path '([\w.]+)'", text)
    known = _fields_of(_import(owner.group(1))) if owner else _known_keys(kind)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    place = f" of {owner.group(1)}" if owner else ""
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {key!r}{place}: {hint}"


def _import(dotted: str) -> type | None:
    module, _, name = dotted.rpartition(".")
    try:
        found: type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def _fields_of(kind: type | None) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _known_keys(kind: type) -> list[str]:
    """Dotted names of all keys of nested dataclasses."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{SOURCE_CONFIG}", type=kind)
    keys = [action.dest.removeprefix(f"{SOURCE_CONFIG}.") for action in parser._actions]
    top = _fields_of(kind)
    return sorted({*top, *(k for k in keys if k not in ("help", SOURCE_CONFIG))})
