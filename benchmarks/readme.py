"""Puts the measured figures into README.md, from benchmarks/results/*.json and nowhere else.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

from benchmarks.common import RESULTS

README = Path(__file__).parent.parent / "README.md"


def pm(figure: dict) -> str:
    """mean +- spread over seeds."""
    if len(figure["values"]) == 1:
        return f"{figure['mean']:.3f}"
    return f"{figure['mean']:.3f} ± {figure['std']:.3f}"


def median(figure: dict) -> float:
    return statistics.median(figure["values"])


def digits(found: dict) -> str:
    rows = [
        "| digits, 400 held-out pictures | start | RL | same CPU: SFT on the demonstrations | SFT on all labels (ceiling) | CPU s of RL |",
        "|---|---|---|---|---|---|",
    ]
    names = {
        "no_thinking": "No-Thinking, 3 seeds",
        "no_thinking_second_start": "No-Thinking, another start",
        "thinking": "CLS-RL with thinking, 3 seeds",
        "thinking_second_start": "CLS-RL with thinking, another start",
    }
    for key, name in names.items():
        if key in found:
            f = found[key]
            cpu = f"{f['rl_cpu_s']['mean']:.0f}"
            cells = [pm(f[c]) for c in ("start", "rl", "sft_continued", "sft_all_labels")]
            rows.append(f"| {name} | {' | '.join(cells)} | {cpu} |")
    said = []
    for key in ("no_thinking", "thinking"):
        f = found.get(key)
        if f is None:
            continue
        gap = f["sft_all_labels"]["mean"] - f["rl"]["mean"]
        versus = "below" if gap > 0.005 else "level with" if gap > -0.005 else "above"
        said.append(f"{names[key].split(',')[0]}: RL is {versus} the ceiling ({gap:+.3f} from RL to it)")
    thought = found.get("thinking", {}).get("after", {}).get("thought_agrees")
    drift = ""
    if thought:
        drift = f" Of the thoughts that can still be parsed after RL, {pm(thought)} agree with the answer given."
    return "\n".join(
        [*rows, "", f"Mean ± deviation over seeds (`python -m benchmarks.digits`). {'; '.join(said)}.{drift}"]
    )


def trl(found: dict) -> str:
    rows = ["| CPU seconds a step | generation | log-probs | update | total |", "|---|---|---|---|---|"]
    names = {"trl": "TRL 1.16 GRPOTrainer", "mmrl": "mmrl", "naive": "mmrl, prompts not shared"}
    for arm, name in names.items():
        phases = " | ".join(f"{median(found['phases'][arm][p]):.3f}" for p in ("generation", "logprobs", "update"))
        rows.append(f"| {name} | {phases} | {median(found['cpu_s_per_step'][arm]):.3f} |")
    s = found["setting"]
    text = (
        f"TRL / mmrl: **{found['ratio_trl_over_mmrl']:.2f}** (median of {s['repeats']} repeats in turn, from "
        f"{min(found['ratios']['values']):.2f} to {max(found['ratios']['values']):.2f}; `make bench`). {s['parameters'] / 1e6:.1f}M parameters, "
        f"{s['image']}-pixel pictures, {s['prompts']} prompts x {s['group']} answers, {s['prompt_tokens']} + {s['new_tokens']} tokens, tower trained, "
        "every group with spread, no feature cache, one thread, `policy.reuse_prefill`."
    )
    return "\n".join([*rows, "", text])


def transfer(found: dict) -> str:
    summary = found["summary"]
    arms = {"start": "start", "rl": "RL", "rl_kl": "RL with CLS-RL's KL (k3, 0.04)", "sft_continued": "same CPU: SFT on the demonstrations",
            "sft_all_labels": "SFT on all labels of the pool (ceiling)"}  # fmt: skip

    def row(study: str, name: str, keys: tuple[str, ...]) -> list[str]:
        lines = []
        for arm, label in arms.items():
            f = summary.get(f"{study}/{arm}")
            if f:
                lines.append(f"| {name} | {label} | " + " | ".join(pm(f[k]) if k in f else "-" for k in keys) + " |")
        return lines

    base = ("trained/accuracy", "new/accuracy", "new/closed_accuracy")
    rows = ["| base-to-new, OpenMoji | arm | base classes | new classes | new, told apart |", "|---|---|---|---|---|"]
    rows += row("base_to_new/no_thinking", "No-Thinking", base) + row("base_to_new/thinking", "CLS-RL", base)
    rows += [
        "",
        "| cross-dataset, No-Thinking | arm | OpenMoji | ELPV accuracy | ELPV balanced |",
        "|---|---|---|---|---|",
    ]
    cross = ("trained/accuracy", "elpv/accuracy", "elpv/balanced_accuracy")
    rows += row("cross_dataset/no_thinking", "OpenMoji to ELPV", cross)
    text = (
        'Mean ± deviation over 3 seeds from one start; "told apart": only their own labels allowed '
        "(`python -m benchmarks.transfer`)."
    )
    return "\n".join([*rows, "", text])


def main() -> None:
    """Rewrite each block between its markers."""
    text = README.read_text()
    for name, file, render in (
        ("digits", "digits", digits),
        ("transfer", "transfer", transfer),
        ("trl", "vision_vs_trl", trl),
    ):
        path = RESULTS / f"{file}.json"
        if path.exists():
            block = f"<!-- figures: {name} -->\n{render(json.loads(path.read_text()))}\n<!-- /figures -->"
            text = re.sub(rf"<!-- figures: {name} -->.*?<!-- /figures -->", lambda _, b=block: b, text, flags=re.DOTALL)
    README.write_text(with_files(text))


def with_files(text: str) -> str:
    """Each shown file between its markers."""

    def shown(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- file: {name} -->\n```yaml\n{(README.parent / name).read_text()}```\n<!-- /file -->"

    return re.sub(r"<!-- file: (\S+) -->.*?<!-- /file -->", shown, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
