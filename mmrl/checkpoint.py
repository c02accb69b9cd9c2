"""Checkpoints that survive a kill at any moment: written aside, renamed into place, `latest` last.

checkpoints/step_000040/{policy/, optimizer.pt, generators.pt, state.json}, (trained.pt)    checkpoints/latest, best

Tensors beside the weights are read with `weights_only=True`: a checkpoint can hold no code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from mmrl.ema import Average
from mmrl.sharding import load_optimizer_state, optimizer_state, to_load, to_save
from mmrl.types import Policy


@dataclass(frozen=True)
class SaveConfig:
    """A checkpoint `every` so many steps (null: only at the end), of which the last `keep` stay. `best` names a
    logged metric: the checkpoint with its highest value (`lowest: true`: its lowest) at an evaluation stays too, as
    checkpoints/best."""

    every: int | None = 20
    keep: int = 2
    best: str | None = None
    lowest: bool = False

    def __post_init__(self) -> None:
        if self.keep < 1 or (self.every is not None and self.every < 1):
            raise ValueError(f"save.every is {self.every} and save.keep is {self.keep}: give 1 or more")


@dataclass
class State:
    """Everything about the past of a run that is not a weight, an optimiser moment or a generator."""

    step: int = 0
    cpu_s: float = 0.0
    eval_cpu_s: float = 0.0
    wall_s: float = 0.0
    decisions: int = 0
    samples: int = 0
    collector: dict[str, object] = field(default_factory=dict)
    advantage: dict[str, object] = field(default_factory=dict)
    parts: dict[str, object] = field(default_factory=dict)
    """What the other parts of the algorithm remember."""
    eval_before: dict[str, dict[str, float]] = field(default_factory=dict)
    eval_after: dict[str, dict[str, float]] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    watched: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each stop rule remembers."""
    stopped_by: str = ""
    keep_best: bool = False
    best_step: int | None = None
    best_value: float = 0.0
    best_eval: dict[str, dict[str, float]] = field(default_factory=dict)
    unevaluated: bool = False
    """Whether an evaluation after this step failed, on a reward say, and is to be made up for."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the last complete one is untouched."""


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a kill, sees the old file or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def save(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Tensor],
    state: State,
    keep: int,
    average: Average | None = None,
    writes: bool = True,
) -> Path:
    """Write `folder`/step_<state.step> and point `latest` at it; then remove all but the last `keep`. With an
    `average`, policy/ holds that, and trained.pt what training goes on from. Every rank must come by here with what it
    has of the weights, and one `writes`: the files are those of one process.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; nothing old was removed.
    """
    tensors = {"optimizer.pt": optimizer_state(optimizer), "generators.pt": dict(generators)}
    if average is not None:
        tensors["trained.pt"] = average.state_dict()
    with contextlib.nullcontext() if average is None else average.applied(), to_save(policy, writes):
        return _write(folder, policy, tensors, state, keep) if writes else folder / f"step_{state.step:06d}"


def _write(folder: Path, policy: Policy, tensors: Mapping[str, object], state: State, keep: int) -> Path:
    step = state.step
    final = folder / f"step_{step:06d}"
    best = None if state.best_step is None else f"step_{state.best_step:06d}"
    if latest(folder) == final:  # nothing was trained since
        _make_up(final, state, best)
        return final
    aside = folder / f".writing_{step:06d}"
    try:
        for left in folder.glob(".writing_*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        (aside / "policy").mkdir(parents=True)
        policy.save_pretrained(aside / "policy")
        for name, found in tensors.items():
            torch.save(found, aside / name)
        write_atomically(aside / "state.json", json.dumps(asdict(state), indent=1))
        if final.exists():  # a run that was killed between the rename and `latest` comes by here again
            shutil.rmtree(final)
        os.replace(aside, final)
        write_atomically(folder / "latest", final.name)
    except Exception as error:  # each library that writes here has its own
        with contextlib.suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)
        kept = latest(folder)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder} ({error}); "
            f"{f'{kept.name} is complete' if kept else 'no earlier one exists'}: free some disk, then --resume"
        ) from error
    _link_best(folder, best)
    _prune(folder, final.name, keep, best)
    return final


def _make_up(final: Path, state: State, best: str | None) -> None:
    """Note what an evaluation found that failed when the checkpoint was written."""
    text = json.dumps(asdict(state), indent=1)
    if (final / "state.json").read_text() != text:
        write_atomically(final / "state.json", text)
        _link_best(final.parent, best)


def _link_best(folder: Path, best: str | None) -> None:
    """checkpoints/best, for people; mmrl itself reads the newest state."""
    if best is not None and (folder / best).exists():
        aside = folder / ".best"
        with contextlib.suppress(OSError):  # a file system without links
            aside.unlink(missing_ok=True)
            aside.symlink_to(best)
            os.replace(aside, folder / "best")


def _prune(folder: Path, newest: str, keep: int, best: str | None) -> None:
    """Remove all but `best` and the last `keep` up to `newest`, and what a run that was killed left beyond it."""
    names = sorted(path.name for path in folder.glob("step_*"))
    kept = {*[name for name in names if name <= newest][-keep:], best}
    for name in names:
        if name not in kept:
            shutil.rmtree(folder / name)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    found = folder / pointer.read_text().strip()
    if (found / "state.json").exists():
        return found
    complete = sorted(path.parent for path in folder.glob("step_*/state.json"))
    if not complete:
        raise CheckpointError(f"{pointer} names {found.name}, which is gone, and there is no other: start a new run")
    return complete[-1]


def load(
    found: Path, policy: Policy, optimizer: torch.optim.Optimizer, average: Average | None = None
) -> tuple[State, dict[str, torch.Tensor]]:
    """Put weights and optimiser state back in place; returns the state and the generator states. Without the `average`
    of a run that has one, the policy is that average."""
    with to_load(policy):
        policy.load_weights(found / "policy")
    if average is not None:
        average.load_state_dict(torch.load(found / "trained.pt", map_location="cpu", weights_only=True))
    load_optimizer_state(optimizer, torch.load(found / "optimizer.pt", map_location="cpu", weights_only=True))
    generators = torch.load(found / "generators.pt", map_location="cpu", weights_only=True)
    return State(**json.loads((found / "state.json").read_text())), generators
