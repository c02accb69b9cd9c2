"""pi_RL on PickCube: the recipe over 3 seeds, and what sets it apart from the prototype, one change at a time.

`recipe`: 200 held-out episodes before and after on ManiSkill's own step, as in benchmarks/vla.py, from seeds that no
setting was looked at with. `diagnosis`: one seed of each variant for 60 steps; the share of rollouts that succeed with
the exploration's noise, in the first and the last 10 steps that train the policy, and 100 held-out episodes on the fast
path. `noise`: the cloned policy under each exploration, without training. Runs are run folders under
runs/benchmark_vla_pickcube; finished ones are not run again, and a run that was stopped goes on.

    python -m benchmarks.vla_pickcube [noise] [diagnosis] [recipe]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.common import RESULTS, write
from benchmarks.vla import SEEDS, UNSEEN, figures
from mmrl.cli import main as mmrl

ROOT = Path("runs/benchmark_vla_pickcube")
CONFIG = "vla/pirl_pickcube"
LOUD = ("policy.exploration.low=0.1", "policy.exploration.high=0.25")
QUIET = ("policy.exploration.low=0.03", "policy.exploration.high=0.15")
ALL, FAST, DENSE = "policy.exploration.steps=all", "train.lr=1.5e-4", "reward.relative=1.0"
PROTOTYPE = (*LOUD, ALL, FAST, DENSE)
VARIANTS = {
    "prototype": PROTOTYPE,
    "prototype, less noise": (*QUIET, ALL, FAST, DENSE),
    "prototype, noise on the last step alone": (*LOUD, FAST, DENSE),
    "prototype, lower rate": (*LOUD, ALL, DENSE),
    "prototype, success alone rewarded": (*PROTOTYPE, "reward.relative=0"),
    "recipe": (),
    "recipe, more noise": LOUD,
    "recipe, noise on every step": (ALL,),
    "recipe, higher rate": (FAST,),
    "recipe, more dense reward": (DENSE,),
}
"""Overrides of the recipe. The prototype is that of PickCube's first trials."""
SHORT = (
    "train.steps=60",
    "train.schedule=mmrl.schedules.Constant",
    "evaluate.every=1000",
    "held_out.episodes=100",
    "held_out.between=100",
    "held_out.step=auto",
    "held_out.rebuild=false",
)
LEVELS = (
    (0.02, "all"),
    (0.05, "all"),
    (0.1, "all"),
    (0.15, "all"),
    (0.2, "all"),
    (0.05, "last"),
    (0.1, "last"),
    (0.2, "last"),
)
"""Standard deviations, and the steps that they are on."""


def train(name: str, seed: int, *overrides: str) -> Path:
    """The folder of a run, trained now if it is not finished."""
    folder = ROOT / name.replace(", ", "_").replace(" ", "_")
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        arguments = ["train", CONFIG, f"seed={seed}", UNSEEN, "logging.progress=false", *overrides]
        if status := mmrl([*arguments, "--run", str(folder), *resume]):
            raise SystemExit(status)
    return folder


def noise() -> dict[str, object]:
    """Success of the cloned policy under noise; 200 episodes each, seeds of training."""
    found: dict[str, object] = {}
    for std, steps in LEVELS:
        name = f"{std} on {'every step' if steps == 'all' else 'the last step'}"
        output = ROOT / "noise" / f"{steps}_{std}"
        if not (output / "rollout.json").exists():
            explores = [
                f"policy.exploration.{key}={value}" for key, value in (("low", std), ("high", std), ("steps", steps))
            ]
            arguments = ["rollout", CONFIG, "rollout.episodes=200", "evaluate.samples=0", *explores]
            if status := mmrl([*arguments, "--output", str(output)]):
                raise SystemExit(status)
        found[name] = round(json.loads((output / "rollout.json").read_text())["reward/success"], 4)
    return found


def diagnosis() -> dict[str, object]:
    """One seed of each variant; written after each, so that what there is can be read."""
    found: dict[str, object] = {}
    for name, overrides in VARIANTS.items():
        folder = train(name, 0, *overrides, *SHORT)
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        success = [line["reward/success"] for line in lines if "reward/success" in line]
        found[name] = {
            "overrides": list(overrides),
            "rollout": [round(sum(part) / len(part), 4) for part in (success[:10], success[-10:])],
            "before": summary["eval_before"]["success_rate"]["value"],
            "after": summary["eval_after"]["success_rate"]["value"],
            "cpu_s": summary["cpu_s"],
        }
        keep("diagnosis", found)
    return found


def keep(name: str, figures: dict[str, object]) -> None:
    """Write the figures of one part beside what was there."""
    path = RESULTS / "vla_pickcube.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    write("vla_pickcube", {**before, "what": (__doc__ or "").split("\n")[0], name: figures})


def recipe() -> dict[str, object]:
    """All seeds of the recipe."""
    summaries = []
    for seed in SEEDS:
        folder = train(f"seed_{seed}", seed)
        provenance = json.loads((folder / "provenance.json").read_text())
        summaries.append({**json.loads((folder / "summary.json").read_text()), "commit": provenance["commit"]})
    return figures(summaries)


PARTS = {"noise": noise, "diagnosis": diagnosis, "recipe": recipe}


def main(wanted: list[str]) -> None:
    """Run the parts that are asked for, all by default, and write each when it is done beside what was there."""
    for name in wanted or PARTS:
        keep(name, PARTS[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
