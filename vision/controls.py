"""The costly controls of an RL claim: what supervised learning does with the same CPU.

`sft_continued` trains on the demonstrations that the start policy had seen, `sft_all_labels` also on the
labels of the whole pool, which RL never sees: a ceiling, not a rival. Each runs for the CPU seconds of RL
at every learning rate listed; the best on the dev split is evaluated on the held-out one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context

from mmrl.parts import Parts
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
from mmrl.trainer import Trainer

UNBOUNDED = 10**9
"""Steps that a CPU budget always cuts short."""


@dataclass(frozen=True)
class SFTConfig:
    """Learning rates tried, rows a step, and how many runs at once."""

    lrs: tuple[float, ...] = (3e-4, 1e-3)
    rows: int = 32
    weight_decay: float = 0.05
    workers: int = 2

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0 or self.workers < 1 or self.rows < 1:
            raise ValueError(
                f"sft.lrs is {self.lrs}, sft.rows {self.rows}, sft.workers {self.workers}: give at least one rate, "
                "and 1 or more rows and workers"
            )


@dataclass(frozen=True)
class Arm:
    """One supervised run, in its own process: `build(runtime, labels, hold_out)` gives its parts."""

    build: Callable[[Runtime, bool, str], Parts]
    all_labels: bool
    lr: float
    config: SFTConfig
    runtime: RuntimeConfig
    seed: int
    cpu_s: float

    def run(self) -> dict[str, object]:
        """Train for the budget; accuracy on dev, then all figures on the held-out split."""
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)  # a control is one process, whatever launched the run
        runtime = Runtime(self.runtime, self.seed)
        parts = self.build(runtime, self.all_labels, "dev")
        train = TrainConfig(steps=UNBOUNDED, lr=self.lr, weight_decay=self.config.weight_decay, cpu_budget_s=self.cpu_s)
        quietly = EvaluateConfig(every=None)
        trainer = Trainer(parts, train, runtime, evaluate=quietly, logging=LoggingConfig(progress=False))
        summary = trainer.fit()
        held_out = self.build(runtime, self.all_labels, "evaluation").evaluator
        figures = held_out.evaluate(parts.policy, runtime.fresh_generator("evaluate"))
        dev = summary["eval_after"]
        return {
            "lr": self.lr, "steps": summary["steps"], "cpu_s": summary["cpu_s"],
            "dev_accuracy": dev["accuracy"]["value"],  # type: ignore[index]
            "eval": {name: asdict(estimate) for name, estimate in figures.items()},
        }  # fmt: skip


def run_arms(arms: list[Arm], workers: int) -> dict[str, object]:
    """Every arm; of each control that has any, the one that was best on dev, with what else was tried."""
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(Arm.run, arms))
    found: dict[str, object] = {}
    for name, all_labels in (("sft_continued", False), ("sft_all_labels", True)):
        mine = [result for arm, result in zip(arms, results, strict=True) if arm.all_labels == all_labels]
        if not mine:
            continue
        best = max(mine, key=lambda result: float(str(result["dev_accuracy"])))
        tried = [{"lr": r["lr"], "dev_accuracy": r["dev_accuracy"]} for r in mine]
        found[name] = {**best, "tried": tried}
    return found
