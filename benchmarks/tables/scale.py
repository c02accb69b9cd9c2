"""Tables of docs/scale.md."""

from __future__ import annotations

COLUMNS = {
    "gradients": "gradients", "gradients_empty_rank": "gradients, a rank with nothing to train on",
    "advantages": "advantages", "metrics": "metrics, 3 steps", "weights": "weights after 3 steps",
    "resume_2_1": "resumed 2 -> 1", "resume_1_2": "resumed 1 -> 2",
}  # fmt: skip
ENGINES = {"ddp": "DDP", "fsdp2": "FSDP2"}


def equal(found: dict) -> str:
    section = found["equal"]
    rows = [f"| policy | engine | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    policies = {name: each for name, each in section.items() if name != "provenance"}
    for name, engines in policies.items():
        for engine, shown in ENGINES.items():
            cells = [f"{engines[engine][column]:.0e}" if engines[engine][column] else "0" for column in COLUMNS]
            rows.append(f"| {name} | {shown} | {' | '.join(cells)} |")
    moved = [each["ddp"]["moved"] for each in policies.values()]
    shares = [each["fsdp2"]["share"] for each in policies.values()]
    said = (
        "Largest difference from one process, on the worse of two ranks, relative to the largest number of the same "
        f"kind; the three steps move weights by {min(moved):.0e} to {max(moved):.0e} on the same scale. "
        f"Under FSDP2 a rank holds {min(shares):.3f} to {max(shares):.3f} of weights and moments "
        "(`python -m benchmarks.scale equal`)."
    )
    return "\n".join([*rows, "", said])


def sizing(found: dict) -> str:
    rows = [
        "| not run | settings | trained / frozen / beside, 10^9 | activations, GB | 1 GPU, GB | 8 GPUs DDP, GB each "
        "| 8 GPUs FSDP2, GB each | a step on 1 GPU, s | on 8, s |",
        f"|{'---|' * 9}",
    ]
    for name, plan in found.items():
        if name == "provenance":
            continue
        counts = " / ".join(f"{plan[part] / 1e9:.2f}" for part in ("trained", "frozen", "beside"))
        held = [f"{held['peak']:.0f} ({held['between']:.0f})" for held in plan["memory_gb"].values()]
        times = [f"{t['draw_s']:.1f} + {t['update_s']:.1f}" for t in plan["step_s"].values()]
        rows.append(
            f"| {name} | `{plan['settings']}` | {counts} | {plan['activations_gb']:.1f} | {' | '.join(held)} "
            f"| {' | '.join(times)} |"
        )
    return "\n".join(rows)
