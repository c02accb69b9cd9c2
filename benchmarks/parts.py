"""Parts of the literature: what they do to entropy, accuracy and pass@k on tokens, and what they do elsewhere and cost.

The arms of configs/compare/entropy.yaml over its seeds on handwritten digits; parts that carry over on denoise steps
(RLCM) and on action chunks (PushCube, Flow-Noise); and `cost`: CPU time of a step with each part as a ratio to plain
GRPO's, in one process, in turns. Every run is a folder under runs/benchmark_parts; finished ones are not run again.

    python -m benchmarks.parts                # hours; --domain does one; --steps 2 tries it out: no figures
    python -m benchmarks.parts cost
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import RESULTS, spread, write
from mmrl.arms import read_plan
from mmrl.cli import main as mmrl
from mmrl.config import load
from mmrl.recipes import find_config
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.trainer import Trainer
from mmrl.yaml_files import read_yaml

ROOT = Path("runs/benchmark_parts")
PLAIN = "grpo"
ELSEWHERE_SEEDS = (0, 1, 2)
WITHIN = "within_step: true"
DECIDED = "{class_path: mmrl.selectors.DropDecidedGroups, init_args: {low: 0.1, high: 0.9}}, "
"""What vla/grpo_pushcube selects with."""
SHARED_ELSEWHERE = ["evaluate.every=null", "save.every=null", "save.best=null", "stop=[]", "logging.progress=false"]


def selector(name: str, arguments: str = "", beside: str = "") -> str:
    """The override that selects with one of mmrl.selectors, `beside` what a recipe has already."""
    return f"algorithm.selectors=[{beside}{{class_path: mmrl.selectors.{name}, init_args: {{{arguments}}}}}]"


def penalty(name: str, arguments: str = "") -> str:
    """The override that penalises with one of mmrl.regularisers, in the place of those of the recipe."""
    return f"algorithm.regularisers=[{{class_path: mmrl.regularisers.{name}, init_args: {{{arguments}}}}}]"


ELSEWHERE: dict[str, tuple[str, list[str], dict[str, list[str]]]] = {
    # densities, as in the other two, so that one clip range and one covariance are of one scale; no KL in any arm
    "diffusion": (
        "diffusion/rlcm_compress",
        ["train.steps=25", "policy.logprob_reduction=sum", "train.update.epochs=2", "algorithm.regularisers=[]",
         "algorithm.surrogate={class_path: mmrl.surrogates.PPOClip, init_args: {clip_low: 0.2, clip_high: 0.2}}"],
        {
            PLAIN: [],
            "clip_higher": ["algorithm.surrogate.clip_high=0.28"],
            "clip_cov": [selector("ClipCov", f"share: 0.02, low: 1.0, high: 100.0, {WITHIN}")],
            "kl_cov": ["algorithm.surrogate=mmrl.surrogates.Importance", penalty("KLCov", f"share: 0.02, {WITHIN}")],
            "outliers": [selector("DropOutliers", "limit: 2.0")],
            "lp_reg": [penalty("LpReg", "share: 0.05, kappa: 1.0e-6")],
        },
    ),
    "vla": (
        "vla/grpo_pushcube",
        ["train.steps=40", "held_out.episodes=100", "held_out.between=50", "simulation.workers=1"],
        {
            PLAIN: [],
            "clip_higher": ["algorithm.surrogate.clip_high=0.28"],
            "clip_cov": [selector("ClipCov", "share: 0.02, low: 1.0, high: 100.0", DECIDED)],
            "kl_cov": ["algorithm.surrogate=mmrl.surrogates.Importance", penalty("KLCov", "share: 0.02")],
            "forking": [selector("ForkingTokens", beside=DECIDED)],
            "lp_reg": [penalty("LpReg", "share: 0.05, kappa: 1.0e-3")],
        },
    ),
}  # fmt: skip
COSTS: dict[str, list[str]] = {
    "drop_mastered": [selector("DropMastered")],
    "drop_outliers": [selector("DropOutliers")],
    "truncated_importance": ["train.update.rescore=true", selector("TruncatedImportance")],
}
"""What is timed beside the arms of the comparison."""
TRIED = {
    "vision": ["data.protocol.evaluation=20", "evaluate.attempts=2"],
    "diffusion": ["data.eval_pictures=1", "evaluate.metrics={}", "rollout.prompts=2"],
    "vla": ["held_out.episodes=4", "held_out.between=4", "rollout.episodes=16", "env.max_steps=16"],
}
"""What makes a try short."""
DOMAINS = ("vision", *ELSEWHERE)
ROUNDS, WARM = 30, 3
MOMENTS = 8
"""Steps at which a curve is told."""


def trained(recipe: str, words: list[str], seed: int, folder: Path, steps: int | None) -> Path:
    """The folder of one run, trained now if it is not finished."""
    if not (folder / "summary.json").exists():
        short = [] if steps is None else [f"train.steps={steps}", *TRIED[recipe.split("/")[0]]]
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        if status := mmrl(["train", recipe, *words, *short, f"seed={seed}", "--run", str(folder), *resume]):
            raise SystemExit(status)
    return folder


def figures(folders: list[Path]) -> dict[str, object]:
    """Over seeds: what was measured before and after, the entropy of rollouts on the way, and how much parts chose."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    told: dict[str, object] = {"seeds": len(folders), "steps": summaries[0]["steps"]}
    for when in ("eval_before", "eval_after"):
        known = [name for name in summaries[0][when] if all(name in summary[when] for summary in summaries)]
        told[when] = {name: spread([s[when][name]["value"] for s in summaries]) for name in known}
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders]
    steps = [[line for line in run if "update/loss" in line] for run in lines]
    places = sorted({round(i * (len(steps[0]) - 1) / (MOMENTS - 1)) for i in range(MOMENTS)})
    for name in ("rollout/entropy", "rollout/reward_mean"):
        if all(name in run[0] for run in steps):
            told[name] = {str(run_step(steps[0], i)): round(_mean(steps, i, name), 4) for i in places}
    chosen = sorted({name for run in steps for line in run for name in line if name.startswith("plan/")})
    told["decisions_per_step"] = round(statistics.fmean(decisions(folder) for folder in folders), 1)
    told["chosen_per_step"] = {
        name: round(statistics.fmean(line.get(name, 0.0) for run in steps for line in run), 2) for name in chosen
    }
    told["logprob_diff_max"] = max(s["parity"]["logprob_diff_max"] for s in summaries)
    told["cpu_s"] = spread([s["cpu_s"] for s in summaries])
    return told


def decisions(folder: Path) -> float:
    """Trained decisions a step."""
    latest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
    state = json.loads((latest / "state.json").read_text())
    return state["decisions"] / state["step"]


def run_step(steps: list[dict], place: int) -> int:
    """The number of the step that stands at `place`."""
    return int(steps[place]["step"])


def _mean(steps: list[list[dict]], place: int, name: str) -> float:
    return statistics.fmean(run[min(place, len(run) - 1)][name] for run in steps)


def measure(domain: str, steps: int | None) -> None:
    """Run what is missing of a domain, and write the figures of what there is after each arm."""
    root = ROOT if steps is None else ROOT / f"tried_{steps}"
    if steps is not None:
        shutil.rmtree(root / domain, ignore_errors=True)
    found: dict[str, dict] = {}
    for arm, folders in (_tokens if domain == "vision" else _elsewhere)(domain, root / domain, steps):
        found[arm] = figures(folders)
        keep({domain: found}, steps)


def _tokens(domain: str, root: Path, steps: int | None) -> Iterator[tuple[str, list[Path]]]:
    """The arms of the comparison and their finished runs."""
    plan = read_plan(find_config("compare/entropy"), root)
    by_arm: dict[str, list[Path]] = {}
    seeds = {run.seed for run in plan.runs} if steps is None else {0}
    for run in plan.runs:
        if run.seed not in seeds:
            continue
        words = [*run.overrides, "logging.progress=false"]
        by_arm.setdefault(run.arm, []).append(trained(run.recipe, words, run.seed, run.folder, steps))
        if len(by_arm[run.arm]) == len(seeds):
            yield run.arm, by_arm[run.arm]


def _elsewhere(domain: str, root: Path, steps: int | None) -> Iterator[tuple[str, list[Path]]]:
    """The arms of ELSEWHERE and their finished runs."""
    recipe, words, arms = ELSEWHERE[domain]
    seeds = ELSEWHERE_SEEDS if steps is None else ELSEWHERE_SEEDS[:1]
    for arm, more in arms.items():
        overrides = [*SHARED_ELSEWHERE, *words, *more]
        yield arm, [trained(recipe, overrides, seed, root / arm / f"seed{seed}", steps) for seed in seeds]


def keep(found: dict[str, dict], steps: int | None, cost: dict | None = None) -> None:
    """Write the figures, beside those of other domains and the costs; those of a try are only printed."""
    if steps is not None:
        print(json.dumps(found)[-500:])
        return
    file = RESULTS / "parts.json"
    there = json.loads(file.read_text()) if file.exists() else {}
    kept = {"arms": {**there.get("arms", {}), **found}, "cost": cost or there.get("cost", {})}
    write("parts", {"what": (__doc__ or "").split("\n")[0], **kept})


def cost(rounds: int) -> None:
    """CPU time of a step with each part, against plain GRPO's in the same round."""
    raw = read_yaml(find_config("compare/entropy"))
    arms, shared = raw["arms"], raw["overrides"]
    assert isinstance(arms, dict)
    assert isinstance(shared, list)
    trainers: dict[str, Trainer] = {}
    for name, words in {**arms, **COSTS}.items():
        experiment = load(str(raw["recipe"]), [*shared, *words]).experiment
        runtime = Runtime(RuntimeConfig(device="cpu"), 0)
        trainers[name] = Trainer(experiment.build(runtime), experiment.train, runtime)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    gc.disable()
    for turn in range(WARM + rounds):
        for name, trainer in trainers.items():
            began = time.process_time()
            trainer.step()
            if turn >= WARM:
                seconds[name].append(time.process_time() - began)
        gc.collect()
    told = {}
    for name, mine in seconds.items():
        ratios = sorted(a / b for a, b in zip(mine, seconds[PLAIN], strict=True))
        told[name] = {
            "ratio": round(statistics.median(mine) / statistics.median(seconds[PLAIN]), 3),
            "quartiles_of_pairs": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
            "step_s": round(statistics.median(mine), 4),
        }
        print(name, told[name])
    keep({}, None, {"rounds": rounds, "recipe": raw["recipe"], "parts": told})


def main() -> None:
    """What the command line asks for."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    asked.add_argument("what", nargs="?", choices=("measure", "cost"), default="measure")
    asked.add_argument("--domain", choices=DOMAINS, help="default: one after another")
    asked.add_argument("--steps", type=int, default=None, help="of every run, to try it out: no figures are written")
    asked.add_argument("--rounds", type=int, default=ROUNDS, help="of `cost`")
    given = asked.parse_args()
    if given.what == "cost":
        cost(given.rounds)
    else:
        for domain in [given.domain] if given.domain else DOMAINS:
            measure(domain, given.steps)


if __name__ == "__main__":
    main()
