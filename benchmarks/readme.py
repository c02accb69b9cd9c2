"""Puts the measured figures into README.md, from benchmarks/results/*.json and nowhere else.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks import ahead_tables, principle_tables, reliability_tables, reward_tables, scale_tables
from benchmarks.common import RESULTS, pm, spread

README = Path(__file__).parent.parent / "README.md"


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


def compress(found: dict) -> str:
    names = {
        "rlcm": "RLCM, 4 steps",
        "rlcm_kl": "RLCM with a weak KL (0.02)",
        "ddpo": "DDPO, 10 steps",
        "ddpo_guided": "DDPO, 10 steps, guidance 2",
    }
    rows = [
        "| JPEG size, held-out prompts | learning rate | gain in kB | gold accuracy | CPU s |",
        "|---|---|---|---|---|",
    ]
    for arm, name in names.items():
        f = found["arms"][arm]
        told = f"{pm(f['gold_at_start'])} -> {pm(f['gold_at_end'])}"
        rows.append(
            f"| {name} | {found['rates'][arm]:g} | {pm(f['gain_at_end'])} | {told} | {f['cpu_s']['mean']:.0f} |"
        )
    said = []
    for arm in ("ddpo", "ddpo_guided"):
        r = found["ratios"][arm]
        best = (
            f"{names[arm]}: best mean gain {r['best_mean_gain']:.3f} kB ± {r['deviation']:.3f} after {r['at_cpu_s']:.0f} CPU s, "
            f"gold accuracy {r['gold_accuracy']:.2f}"
        )
        if not r["exceeds_3_deviations"]:
            said.append(
                f"{best}: within 3 deviations over seeds, so it counts as not reached, and there is no ratio to it."
            )
            continue
        equal = max((r[f"{arm}_times_sooner_at_equal_gold"] or 0 for arm in ("rlcm", "rlcm_kl")), default=0) or None
        sooner = f"RLCM has that gain {times(r['rlcm_times_sooner'])}, and at no lower gold accuracy {times(equal)}"
        said.append(f"{best}. {sooner}.")
    return "\n".join(
        [*rows, "", f"Mean ± deviation over 3 seeds (`python -m benchmarks.diffusion compress`). {' '.join(said)}"]
    )


def times(ratio: float | None) -> str:
    return "not at all" if ratio is None else f"**{ratio:.0f} times sooner**"


def align(found: dict) -> str:
    rows = ["| alignment, held-out captions | CLIP cosine | gold accuracy | CPU s |", "|---|---|---|---|"]
    names = {"rlcm_align": "RLCM", "pathwise_align": "pathwise (DRaFT-1)"}
    for arm, name in names.items():
        f = found["arms"][arm]
        reward = (
            f"{pm(f['start'])} -> {f['start']['mean'] + f['gain_at_end']['mean']:.3f} (gain {pm(f['gain_at_end'])})"
        )
        rows.append(
            f"| {name} | {reward} | {pm(f['gold_at_start'])} -> {pm(f['gold_at_end'])} | {f['cpu_s']['mean']:.0f} |"
        )
    flow, more = RESULTS / "diffusion_flow.json", ""
    if flow.exists():
        f = json.loads(flow.read_text())
        reward = (
            f"{pm(f['start'])} -> {f['start']['mean'] + f['gain_at_end']['mean']:.3f} (gain {pm(f['gain_at_end'])})"
        )
        gold = f"{pm(f['gold_at_start'])} -> {pm(f['gold_at_end'])}"
        rows.append(f"| Flow-GRPO, on the flow pipeline | {reward} | {gold} | {f['cpu_s']['mean']:.0f} |")
        if f["gain_at_end"]["mean"] < 3 * f["gain_at_end"]["std"]:
            more = " Flow-GRPO's gain is within 3 deviations over seeds: at this budget it is not shown to learn."
    pathwise, rlcm = (found["arms"][arm]["gain_at_end"]["mean"] for arm in ("pathwise_align", "rlcm_align"))
    who = "The pathwise gradient wins" if pathwise > rlcm else "RLCM wins"
    return "\n".join(
        [
            *rows,
            "",
            f"Mean ± deviation over 3 seeds (`python -m benchmarks.diffusion align flow`). {who} where the reward has a gradient.{more}",
        ]
    )


def steps(found: dict) -> str:
    figures = found["figures"]
    names = {
        "rlcm_kl": "RLCM with a weak KL, JPEG size",
        "rlcm_align": "RLCM, alignment",
        "pathwise_align": "pathwise, alignment",
    }
    rows = ["| trained at 4 steps, drawn at | 1 | 2 | 4 | 8 |", "|---|---|---|---|---|"]
    for arm, name in names.items():
        for when in ("start", "trained"):
            cells = [figures[f"{arm}/{when}/{count}"] for count in (1, 2, 4, 8)]
            told = [f"{c['reward']['mean']:.3f} / {c['gold_accuracy']['mean']:.2f}" for c in cells]
            rows.append(f"| {name}: {when} | {' | '.join(told)} |")
    return "\n".join([*rows, "", "Reward / gold accuracy, means of 3 seeds (`python -m benchmarks.diffusion steps`)."])


def others(found: dict) -> str:
    names = {"incompress": "JPEG size, larger", "aesthetic": "LAION aesthetic head on our CLIP", "align": "CLIP cosine"}
    rows = ["| reward, one seed | | reward | gold accuracy | CPU s |", "|---|---|---|---|---|"]
    for key, name in names.items():
        for arm in ("rlcm", "ddpo"):
            run = found["runs"].get(f"{arm}_{key}")
            if run is None:
                rows.append(f"| {name} | {arm.upper()} | not run | | |")
                continue
            reward, gold = (f"{run[k][0]:.3f} -> {run[k][-1]:.3f}" for k in ("reward", "gold"))
            rows.append(f"| {name} | {arm.upper()} | {reward} | {gold} | {run['cpu'][-1]:.0f} |")
    return "\n".join(
        [
            *rows,
            "",
            "At the rates chosen for compressibility, without KL, as it fell (`python -m benchmarks.diffusion others`).",
        ]
    )


def pushcube(found: dict) -> str:
    names = {"flow_noise": "Flow-Noise", "flow_sde": "Flow-SDE"}
    rows = [
        "| PushCube, 200 held-out episodes on ManiSkill's own step | before | after | CPU s of training | episodes |",
        "|---|---|---|---|---|",
    ]
    for key, name in names.items():
        if key in found:
            f = found[key]
            cpu = f"{f['cpu_s']['mean']:.0f} (at most {max(f['cpu_s']['values']):.0f})"
            rows.append(
                f"| pi_RL, {name} | {pm(f['before'])} | {pm(f['after'])} | {cpu} | {f['episodes_trained'][0]:,} |"
            )
    parity = max(found[key]["logprob_diff_max"] for key in names if key in found)
    return "\n".join(
        [
            *rows,
            "",
            f"Success rates, mean ± deviation over {len(found['flow_noise']['seeds'])} seeds from one policy cloned from 4 demonstrations "
            f"(`python -m benchmarks.vla`); largest log-prob difference {parity:.1e}.",
        ]
    )


def words(found: dict) -> str:
    cloning = found.get("longer_cloning", {})
    spent = f", {cloning['cpu_s']:.0f} CPU s" if cloning else ""
    rows = [
        f"| four tasks told by words, one policy | before | after RL | cloned for longer{spent} |",
        "|---|---|---|---|",
    ]
    for name, before in found["before"].items():
        label = name.partition("/")[2] or "all four"
        other = f"{cloning[name]:.3f}" if name in cloning else "-"
        rows.append(f"| {label} | {pm(before)} | {pm(found['after'][name])} | {other} |")
    seeds = len(found["seeds"])
    told = "one seed, so no claim" if seeds == 1 else f"mean ± deviation over {seeds} seeds"
    return "\n".join(
        [
            *rows,
            "",
            f"Success rates, {found['held_out'] // 4} held-out episodes a task on the fast path, {told}; {found['cpu_s']['mean']:.0f} CPU s of training "
            "(`python -m benchmarks.vla_words`). The last four are variants that are not trained: words in another order, other words, "
            "fewer words, other starting postures.",
        ]
    )


def pickcube(found: dict) -> str:
    f = found["recipe"]
    seeds = len(f["seeds"])
    told = "one seed, so no claim" if seeds == 1 else f"mean ± deviation over {seeds} seeds"
    return (
        f"PickCube, {f['held_out']} held-out episodes on ManiSkill's own step: {pm(f['before'])} -> {pm(f['after'])} in "
        f"{f['cpu_s']['mean']:.0f} CPU s of training, {told} (`python -m benchmarks.vla_pickcube recipe`)."
    )


def pickcube_noise(found: dict) -> str:
    """Success of the cloned policy under the exploration's noise alone."""
    if "noise" not in found:
        return "Not measured yet."
    levels = found["noise"]
    rows = ["| standard deviation | " + " | ".join(levels) + " |", "|---|" + "---|" * len(levels)]
    rows.append("| success | " + " | ".join(f"{value:.3f}" for value in levels.values()) + " |")
    return "\n".join([*rows, "", "200 episodes each, no training (`python -m benchmarks.vla_pickcube noise`)."])


def pickcube_diagnosis(found: dict) -> str:
    """What each change between the first settings and the recipe does in 60 steps."""
    if "diagnosis" not in found:
        return "Not measured yet."
    rows = [
        "| settings, 60 steps, one seed | rollouts that succeed, first and last 10 steps | held out before | after |",
        "|---|---|---|---|",
    ]
    for name, run in found["diagnosis"].items():
        first, last = run["rollout"]
        rows.append(f"| {name} | {first:.2f}, {last:.2f} | {run['before']:.2f} | {run['after']:.2f} |")
    note = "100 held-out episodes by the fast path, so +-0.1 (`python -m benchmarks.vla_pickcube diagnosis`)."
    return "\n".join([*rows, "", note])


def ddpo_trl(found: dict) -> str:
    wide = RESULTS / "diffusion_vs_trl_wide.json"
    shapes = [(found, "SD 1.5's topology at 8 x 8")]
    shapes += [(json.loads(wide.read_text()), "a shallow UNet at 16 x 16")] if wide.exists() else []
    told = [
        f"{name}: TRL's time over ours {f['ratio_trl_over_mmrl']:.2f} at its best batch size, {f['ratio_trl_default_over_mmrl']:.2f} at its default"
        for f, name in shapes
    ]
    return f"DDPO beside TRL 0.23.1's `DDPOTrainer`, CPU seconds a step: {'; '.join(told)} (`make bench`)."


def samplers(_: dict) -> str:
    rows = [
        "| pipeline | sampler | steps | guidance | gold accuracy, 96 captions | CLIP cosine | CPU ms a picture |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in ("unet", "flow"):
        made = json.loads((README.parent / "assets/diffusion" / folder / "warmup.json").read_text())
        for row in made["samplers"]:
            kind = {"FlowSDE": "flow SDE" if row.get("noise") else "flow ODE"}.get(row["stepper"], row["stepper"])
            gold, cosine = row["gold_accuracy"], row["alignment"]
            rows.append(
                f"| {folder} | {kind} | {row['steps']} | {row['guidance']:g} | {gold['value']:.3f} [{gold['low']:.3f}, {gold['high']:.3f}] "
                f"| {cosine['value']:.3f} | {row['ms_per_picture']:.0f} |"
            )
    return "\n".join(
        [
            *rows,
            "",
            "One picture of each caption, the same noise for each sampler, 95 % intervals (`warmup.json` of each folder).",
        ]
    )


def thesis(found: dict) -> str:
    def told(estimate: dict) -> str:
        return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"

    names = {"grpo": "GRPO", "ppo": "PPO, GAE, critic", "gspo": "GSPO", "clip_higher": "Clip-higher", "kl": "GRPO with K3 to the start"}  # fmt: skip
    rows = ["| domain | algorithm | before | after | steps |", "|---|---|---|---|---|"]
    for domain, about in found["domains"].items():
        for key, f in about["algorithms"].items():
            what = f"{domain}, {f['metric'].replace('_', ' ')}"
            rows.append(f"| {what} | {names[key]} | {told(f['before'])} | {told(f['after'])} | {f['steps']} |")
    pairs = [f for about in found["domains"].values() for f in about["algorithms"].values()]
    rose = sum(f["after"]["low"] > f["before"]["high"] for f in pairs)
    fell = sum(f["after"]["high"] < f["before"]["low"] for f in pairs)
    text = (
        f"One seed, {found['cpu_s']} CPU seconds of training each, 95 % intervals, two epochs of two minibatches a rollout "
        f"(`python -m benchmarks.thesis`): of {len(pairs)} pairs {rose} rose and {fell} fell by more than the intervals. This shows that "
        "each pair learns, or does not in this time; one seed and untuned settings rank nothing."
    )
    missing = [
        f"{domain} {names[key]}" if domain in found["domains"] else domain
        for domain in ("vision", "diffusion", "vla")
        for key in names
        if key not in found["domains"].get(domain, {"algorithms": {}})["algorithms"]
    ]
    if missing:
        text += f" **Not measured yet: {', '.join(dict.fromkeys(missing))}.**"
    return "\n".join([*rows, "", text])


def rrvf(found: dict) -> str:
    """What render-and-compare adds to a start, in one turn and two, beside supervised learning."""
    told = {"accuracy": "elements right", "exact": "whole program right", "drawn": "draws", "alike": "alike, 0..1"}
    shuffled = "elements right about another picture"
    text = []
    if "charts" in found:
        arms = found["charts"]
        rows = [
            f"| charts, {arms['one_turn']['held_out']} held out | {' | '.join(told.values())} | {shuffled} | trained tokens | CPU s |",
            "|---|" + "---|" * (len(told) + 3),
        ]

        def row(name: str, figures: dict, tokens: str, cpu: dict | None) -> None:
            numbers = [pm(figures[key]) for key in (*told, "accuracy_image_shuffled")]
            rows.append(f"| {name} | {' | '.join(numbers)} | {tokens} | {f'{cpu["mean"]:.0f}' if cpu else '-'} |")

        def tokens(arm: dict) -> str:
            return f"{sum(arm['trained_tokens']) / len(arm['trained_tokens']):,.0f}"

        one, two = arms["one_turn"], arms["two_turns"]
        row("start, one turn", one["before"], "-", None)
        row("RL, one turn", one["after"], tokens(one), one["cpu_s"])
        other = arms["supervised"]
        row("supervised, the same 40 pairs and CPU", other["after"], "-", other["cpu_s"])
        row("start, two turns", two["before"], "-", None)
        row("RL, two turns", two["after"], tokens(two), two["cpu_s"])
        parity = max(one["logprob_diff_max"], two["logprob_diff_max"])
        text += [
            "\n".join(rows),
            f"{len(one['seeds'])} seeds, mean ± deviation (`python -m benchmarks.rrvf charts`); CPU seconds with the "
            f"renderers'; largest log-prob difference {parity:.0e}.",
        ]
    for task in ("pages", "emoji"):
        if task in found:
            run = found[task]
            numbers = ", ".join(
                f"{told[key]} {run['before'][key]['mean']:.3f} -> {run['after'][key]['mean']:.3f}"
                for key in ("accuracy", "drawn", "alike")
            )
            text.append(
                f"{task}, one seed, {run['steps']} steps, {run['cpu_s']['mean']:.0f} CPU s, {run['held_out']} held out: {numbers} "
                f"(`python -m benchmarks.rrvf {task}`)."
            )
    return "\n\n".join(text)


def structure(found: dict) -> str:
    """Before and after, of the house."""
    commits = found["commits"]
    first, last = next(iter(commits)), list(commits)[-1]
    rows = [f"| | {first} | {last} |", "|---|---|---|"]

    def row(name: str, told: Callable[[dict], str]) -> None:
        rows.append(f"| {name} | {told(commits[first])} | {told(commits[last])} |")

    def three(part: dict) -> str:
        return " / ".join(str(part[key]) for key in ("median", "p90", "max"))

    for name in commits[last]["packages"]:
        row(f"`{name}/`: files, lines", lambda c, n=name: f"{c['packages'][n]['files']}, {c['packages'][n]['lines']:,}")
        row(
            f"`{name}/`: lines a file; a function (median / p90 / max)",
            lambda c, n=name: "{}; {}".format(
                *(three(c["packages"][n][part]) for part in ("file_lines", "function_lines"))
            ),
        )
        row(
            f"`{name}/`: annotated; public and documented",
            lambda c, n=name: f"{c['packages'][n]['annotated']:.1%}; {c['packages'][n]['public_documented']:.1%}",
        )
    row("`mmrl/`: getattr, hasattr, setattr", lambda c: str(c["packages"]["mmrl"]["reflection"]))
    for domain in commits[last]["reading"]:
        row(
            f"{domain}: recipe to loss, files and lines read",
            lambda c, d=domain: f"{c['reading'][d]['files']}, {c['reading'][d]['lines']}",
        )
    row(
        "parts of algorithms: number; lines",
        lambda c: f"{c['algorithm_files']['number']}; {three(c['algorithm_files'])}",
    )
    row("recipes: number; lines", lambda c: f"{c['recipes']['number']}; {three(c['recipes'])}")
    row("test functions, files", lambda c: f"{c['tests']['functions']}, {c['tests']['files']}")
    told = "Counted by `python -m benchmarks.structure`; an overriding method is documented where it is first declared."
    return "\n".join([*rows, "", told])


ELSEWHERE = {
    "diffusion": (
        "RLCM, JPEG size, held-out prompts, no KL to the start",
        {"reward": "reward", "gold_accuracy": "gold accuracy", "diversity": "diversity", "kl": "KL to the start"},
    ),
    "vla": ("PushCube, Flow-Noise, GRPO", {"success_rate": "success"}),
}
"""Where parts ran besides tokens, and what is shown of it."""


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


def syn_grpo(found: dict) -> str:
    """What made pictures do to diversity and accuracy, and what their server costs and survives."""
    text = []
    if "arms" in found:
        arms = found["arms"]
        names = {
            "grpo": "GRPO", "clip_higher": "GRPO, clip-higher 0.28", "random": "GRPO, random descriptions",
            "syn_grpo": "Syn-GRPO",
        }  # fmt: skip
        rows = [
            "| digits, 300 held out on black, 300 others on photographs | spread | of made ones | agreed | answer entropy "
            "| accuracy | accuracy elsewhere | about another picture | CPU s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        start = arms["grpo"]["before"]
        held = ("accuracy", "accuracy_elsewhere", "accuracy_image_shuffled")
        rows.append(f"| start | - | - | - | - | {' | '.join(pm(start[key]) for key in held)} | - |")
        for arm, name in names.items():
            run = arms[arm]
            shown = [
                pm(run["whole_run"][key]) if key in run["whole_run"] else "-"
                for key in ("diversity/spread", "diversity/spread_made", "diversity/agreed", "diversity/answer_entropy")
            ]
            after = [pm(run["after"][key]) for key in held]
            rows.append(f"| {name} | {' | '.join(shown)} | {' | '.join(after)} | {run['cpu_s']['mean']:.0f} |")
        parity = max(arms[arm]["logprob_diff_max"] for arm in names)
        text += [
            "\n".join(rows),
            f"{len(arms['grpo']['seeds'])} seeds, {arms['grpo']['steps'][0]} steps of 128 answers in every arm, mean ± "
            "deviation; diversity is the mean over the run (`python -m benchmarks.syn_grpo arms`). CPU seconds with the "
            f"server's. Largest log-prob difference {parity:.0e}.",
        ]
    if "server" in found:
        server, steps = found["server"], found["server"]["step"]
        text.append(
            "Server, one process, one thread: "
            + "; ".join(
                f"{name} {server[name]['cpu_ms_a_picture']:.1f} CPU ms a picture ({server[name]['pictures_per_cpu_s']:.0f} a "
                f"CPU second), a training step with it on takes {steps[name]['on_over_off']:.2f} of one with it off"
                for name in ("backgrounds", "outpainting")
            )
            + " (`... server`)."
        )
    if "kills" in found:
        run, again = found["kills"], found["kills"]["resumed"]
        text.append(
            f"Killed {run['killed']} times in {run['steps']} steps: the run ended with status {run['exit_status']}, at most "
            f"{run['unaccounted_in_any_step']} descriptions unaccounted for after any step. A run killed and resumed: "
            f"{again['metrics_compared']} metrics of {again['steps']} steps compared with an uninterrupted one's, "
            f"{len(again['metrics_that_differ'])} differ (`... kills`)."
        )
    if "valid" in found:
        valid, probe = found["valid"], found["valid"]["probe"]
        told = "; ".join(
            f"{name} {probe[name]['auc']:.2f} (shuffled labels {probe[name]['auc_shuffled']:.2f})" for name in probe
        )
        text.append(
            f"Of {valid['pictures']:,} made pictures {valid['foreground_equal']:,} have the object's pixels bit for bit. "
            f"Told from placed ones by their edges, area under the curve (0.5: not at all): {told} (`... valid`)."
        )
    return "\n\n".join(text)


def simulation_ring(found: dict) -> str:
    rates, apart = found["rates"], found["differences"]
    rows = [
        "| policy's call | ring 1, steps/s | ring 2 / ring 1 | ring 4 / ring 1 | calls: 1, 2, 4 |",
        "|---|---|---|---|---|",
    ]
    own = rates["own_ms_a_call"]
    for sleep in (0, 5, 20):
        by_ring = rates[f"sleep_{sleep}_ms"]
        first = by_ring["ring_1"]["steps_per_s"]
        ratios = [
            f"**{median(r):.2f}** ({min(r['values']):.2f} to {max(r['values']):.2f})"
            for r in (by_ring[f"ring_{ring}"]["ratio"] for ring in (2, 4))
        ]
        calls = ", ".join(str(by_ring[f"ring_{ring}"]["calls"]) for ring in (1, 2, 4))
        rows.append(
            f"| its own {own:.1f} ms + {sleep} ms of sleep | {median(first):.0f} | {' | '.join(ratios)} | {calls} |"
        )
    alone, batches = ([apart[f"{kind}_ring_{ring}"] for ring in (2, 4)] for kind in ("row_by_row", "in_batches"))
    same, last = min(one["same_chunks"] for one in batches), max(one["final_state_max"] for one in batches)
    row = max(one["final_state_max"] for one in alone)
    return "\n".join(
        [
            *rows, "",
            f"{found['environments']} PushCube environments in one worker, chunks of {found['horizon']} steps, medians (and ranges) of "
            f"{found['repeats']} repeats in turn, resets left out; the sleep stands for a GPU, there is none in it "
            f"(`python -m benchmarks.simulation_ring`). {apart['episodes']} whole episodes in new scenes, ring 2 and 4 beside ring 1: with a policy "
            f"that looks at one row at a time the last states differ by {row:.1g} at most in any number; with one that looks at batches the "
            f"states are equal for {same} of {batches[0]['chunks']} chunks, and differ by {last:.2f} in the end.",
        ]
    )  # fmt: skip


def mixture(found: dict) -> str:
    """Predicted beside measured, and the chosen mixture beside the uniform one."""
    tasks = found["tasks"]

    def row(kind: str, one: dict) -> str:
        weights = " / ".join(f"{weight:.2f}" for weight in one["weights"])
        each = [statistics.fmean(run[f"accuracy[{task}]"] for run in one["runs"]) for task in tasks]
        cells = " | ".join(f"{value:.3f}" for value in each)
        return f"| {kind} | {weights} | {cells} | {one['measured']:.3f} | {one['predicted']:.3f} |"

    rows = [
        f"| | weights of {', '.join(tasks)} | {' | '.join(tasks)} | score | predicted |",
        f"|---|---|{'---|' * len(tasks)}---|---|",
    ]
    start = [found["start"][f"accuracy[{task}]"] for task in tasks]
    rows.append(f"| start | - | {' | '.join(f'{v:.3f}' for v in start)} | {statistics.fmean(start):.3f} | - |")
    rows += [row("pilot, fitted", one) for one in found["pilots"]]
    rows += [row("held out", one) for one in found["held_out"]]
    for name, runs in found.get("final", {}).items():
        arm = found[name]
        each = " | ".join(pm(spread([run[f"accuracy[{task}]"] for run in runs])) for task in tasks)
        score = pm(spread([run["score"] for run in runs]))
        weights = " / ".join(f"{weight:.2f}" for weight in arm["weights"])
        rows.append(f"| {name}, {len(runs)} seeds | {weights} | {each} | {score} | {arm['predicted']:.3f} |")
    text = (
        f"{found['steps']} steps of 128 answers a run, {len(found['seeds'])} seed(s) a pilot; the figure of box is the mean "
        f"intersection over union, the score the mean of the three. {found['runs']} runs, {found['cpu_s'] / 60:.0f} CPU minutes, "
        f"largest log-prob difference {found['logprob_diff_max']:.0e} (`python -m benchmarks.mixture`)."
    )
    return "\n".join([*rows, "", text, "", *(f"- {sentence}" for sentence in found["said"])])


def main() -> None:
    """Rewrite each block between its markers, in the README and in docs/."""
    blocks = (
        ("digits", "digits", digits),
        ("transfer", "transfer", transfer),
        ("trl", "vision_vs_trl", trl),
        ("compress", "diffusion_compress", compress),
        ("align", "diffusion_align", align),
        ("steps", "diffusion_steps", steps),
        ("others", "diffusion_others", others),
        ("pushcube", "vla", pushcube),
        ("words", "vla_words", words),
        ("pickcube", "vla_pickcube", pickcube),
        ("pickcube_noise", "vla_pickcube", pickcube_noise),
        ("pickcube_diagnosis", "vla_pickcube", pickcube_diagnosis),
        ("ddpo_trl", "diffusion_vs_trl", ddpo_trl),
        ("samplers", "diffusion_vs_trl", samplers),
        ("thesis", "thesis", thesis),
        ("structure", "structure", structure),
        ("rrvf", "rrvf", rrvf),
        ("simulation_ring", "simulation_ring", simulation_ring),
        ("syn_grpo", "syn_grpo", syn_grpo),
        ("parts", "parts", parts),
        ("mixture", "mixture", mixture),
        ("reward_accuracy", "rewards", reward_tables.accuracy),
        ("reward_push", "rewards", reward_tables.push),
        ("reward_judge", "rewards", reward_tables.judge),
        ("reward_process", "rewards", reward_tables.process),
        ("judge_rl", "judge_rl", reward_tables.judge_rl),
        ("reward_head", "rewards", reward_tables.head),
        ("principles", "principles", principle_tables.heads),
        ("principles_rl", "principles", principle_tables.rl),
        ("ahead_equal", "scale", ahead_tables.equal),
        ("overlap", "scale", ahead_tables.overlap),
        ("stale_bandit", "scale", ahead_tables.bandit),
        ("stale_digits", "scale", ahead_tables.digits),
        ("kills", "reliability", reliability_tables.kills),
        ("soak", "reliability", reliability_tables.soak),
        ("scale_equal", "scale", scale_tables.equal),
        ("sizing", "sizing", scale_tables.sizing),
    )
    for page in (README, *sorted((README.parent / "docs").glob("*.md"))):
        text = page.read_text()
        for name, file, render in blocks:
            path = RESULTS / f"{file}.json"
            if path.exists() and f"<!-- figures: {name} -->" in text:
                block = f"<!-- figures: {name} -->\n{render(json.loads(path.read_text()))}\n<!-- /figures -->"
                text = re.sub(
                    rf"<!-- figures: {name} -->.*?<!-- /figures -->", lambda _, b=block: b, text, flags=re.DOTALL
                )
        page.write_text(with_files(text) if page == README else text)


def with_files(text: str) -> str:
    """Each shown file between its markers."""

    def shown(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- file: {name} -->\n```yaml\n{(README.parent / name).read_text()}```\n<!-- /file -->"

    return re.sub(r"<!-- file: (\S+) -->.*?<!-- /file -->", shown, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
