"""`mmrl check`: what a run will be like, from one real step of it. Nothing is kept."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from mmrl import checkpoint
from mmrl.config import load
from mmrl.experiment import Experiment, Trial, Tried
from mmrl.masked import group_varies
from mmrl.runtime import Runtime
from mmrl.trainer import Trainer

TOO_HARD, TOO_EASY = 0.20, 0.95
"""Sampled success outside of which RL learns little: almost every group is then all wrong, or all right."""
SHOWN = 3
"""Best and worst outputs shown."""


@dataclass(frozen=True)
class Groups:
    """Shares of groups whose rewards are all the same."""

    all_right: float
    all_wrong: float

    @property
    def zero_spread(self) -> float:
        """Nothing to learn from."""
        return self.all_right + self.all_wrong


def check(config: str, overrides: Sequence[str]) -> None:
    """Try a config for one step on its largest samples and print what a run of it will take and bring."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    loaded = load(config, overrides)
    experiment = loaded.experiment
    runtime = Runtime(experiment.runtime, experiment.seed)
    parts = experiment.build(runtime)
    trainer = Trainer(
        parts, experiment.train, runtime, None, experiment.evaluate, experiment.save, None, experiment.stop
    )
    trial = experiment.try_out(runtime, parts)
    groups = zero_spread(trial)
    console.print(f"data      {trial.data}")
    shares = " · ".join(f"{name} {share:.2f}" for name, share in trial.figures.items())
    console.print(
        f"sampled   {shares} · zero-spread groups {groups.zero_spread:.0%} (all wrong {groups.all_wrong:.0%}, "
        f"all right {groups.all_right:.0%})   {verdict(trial)}"
    )
    console.print(f"reward    {rewards(trial)}")
    seconds = _timed_step(trainer)
    _timed_step(Trainer(replace(parts, collector=trial.largest), experiment.train, runtime))
    peak, total = runtime.memory_mb()
    console.print(
        f"memory    peak {peak / 1024:.1f} of {total / 1024:.1f} GB with the largest sample ({trial.largest_name})"
    )
    console.print(f"time      {whole_run(experiment, seconds, trial.evaluation_s)}")
    console.print(f"disk      {_disk(trainer, experiment)}")
    console.print("", *_shown(trial), sep="\n")


def zero_spread(trial: Trial) -> Groups:
    """How many groups of the rollout teach nothing, and why."""
    rollout = trial.rollout
    valid, right = rollout.alive.any(-1), torch.tensor([tried.right for tried in trial.tried])
    same = ~group_varies(rollout.returns(), valid, rollout.group_ids)
    groups = rollout.group_ids.unique()
    flat = [bool(same[rollout.group_ids == g].all()) for g in groups]
    good = [bool(right[rollout.group_ids.cpu() == int(g)].all()) for g in groups]
    return Groups(
        sum(f and g for f, g in zip(flat, good, strict=True)) / len(groups),
        sum(f and not g for f, g in zip(flat, good, strict=True)) / len(groups),
    )


def verdict(trial: Trial) -> str:
    """Whether to start: reinforcement learns from what the policy sometimes does right."""
    name, share = next(iter(trial.figures.items()))
    if share == 0:
        return (
            f"DO NOT START: {name} is 0, so there is nothing to reinforce: is the prompt's form the reward's? Else "
            "easier questions, a better start (`mmrl warmup`), or a reward with steps in between"
        )
    if share < TOO_HARD:
        return f"CAREFUL: {name} below {TOO_HARD:.0%} learns slowly: a better start, easier questions or larger groups"
    if share > TOO_EASY:
        return f"CAREFUL: {name} above {TOO_EASY:.0%} leaves little to learn: harder questions"
    return "OK to start"


def rewards(trial: Trial) -> str:
    """Mean and spread of the whole reward and of each part."""
    rollout = trial.rollout
    valid = rollout.alive.any(-1)
    total = rollout.returns()[valid]
    said = [f"mean {float(total.mean()):.3f} from {float(total.min()):.3g} to {float(total.max()):.3g}"]
    for name, values in rollout.reward_parts.items():
        kept = values[rollout.applicable[name]]
        applies = "" if len(kept) == len(values) else f", applies to {len(kept)} of {len(values)}"
        constant = ", THE SAME EVERYWHERE" if len(kept) > 1 and bool((kept == kept[0]).all()) else ""
        said.append(f"{name} {float(kept.mean()) if len(kept) else 0.0:.3f}{applies}{constant}")
    return " · ".join(said)


def whole_run(experiment: Experiment, step_s: float, evaluation_s: float) -> str:
    """Time of a run in words."""
    steps, every = experiment.train.steps, experiment.evaluate.every
    evaluations = 2 + (max(0, steps - 1) // every if every else 0)
    total = duration(steps * step_s + evaluations * evaluation_s)
    return (
        f"{duration(step_s)} a step, {duration(evaluation_s)} an evaluation -> {steps} steps and {evaluations} "
        f"evaluations: {total}"
    )


def duration(seconds: float) -> str:
    """`3 h 25 min`"""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _timed_step(trainer: Trainer) -> float:
    """Seconds of a step; the first one, which warms caches up, is not counted."""
    trainer.step()
    began = time.perf_counter()
    trainer.step()
    return time.perf_counter() - began


def _disk(trainer: Trainer, experiment: Experiment) -> str:
    """What checkpoints take, by writing one."""
    with tempfile.TemporaryDirectory(prefix=".mmrl-check-", dir=".") as folder:
        position = trainer.runtime.generator_states()
        written = checkpoint.save(Path(folder), trainer.parts.policy, trainer.optimizer, position, trainer.state, 1)
        size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file()) / 2**20
    kept = experiment.save.keep + (experiment.save.best is not None)
    free = shutil.disk_usage(".").free / 2**20
    short = f"   TOO LITTLE: {free:.0f} MB are free here" if (kept + 1) * size > free else ""
    return f"{size:.1f} MB a checkpoint, {kept} kept: {kept * size:.0f} MB{short}"


def _shown(trial: Trial) -> list[str]:
    """The best and the worst outputs, with their rewards."""
    total = trial.rollout.returns()
    different = {(tried.id, tried.output): row for row, tried in enumerate(trial.tried)}
    order = sorted(different.values(), key=lambda row: float(total[row]))
    chosen = {"worst": order[:SHOWN], "best": list(reversed(order[-SHOWN:]))}
    lines = []
    for heading, rows in chosen.items():
        lines.append(f"{heading} {len(rows)} of {len(total)} ({len(order)} different)")
        lines += [_line(trial, trial.tried[row], row, float(total[row])) for row in rows]
    return lines


def _line(trial: Trial, tried: Tried, row: int, reward: float) -> str:
    parts = " ".join(f"{name}={float(values[row]):.3g}" for name, values in trial.rollout.reward_parts.items())
    return (
        f"  {reward:>7.3f}  {parts}  [{tried.id}] expected {_short(tried.expected)}\n"
        f"           {_short(tried.prompt)} -> {_short(tried.output)}"
    )


def _short(text: str) -> str:
    """One line of at most 160 characters, in quotes."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 160 else f"{line[:78]} ... {line[-78:]}")
