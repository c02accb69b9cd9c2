"""A judge of pairs trained by RL (configs/vision/judge.yaml): StableReinforce, plain REINFORCE++, PPO with a critic.

Every arm has the same start, reward, steps and rollouts. `usual` is one epoch at the recipe's rate; `harsh` is what
StableReinforce is for: a rate 5 times larger and 4 epochs of each rollout. A run has collapsed if its greedy held-out
accuracy is lower at the end than at the start, or if it ended with an error (a figure that is not finite is one); this
was fixed before the first run. Every run is a folder under runs/benchmark_judge_rl; finished ones are not run again.

    python -m benchmarks.judge_rl             # --steps 2 tries it out, and writes no figures
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

from benchmarks.common import spread, write
from mmrl.cli import main as mmrl

ROOT = Path("runs/benchmark_judge_rl")
RECIPE = "vision/judge"
SEEDS = (0, 1, 2)
PLAIN = [
    "algorithm.selectors=[]",
    "algorithm.surrogate=mmrl.surrogates.PPOClip",
    "algorithm.aggregate=mmrl.aggregates.TokenMean",
]
ARMS: dict[str, list[str]] = {
    "stable_reinforce": [],
    "reinforce_plus_plus": PLAIN,
    "ppo": [
        *PLAIN, "algorithm.advantage=mmrl.advantages.GAE", "algorithm.value_loss=mmrl.value_loss.ValueRegression",
        "policy.critic={widths: [64, 64]}", "train.critic_lr=1e-3", "train.update.critic_epochs=2",
    ],
    "stable_reinforce_swap": ["rewards.swap.weight=1.0"],
}  # fmt: skip
SETTINGS: dict[str, list[str]] = {"usual": [], "harsh": ["train.lr=1.5e-3", "train.update.epochs=4"]}
LEFT_OUT = {("harsh", "stable_reinforce_swap")}


def trained(setting: str, arm: str, seed: int, root: Path, steps: int | None) -> Path:
    """The folder of one run, trained now if it has not ended; an error is written down, for it is a result here."""
    folder = root / setting / arm / f"seed{seed}"
    if (folder / "summary.json").exists() or (folder / "failed").exists():
        return folder
    short = [] if steps is None else [f"train.steps={steps}", "data.protocol.evaluation=5"]
    resume = ["--resume"] if (folder / "config.yaml").exists() else []
    words = [*ARMS[arm], *SETTINGS[setting], *short, f"seed={seed}", "logging.progress=false"]
    status = mmrl(["train", RECIPE, *words, "--run", str(folder), *resume])
    if status == 130:
        raise SystemExit(status)
    if status:
        if not (folder / "metrics.jsonl").exists():
            raise SystemExit(status)  # it never ran: a mistake of ours and no result
        (folder / "failed").write_text(f"exit status {status}\n")
    return folder


def last_third(lines: list[dict], name: str) -> list[float]:
    """The values of a figure over the last third of the steps."""
    known = [line[name] for line in lines if name in line]
    return known[-max(2, len(known) // 3) :]


def figures(folders: list[Path]) -> dict[str, object]:
    """Over seeds: before and after, how much accuracy and reward move at the end, and the worst of ratios and
    gradients."""
    ended = [folder for folder in folders if (folder / "summary.json").exists()]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in ended]
    told: dict[str, object] = {"runs": len(folders), "errors": len(folders) - len(ended)}
    runs = [
        [
            line
            for row in (folder / "metrics.jsonl").read_text().splitlines()
            if "update/loss" in (line := json.loads(row))
        ]
        for folder in folders
    ]
    fell = 0
    if summaries:
        for when in ("eval_before", "eval_after"):
            names = summaries[0][when]
            told[when] = {name: spread([s[when][name]["value"] for s in summaries]) for name in names}
        fell = sum(s["eval_after"]["accuracy"]["value"] < s["eval_before"]["accuracy"]["value"] for s in summaries)
        told["steps"], told["cpu_s"] = summaries[0]["steps"], spread([s["cpu_s"] for s in summaries])
        told["logprob_diff_max"] = max(s["parity"]["logprob_diff_max"] for s in summaries)
        told["tokens"] = spread([float(trained_tokens(folder)) for folder in ended])
    told["collapses"] = fell + len(folders) - len(ended)
    for key, name in (("right", "reward/right"), ("reward", "rollout/reward_mean")):
        told[f"{key}_last_third"] = spread([statistics.fmean(last_third(run, name)) for run in runs])
        told[f"{key}_std_last_third"] = spread([statistics.stdev(last_third(run, name)) for run in runs])
    for key, name in (("ratio_max", "update/ratio_max"), ("grad_norm_max", "update/grad_norm")):
        told[key] = spread([max(line[name] for line in run if math.isfinite(line[name])) for run in runs])
    return told


def trained_tokens(folder: Path) -> int:
    """How many tokens a run was trained on."""
    latest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
    return int(json.loads((latest / "state.json").read_text())["decisions"])


def main() -> None:
    """Run what is missing, then write the figures of what there is after each arm."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    asked.add_argument("--steps", type=int, default=None, help="of every run, to try it out: no figures are written")
    steps = asked.parse_args().steps
    root = ROOT if steps is None else ROOT / f"tried_{steps}"
    found: dict[str, dict[str, object]] = {}
    for arm in ARMS:
        for setting in SETTINGS:
            if (setting, arm) in LEFT_OUT:
                continue
            seeds = SEEDS if steps is None else SEEDS[:1]
            found.setdefault(setting, {})[arm] = figures([trained(setting, arm, seed, root, steps) for seed in seeds])
            if steps is None:
                write("judge_rl", {"what": (__doc__ or "").split("\n")[0], "seeds": SEEDS, "settings": found})
            else:
                print(json.dumps(found[setting][arm])[:1500])


if __name__ == "__main__":
    main()
