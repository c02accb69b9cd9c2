"""The tables of docs/thesis.md and architecture.md."""

from __future__ import annotations

from collections.abc import Callable


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
