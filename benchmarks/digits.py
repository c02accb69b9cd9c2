"""CLS-RL and No-Thinking-CLS-RL on handwritten digits: 3 seeds, a second start, and all controls.

Hyper-parameters were chosen on the dev split, with seeds that are not among these. Every run is a run folder
under runs/benchmark_digits; finished ones are not run again.

    python -m benchmarks.digits
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common import spread, write
from mmrl.cli import main as mmrl

ROOT = Path("runs/benchmark_digits")
RECIPES = {"no_thinking": "vision/cls_rl_nothink", "thinking": "vision/cls_rl"}
SEEDS = (0, 1, 2)
SECOND_START_SEED = 1


def run(method: str, seed: int, start: str | None, name: str) -> dict:
    """The summary of one run with its controls, trained now if it is not there."""
    folder = ROOT / name
    if not (folder / "summary.json").exists():
        overrides = [f"seed={seed}", "controls=all", "logging.progress=false"]
        overrides += [f"policy.model={start}"] if start else []
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        status = mmrl(["train", RECIPES[method], *overrides, "--run", str(folder), *resume])
        if status:
            raise SystemExit(status)
    provenance = json.loads((folder / "provenance.json").read_text())
    return {**json.loads((folder / "summary.json").read_text()), "commit": provenance["commit"]}


def second_start() -> str:
    """The same warm-up from another seed."""
    folder = ROOT / "start_seed1"
    if not (folder / "warmup.json").exists():
        arguments = [f"seed={SECOND_START_SEED}", "logging.progress=false", "--output", str(folder)]
        if status := mmrl(["warmup", "vision/warmup_digits", *arguments]):
            raise SystemExit(status)
    return str(folder)


def figures(summaries: list[dict]) -> dict[str, object]:
    """What the summaries of one method say."""

    def accuracy(summary: dict, where: str) -> float:
        return summary[where]["accuracy"]["value"]

    def control(summary: dict, name: str) -> float:
        return summary["controls"][name]["eval"]["accuracy"]["value"]

    after = [accuracy(s, "eval_after") for s in summaries]
    continued = [control(s, "sft_continued") for s in summaries]
    others = ("accuracy_sampled", "accuracy_image_shuffled", "thought_agrees", "format")
    return {
        "seeds": [s["seed"] for s in summaries],
        "start": spread([accuracy(s, "eval_before") for s in summaries]),
        "rl": spread(after),
        "sft_continued": spread(continued),
        "sft_all_labels": spread([control(s, "sft_all_labels") for s in summaries]),
        "gain_over_sft_continued": spread([a - c for a, c in zip(after, continued, strict=True)]),
        "rl_cpu_s": spread([s["cpu_s"] for s in summaries]),
        "sft_continued_lr": [s["controls"]["sft_continued"]["lr"] for s in summaries],
        "after": {
            name: spread([s["eval_after"][name]["value"] for s in summaries])
            for name in others
            if name in summaries[0]["eval_after"]
        },
        "logprob_diff_max": max(s["parity"]["logprob_diff_max"] for s in summaries),
        "held_out": summaries[0]["eval_after"]["accuracy"]["n"],
        "steps": summaries[0]["steps"],
        "commits": sorted({str(s["commit"]) for s in summaries}),
    }


def main() -> None:
    """Run what is missing, then write the figures."""
    found: dict[str, object] = {}
    start = second_start()
    for method in RECIPES:
        found[method] = figures([run(method, seed, None, f"{method}_{seed}") for seed in SEEDS])
        found[f"{method}_second_start"] = figures([run(method, 0, start, f"{method}_second_start")])
        write("digits", {"what": __doc__.split("\n")[0], **found})


if __name__ == "__main__":
    main()
