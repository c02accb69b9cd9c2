"""The tables of docs/rewards.md, from benchmarks/results/rewards.json; put there by `python -m benchmarks.readme`."""

from __future__ import annotations

import statistics

from benchmarks.common import pm


def cell(figure: dict | None) -> str:
    """Value and interval, or a dash."""
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def worst(figures: dict, kind: str) -> str:
    """The largest figure of a kind, and of what."""
    known = {key.partition("/")[2]: f["value"] for key, f in figures.items() if key.startswith(f"{kind}/") and f["value"] is not None}  # fmt: skip
    if not known:
        return "-"
    name = max(known, key=lambda key: abs(known[key]))
    return f"{name} {known[name]:+.2f}" if kind == "lean" else f"{name} {known[name]:.2f}"


def accuracy(found: dict) -> str:
    """Every shipped reward on pictures with known preferences."""
    if "pictures" not in found:
        return "Not measured yet."
    part = found["pictures"]
    rows = [
        "| reward | accuracy | emoji: object, background | photographs | calibration error (if perfect) | leans on | bought by | fooled by | ms an output |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, figures in part["figures"].items():
        emoji = ", ".join(f"{figures[f'accuracy/{kind}']['value']:.2f}" for kind in ("object", "background") if f"accuracy/{kind}" in figures)  # fmt: skip
        error = "-"
        if "ece" in figures:
            error = f"{figures['ece']['value']:.3f} ({figures['ece_if_perfect']['value']:.3f})"
        probes = " | ".join(worst(figures, kind) for kind in ("lean", "bought", "fooled"))
        cost = f"{part['costs'][name]['cpu_s']:.1f}"
        rows.append(
            f"| {name} | {cell(figures['accuracy'])} | {emoji or '-'} | {cell(figures.get('accuracy/photograph'))} | {error} | {probes} | {cost} |"
        )
    return "\n".join(
        [*rows, "", f"{part['pairs']} pairs, 95 % intervals; the largest of each kind of probe (`python -m benchmarks.rewards pictures`, {part['cpu_s']:.0f} CPU s). {part['not_measured']}."]
    )  # fmt: skip


def push(found: dict) -> str:
    """Best of n and training, where the gold turns."""
    if "push" not in found:
        return "Not measured yet."
    part = found["push"]
    rows = [
        "| proxy | best of 1 | 4 | 16 | 64 | peak of the gold | turns beyond doubt |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, curve in part["best_of_n"].items():
        points = {p["label"]: p for p in curve["points"]}
        cells = " | ".join(f"{points[n]['proxy']:.3f} / {points[n]['gold']:.3f}" for n in ("1", "4", "16", "64"))
        turned = f"at n = {curve['turns_at']}" if curve["turns_at"] else "no"
        rows.append(f"| {name} | {cells} | n = {curve['peak_at']} | {turned} |")
    text = [
        "\n".join(rows),
        f"Proxy / gold (the cosine of another CLIP), mean over 96 captions, from {part['candidates']:,} pictures of the small pipeline.",
    ]
    rows = ["| trained by RLCM, no KL, 40 steps, 3 seeds | proxy | gold | KL at the end | the gold turns at step |", "|---|---|---|---|---|"]  # fmt: skip
    for name, curves in part["trained"].items():
        turns = ", ".join(curve["turns_at"] or "not" for curve in curves)
        kl = statistics.fmean(curve["points"][-1]["kl"] for curve in curves)
        rows.append(
            f"| {name} | {pm(part['proxy_change'][name])} | {pm(part['gold_change'][name])} | {kl:.2f} | {turns} |"
        )
    text += ["\n".join(rows), "Change since the start on held-out captions; KL as the run measures it, a mean over the dimensions of a latent (`python -m benchmarks.rewards push`)."]  # fmt: skip
    return "\n\n".join(text)


def judge(found: dict) -> str:
    """1,000 questions to a server that is unwell."""
    if "judge" not in found:
        return "Not measured yet."
    j = found["judge"]
    ways = ", ".join(f"{count} {name}" for name, count in j["outcomes"].items() if name != "answered")
    agree = (
        "as the server counted them"
        if all(j["outcomes_as_the_server_says"].values())
        else "NOT as the server counted them"
    )
    again = j["asked_again"]
    return (
        f"{j['questions']:,} questions took {j['calls']:,} calls (the server saw {j['server_saw']:,}), of which {j['failed_share']:.0%} failed: "
        f"{ways}, {agree}. {j['scored']} were scored, all {j['scored_right']} of them with their own score; {j['unparsable']} answers could not be "
        f"read; {j['lost']} lost, {j['answered_twice']} answered twice. Asked again, {again['calls']} calls were made, for the unreadable ones alone. "
        f"Replayed with the server gone: {j['replayed_without_a_server']['calls']} calls, "
        f"{'the same scores' if j['replayed_without_a_server']['the_same'] else 'OTHER scores'} (`python -m benchmarks.rewards judge`)."
    )


def process(found: dict) -> str:
    """Raw step scores are farmed; Clip and Delta are not, and when Delta is."""
    if "process" not in found:
        return "Not measured yet."
    part = found["process"]
    rows = [
        "| step scores | padding steps of 20 | success | solving scored 0.5: padding steps | success |",
        "|---|---|---|---|---|",
    ]
    for name, arm in part["arms"].items():
        other = part["padding_looks_better_than_solving"][name]
        rows.append(f"| {name} | {' | '.join(pm(a[k]) for a in (arm, other) for k in ('padding_steps', 'success'))} |")
    return "\n".join([*rows, "", f"A policy that pads or solves, REINFORCE, alpha {part['alpha']:g}, mean ± deviation over 3 seeds (`python -m benchmarks.rewards process`)."])  # fmt: skip


def head(found: dict) -> str:
    """A trained head beside the CLIP that it reads."""
    if "train" not in found:
        return "Not measured yet."
    part = found["train"]
    kinds = [key for key in part["clip_a"] if key.startswith("accuracy")]
    names = [key.partition("/")[2] or "all" for key in kinds]
    rows = [f"| accuracy on {part['pairs']} new pairs | {' | '.join(names)} |", "|---|" + "---|" * len(kinds)]
    crops = part["new_crops_of_photographs_trained_on"]
    rows[0] += " new crops of photographs trained on |"
    rows[1] += "---|"
    rows.append(
        "| the CLIP's cosine | "
        + " | ".join(f"{part['clip_a'][key]:.3f}" for key in kinds)
        + f" | {crops['clip_a']:.3f} |"
    )
    rows.append(
        "| a head on the same CLIP | "
        + " | ".join(pm(part["head"][key]) for key in kinds)
        + f" | {pm(crops['head'])} |"
    )
    return "\n".join([*rows, "", "Mean ± deviation over 3 seeds of `rewards/train`; `photograph`: of four that it was not trained on (`python -m benchmarks.rewards train`)."])  # fmt: skip


def judge_rl(found: dict) -> str:
    """Three ways to train a judge of pairs, as usual and where instability is to be expected."""
    rows = [
        "| setting | arm | accuracy | sampled | consistent in both orders | prefers the first | thought leads there | collapsed | accuracy of rollouts in the last third, its deviation in a run | reward, its deviation | largest ratio | largest gradient norm |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    shown = ("accuracy", "accuracy_sampled", "consistent", "first", "leads")
    first = next(iter(found["settings"]["usual"].values()))
    rows.append(f"| | start | {' | '.join(pm(first['eval_before'][name]) for name in shown)} |" + " - |" * 5)
    arms = [(setting, arm, run) for setting, of in found["settings"].items() for arm, run in of.items()]
    for setting, arm, run in arms:
        after = [pm(run["eval_after"][name]) if "eval_after" in run else "-" for name in shown]
        rows.append(
            f"| {setting} | {arm} | {' | '.join(after)} | {run['collapses']} of {run['runs']} | {run['right_last_third']['mean']:.3f}, "
            f"{run['right_std_last_third']['mean']:.3f} | {run['reward_last_third']['mean']:.3f}, {run['reward_std_last_third']['mean']:.3f} | "
            f"{max(run['ratio_max']['values']):.3g} | {max(run['grad_norm_max']['values']):.3g} |"
        )
    tokens = [run["tokens"]["mean"] for _, _, run in arms if "tokens" in run]
    parity = max(run.get("logprob_diff_max", 0.0) for _, _, run in arms)
    cpu = sum(sum(run["cpu_s"]["values"]) for _, _, run in arms if "cpu_s" in run)
    told = (
        f"{len(found['seeds'])} seeds, {first['steps']} steps of 64 answers, {min(tokens):,.0f} to {max(tokens):,.0f} trained tokens, mean ± "
        f"deviation over seeds; ratio and norm are the largest of any step and seed (`python -m benchmarks.judge_rl`, {cpu:.0f} CPU s of training). "
        f"Largest log-prob difference {parity:.0e}."
    )
    return "\n".join([*rows, "", told])
