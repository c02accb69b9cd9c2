"""The tables of docs/reliability.md."""

from __future__ import annotations


def kills(found: dict) -> str:
    """What was killed, and what that did."""
    rows = [
        "| domain, recipe | kills | inside a checkpoint | of workers | resumed | metrics compared | differ, at most "
        "| tensors compared | differ | checkpoints read | unreadable | processes left |",
        "|---|" + "---|" * 11,
    ]
    failed, asked, turned_away = [], [], 0
    for domain, about in found.get("kills", {}).items():
        total = 0
        for name, f in about["recipes"].items():
            killed = sum(f["kills"].values())
            total += killed
            worker = f"{f['kills'].get('worker', 0)} ({f['workers']})" if f["workers"] else "-"
            cells = [
                f"{domain}, {name.replace('_', ' ')}", killed, f["kills"].get("writing", 0), worker, f["resumes"],
                f"{f['metrics_compared']:,}", f"{len(f['metrics_that_differ'])}, {f['largest_difference']:.1g}",
                f"{f['tensors_compared']:,}", f["tensors_that_differ"], f["checkpoints_read"], len(f["unreadable"]),
                f["processes_left"],
            ]  # fmt: skip
            rows.append(f"| {' | '.join(map(str, cells))} |")
            failed += [f"{name}, {each}" for each in f["failed"]]
            turned_away += f.get("turned_away", 0)
        if total < about.get("asked", total):
            asked.append(f"{domain}: {total} of {about['asked']} kills so far")
    text = "Kills at random moments of a fixed seed until a run finishes (`python -m benchmarks.reliability kills`)."
    if turned_away:
        text += f" {turned_away} starts were refused since the judge was away just then, and made again."
    if failed:
        text += f" Runs that ended by an error: {'; '.join(failed)}."
    missing = [*asked, *(domain for domain in ("vision", "diffusion", "vla") if domain not in found.get("kills", {}))]
    if missing:
        text += f" **Not measured yet: {', '.join(missing)}.**"
    return "\n".join([*rows, "", text])


def soak(found: dict) -> str:
    """How a long run changed."""
    rows = [
        "| domain | minutes, steps | memory, MB | descriptors | processes | wall s a step | CPU s a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for domain, f in found.get("soak", {}).items():
        cells = []
        for name in ("rss_mb", "descriptors", "processes", "step_wall_s", "step_cpu_s"):
            figure = f["figures"][name]
            cells.append(f"{figure['first']:g} -> {figure['last']:g} ({figure['ratio']:.2f})")
        rows.append(f"| {domain} | {f['minutes']:g}, {f['steps']:,} | {' | '.join(cells)} |")
    text = (
        "Median of the first third of the samples, of the last, their ratio (`python -m benchmarks.reliability soak`)."
    )
    missing = [domain for domain in ("vision", "diffusion", "vla") if domain not in found.get("soak", {})]
    if missing:
        text += f" **Not measured yet: {', '.join(missing)}.**"
    return "\n".join([*rows, "", text])
