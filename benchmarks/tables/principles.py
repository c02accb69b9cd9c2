"""The tables of binary principles in docs/rewards.md, from benchmarks/results/principles.json."""

from __future__ import annotations

from benchmarks.common import pm

COLUMNS = {
    "pairs": "pairs", "pairs_negated": "pairs, negated", "accuracy": "accuracy at r = 0",
    "accuracy_of_best_threshold": "at its best threshold", "ece": "calibration error",
    "margin_where_it_holds": "r towards the truth", "margin_of_negation": "r of the negation", "sign_flips": "signs that flip",
}  # fmt: skip


def heads(found: dict) -> str:
    """Principles beside Bradley-Terry on the same rows, and by kind of principle."""
    if "heads" not in found:
        return "Not measured yet."
    part = found["heads"]
    rows = [
        f"| on {part['held_out']:,} held-out combinations | {' | '.join(COLUMNS.values())} |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for name, arm in part["arms"].items():
        rows.append(f"| {name} | {' | '.join(pm(arm[key]) for key in COLUMNS)} |")
    ours = part["arms"]["principles"]
    kinds = ", ".join(f"{key.partition('/')[2]} {pm(arm)}" for key, arm in ours.items() if key.startswith("accuracy/"))
    return "\n".join([
        *rows, "",
        f"Mean ± deviation over {len(part['seeds'])} seeds of rows and head, {part['rows']:,} rows of training (`python -m benchmarks.principles heads`, "
        f"{part['cpu_s']:.0f} CPU s). Accuracy of principles by kind: {kinds}. A perfectly calibrated model of as many rows would have an error of "
        f"{pm(ours['ece_if_perfect'])}. r towards the truth: with its sign turned where the principle does not hold. Another order of three weighted principles changes the reward by {part['largest_change_by_the_order_of_principles']:g} at most.",
    ])  # fmt: skip


def rl(found: dict) -> str:
    """What the pixels say after training for a principle."""
    if "rl" not in found:
        return "Not measured yet."
    part = found["rl"]
    names = {
        "reward": "reward: sigmoid(r)", "brightness": "brightness", "saturation": "saturation",
        "gold_accuracy": "gold accuracy of the caption",
    }  # fmt: skip
    rows = [f"| RLCM paid for | {' | '.join(names.values())} |", "|---|" + "---|" * len(names)]
    for arm, figures in part["arms"].items():
        cells = [f"{figures[name]['before']['mean']:.3f} -> {pm(figures[name]['after'])}" for name in names]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join([
        *rows, "",
        f"{len(part['seeds'])} seeds, {part['steps']} steps from the same start, held-out captions, no KL; one reward model, not trained again "
        f"(`python -m benchmarks.principles rl`, {part['cpu_s']:.0f} CPU s).",
    ])  # fmt: skip
