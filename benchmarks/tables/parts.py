"""The table of docs/parts.md."""

from __future__ import annotations

from benchmarks.common import pm

ELSEWHERE = {
    "diffusion": (
        "RLCM, JPEG size, held-out prompts, no KL to the start",
        {"reward": "reward", "gold_accuracy": "gold accuracy", "diversity": "diversity", "kl": "KL to the start"},
    ),
    "vla": ("PushCube, Flow-Noise, GRPO", {"success_rate": "success"}),
}


def parts(found: dict) -> str:
    """What methods against the loss of entropy do on digits, and what each costs."""
    text = []
    shown = {
        "accuracy": "accuracy, greedy", "pass@1": "pass@1", "pass@16": "pass@16", "answer_entropy": "answer entropy, nats",
        "token_entropy": "token entropy, nats",
    }  # fmt: skip
    if arms := found["arms"].get("vision"):
        rows = [
            f"| digits with thoughts, 400 held out | {' | '.join(shown.values())} | entropy of rollouts, first to last step | chosen a step |",
            "|---|" + "---|" * (len(shown) + 2),
        ]
        first = next(iter(arms.values()))
        start = [pm(first["eval_before"][name]) if name in first["eval_before"] else "-" for name in shown]
        rows.append(f"| start | {' | '.join(start)} | - | - |")
        for arm, run in arms.items():
            after = [pm(run["eval_after"][name]) if name in run["eval_after"] else "-" for name in shown]
            moments = list(run["rollout/entropy"].values())
            chosen = ", ".join(f"{count:.0f}" for count in run["chosen_per_step"].values()) or "-"
            rows.append(f"| {arm} | {' | '.join(after)} | {moments[0]:.2f} to {moments[-1]:.2f} | {chosen} |")
        rows += [
            "",
            f"{first['seeds']} seeds, {first['steps']} steps, mean ± deviation; of {first['decisions_per_step']:,.0f} trained tokens a step "
            "so many were chosen (`python -m benchmarks.parts`). Largest log-prob difference "
            f"{max(run['logprob_diff_max'] for run in arms.values()):.0e}.",
        ]
        text.append("\n".join(rows))
    for domain, (heading, columns) in ELSEWHERE.items():
        if arms := found["arms"].get(domain):
            rows = [
                f"| {heading} | {' | '.join(columns.values())} | chosen a step |",
                "|---|" + "---|" * (len(columns) + 1),
            ]
            first = next(iter(arms.values()))
            rows.append(f"| start | {' | '.join(pm(first['eval_before'][name]) for name in columns)} | - |")
            for arm, run in arms.items():
                chosen = ", ".join(f"{count:.0f}" for count in run["chosen_per_step"].values()) or "-"
                rows.append(f"| {arm} | {' | '.join(pm(run['eval_after'][name]) for name in columns)} | {chosen} |")
            said = f"{first['seeds']} seeds, {first['steps']} steps, {first['decisions_per_step']:,.0f} trained decisions a step."
            text.append("\n".join([*rows, "", said]))
    if cost := found.get("cost"):
        found_ratios = sorted((part["ratio"], name) for name, part in cost["parts"].items())
        ratios = ", ".join(f"{name} {ratio:.2f}" for ratio, name in found_ratios)
        text.append(f"CPU time of a step as a ratio to plain GRPO's (`... cost`): {ratios}.")
    return "\n\n".join(text)
