"""Code of the user's own: where it is found, and what of it runs before a config is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mmrl.importing import import_code
from mmrl.yaml_files import ConfigError


def add_code_folders(path: Path) -> None:
    """Let code be imported that is beside the config `path`, or where one runs."""
    for folder in (str(Path.cwd()), *_code_folders(path)):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _code_folders(path: Path) -> list[str]:
    """The folder of a config and, of a run's own copy, that of the config it was started with."""
    folders = [str(path.resolve().parent)]
    provenance = path.parent / "provenance.json"
    if provenance.is_file():
        started_from = json.loads(provenance.read_text()).get("config_folder")
        folders += [started_from] if started_from else []
    return folders


def run_imports(names: object, path: Path) -> None:
    """Import the modules under `imports:`, which register environments, models or data sets of the user's own."""
    if not isinstance(names, list):
        raise ConfigError(f"{path}: imports is {names!r}: give a list of modules, such as [my_lab.tasks]")
    for name in names:
        try:
            import_code(str(name))
        except ImportError as error:
            raise ConfigError(
                f"{path}: imports names {name!r}, which cannot be imported ({error}): put it beside the config or "
                "where you run"
            ) from error
