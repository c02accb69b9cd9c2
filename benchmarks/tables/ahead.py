"""Tables of docs/ahead.md, from sections of benchmarks/results/scale.json."""

from __future__ import annotations

from benchmarks.common import pm

MISSING = "Not measured yet."


def equal(found: dict) -> str:
    """How many metrics differ, by domain."""
    told = found.get("ahead_equal")
    if told is None:
        return MISSING
    names = list(next(iter(told.values())))
    rows = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for domain, row in told.items():
        cells = [f"{row[name]['differ']} of {row[name]['metrics']} differ" for name in names]
        rows.append(f"| {domain} | {' | '.join(cells)} |")
    text = ["Metrics of three steps and two evaluations (`python -m benchmarks.ahead equal`)."]
    if ranks := found.get("ahead_ranks"):
        pairs = [f"{name.replace(' | ', ' beside ')} {apart:.0e}" for name, apart in ranks.items()]
        text.append(f"On two gloo ranks, vision, largest difference of a metric: {'; '.join(pairs)}.")
    return "\n".join([*rows, "", " ".join(text)])


def overlap(found: dict) -> str:
    """Time of a step ahead, over that of one after the other."""
    told = found.get("overlap")
    if told is None:
        return MISSING
    columns = [name for name in told if name not in ("update_s", "steps")]
    rows = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    names = list(dict.fromkeys(name for column in columns for name in told[column]))
    for name in names:
        cells = [f"{told[column][name]['ratio']:.2f}" if name in told[column] else "-" for column in columns]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *rows,
            "",
            f"Wall time of a step over that of one after the other, medians of {told['steps']} steps in one run "
            "(`python -m benchmarks.ahead overlap`).",
        ]
    )


def bandit(found: dict) -> str:
    """Mean and deviation of each estimator beside the exact gradient."""
    told = found.get("stale_bandit")
    if told is None:
        return MISSING
    gradients = told["gradients"]
    names = [name for name in next(iter(gradients.values())) if name != "exact"]
    rows = ["| drew -> updated | exact | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for moved, row in gradients.items():
        cells = [f"{row[name]['mean']:.3f} ± {row[name]['std']:.3f}" for name in names]
        rows.append(f"| {moved} | {row['exact']:.3f} | {' | '.join(cells)} |")
    return "\n".join(
        [*rows, "", "Mean ± deviation of the estimate from one draw (`python -m benchmarks.ahead bandit`)."]
    )


def digits(found: dict) -> str:
    """Accuracy by staleness, with and without correction."""
    told = found.get("stale_digits")
    if told is None:
        return MISSING
    cells = {name: row for name, row in told.items() if isinstance(row, dict)}
    names = list(dict.fromkeys(name.split(", staleness ")[0] for name in cells))
    levels = list(dict.fromkeys(name.split(", staleness ")[1] for name in cells))
    rows = ["| staleness | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for level in levels:
        found_cells = [cells.get(f"{name}, staleness {level}") for name in names]
        rows.append(f"| {level} | {' | '.join('-' if c is None else pm(c['after']) for c in found_cells)} |")
    before = pm(next(iter(cells.values()))["before"])
    ratio = max(cell["ratio_max"] for cell in cells.values())
    return "\n".join(
        [
            *rows,
            "",
            f"Held-out accuracy after {told['steps']} steps from {before}, mean ± deviation over {len(told['seeds'])} "
            f"seeds; the largest ratio to the policy that drew was {ratio:.3g} (`python -m benchmarks.ahead digits`).",
        ]
    )
