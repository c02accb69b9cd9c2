"""The tables of image generators, of the README and of docs/diffusion.md."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common import RESULTS, pm

ASSETS = Path(__file__).parents[2] / "assets"


def compress(found: dict) -> str:
    names = {
        "rlcm": "RLCM, 4 steps, no KL and no stop rule",
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
        made = json.loads((ASSETS / "diffusion" / folder / "warmup.json").read_text())
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
