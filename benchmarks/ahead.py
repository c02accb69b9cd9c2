"""What collecting ahead gains and costs, and what its staleness does to learning.

    python -m benchmarks.ahead bandit     # seconds: estimators on a stale two-armed bandit, by enumeration
    python -m benchmarks.ahead digits     # 20 CPU minutes: staleness 1, 4 and 16 on handwritten digits, 3 seeds
    python -m benchmarks.ahead equal      # minutes: staleness 0 beside collecting on demand, a thread beside a process
    python -m benchmarks.ahead overlap    # minutes, on a quiet machine: wall time of a step

The figures go to benchmarks/results/scale.json. In `overlap` a collector that sleeps stands for a remote one: it gives
the same rollout again and again, so that only time is measured there. Runs of `digits` are folders under
runs/benchmark_ahead; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import spread, write_section
from mmrl.ahead import Ahead
from mmrl.cli import main as mmrl
from mmrl.config import load
from mmrl.parts import Parts
from mmrl.run import RunFolder
from mmrl.runtime import Runtime, acting
from mmrl.settings import TrainConfig
from mmrl.surrogates import AIPO, Reinforce
from mmrl.trainer import Trainer
from mmrl.types import Batch, Collector, Policy, Rollout, Transitions

ROOT = Path("runs/benchmark_ahead")
RECIPE = "vision/cls_rl"

# ---- a bandit whose answer is known -----------------------------------------------------------------------

REWARDS = (0.2, 1.0)
"""Of the two arms; the policy is sigmoid(theta) for the second."""
BASELINE = 0.5
"""Subtracted from rewards: with a ratio it changes nothing of the mean, without one it does."""
STALE = {"0.5 -> 0.5": (0.0, 0.0), "0.2 -> 0.5": (-1.386, 0.0), "0.5 -> 0.9": (0.0, 2.197), "0.9 -> 0.5": (2.197, 0.0),
         "0.05 -> 0.8": (-2.944, 1.386)}  # fmt: skip
"""Probability of the better arm under the policy that drew and under the one that is updated, by their theta."""
ESTIMATORS = {
    "no correction": Reinforce(),
    "AIPO, cap 2": AIPO(2.0),
    "AIPO, cap 4": AIPO(4.0),
    "untruncated": AIPO(math.inf),
}


class Nothing(Transitions):
    """A bandit needs none."""

    def rows(self, index: torch.Tensor) -> Nothing:
        return self

    def to(self, device: torch.device) -> Nothing:
        return self

    def __len__(self) -> int:
        return 2


def gradients(surrogate: Reinforce | AIPO, drew: float, theta: float) -> list[float]:
    """What each of the two arms, once drawn, contributes to the gradient of the expected reward."""
    found = []
    for arm in (0, 1):
        now = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        sign = 1.0 if arm else -1.0
        logprob = torch.nn.functional.logsigmoid(sign * now)[None, None]
        old = torch.nn.functional.logsigmoid(torch.tensor(sign * drew, dtype=torch.float64))[None, None]
        one = torch.ones(1, 1, dtype=torch.float64)
        batch = Batch(
            transitions=Nothing(), steps=torch.zeros(1, 1, dtype=torch.long), old_logprobs=old,
            advantages=one * (REWARDS[arm] - BASELINE), mask=one.bool(), scale=one, weights=one,
            group_ids=torch.zeros(1, dtype=torch.long),
        )  # fmt: skip
        loss, _ = surrogate(logprob, batch)
        loss.sum().backward()
        assert now.grad is not None
        found.append(-float(now.grad))
    return found


def bandit() -> dict[str, object]:
    """Mean and deviation of one draw's estimate, by enumeration, beside the exact gradient."""
    told: dict[str, object] = {}
    for name, (drew, theta) in STALE.items():
        better, now = (1 / (1 + math.exp(-x)) for x in (drew, theta))
        exact = now * (1 - now) * (REWARDS[1] - REWARDS[0])
        row: dict[str, object] = {"exact": round(exact, 4)}
        for label, surrogate in ESTIMATORS.items():
            worse_arm, better_arm = gradients(surrogate, drew, theta)
            mean = (1 - better) * worse_arm + better * better_arm
            variance = (1 - better) * (worse_arm - mean) ** 2 + better * (better_arm - mean) ** 2
            row[label] = {"mean": round(mean, 4), "std": round(math.sqrt(variance), 4)}
        told[name] = row
        print(name, row)
    return {"rewards": REWARDS, "baseline": BASELINE, "gradients": told}


# ---- digits -----------------------------------------------------------------------------------------------

STALENESS = (1, 4, 16)
SEEDS = (0, 1, 2)
DIGITS = [
    "train.steps=80",
    "policy.reuse_prefill=false",
    "evaluate.every=null",
    "save.every=null",
    "logging.progress=false",
]
CORRECTIONS = {
    "no correction": ["algorithm.surrogate=mmrl.surrogates.Reinforce"],
    "AIPO": ["algorithm.surrogate={class_path: mmrl.surrogates.AIPO, init_args: {cap: 2.0}}"],
}


def trained(words: list[str], folder: Path) -> dict:
    """Summary and step metrics of a run, trained now if it is not finished."""
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        if status := mmrl(["train", RECIPE, *DIGITS, *words, "--run", str(folder), *resume]):
            raise SystemExit(status)
    summary: dict = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary["metrics"] = [line for line in lines if "update/loss" in line]
    return summary


def digits(folder: Path) -> dict[str, object]:
    """Held-out accuracy after the same steps, by staleness and correction; staleness 0 collects on demand."""
    told: dict[str, object] = {"steps": 80, "seeds": SEEDS}
    for staleness in (0, *STALENESS):
        ahead = [] if staleness == 0 else [f"train.ahead={{staleness: {staleness}}}"]
        for name, words in CORRECTIONS.items():
            runs = [
                trained(
                    [*words, *ahead, f"seed={seed}"], folder / f"{name.replace(' ', '_')}_{staleness}" / f"seed{seed}"
                )
                for seed in SEEDS
            ]
            last = [statistics.fmean(line["rollout/reward_mean"] for line in run["metrics"][-10:]) for run in runs]
            told[f"{name}, staleness {staleness}"] = {
                "before": spread([run["eval_before"]["accuracy"]["value"] for run in runs]),
                "after": spread([run["eval_after"]["accuracy"]["value"] for run in runs]),
                "reward_last_10": spread(last),
                "ratio_max": round(max(line["update/ratio_max"] for run in runs for line in run["metrics"]), 2),
                "logprob_diff_max": max(run["parity"]["logprob_diff_max"] for run in runs),
                "cpu_s": spread([run["cpu_s"] for run in runs]),
            }
            write_section("scale", "stale_digits", told)
    return told


# ---- the same numbers ------------------------------------------------------------------------------------------

SHORT = ["train.steps=3", "evaluate.every=null", "save.every=null", "stop=[]", "logging.progress=false"]
DOMAINS = {
    "vision": (RECIPE, ["policy.reuse_prefill=false", "data.protocol.evaluation=20"]),
    "diffusion": ("diffusion/rlcm_compress", ["data.eval_pictures=1", "evaluate.metrics={}", "rollout.prompts=2"]),
    "vla": (
        "vla/grpo_pushcube",
        ["held_out.episodes=4", "held_out.between=4", "rollout.episodes=16", "env.max_steps=16",
         "simulation.rebuild=true"],
    ),
}  # fmt: skip
ALIKE = {
    "staleness 0 as on demand": ("null", "{staleness: 0}"),
    "one step off: process as thread": ("{staleness: 1}", "{staleness: 1, processes: 1}"),
}


def figures_of(recipe: str, words: list[str], folder: Path) -> list[dict[str, float]]:
    """Every metric of a run, without times."""
    if status := mmrl(["train", recipe, *SHORT, *words, "--run", str(folder)]):
        raise SystemExit(status)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "ahead/"))} for line in lines]


def equal() -> dict[str, object]:
    """Metrics that differ by more than nothing, of how many, in each domain."""
    told: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for domain, (recipe, words) in DOMAINS.items():
            row = {}
            for name, pair in ALIKE.items():
                one, other = (
                    figures_of(recipe, [*words, f"train.ahead={way}"], Path(folder) / domain / str(len(row)) / str(n))
                    for n, way in enumerate(pair)
                )
                pairs = [(a.get(k), b.get(k)) for a, b in zip(one, other, strict=True) for k in sorted({*a, *b})]
                row[name] = {"metrics": len(pairs), "differ": sum(a != b for a, b in pairs)}
            told[domain] = row
            print(domain, row)
    return told


# ---- time -------------------------------------------------------------------------------------------------


class Remote(Collector):
    """Stands for a collector elsewhere: sleeps, and gives a rollout that was drawn before."""

    def __init__(self, rollout: Rollout, seconds: float) -> None:
        self.rollout, self.seconds = rollout, seconds

    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        time.sleep(self.seconds)
        return self.rollout

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """It stands nowhere."""


MODES: dict[str, Ahead | None] = {
    "one after the other": None,
    "one step off": Ahead(1),
    "asynchronous, staleness 2": Ahead(2, exact=False),
    "one step off, a process": Ahead(1, processes=1),
}
MEASURED, WARM = 16, 3
SETTING = ["policy.reuse_prefill=false", "logging.progress=false", "rollout.prompts=8"]


def timed(parts: Parts, train: TrainConfig, ahead: Ahead | None, runtime: Runtime, folder: RunFolder) -> float:
    """Median wall seconds of a step."""
    trainer = Trainer(parts, replace(train, steps=MEASURED + WARM + 4, ahead=ahead), runtime, folder)
    seconds = []
    for step in range(MEASURED + WARM):
        began = time.perf_counter()
        trainer.step()
        if step >= WARM:
            seconds.append(time.perf_counter() - began)
    trainer.feed.close()
    return statistics.median(seconds)


def overlap(folder: Path) -> dict[str, object]:
    """Wall seconds of a step as a ratio to one after the other: with a collector that sleeps as long as an update
    takes, and with the real one on the same cores."""
    loaded = load(RECIPE, SETTING)
    experiment, train = loaded.experiment, loaded.experiment.train
    runtime, run = Runtime(experiment.runtime, 0), RunFolder(folder / "overlap")
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / "config.yaml").write_text(loaded.resolved)  # from which a process builds the experiment again
    parts = experiment.build(runtime)
    with acting(parts.policy):
        rollout = parts.collector.collect(parts.policy, runtime.generator("collect"))
    alone = timed(replace(parts, collector=Remote(rollout, 0.0)), train, None, runtime, run)
    told: dict[str, object] = {"update_s": round(alone, 3), "steps": MEASURED}
    remote, here = {}, {}
    for name, ahead in MODES.items():
        if ahead is None or not ahead.processes:
            remote[name] = timed(replace(parts, collector=Remote(rollout, alone)), train, ahead, runtime, run)
        here[name] = timed(experiment.build(runtime), train, ahead, runtime, run)
    for label, found in {"sleeping collector": remote, "the same two cores": here}.items():
        plain = found["one after the other"]
        told[label] = {name: {"wall_s": round(s, 3), "ratio": round(s / plain, 3)} for name, s in found.items()}
        print(label, told[label])
    return told


def main() -> None:
    """What the command line asks for."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    asked.add_argument("what", choices=("bandit", "digits", "equal", "overlap"))
    what = asked.parse_args().what
    if what == "bandit":
        write_section("scale", "stale_bandit", bandit())
    elif what == "digits":
        digits(ROOT)
    elif what == "equal":
        write_section("scale", "ahead_equal", equal())
    else:
        write_section("scale", "overlap", overlap(ROOT))


if __name__ == "__main__":
    main()
