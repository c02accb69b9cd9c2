"""YAML files: read with duplicate keys refused, changed by `dotted.key=value`, flattened for comparison."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from pathlib import Path

import yaml

from mmrl.recipes import nearest


class ConfigError(ValueError):
    """A config that cannot be run, with the key, the value and the fix."""


class _Unique(yaml.SafeLoader):
    """YAML that refuses the same key twice, and reads 1e-4 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or isinstance(key, tuple):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key is a word, not {str(key)[:40]}")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice: remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Unique.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parsed(text: str) -> object:
    """What YAML says.

    Raises:
        ConfigError: a key stands twice, or is no word.
        yaml.YAMLError: it is not YAML, or holds a value that cannot be.
    """
    try:
        return yaml.load(text, Loader=_Unique)  # noqa: S506  # a SafeLoader
    except ConfigError:
        raise
    except (ValueError, ArithmeticError) as error:  # a date of month 13
        raise yaml.YAMLError(str(error)) from error
    except RecursionError as error:
        raise yaml.YAMLError("its brackets stand too deep in one another") from error


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, holds no mapping, or a key twice.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: {nearest(str(path))}`mmrl list` names the recipes")
    try:
        found = parsed(path.read_text())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text, and so no config: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}, not keys: start with `experiment: vision`")
    return found


def apply_override(raw: dict[str, object], override: str) -> None:
    """Put one `dotted.key=value` into the raw config; keys reach through `init_args` by themselves, or name it."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override: write key=value, such as train.steps=50")
    *path, last = key.split(".")
    node: object = raw
    for place, name in enumerate(path):
        component = _child(node, name, ".".join(path[: place + 1]))
        node = component if [*path, last][place + 1] in ("class_path", "init_args") else _enter(component)
    try:
        value = parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {override!r} is not YAML: quote it, or close its brackets") from error
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"{key!r} cannot be overridden: {'.'.join(path)} is {node!r} and holds no keys")


def _child(node: object, name: str, where: str) -> object:
    """node[name], made into a mapping if it is missing or a bare class path."""
    if isinstance(node, list):
        index = _index(node, name, where)
        if isinstance(node[index], str):
            node[index] = {"class_path": node[index]}
        return node[index]
    if not isinstance(node, dict):
        raise ConfigError(f"{where!r} cannot be overridden: there is no mapping above it")
    if node.get(name) is None:
        node[name] = {}
    elif isinstance(node[name], str):
        node[name] = {"class_path": node[name]}
    return node[name]


def _index(node: list[object], name: str, where: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"{where!r}: {name!r} is not a place in a list of {len(node)}")
    return int(name)


def _enter(node: object) -> object:
    if isinstance(node, dict) and "class_path" in node:
        return node.setdefault("init_args", {})
    return node


def check_values(raw: object, key: str = "") -> None:
    """That keys are words and numbers finite: a learning rate that is not would pass every `> 0`.

    Raises:
        ConfigError: they are not.
    """
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"{key} is {raw}: give a finite number, or null where the key allows it")
    children = raw.items() if isinstance(raw, Mapping) else enumerate(raw) if isinstance(raw, list) else ()
    for name, child in children:
        if isinstance(raw, Mapping) and not isinstance(name, str):
            raise ConfigError(
                f"{f'{key} holds the' if key else 'the'} key {name!r}, which is no word: quote it, or remove it"
            )
        check_values(child, f"{key}.{name}" if key else str(name))


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings to dotted keys."""
    flat: dict[str, object] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
