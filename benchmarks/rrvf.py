"""RRVF: charts from pictures alone in one turn and two, beside supervised learning; a short run of pages and of emoji.

`charts`: 3 seeds from one start that has seen 40 programs. Two turns have half as many steps, which are about as many
trained tokens; both counts are written. Beside them supervised learning goes on with the same 40 pairs for the same CPU
seconds, at the better of two rates on dev. `pages`, `emoji`: one seed each, from starts made here. The rate was
chosen with seed 100. Every run is a folder under runs/benchmark_rrvf; finished ones are not run again, and a run that
was stopped goes on. CPU seconds include the renderers'.

    python -m benchmarks.rrvf [charts] [pages] [emoji]
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.common import RESULTS, spread, write
from mmrl.cli import main as mmrl
from mmrl.config import load
from vision.controls import Arm, run_arms
from vision.experiments import Experiment

ROOT = Path("runs/benchmark_rrvf")
SEEDS = (0, 1, 2)
STEPS = 80
LR = "train.lr=3e-4"
ARMS = {
    "one_turn": [f"train.steps={STEPS}"],
    "two_turns": [f"train.steps={STEPS // 2}", "rollout.turns=2", "rewards.tools.use.cap=2"],
}
SHORT = 30
"""Steps of pages and emoji."""
QUIET = ["logging.progress=false", "save.every=100"]


def train(name: str, recipe: str, overrides: list[str]) -> Path:
    """The folder of a run, trained now if it is not finished."""
    folder = ROOT / name
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        if status := mmrl(["train", recipe, *QUIET, *overrides, "--run", str(folder), *resume]):
            raise SystemExit(status)
    return folder


def tokens(folder: Path, rows: int) -> int:
    """Tokens that a run has trained on."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return round(sum(line["rollout/length_mean"] * rows for line in lines if "rollout/length_mean" in line))


def figures(folders: list[Path], rows: int) -> dict[str, object]:
    """What the runs of one arm say, over seeds."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    commits = {json.loads((folder / "provenance.json").read_text())["commit"] for folder in folders}

    def over(where: str) -> dict[str, object]:
        return {name: spread([s[where][name]["value"] for s in summaries]) for name in summaries[0][where]}

    found: dict[str, object] = {
        "seeds": [s["seed"] for s in summaries],
        "before": over("eval_before"),
        "after": over("eval_after"),
        "held_out": summaries[0]["eval_after"]["accuracy"]["n"],
        "steps": summaries[0]["steps"],
        "trained_tokens": [tokens(folder, rows) for folder in folders],
        "cpu_s": spread([s["cpu_s"] for s in summaries]),
        "logprob_diff_max": max(s["parity"]["logprob_diff_max"] for s in summaries),
        "commits": sorted(map(str, commits)),
    }
    return found


def supervised(seed: int, cpu_s: float) -> dict:
    """More supervised learning from the same start, on its own pairs; run now if it is not there."""
    file = ROOT / f"supervised_{seed}.json"
    if not file.exists():
        experiment = load("vision/rrvf_charts", [f"seed={seed}"]).experiment
        assert isinstance(experiment, Experiment)
        config = replace(experiment.sft, workers=1)
        arms = [Arm(experiment.supervised, False, lr, config, experiment.runtime, seed, cpu_s) for lr in config.lrs]
        file.write_text(json.dumps(run_arms(arms, config.workers)["sft_continued"]))
    found: dict = json.loads(file.read_text())
    return found


def over_seeds(arms: list[dict]) -> dict[str, object]:
    """What supervised learning reached."""
    return {
        "lr": [arm["lr"] for arm in arms],
        "cpu_s": spread([arm["cpu_s"] for arm in arms]),
        "after": {name: spread([arm["eval"][name]["value"] for arm in arms]) for name in arms[0]["eval"]},
    }


def charts() -> dict[str, object]:
    """Both arms, seed by seed, so that what there is can be compared at any time."""
    found: dict[str, object] = {}
    folders: dict[str, list[Path]] = {arm: [] for arm in ARMS}
    others: list[dict] = []
    for seed in SEEDS:
        for arm, overrides in ARMS.items():
            words = [f"seed={seed}", LR, "evaluate.every=50", *overrides]
            folders[arm].append(train(f"{arm}_{seed}", "vision/rrvf_charts", words))
            found[arm] = figures(folders[arm], 128)
        spent = json.loads((folders["one_turn"][-1] / "summary.json").read_text())["cpu_s"]
        others.append(supervised(seed, spent))
        found["supervised"] = over_seeds(others)
        print(json.dumps(found), flush=True)
    return found


def short(task: str) -> dict[str, object]:
    """One run of a smaller task, from a start that is made if it is not there."""
    start = ROOT / f"start_{task}"
    if not (start / "warmup.json").exists():
        words = ["warmup", f"vision/warmup_{task}", "logging.progress=false", "--output", str(start)]
        if status := mmrl(words):
            raise SystemExit(status)
    words = ["seed=0", LR, f"train.steps={SHORT}", "evaluate.every=20", f"policy.model={start}"]
    return figures([train(task, f"vision/rrvf_{task}", words)], 128)


def main(wanted: list[str]) -> None:
    """Run the parts that are asked for, all by default, and write each when it is done beside what was there."""
    path = RESULTS / "rrvf.json"
    found: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    for name in wanted or ["charts", "pages", "emoji"]:
        found |= {"what": (__doc__ or "").split("\n")[0], name: charts() if name == "charts" else short(name)}
        write("rrvf", found)


if __name__ == "__main__":
    main(sys.argv[1:])
