"""YAML to typed experiments. Frozen dataclasses are the schema; jsonargparse checks and builds them; this
thin layer adds refusal of duplicate keys, `key=value` overrides, suggestions for misspelt keys and recipes
by name. Loading a config imports the code it names: run only configs you trust.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jsonargparse
import yaml

from mmrl.experiment import Experiment
from mmrl.importing import import_code
from mmrl.recipes import find_config, recipe_name
from mmrl.user_code import add_code_folders, run_imports
from mmrl.yaml_files import ConfigError, apply_override, check_values, read_yaml

DOMAINS = ("vision", "diffusion", "vla")
SOURCE_CONFIG = "_config"
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")


@dataclass(frozen=True)
class Loaded:
    """A config, checked and built."""

    experiment: Experiment
    folder: Path
    """Where its file is: code beside it can be imported."""
    resolved: str
    """YAML that reproduces it, overrides and defaults included."""
    recipe: str


def load(name: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override, check and build a config.

    Raises:
        ConfigError: anything is wrong with it; nothing has been run yet.
    """
    path = find_config(name)
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    add_code_folders(path)
    recipe, imports = str(raw.pop("recipe", recipe_name(path))), raw.pop("imports", [])
    if (domain := str(raw.get("experiment")).split(".")[0]) in DOMAINS and importlib.util.find_spec(domain):
        importlib.import_module(domain)  # the package alone, which quiets libraries that `imports` may load
    run_imports(imports, path)
    kind = _experiment_class(raw.pop("experiment", None), path)
    experiment, dumped = build(kind, raw, path)
    header = {"experiment": _name_of(kind), "recipe": recipe} | ({"imports": imports} if imports else {})
    return Loaded(experiment, path.resolve().parent, yaml.safe_dump({**header, **dumped}, sort_keys=False), recipe)


def build[T](kind: type[T], raw: Mapping[str, object], path: Path) -> tuple[T, dict[str, object]]:
    """`raw`, of the file `path`, as a checked `kind`, and the keys that reproduce it, defaults included.

    Raises:
        ConfigError: it is none.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{SOURCE_CONFIG}", type=kind)
    try:
        check_values(raw)
        _check_sections(kind, raw)
        parsed = parser.parse_object({SOURCE_CONFIG: _spelt_out(raw)})
        built: T = getattr(parser.instantiate(parsed), SOURCE_CONFIG)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {_explain(error, kind, raw)}") from error
    dumped = yaml.safe_load(parser.dump(parsed, skip_none=False))[SOURCE_CONFIG]
    return built, dumped.get("init_args", dumped)


def _experiment_class(name: object, path: Path) -> type[Experiment]:
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}: the key `experiment` is missing: give one of {', '.join(DOMAINS)}, or a dotted class"
        )
    found = find_class(f"{name}.experiments.Experiment" if "." not in name else name, path, "experiment")
    if not issubclass(found, Experiment):
        raise ConfigError(f"{path}: experiment {name!r} is not a mmrl.experiment.Experiment")
    return found


def find_class(name: str, path: Path, key: str) -> type:
    """The class at a dotted path, which stands under `key` of the file `path`.

    Raises:
        ConfigError: there is none, or it needs what is not installed.
    """
    module, _, attribute = name.rpartition(".")
    package = name.split(".")[0]
    try:
        found = getattr(import_code(module), attribute)
    except (ModuleNotFoundError, ValueError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else package
        if missing.split(".")[0] == package:
            raise ConfigError(
                f"{path}: {key} {package!r} is not one of {', '.join(DOMAINS)} as installed here, nor a dotted class"
            ) from error
        raise ConfigError(
            f'{path}: {key} {package!r} needs {missing!r}, which is not installed: `pip install ".[{package}]"`'
        ) from error
    except ImportError as error:
        raise ConfigError(f"{path}: {key} {name!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{path}: {key} {name!r}: {module} has no {attribute}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{path}: {key} {name!r} is not a class")
    return found


def _check_sections(kind: type, raw: Mapping[str, object], prefix: str = "") -> None:
    """Every section holds keys; jsonargparse drops a plain value in its place without a word."""
    for name, hint in _hints(kind).items():
        if name not in raw or not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            continue
        value = raw[name]
        if value is None or (isinstance(value, str) and inspect.isabstract(hint)):  # a class path
            continue
        if not isinstance(value, Mapping):
            some = ", ".join(_fields_of(hint)[:3])
            raise ConfigError(f"{prefix}{name} is {value!r}: give keys under it, such as {some}")
        _check_sections(hint, value, f"{prefix}{name}.")


def _spelt_out(node: object) -> object:
    """Every class path with all plain defaults of that class as explicit `init_args`. Without this, a field
    whose default is another class would hand that class's arguments on to the one that was named."""
    if isinstance(node, list):
        return [_spelt_out(child) for child in node]
    if isinstance(node, str) and DOTTED.match(node) and dataclasses.is_dataclass(_import(node)):
        node = {"class_path": node}
    if not isinstance(node, dict):
        return node
    own = {"class_path": node["class_path"]} if "class_path" in node else {}
    node = own | {key: _spelt_out(child) for key, child in node.items() if key != "class_path"}
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
    outer = rf"\"{SOURCE_CONFIG}\": Problem with given class_path '{re.escape(_name_of(kind))}': "
    text = re.sub(outer, "", text)
    absent = re.findall(
        r"\"([\w.]+)\": Problem with given class_path '([\w.]+)': (module \S+ has no attribute \S+)", text
    )
    if absent:
        key, dotted, said = absent[-1]
        return f"{key} is {dotted!r}, and {said}: {_near_class(dotted)}"
    unknown = re.findall(r"(?:does not accept option|Option) '([\w.]+)'", text)
    if not unknown:
        of_union = re.findall(r" - ((?!Expected )[^<>]*?: give .*?)(?= - Expected | Given value type: |$)", text)
        if "Union subtypes" in text and len(of_union) == 1:
            return str(of_union[0])  # what one of the types has to say; the others only say that they are not meant
        return re.sub(r"<class '([\w.]+)'>", r"\1", text)
    owners = re.findall(r"given class_path '([\w.]+)'", text)
    key = unknown[-1]
    known = _fields_of(_import(owners[-1])) if owners else sorted(_names(kind) | _names_in(raw))
    misspelt = key.split(".")[-1]
    if not owners and "." in key and key.split(".")[0] not in known:
        known, misspelt = _fields_of(kind), key.split(".")[0]
    near = difflib.get_close_matches(misspelt, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {key!r}{f' of {owners[-1]}' if owners else ''}: {hint}"


def _near_class(dotted: str) -> str:
    """What the first part of a class path that cannot be found might have been meant for."""
    found, rest = "", dotted.split(".")
    while len(rest) > 1 and importlib.util.find_spec(f"{found}.{rest[0]}".lstrip(".")) is not None:
        found = f"{found}.{rest.pop(0)}".lstrip(".")
    module = importlib.import_module(found)
    inside = [inner.name for inner in pkgutil.iter_modules(vars(module).get("__path__", []))]
    known = inside if len(rest) > 1 else [name for name, value in vars(module).items() if isinstance(value, type)]
    near = difflib.get_close_matches(rest[0], known, n=1, cutoff=0.5)
    return f"did you mean '{found}.{near[0]}'?" if near else f"known in {found}: {', '.join(sorted(known))}"


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _names(kind: object) -> set[str]:
    """Field names of a dataclass and of those inside it."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        inner = typing.get_args(kind)
        return set().union(*(_names(part) for part in inner)) if inner else set()
    hints = _hints(kind)
    return {*hints, *(name for hint in hints.values() for name in _names(hint))}


def _hints(kind: type) -> dict[str, object]:
    """Field name -> type of a dataclass, each read in the module that wrote it down. (Not of the whole class:
    interfaces import some types for checkers alone.)"""
    found: dict[str, object] = {}
    for owner in reversed(kind.__mro__):
        if "__dataclass_fields__" in vars(owner):
            own = types.SimpleNamespace(__annotations__=vars(owner).get("__annotations__", {}))
            found |= typing.get_type_hints(own, vars(sys.modules[owner.__module__]))
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def _names_in(raw: object) -> set[str]:
    """Field names of the classes that a config names."""
    if isinstance(raw, list):
        return set().union(*(_names_in(child) for child in raw)) if raw else set()
    if not isinstance(raw, dict):
        return set()
    own = set(_fields_of(_import(str(raw.get("class_path", "")))))
    return own.union(*(_names_in(child) for child in raw.values()))


def _import(dotted: str) -> type | None:
    module, _, name = dotted.rpartition(".")
    try:
        found: type = getattr(import_code(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def _fields_of(kind: type | None) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
