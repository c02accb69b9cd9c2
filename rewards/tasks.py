"""Rewards of rows of several tasks: each row is scored by the rule of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part, checked


@dataclass(frozen=True)
class ByTask(RewardFunction):
    """`uses` says by what the rows of each task, the column `task`, are scored; it is shown no others. Rows of a task
    that is not among them are not applicable. Each rule is a part, which applies to its own rows.

    Raises:
        ValueError: there is no rule, or no column `task`.
    """

    uses: dict[str, RewardFunction | str]

    def __post_init__(self) -> None:
        if not self.uses:
            raise ValueError("ByTask.uses is empty: name a reward for at least one task")
        for use in self.uses.values():
            Part(use)  # a misspelt one is found out before anything runs

    def check_tasks(self, tasks: Collection[str]) -> None:
        """Raises:
        ValueError: a rule is of none of these tasks.
        """
        if unknown := [task for task in self.uses if task not in tasks]:
            raise ValueError(f"ByTask.uses has a rule for {unknown[0]!r}, and the data has the tasks {sorted(tasks)}")

    def __call__(self, samples: Samples) -> Scores:
        if "task" not in samples.columns:
            raise ValueError(
                f"ByTask goes by the column 'task', and the data has {sorted(samples.columns)}: use vision.data.Mixed"
            )
        tasks = samples.columns["task"]
        parts = {}
        for task, use in self.uses.items():
            rows = [row for row, own in enumerate(tasks) if own == task]
            values, applicable = torch.zeros(len(samples)), torch.zeros(len(samples), dtype=torch.bool)
            if rows:
                found = checked(task, Part(use).function, _only(samples, rows), "uses")
                values[rows] = torch.where(found.applicable, found.values, 0.0)
                applicable[rows] = found.applicable
            parts[task] = Scores(values, applicable)
        values = torch.stack([part.values for part in parts.values()]).sum(0)  # no row has two
        return Scores(values, torch.stack([part.applicable for part in parts.values()]).any(0), parts)


def _only(samples: Samples, rows: list[int]) -> Samples:
    columns = {name: [column[row] for row in rows] for name, column in samples.columns.items()}
    ids = [samples.ids[row] for row in rows] if samples.ids else ()
    return Samples([samples.outputs[row] for row in rows], columns, ids)
