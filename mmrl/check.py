"""`mmrl check`: what a run will be like, from one real step of it. Nothing is kept."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mmrl import checkpoint
from mmrl.config import load
from mmrl.experiment import Experiment, Trial
from mmrl.masked import grouped
from mmrl.parts import Parts
from mmrl.runtime import Runtime
from mmrl.trainer import Trainer
from mmrl.update import make_plan
from mmrl.verdicts import OK, spread, verdict, zero_spread

SHOWN = 3
"""Best and worst outputs shown."""
SHEET = Path("check.png")


def check(config: str, overrides: Sequence[str]) -> None:
    """Try a config for one step on its largest samples and print what a run of it will take and bring."""
    experiment = load(config, overrides).experiment
    runtime = Runtime(experiment.runtime, experiment.seed)
    parts = experiment.build_to_check(runtime)
    with closing(parts):
        experiment.begin(parts, runtime, None)
        _tell(experiment, parts, runtime)


def _tell(experiment: Experiment, parts: Parts, runtime: Runtime) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    train = replace(experiment.train, ahead=None)  # one after the other, so that each can be timed
    trainer = Trainer(parts, train, runtime, None, experiment.evaluate, experiment.save, None, experiment.stop)
    trial = experiment.try_out(runtime, parts)
    console.print(f"data      {trial.data}")
    groups = zero_spread(trial)
    shares = [f"{name} {share:.2f}" for name, share in trial.figures.items()]
    told = " · ".join([*shares, *([str(groups)] if grouped(trial.rollout.group_ids) else [])])
    said = verdict(trial, groups)
    if said == OK and not bool(make_plan(runtime.gather(trial.rollout), parts.algorithm).credit.advantages.any()):
        said = "DO NOT START: every advantage is 0 (a group of one has nothing beside it): larger groups, or a critic"
    console.print(f"sampled   {told}   {said}")
    console.print(f"reward    {rewards(trial)}")
    seconds = _timed_step(trainer)
    _timed_step(Trainer(replace(parts, collector=trial.largest), train, runtime))
    peak, total = (megabytes / 1024 for megabytes in runtime.memory_mb())
    console.print(f"memory    peak {peak:.1f} of {total:.1f} GB with the largest sample ({trial.largest_name})")
    console.print(f"time      {whole_run(experiment, seconds, trial.evaluation_s)}")
    console.print(f"disk      {_disk(trainer, experiment)}")
    for word, said in trial.lines().items():
        console.print(f"{word:<9} {said}")
    order = _best_first(trial)
    if trial.draw_sheet is not None and order:
        trial.draw_sheet(order, SHEET)
        console.print(f"pictures  {len(order)}, the best first: {SHEET}")
    console.print("", *_shown(trial, order), sep="\n")


def rewards(trial: Trial) -> str:
    """Mean and spread of the whole reward and of each part."""
    rollout = trial.rollout
    valid = rollout.alive.any(-1)
    if not bool(valid.any()):
        names = ", ".join(rollout.reward_parts)
        return f"none of the rewards ({names}) applies to any of {len(valid)} outputs: a step on them teaches nothing"
    total, (within, _) = rollout.returns()[valid], spread(rollout)
    low, high = float(total.min()), float(total.max())
    beside = f", spread {within:.3g} within a prompt" if grouped(rollout.group_ids) else ""
    said = [f"mean {float(total.mean()):.3f} from {low:.3g} to {high:.3g}{beside}"]
    for name, values in rollout.reward_parts.items():
        kept = values[rollout.applicable[name]]
        if not len(kept):
            said.append(f"{name} APPLIES TO NONE")
            continue
        applies = "" if len(kept) == len(values) else f", applies to {len(kept)} of {len(values)}"
        constant = ", THE SAME EVERYWHERE" if len(kept) > 1 and bool((kept == kept[0]).all()) else ""
        said.append(f"{name} {float(kept.mean()):.3f}{applies}{constant}")
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


def _best_first(trial: Trial) -> list[int]:
    """Rows that have a reward, the best first; of equal texts one."""
    total, there = trial.rollout.returns(), trial.rollout.alive.any(-1).tolist()
    different: dict[object, int] = {}
    for row, tried in enumerate(trial.tried):
        if there[row]:
            different[row if tried.output is None else (tried.id, tried.output)] = row
    return sorted(different.values(), key=lambda row: float(total[row]), reverse=True)


def _shown(trial: Trial, order: Sequence[int]) -> list[str]:
    """The best and the worst outputs, with their rewards."""
    chosen, lines = {"worst": list(reversed(order[-SHOWN:])), "best": list(order[:SHOWN])}, []
    for heading, rows in chosen.items():
        lines.append(f"{heading} {len(rows)} of {len(trial.tried)} ({len(order)} different)")
        lines += [_line(trial, row) for row in rows]
    return lines if order else []


def _line(trial: Trial, row: int) -> str:
    tried, rollout = trial.tried[row], trial.rollout
    parts = [
        f"{name}={float(values[row]):.3g}" if bool(rollout.applicable[name][row]) else f"{name}=-"
        for name, values in rollout.reward_parts.items()
    ]
    expected = "" if tried.expected is None else f" expected {_short(tried.expected)}"
    became = "" if tried.output is None else f" -> {_short(tried.output)}"
    return (
        f"  {float(rollout.returns()[row]):>7.3f}  {' '.join(parts)}  [{tried.id}]{expected}\n"
        f"           {_short(tried.prompt)}{became}"
    )


def _short(text: str) -> str:
    """One line of at most 160 characters, in quotes."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 160 else f"{line[:78]} ... {line[-78:]}")
