"""The tables of robots, of the README and of docs/vla.md and simulation.md."""

from __future__ import annotations

from benchmarks.common import median, pm


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


def pictures(found: dict) -> str:
    """The curve of the run from pictures, and what longer cloning does."""
    points = found["curves"][0]
    rows = [
        f"| step | {' | '.join(str(point[0]) for point in points)} |",
        f"|---|{'---|' * len(points)}",
        f"| CPU s of training | {' | '.join(f'{point[1]:.0f}' for point in points)} |",
        f"| success on 40 episodes | {' | '.join(f'{point[2]:.3f}' for point in points)} |",
    ]
    (low, high), after = found["intervals_after"][0], found["after"]["success_rate"]["mean"]
    cloning = found.get("longer_cloning")
    beside = "" if cloning is None else (
        f" Cloning the same {cloning['demonstrations']} demonstrations for {cloning['cpu_s']:.0f} CPU s: {cloning['success_rate']:.3f}."
    )  # fmt: skip
    text = (
        f"PushCube from 64 x 64 pictures and a sentence, one seed, so no claim (`python -m benchmarks.vla_pictures`): "
        f"{found['before']['success_rate']['mean']:.3f} -> {after:.3f} [{low:.3f}, {high:.3f}] on the same "
        f"{found['held_out']} episodes before and after, by the fast path.{beside} Largest log-prob difference {found['logprob_diff_max']:.0e}."
    )
    return "\n".join([*rows, "", text])


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
