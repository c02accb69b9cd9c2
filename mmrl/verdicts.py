"""Whether a rollout of the untrained policy leaves anything to learn, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.experiment import Trial
from mmrl.masked import group_std, group_varies, grouped
from mmrl.types import Rollout

OK = "OK to start"
TOO_HARD, TOO_EASY = 0.20, 0.95
"""Sampled success outside of which RL learns little: almost every group is then all wrong, or all right."""
MANY_FLAT, LITTLE_SPREAD = 0.5, 0.05
"""Share of groups without spread from which on, and spread in a group, as a share of that between all outputs, up to
which, RL learns slowly from a reward that calls nothing right or wrong."""


@dataclass(frozen=True)
class Groups:
    """Shares of groups whose rewards are all the same, and what their outputs are: right, wrong, or neither."""

    all_right: float
    all_wrong: float
    neither: float = 0.0

    @property
    def zero_spread(self) -> float:
        """Nothing to learn from."""
        return self.all_right + self.all_wrong + self.neither

    def __str__(self) -> str:
        judged = self.all_wrong + self.all_right > 0
        kinds = f" (all wrong {self.all_wrong:.0%}, all right {self.all_right:.0%})" if judged else ""
        return f"zero-spread groups {self.zero_spread:.0%}{kinds}"


def zero_spread(trial: Trial) -> Groups:
    """How many groups of the rollout teach nothing, and why."""
    rollout = trial.rollout
    valid = rollout.alive.any(-1)
    same = ~group_varies(rollout.returns(), valid, rollout.group_ids)
    groups, found = rollout.group_ids.unique(), {"right": 0, "wrong": 0, "neither": 0}
    for group in groups:
        members = (rollout.group_ids == group).nonzero()[:, 0].tolist()
        if bool(same[members].all()):
            marks = [trial.tried[row].right for row in members]
            found["neither" if None in marks else "right" if all(marks) else "wrong"] += 1
    return Groups(*(count / len(groups) for count in found.values()))


def verdict(trial: Trial, groups: Groups) -> str:
    """Whether to start: reinforcement learns from what the policy sometimes does right, or at least better."""
    if not bool(trial.rollout.alive.any()):
        return "DO NOT START: no reward applies to any of these outputs, so there is nothing to learn from"
    if trial.advice is not None:
        return trial.advice
    for name, share in trial.figures.items():
        told = verdict_on_share(name, share)
        return told if told != OK or not grouped(trial.rollout.group_ids) else _verdict_on_spread(trial.rollout, groups)
    return _verdict_on_spread(trial.rollout, groups)


def verdict_on_share(name: str, share: float) -> str:
    """Whether to start with so many successes."""
    if share == 0:
        return (
            f"DO NOT START: {name} is 0, so there is nothing to reinforce: is the prompt's form the reward's? Else "
            "easier questions, a better start (`mmrl warmup`), or a reward with steps in between"
        )
    if share < TOO_HARD:
        return f"CAREFUL: {name} below {TOO_HARD:.0%} learns slowly: a better start, easier questions or larger groups"
    if share > TOO_EASY:
        return f"CAREFUL: {name} above {TOO_EASY:.0%} leaves little to learn: harder questions"
    return OK


def _verdict_on_spread(rollout: Rollout, groups: Groups) -> str:
    """Whether to start where outputs are only better or worse: those of one prompt must differ in reward."""
    if groups.zero_spread == 1:
        return (
            "DO NOT START: all outputs of a prompt get the same reward, so there is nothing to learn from: a reward "
            "with steps in between, larger groups, or more noise in sampling"
        )
    if groups.zero_spread > MANY_FLAT:
        return "CAREFUL: most groups teach nothing: a reward with more steps in between, or larger groups"
    within, overall = spread(rollout)
    if within < LITTLE_SPREAD * overall:
        return (
            f"CAREFUL: the reward hangs on the prompt, hardly on what is made of it (spread {within:.3g} within a "
            f"prompt, {overall:.3g} over all): look at the best and the worst below"
        )
    return OK


def spread(rollout: Rollout) -> tuple[float, float]:
    """Standard deviation of the reward: within a group, on average, and over all rows; 0 with fewer than two."""
    valid, total = rollout.alive.any(-1), rollout.returns()
    if int(valid.sum()) < 2:
        return 0.0, 0.0
    return float(group_std(total, valid, rollout.group_ids)[valid].mean()), float(total[valid].std())
