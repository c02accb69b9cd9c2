"""pi_RL on PushCube: Flow-Noise and Flow-SDE from one cloned policy, 3 seeds each.

Before and after: 200 held-out episodes on ManiSkill's own step, the flow's ODE, from seeds that no setting of the
recipes was looked at with. CPU seconds are those of training, simulation included. Every run is a run folder under
runs/benchmark_vla; finished ones are not run again, and a run that was stopped goes on.

    python -m benchmarks.vla
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common import spread, write
from mmrl.cli import main as mmrl

ROOT = Path("runs/benchmark_vla")
RECIPES = {"flow_noise": "vla/pirl_pushcube", "flow_sde": "vla/pirl_pushcube_sde"}
SEEDS = (0, 1, 2)
UNSEEN = "held_out.first_seed=20000"


def run(method: str, seed: int) -> dict:
    """The summary of one run, trained now if it is not there."""
    folder = ROOT / f"{method}_{seed}"
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        words = [f"seed={seed}", UNSEEN, "logging.progress=false"]
        arguments = ["train", RECIPES[method], *words, "--run", str(folder), *resume]
        if status := mmrl(arguments):
            raise SystemExit(status)
    provenance = json.loads((folder / "provenance.json").read_text())
    return {**json.loads((folder / "summary.json").read_text()), "commit": provenance["commit"]}


def figures(summaries: list[dict]) -> dict[str, object]:
    """What the summaries of one method say."""

    def share(where: str, name: str) -> list[float]:
        return [summary[where][name]["value"] for summary in summaries]

    return {
        "seeds": [summary["seed"] for summary in summaries],
        "before": spread(share("eval_before", "success_rate")),
        "after": spread(share("eval_after", "success_rate")),
        "intervals_after": [
            [round(summary["eval_after"]["success_rate"][end], 4) for end in ("low", "high")] for summary in summaries
        ],
        "at_end_before": spread(share("eval_before", "success_at_end")),
        "at_end_after": spread(share("eval_after", "success_at_end")),
        "cpu_s": spread([summary["cpu_s"] for summary in summaries]),
        "wall_s": spread([summary["wall_s"] for summary in summaries]),
        "episodes_trained": [summary["steps"] * 40 for summary in summaries],
        "logprob_diff_max": max(summary["parity"]["logprob_diff_max"] for summary in summaries),
        "held_out": summaries[0]["eval_after"]["success_rate"]["n"],
        "commits": sorted({str(summary["commit"]) for summary in summaries}),
    }


def main() -> None:
    """Run what is missing, then write the figures of what there is after each run."""
    done: dict[str, list[dict]] = {method: [] for method in RECIPES}
    for seed in SEEDS:
        for method in RECIPES:
            done[method].append(run(method, seed))
            found = {name: figures(summaries) for name, summaries in done.items() if summaries}
            write("vla", {"what": (__doc__ or "").split("\n")[0], **found})


if __name__ == "__main__":
    main()
