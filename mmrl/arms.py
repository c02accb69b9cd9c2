"""The file of `mmrl compare`, read and checked: which runs it asks for.

recipe: vision/cls_rl_nothink
overrides: [train.steps=100]                                  # for all runs
arms:                                                         # name -> overrides, or {recipe:, overrides:}
  plain: []
  clip_higher: [algorithm.surrogate.clip_high=0.28]
grid: {train.lr: [1.0e-4, 2.0e-4]}                            # every arm at every value
seeds: [0, 1, 2]
warmup: vision/warmup_digits                                  # made once: what every run starts from
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from mmrl.config import Loaded, load
from mmrl.run import RunFolder
from mmrl.yaml_files import ConfigError, flatten, read_yaml

KEYS = ("recipe", "overrides", "arms", "grid", "seeds", "metric", "lower_is_better", "warmup", "start_key",
        "different_starts", "workers")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run of a comparison."""

    arm: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    folder: Path

    def finished(self) -> bool:
        """Whether it has a summary, and its controls have run."""
        file = self.folder / "summary.json"
        return file.exists() and not json.loads(file.read_text()).get("controls_pending")

    def command(self) -> list[str]:
        """What starts it, or goes on with it."""
        words = [sys.executable, "-m", "mmrl", "train", self.recipe, *self.overrides, f"seed={self.seed}"]
        words += ["logging.progress=false", "--run", str(self.folder)]
        return [*words, "--resume"] if (self.folder / "config.yaml").exists() else words


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison will run, checked."""

    runs: tuple[Run, ...]
    workers: int
    metric: str | None
    higher_is_better: bool
    warmup: str | None


def read_plan(file: Path, folder: Path) -> Plan:
    """Read and check a comparison.

    Raises:
        ConfigError: something in it cannot be run, or the arms do not start from the same policy.
    """
    raw = read_yaml(file)
    for key in raw:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise ConfigError(
                f"{file}: unknown key {key!r}: {f'did you mean {near[0]!r}?' if near else ', '.join(KEYS)}"
            )
    seeds, arms, workers = raw.get("seeds", [0, 1, 2]), raw.get("arms"), raw.get("workers", 1)
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"{file}: seeds is {seeds!r}: give whole numbers, such as [0, 1, 2]")
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"{file}: seeds is {seeds}: each once")
    if not isinstance(arms, dict) or not arms:
        raise ConfigError(f"{file}: arms is {arms!r}: give names with overrides, such as `plain: []`")
    if type(workers) is not int or workers < 1:
        raise ConfigError(f"{file}: workers is {workers!r}: give 1 or more")
    warmup = raw.get("warmup")
    shared = _words(file, "overrides", raw.get("overrides", []))
    if warmup is not None:
        shared = [*shared, f"{raw.get('start_key', 'policy.model')}={folder / 'start'}"]
    runs: list[Run] = []
    for name, recipe, words in _arms(file, raw, arms):
        path = folder / re.sub(r"[^\w.=-]+", "_", name)
        runs += [Run(name, seed, recipe, (*shared, *words), path / f"seed{seed}") for seed in seeds]
    if len({run.folder for run in runs}) != len(runs):
        raise ConfigError(f"{file}: two arms have names that give the same folder: rename one")
    metric = None if raw.get("metric") is None else str(raw["metric"])
    plan = Plan(tuple(runs), workers, metric, not raw.get("lower_is_better"), None if warmup is None else str(warmup))
    _check_runs(file, plan, bool(raw.get("different_starts")))
    return plan


def _words(file: Path, key: str, found: object) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(word, str) and "=" in word for word in found):
        raise ConfigError(f"{file}: {key} is {found!r}: give a list of key=value")
    return found


def _arms(file: Path, raw: Mapping[str, object], arms: Mapping[str, object]) -> list[tuple[str, str, list[str]]]:
    """Name, recipe and overrides of every arm at every point of the grid."""
    grid = raw.get("grid") or {}
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigError(f"{file}: grid is {grid!r}: give a list of values for each key")
    points = [list(zip(grid, values, strict=True)) for values in product(*grid.values())]
    found = []
    for name, arm in arms.items():
        about = arm if isinstance(arm, dict) else {"overrides": arm or []}
        if set(about) - {"recipe", "overrides"}:
            raise ConfigError(f"{file}: arm {name!r} has {sorted(about)}: give recipe and overrides")
        recipe = about.get("recipe", raw.get("recipe"))
        if recipe is None:
            raise ConfigError(
                f"{file}: arm {name!r} has no recipe, and the file has none: give `recipe: vision/cls_rl`"
            )
        beside = file.parent / str(recipe)
        words = _words(file, f"arms.{name}", about.get("overrides", []))
        for point in points:
            label = ", ".join([str(name), *(f"{key}={value}" for key, value in point)])
            chosen = [f"{key}={json.dumps(value)}" for key, value in point]
            found.append((label, str(beside if beside.is_file() else recipe), [*words, *chosen]))
    return found


def _check_runs(file: Path, plan: Plan, different_starts: bool) -> None:
    """Load every config once, before anything runs."""
    starts: dict[str, str] = {}
    for run in {run.arm: run for run in plan.runs}.values():
        starts[run.arm] = _loaded(run).experiment.base_policy
    for run in plan.runs:
        if (run.folder / "config.yaml").exists():
            _refuse_changed(file, run)
    if len(set(starts.values())) > 1 and not different_starts:
        raise ConfigError(
            f"{file}: the arms start from different policies ({', '.join(f'{a}: {s}' for a, s in starts.items())}): "
            "give them one, or say `different_starts: true`"
        )


def _loaded(run: Run) -> Loaded:
    return load(run.recipe, [*run.overrides, f"seed={run.seed}", "logging.progress=false"])


def _refuse_changed(file: Path, run: Run) -> None:
    if changed := RunFolder(run.folder).changed(flatten(yaml.safe_load(_loaded(run).resolved))):
        raise ConfigError(
            f"{file}: {run.folder} was run with other values of {'; '.join(changed[:5])}: name another folder with "
            "--run, or remove that one"
        )
