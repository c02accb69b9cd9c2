"""The tables of models that look and answer, of the README and of docs/rrvf.md, syn_grpo.md and mixtures.md."""

from __future__ import annotations

import statistics

from benchmarks.common import median, pm, spread


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
