"""The keys of a config that every domain shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmrl.ahead.config import Ahead
from mmrl.batching import UpdateConfig
from mmrl.schedules import Constant, Schedule
from mmrl.types import RewardFunction


@dataclass(frozen=True)
class TrainConfig:
    """Steps of AdamW and how each uses its rollout. `cpu_budget_s` ends training earlier, after so many
    CPU seconds of it. `ema` is the decay of a moving average of the weights, which is then what is evaluated, saved
    and exported (null: none). `critic_lr` is the rate of a critic that is apart from its policy (null: the policy's),
    and the first `critic_warmup` steps train it alone. With `resample` groups whose rewards are all the same give way
    to others, of at most so many further rollouts (`mmrl.resampling`). With `ahead` rollouts are collected while the
    policy is updated (null: one after the other)."""

    steps: int = 100
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    schedule: Schedule = Constant()
    update: UpdateConfig = UpdateConfig()
    cpu_budget_s: float | None = None
    ema: float | None = None
    critic_lr: float | None = None
    critic_warmup: int = 0
    resample: int = 0
    ahead: Ahead | None = None

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"train.ema is {self.ema}: give a decay between 0 and 1, such as 0.99, or null")
        if self.resample < 0:
            raise ValueError(f"train.resample is {self.resample}: give 0 (take groups as they come) or more")
        if self.resample and self.ahead is not None and self.ahead.processes > 1:
            raise ValueError(
                f"train.resample is {self.resample} and train.ahead.processes is {self.ahead.processes}: they would "
                "have to agree on each round; set resample to 0, or processes to at most 1"
            )
        if self.critic_warmup < 0 or (self.critic_lr is not None and self.critic_lr <= 0):
            raise ValueError(
                f"train.critic_warmup is {self.critic_warmup} and train.critic_lr is {self.critic_lr}: give 0 or more, "
                "and more than 0 or null"
            )
        if not all(0 <= beta < 1 for beta in self.betas) or self.weight_decay < 0:
            raise ValueError(
                f"train.betas is {self.betas} and train.weight_decay is {self.weight_decay}: give two numbers of at "
                "least 0 and less than 1, and 0 or more"
            )
        if self.steps < 0 or self.lr <= 0:
            raise ValueError(f"train.steps is {self.steps} and train.lr is {self.lr}: give 0 or more, and more than 0")


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out evaluation before, after, and `every` so many steps between (null: never between). `samples` of them
    are written for people to look at. `metrics` are measured beside the domain's own, and never trained on: reward
    functions or dotted paths of plain functions, by name. `by` names a column of the data: the first figure is then
    also given for each of its values. With `attempts` before and after also pass@k up to so many, and how much they
    differ (`mmrl.coverage`)."""

    every: int | None = 20
    samples: int = 12
    metrics: dict[str, RewardFunction | str] = field(default_factory=dict)
    by: str | None = None
    attempts: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"evaluate.samples is {self.samples}: give 0 or more")
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"evaluate.attempts is {self.attempts}: give 1 or more, or null for no pass@k")
        if self.every is not None and self.every < 1:
            raise ValueError(f"evaluate.every is {self.every}: give 1 or more, or null for before and after alone")


@dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go besides the run folder."""

    wandb_project: str | None = None
    progress: bool = True
