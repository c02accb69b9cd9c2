"""The tables of the renderers, in docs/rrvf.md and docs/security.md."""

from __future__ import annotations


def throughput(found: dict) -> str:
    """What a picture costs, fresh and out of the cache."""
    rows = [
        "| renderer | CPU ms a fresh picture | fresh pictures a second | a CPU second | out of the cache, a CPU second |",
        "|---|---|---|---|---|",
    ]
    for name in ("charts", "svg", "pages"):
        one = found[name]
        rows.append(
            f"| {name} | {one['cpu_ms_each']:.0f} | {one['per_second']:.1f} | {one['per_cpu_second']:.1f} | {one['cached_per_cpu_second']:,} |"
        )
    said = f"{found['charts']['renders']} programs each, {found['charts']['workers']} workers on {found['cores']} cores (`python -m benchmarks.render`)."
    return "\n".join([*rows, "", said])


def soak(found: dict) -> str:
    """What many renders, some of them hostile, leave behind."""
    outcomes = found["outcomes"]
    hostile = sum(count for name, count in outcomes.items() if name.startswith("hostile"))
    drawn = sum(count for name, count in outcomes.items() if name.startswith("hostile") and name.endswith(": picture"))
    ends = ", ".join(
        f"{sum(c for n, c in outcomes.items() if n.startswith('hostile') and n.endswith(f': {end}'))} {end}"
        for end in sorted({name.split(": ")[1] for name in outcomes if name.startswith("hostile")})
    )
    third = max(1, len(found["snapshots"]) // 3)
    first, last = found["snapshots"][:third][-1], found["snapshots"][-1]

    def memory(one: dict) -> str:
        return ", ".join([f"{one['own_mb']} MB itself", *(f"{mb} MB {name}" for name, mb in one["worker_mb"].items())])

    replaced = ", ".join(f"{count} of {name}" for name, count in last["replaced"].items())
    return (
        f"{found['renders']:,} renders, {hostile:,} of them hostile ({ends}; {drawn} of them drew a picture): {found['good_without_picture']} good programs "
        f"without a picture, {found['zombies_after']} zombies, {found['files_left']} files and {found['processes_after']} processes left. Workers replaced on "
        f"the way: {replaced}. Memory after a third: {memory(first)}; at the end: {memory(last)} (`make soak`)."
    )
