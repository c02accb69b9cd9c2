"""pi_RL on four tasks told by words: one policy, success of each task and of variants that are not trained.

Beside it, from the same demonstrations, cloning that goes on for as many CPU seconds more. Before and after: 40
held-out episodes of each task and variant by the fast path, the flow's ODE, from seeds that no setting of the recipes
was looked at with. Every run is a folder under runs/benchmark_vla_words; finished ones are not run again, and a
run that was stopped goes on.

    python -m benchmarks.vla_words [SEED ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.common import spread, write
from mmrl.cli import main as mmrl

ROOT = Path("runs/benchmark_vla_words")
UNSEEN = ["held_out.first_seed=20000", "held_out.step=auto", "held_out.rebuild=false", "logging.progress=false"]
SHORT = ["held_out.episodes=40", "held_out.between=40", "simulation.workers=1"]
CLONING_STEPS = 24_000
"""Of the control: as many CPU seconds of cloning as the runs take."""


def trained(folder: Path, recipe: str, words: list[str]) -> dict:
    """The summary of one run, trained now if it is not there."""
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        if status := mmrl(["train", recipe, *UNSEEN, *SHORT, *words, "--run", str(folder), *resume]):
            raise SystemExit(status)
    provenance = json.loads((folder / "provenance.json").read_text())
    return {**json.loads((folder / "summary.json").read_text()), "commit": provenance["commit"]}


def cloned(folder: Path, recipe: str, words: list[str]) -> dict:
    """What one warm-up found, run now if it is not there."""
    words = [*UNSEEN, *SHORT, *words, "--output", str(folder)]
    if not (folder / "warmup.json").exists() and (status := mmrl(["warmup", recipe, *words])):
        raise SystemExit(status)
    found: dict = json.loads((folder / "warmup.json").read_text())
    return found


def curve(folder: Path) -> list[list[float]]:
    """[step, CPU seconds of training so far, success of in-loop evaluation] of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points, spent = [], 0.0
    for line in lines:
        spent = line.get("time/cpu", spent)
        if "eval/success_rate" in line:
            points.append([line["step"], round(spent, 1), round(line["eval/success_rate"], 4)])
    return points


def shares(summaries: list[dict], where: str) -> dict[str, object]:
    """Success of each task, over seeds."""
    names = [name for name in summaries[0][where] if name.startswith("success_rate")]
    return {name: spread([summary[where][name]["value"] for summary in summaries]) for name in names}


def figures(folders: list[Path], summaries: list[dict]) -> dict[str, object]:
    """What the runs of all seeds say."""
    return {
        "seeds": [summary["seed"] for summary in summaries],
        "before": shares(summaries, "eval_before"),
        "after": shares(summaries, "eval_after"),
        "intervals_after": [
            [round(summary["eval_after"]["success_rate"][end], 4) for end in ("low", "high")] for summary in summaries
        ],
        "held_out": summaries[0]["eval_after"]["success_rate"]["n"],
        "steps": [summary["steps"] for summary in summaries],
        "cpu_s": spread([summary["cpu_s"] for summary in summaries]),
        "wall_s": spread([summary["wall_s"] for summary in summaries]),
        "curves": [curve(folder) for folder in folders],
        "logprob_diff_max": max(summary["parity"]["logprob_diff_max"] for summary in summaries),
        "commits": sorted({str(summary["commit"]) for summary in summaries}),
    }


def control(found: dict) -> dict[str, object]:
    """What a longer cloning says."""
    success = {name: e["value"] for name, e in found["eval_held_out"].items() if name.startswith("success_rate")}
    return {"cpu_s": found["cpu_s"], "loss": found["loss"], "demonstrations": found["demonstrations"], **success}


def main() -> None:
    """Run what is missing, then write the figures of what there is after each run."""
    seeds = [int(word) for word in sys.argv[1:]] or [0, 1, 2]
    folders, summaries = [], []
    found: dict[str, object] = {"what": (__doc__ or "").split("\n")[0]}
    for seed in seeds:
        folders.append(ROOT / f"rl_{seed}")
        summaries.append(trained(folders[-1], "vla/pirl_words", [f"seed={seed}"]))
        found |= figures(folders, summaries)
        write("vla_words", found)
    longer = cloned(ROOT / "cloning", "vla/warmup_words", [f"warmup.cloning.steps={CLONING_STEPS}"])
    write("vla_words", {**found, "longer_cloning": control(longer)})


if __name__ == "__main__":
    main()
