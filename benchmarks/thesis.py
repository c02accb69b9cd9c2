"""Five algorithms on tokens, denoise steps and action chunks: one short learning run of each of the fifteen pairs.

An algorithm is a list of overrides in configs/compare/algorithms.yaml, the same for all three domains; a domain is a
recipe and what is said of it below, the same for all five algorithms. One seed, one process, CPU_S seconds of training
each: enough to see that a pair learns, not to rank them. Every run is a folder under runs/benchmark_thesis; finished
ones are not run again.

    python -m benchmarks.thesis
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common import write
from mmrl.cli import main as mmrl
from mmrl.recipes import find_config
from mmrl.yaml_files import read_yaml

ROOT = Path("runs/benchmark_thesis")
CPU_S = 20
SHARED = [
    "train.steps=100000", f"train.cpu_budget_s={CPU_S}", "evaluate.every=null", "save.every=null", "save.best=null",
    "stop=[]", "train.update.epochs=2", "train.update.minibatches=2", "logging.progress=false",
]  # fmt: skip
DOMAINS = {
    "vision": ("vision/cls_rl_nothink", []),
    # a log-prob that is a density, as in the other two, so that one clip range is of one scale everywhere
    "diffusion": ("diffusion/rlcm_compress", ["policy.logprob_reduction=sum"]),
    # an episode on ManiSkill's own step costs about half a CPU second, and there are two evaluations
    "vla": (
        "vla/grpo_pushcube",
        ["held_out.episodes=50", "held_out.between=50", "held_out.first_seed=20000", "simulation.workers=1"],
    ),
}


def algorithms() -> dict[str, list[str]]:
    """Name -> overrides."""
    found = read_yaml(find_config("compare/algorithms"))["arms"]
    assert isinstance(found, dict)
    return found


def run(domain: str, algorithm: str) -> dict:
    """The summary of one run, trained now if it is not there."""
    folder = ROOT / f"{domain}_{algorithm}"
    if not (folder / "summary.json").exists():
        recipe, more = DOMAINS[domain]
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        words = [*SHARED, *more, *algorithms()[algorithm]]
        if status := mmrl(["train", recipe, *words, "--run", str(folder), *resume]):
            raise SystemExit(status)
    return json.loads((folder / "summary.json").read_text())


def figures(summary: dict) -> dict[str, object]:
    """Before and after of the primary metric, with intervals, and what it took."""
    name = summary["primary_metric"]

    def rounded(estimate: dict) -> dict[str, float]:
        return {key: round(value, 4) for key, value in estimate.items()}

    return {
        "metric": name,
        "before": rounded(summary["eval_before"][name]),
        "after": rounded(summary["eval_after"][name]),
        "steps": summary["steps"],
        "cpu_s": round(summary["cpu_s"], 1),
        "logprob_diff_max": summary["parity"]["logprob_diff_max"],
    }


def main() -> None:
    """Run what is missing, then write the figures of what there is after each run."""
    found: dict[str, dict[str, object]] = {}
    for domain, (recipe, more) in DOMAINS.items():
        found[domain] = {"recipe": recipe, "overrides": [*SHARED, *more], "algorithms": (told := {})}
        for algorithm in algorithms():
            told[algorithm] = figures(run(domain, algorithm))
            write("thesis", {"what": (__doc__ or "").split("\n")[0], "cpu_s": CPU_S, "domains": found})


if __name__ == "__main__":
    main()
