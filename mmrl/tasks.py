"""What `mmrl rewards` and `mmrl mixture` run: a class that a config names under `task`; the core need not know it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import yaml

from mmrl.checkpoint import write_atomically
from mmrl.commands import train
from mmrl.config import build, find_class, load
from mmrl.recipes import find_config, recipe_name
from mmrl.run import RunFolder, provenance
from mmrl.user_code import add_code_folders, run_imports
from mmrl.yaml_files import ConfigError, apply_override, flatten, read_yaml

DATA = (".jsonl", ".json", ".parquet")


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass whose fields are the keys of the YAML. `verb` is what comes after `mmrl`: "rewards train"."""

    verb: str

    def runs(self) -> Mapping[str, tuple[str, Sequence[str]]]:
        """Training runs that it reads: name -> recipe and overrides. They are made first, in `runs/<name>`."""

    def run(self, folder: Path) -> int:
        """Do it, writing into `folder`; returns the exit status."""


def run_task(verb: str, target: str | None, overrides: Sequence[str], folder: Path | None) -> int:
    """Run the task of a config; of data alone, or of nothing, that of the recipe that is called as the verb is.

    Raises:
        ConfigError: the config cannot be run.
    """
    if target is not None and target.endswith(DATA):
        target, overrides = None, [f"pairs.path={target}", *overrides]
    recipe = verb.replace(" ", "/")
    path = find_config(target or recipe)
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    add_code_folders(path)
    run_imports(raw.pop("imports", []), path)
    name = raw.pop("task", None)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: the key `task` is missing: copy the recipe {recipe}")
    task: object
    task, resolved = build(find_class(name, path, "task"), raw, path)
    if not isinstance(task, Task):
        raise ConfigError(f"{path}: task {name!r} has no verb, runs and run: copy the recipe {recipe}")
    if task.verb != verb:
        raise ConfigError(f"{path}: task {name!r} is for `mmrl {task.verb}`, not `mmrl {verb}`")
    folder = folder or Path("runs") / recipe_name(path)
    if status := train_missing(task.runs(), folder):
        return status
    folder.mkdir(parents=True, exist_ok=True)
    about = {"config": {"task": name, **resolved}, "provenance": provenance()}
    write_atomically(folder / "task.json", json.dumps(about, indent=1, default=str))
    return task.run(folder)


def train_missing(runs: Mapping[str, tuple[str, Sequence[str]]], folder: Path) -> int:
    """Make the training runs that are not finished in `folder`/runs; the exit status of one that was stopped, or 0.

    Raises:
        ConfigError: a run that is there has another config.
    """
    for label, (recipe, words) in runs.items():
        run = RunFolder(folder / "runs" / label)
        if (run.path / "config.yaml").is_file():
            now = flatten(yaml.safe_load(load(recipe, words).resolved))
            if changed := run.changed(now):
                raise ConfigError(
                    f"{run.path} was run with another config ({'; '.join(changed[:5])}): name another folder with "
                    "--run, or remove that one"
                )
        if not (run.path / "summary.json").is_file():
            status = train(recipe, words, run.path, resume=(run.path / "config.yaml").is_file())
            if status != 0:
                return status
    return 0
