"""The tables of pairwise rewards in docs/rewards.md, from benchmarks/results/pairwise_rl.json."""

from __future__ import annotations

from benchmarks.common import pm


def constants(found: dict) -> str:
    """What a constant a prompt does to scores, and not to comparisons."""
    if "constants" not in found or "heads" not in found:
        return "Not measured yet."
    part, heads = found["constants"], found["heads"]
    rows = [
        "| reward on prompts held out | better of two pictures of a prompt | rank correlation over prompts | variance between prompts |",
        "|---|---|---|---|",
    ]
    for name, arm in part["arms"].items():
        rows.append(f"| {name} | {pm(arm['accuracy'])} | {pm(arm['rank'])} | {pm(arm['between'])} |")
    change = part["largest_change"]
    worst = max(value for name, value in change.items() if name.startswith("regression"))
    one_order = heads["pairwise"]["accuracy_one_order"]
    return "\n".join([
        *rows, "",
        f"Brightness about the mean of its prompt, plus a constant of the prompt whose deviation is so many times that within a prompt (as the pictures are: {part['natural']:.0f} times). "
        f"{heads['pairs']['train']:,} pairs of 72 prompts, 24 others measured, without the picture that is the anchor; mean ± deviation over 3 seeds. Rank correlation: with the gold about its prompt's mean, all "
        f"prompts together. With the largest constants every label is as before, and so are the weights of the heads: the largest change is {change['bt']:g} (Bradley-Terry) and {change['pairwise']:g} (pairwise), where the "
        f"regression's rewards move by up to {worst:.1f} of their deviations. The pairwise judge is right on {pm(heads['pairwise']['accuracy'])} of all {heads['pairs']['held_out']:,} held-out pairs, "
        f"{pm(one_order)} in one order; Bradley-Terry on {pm(heads['bt']['accuracy'])}. Its orders are apart by {pm(heads['pairwise']['inconsistency'])} on average, by {pm(heads['pairwise_free']['inconsistency'])} without the penalty, "
        f"where it is right on {pm(heads['pairwise_free']['accuracy'])} (`python -m benchmarks.pairwise_rl heads constants`).",
    ])  # fmt: skip


def lean(found: dict) -> str:
    """What is left of a lean to the first place."""
    if "lean" not in found:
        return "Not measured yet."
    part = found["lean"]
    rows = [
        "| lean b, in log-odds | one order | both orders, a judge that is consistent but for b | b^2 sigmoid''(d) / 2 | both orders, the trained judge | its first order | its second order | accuracy, one order | both |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for b, ideal in part["ideal"].items():
        own = part["pairwise"][b]
        numbers = [
            ideal["one_order"], ideal["both_orders"], ideal["second_order_term"], own["both_orders"], own["first_order_term"],
            own["second_order_term"], own["accuracy_one_order"], own["accuracy_both_orders"],
        ]  # fmt: skip
        rows.append(f"| {b} | {' | '.join(f'{number:.4f}' for number in numbers)} |")
    off = max(row["sum_off_by"] for kind in ("ideal", "pairwise", "pairwise_free") for row in part[kind].values())
    return "\n".join([
        *rows, "",
        f"Mean distance of the probability from that without the lean, over the held-out pairs; p(u > v) + p(v > u) is 1 to {off:.0e} (`python -m benchmarks.pairwise_rl lean`).",
    ])  # fmt: skip


def rl(found: dict) -> str:
    """PPO by either reward."""
    if "rl" not in found:
        return "Not measured yet."
    part = found["rl"]
    names = {"pairwise": "win probability against the start's picture", "bt": "Bradley-Terry score"}
    rows = [
        "| PPO by | brightness, held-out prompts | gain | gold accuracy | KL | variance explained by the critic | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, name in names.items():
        run = part[arm]
        rows.append(
            f"| {name} | {pm(run['before']['gold'])} -> {pm(run['after']['gold'])} | {pm(run['gain'])} | {pm(run['before']['gold_accuracy'])} -> "
            f"{pm(run['after']['gold_accuracy'])} | {pm(run['after']['kl'])} | {pm(run['explained_variance_second_half'])} | {run['cpu_s']['mean']:.0f} |"
        )
        half = run["half_way"]
        rows.append(
            f"| the same, half way | -> {pm(half['gold'])} | | -> {pm(half['gold_accuracy'])} | {pm(half['kl'])} | | |"
        )
    apart = part["pairwise_less_bt_by_seed"]
    each = ", ".join(f"{value:+.4f}" for value in apart["values"])
    parity = max(part[arm]["logprob_diff_max"] for arm in names)
    return "\n".join([
        *rows, "",
        f"{part['pairwise']['steps']} steps of `diffusion/pairwise_ppo`, nothing but the reward changed; mean ± deviation over 3 seeds of head and run. Gain of the pairwise reward less that of Bradley-Terry by seed: "
        f"{each}. Gold accuracy is another CLIP's: which caption is nearest. Explained variance: the second half of the steps. Largest log-prob difference {parity:.0e} (`python -m benchmarks.pairwise_rl rl`).",
    ])  # fmt: skip
