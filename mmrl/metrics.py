"""What a run measures, how it is added up over micro-batches and ranks, and where it is written.

| name | what |
|---|---|
| rollout/reward_mean, rollout/reward_std | of the trajectories of this step |
| rollout/length_mean | living decisions a trajectory |
| rollout/zero_spread_groups | share of groups whose rewards are all the same: nothing to learn from |
| rollout/entropy | mean entropy of the policy where it acted; so other statistics that parts asked for |
| plan/<part> | decisions that a selector weighs otherwise than by 1, or that a penalty chose |
| rollout/failed_rows | share of trajectories that failed |
| rollout/truncated | share of decisions that are in answers cut by the length limit |
| reward/<part> | mean of one part of the reward, before its weight |
| update/loss, grad_norm, lr, active_rows | one optimiser step (mean over the steps of an update) |
| update/approx_kl, ratio_max, clip_frac_low, clip_frac_high | how far the policy moved from the one that acted |
| update/kl | to the reference policy |
| update/explained_variance, value_error | of the critic |
| update/stopped_by_kl | whether `max_kl` ended the epochs early |
| parity/logprob_diff_max, first_pass_ratio_max | recorded against re-scored log-probs: the first alarm of any bug |
| diversity/spread, agreed, answer_entropy | how much the answers to one prompt differ, where that is measured |
| ahead/staleness | updates since the policy that drew, mean over trajectories, where rollouts are collected ahead |
| ahead/waited_s, ahead/queue | seconds for which the update waited for its rollout; samples that were waiting for it |
| synthetic/... | the data server: what became of every description, staleness, queue |
| eval/<metric> | held out, with /low and /high of its 95 % interval |
| time/collect, time/update | seconds of this step |
| time/cpu | CPU seconds of training so far |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mmrl.checkpoint import write_atomically
from mmrl.masked import group_sizes, group_varies, masked_mean, masked_sum
from mmrl.runtime import Runtime
from mmrl.types import Estimate, Rollout

PARITY = "parity/"
PARITY_LIMIT = 1e-5
"""Largest honest difference of a log-prob per decision dimension in float32."""


class Tally:
    """Sums, counts and largest values of one update, on one rank."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._largest: dict[str, float] = {}

    def add(self, name: str, value: float, count: float = 1.0) -> None:
        """One more value of a mean."""
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def add_masked(self, prefix: str, stats: Mapping[str, Tensor], mask: Tensor) -> None:
        """Values (b, t) of a mean over all decisions in masks."""
        for name, values in stats.items():
            self.add(f"{prefix}/{name}", float(masked_sum(values.detach(), mask)), float(mask.sum()))

    def maximum(self, name: str, value: float) -> None:
        """One more value of a maximum."""
        before = self._largest.get(name, -math.inf)
        self._largest[name] = math.nan if math.isnan(value) or math.isnan(before) else max(before, value)

    def include(self, other: Tally) -> None:
        """Take in what another tally of this update measured."""
        for name, value in other._sums.items():
            self.add(name, value, other._counts[name])
        for name, value in other._largest.items():
            self.maximum(name, value)

    def mean(self, name: str, runtime: Runtime) -> float:
        """One of the means so far, over all ranks; 0 if there is none."""
        mine = {"sum": self._sums.get(name, 0.0), "count": self._counts.get(name, 0.0)}
        found = runtime.sum_over_ranks(mine)
        return found["sum"] / found["count"] if found["count"] > 0 else 0.0

    def over_ranks(self, runtime: Runtime) -> dict[str, float]:
        """Means and maxima over all ranks."""
        sums, counts = runtime.sum_over_ranks(self._sums), runtime.sum_over_ranks(self._counts)
        means = {name: sums[name] / counts[name] for name in sums if counts[name] > 0}
        return {**means, **runtime.max_over_ranks(self._largest)}


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Metrics of a rollout of all ranks."""
    valid, rewards = rollout.fresh(), rollout.returns()
    same = ~group_varies(rewards, valid, rollout.group_ids)
    share = 1 / group_sizes(valid, rollout.group_ids).clamp(min=1)
    counted = share * valid
    metrics = {
        "rollout/reward_mean": float(masked_mean(rewards, valid)),
        "rollout/reward_std": float(rewards[valid].std(correction=0)) if bool(valid.any()) else 0.0,
        "rollout/length_mean": float(masked_mean(rollout.alive.sum(-1).float(), valid)),
        "rollout/zero_spread_groups": float((same * counted).sum() / counted.sum().clamp(min=1e-9)),
        "rollout/failed_rows": float((~rollout.alive.any(-1)).float().mean()),
    }
    for name, values in rollout.stats.items():
        metrics[f"rollout/{name}"] = float(masked_mean(values.float(), rollout.mask & valid[:, None]))
    for name, part in rollout.reward_parts.items():
        metrics[f"reward/{name}"] = float(masked_mean(part, rollout.applicable[name] & rollout.alive.any(-1)))
    return metrics


def with_measured(metrics: Mapping[str, float], measured: Mapping[str, float], runtime: Runtime) -> dict[str, float]:
    """`metrics` of all ranks with what this rank's collector has `measured`: of a parity the largest of all, of
    everything else the mean over ranks, so that all of them decide alike."""
    largest = {name: value for name, value in measured.items() if name.startswith(PARITY)}
    means = runtime.sum_over_ranks({n: value for n, value in measured.items() if n not in largest})
    found = {**metrics, **{name: total / runtime.world for name, total in means.items()}}
    for name, value in runtime.max_over_ranks(largest).items():
        found[name] = max(value, found.get(name, value))
    return found


def together_measured(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What several sources of one rank have measured, by the same rule."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {n: max(v) if n.startswith(PARITY) else sum(v) / len(v) for n, v in found.items()}


def wilson(successes: float, n: int, z: float = 1.96) -> Estimate:
    """Share of successes among n with Wilson's 95 % score interval (Wilson 1927)."""
    if n == 0:
        return Estimate(0.0, 0.0, 1.0, 0)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def mean_of(values: Tensor, applicable: Tensor, z: float = 1.96, cases: bool = True) -> Estimate:
    """Mean of the applicable values (N,) with its 95 % interval: Wilson's for 0 or 1, unless these are no `cases` of
    success and failure, else the normal one. A single value has no spread to tell an interval from: a point, with n =
    1."""
    kept = values[applicable].double()
    if len(kept) == 0 or (cases and bool(((kept == 0) | (kept == 1)).all())):
        return wilson(float(kept.sum()), len(kept))
    half = z * float(kept.std()) / math.sqrt(len(kept)) if len(kept) > 1 else 0.0
    mean = float(kept.mean())
    return Estimate(mean, mean - half, mean + half, len(kept))


class MetricWriter:
    """`metrics.jsonl` and TensorBoard always; Weights & Biases when asked for and installed.

    Raises:
        ModuleNotFoundError: `wandb_project` is given and wandb is not installed.
    """

    def __init__(self, folder: Path, wandb_project: str | None = None, resume_step: int | None = None) -> None:
        self._path = folder / "metrics.jsonl"
        kept = _lines_up_to(self._path, resume_step)
        for stale in folder.glob("events.*"):
            stale.unlink()
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(folder))
        for line in kept:
            self._to_board(line)
        self._wandb = _start_wandb(wandb_project, folder) if wandb_project else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line for `step`."""
        line = {"step": step, **metrics}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._to_board(line)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def _to_board(self, line: Mapping[str, float]) -> None:
        for name, value in line.items():
            if name != "step":
                self._board.add_scalar(name, value, int(line["step"]))
        self._board.flush()

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _lines_up_to(path: Path, step: int | None) -> list[dict[str, float]]:
    """Whole lines of a metrics file up to `step`; a line cut by a kill, or damaged, is dropped."""
    if not path.exists() or step is None:
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        numbers = isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values())
        if numbers and line.get("step", step + 1) <= step:
            lines.append(line)
    return lines


def _start_wandb(project: str, folder: Path):  # type: ignore[no-untyped-def]  # wandb is optional
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"logging.wandb_project is {project!r} and wandb is not installed: `pip install wandb`, or remove the line"
        ) from error
    return wandb.init(project=project, dir=str(folder), name=folder.name)
