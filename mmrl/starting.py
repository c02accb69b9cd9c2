"""`mmrl init`: a folder of one's own that runs as it is."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from mmrl.config import DOMAINS
from mmrl.recipes import recipes_folder
from mmrl.yaml_files import ConfigError


def init(domain: str, folder: Path) -> str:
    """Write config.yaml, reward.py and data/ for `domain` into `folder`; returns what to do next.

    Raises:
        ConfigError: there is no such domain, or the folder holds one of these files already.
    """
    template = recipes_folder() / "init" / domain
    if not template.is_dir():
        known = [name for name in DOMAINS if (recipes_folder() / "init" / name).is_dir()]
        raise ConfigError(f"{domain!r} is not a domain that can be started: give {' or '.join(known)}")
    files = sorted(path for path in template.iterdir() if path.is_file())
    there = [name for name in (*(file.name for file in files), "data") if (folder / name).exists()]
    if there:
        raise ConfigError(f"{folder} already holds {', '.join(there)}, which init would overwrite: name a new folder")
    try:
        experiments = importlib.import_module(f"{domain}.experiments")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{domain} needs {error.name!r}, which is not installed: pip install ".[{domain}]"'
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    experiments.Experiment.write_example(folder / "data")
    names = ", ".join([*(file.name for file in files), "data/"])
    return f"{folder}: {names}\nnext: cd {folder} && mmrl check config.yaml && mmrl train config.yaml"
