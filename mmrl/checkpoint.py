"""Checkpoints that survive a kill at any moment: written aside, renamed into place, `latest` last.

checkpoints/step_000040/{policy/, optimizer.pt, generators.pt, state.json, seal.json}, (trained.pt, behind.pt)
checkpoints/latest, best

Tensors beside the weights are read with `weights_only=True`: a checkpoint can hold no code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mmrl.ema import Average
from mmrl.seals import admit, check_seal, seal
from mmrl.sharding import load_optimizer_state, optimizer_state, to_load, to_save
from mmrl.state import State, read_state
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
    behind: Mapping[int, Mapping[str, torch.Tensor]] | None = None,
    writes: bool = True,
) -> Path:
    """Write `folder`/step_<state.step> and point `latest` at it; then remove all but the last `keep`. With an
    `average`, policy/ holds that, and trained.pt what training goes on from; behind.pt has older versions of the
    weights that are yet to draw (`mmrl.ahead`, `mmrl.lagged`). Every rank must come by here with what it has of the
    weights, and one `writes`: the files are those of one process.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; nothing old was removed.
    """
    tensors: dict[str, object] = {"optimizer.pt": optimizer_state(optimizer), "generators.pt": dict(generators)}
    if average is not None:
        tensors["trained.pt"] = average.state_dict()
    if behind:
        tensors["behind.pt"] = {version: dict(weights) for version, weights in behind.items()}
    with contextlib.nullcontext() if average is None else average.applied(), to_save(policy, writes):
        return _write(folder, policy, tensors, state, keep) if writes else folder / f"step_{state.step:06d}"


def _write(folder: Path, policy: Policy, tensors: Mapping[str, object], state: State, keep: int) -> Path:
    step = state.step
    final = folder / f"step_{step:06d}"
    best = None if state.best_step is None else f"step_{state.best_step:06d}"
    aside = folder / f".writing_{step:06d}"
    try:
        if latest(folder) == final:  # nothing was trained since
            _make_up(final, state, best)
            return final
        for left in (*folder.glob(".writing_*"), *folder.glob(".removing_*")):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        (aside / "policy").mkdir(parents=True)
        policy.save_pretrained(aside / "policy")
        for name, found in tensors.items():
            torch.save(found, aside / name)
        write_atomically(aside / "state.json", json.dumps(asdict(state), indent=1))
        seal(aside)
        if final.exists():  # a run that was killed between the rename and `latest` comes by here again
            _remove(final)
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
        admit(final, "state.json", text)
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
            _remove(folder / name)


def _remove(checkpoint: Path) -> None:
    """Take it away in one move, so that a kill leaves all of it or none, and then delete it."""
    aside = checkpoint.with_name(f".removing_{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_bytes().decode(errors="replace").strip()
    complete = sorted(path.parent for path in folder.glob("step_*/state.json"))
    found = [path for path in complete if path.name == name]
    if not complete:
        raise CheckpointError(f"{pointer} names {name[:40]!r}, which is gone, and there is no other: start a new run")
    return (found or complete)[-1]


def verified(found: Path) -> Path:
    """The checkpoint `found`, which is as it was written.

    Raises:
        CheckpointError: it is not; says what can be done.
    """
    try:
        check_seal(found)
        read_state(found)
    except (ValueError, OSError) as error:
        raise _unreadable(found, error) from error
    return found


def load(
    found: Path, policy: Policy, optimizer: torch.optim.Optimizer, average: Average | None = None
) -> tuple[State, dict[str, torch.Tensor]]:
    """Put weights and optimiser state back in place; returns the state and the generator states. Without the `average`
    of a run that has one, the policy is that average.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    try:
        with to_load(policy):
            policy.load_weights(found / "policy")
        if average is not None:
            average.load_state_dict(_tensors(found / "trained.pt"))
        load_optimizer_state(optimizer, _tensors(found / "optimizer.pt"))
        return read_state(found), _tensors(found / "generators.pt")
    except Exception as error:  # each library that reads here has its own
        raise _unreadable(found, error) from error


def load_behind(found: Path) -> dict[int, dict[str, torch.Tensor]]:
    """Older versions of the weights, none where the run had no use for them."""
    path = found / "behind.pt"
    if not path.exists():
        return {}
    versions: dict[int, dict[str, torch.Tensor]] = torch.load(path, map_location="cpu", weights_only=True)
    return versions


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _unreadable(found: Path, error: Exception) -> CheckpointError:
    told = " ".join(str(error).split())[:200]
    others = sorted(path.parent.name for path in found.parent.glob("step_*/state.json") if path.parent != found)
    way = f"remove that folder, and --resume goes on from {others[-1]}" if others else "there is no other: start anew"
    return CheckpointError(f"the checkpoint {found} is damaged or of another model ({told}): {way}")
