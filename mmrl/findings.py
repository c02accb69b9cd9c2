"""What a run found, in figures and plain sentences, from its summary alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.metrics import PARITY_LIMIT
from mmrl.run_files import mapping
from mmrl.types import Estimate


def estimates(found: object) -> dict[str, Estimate]:
    """The {metric: {value, low, high, n}} of a summary; a missing interval is taken as a point."""
    known = {name: {"low": e["value"], "high": e["value"], "n": 0, **e} for name, e in mapping(found).items()}
    return {name: Estimate(e["value"], e["low"], e["high"], e["n"]) for name, e in known.items()}


def arms(summary: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """RL, its start and the controls: the estimate of the primary metric and what it cost."""
    rl = {"eval": summary.get("eval_after"), "cpu_s": summary.get("cpu_s"), "steps": summary.get("steps")}
    start = {"eval": summary.get("eval_before"), "cpu_s": 0.0, "steps": 0}
    found = {"RL (this run)": rl, "start": start, **mapping(summary.get("controls"))}
    reached = {name: estimates(arm.get("eval")).get(str(summary.get("primary_metric"))) for name, arm in found.items()}
    return {name: {**arm, "reached": reached[name]} for name, arm in found.items() if reached[name] is not None}


def findings(summary: Mapping[str, object]) -> list[str]:
    """What the figures say and what they do not, in plain sentences, the unwelcome ones included; those that need to
    know what a control or a metric is are the domain's (`Experiment.remarks`)."""
    primary, after = str(summary.get("primary_metric")), estimates(summary.get("eval_after"))
    rl, start = after.get(primary), estimates(summary.get("eval_before")).get(primary)
    if rl is None:
        return ["There is no evaluation after training yet, so nothing can be said about the result."]
    said = []
    if summary.get("stopped_by"):
        kept = (
            f"; the figures are of its best checkpoint, step {summary['kept_step']}" if "kept_step" in summary else ""
        )
        said.append(f"The run stopped itself at step {summary.get('steps')}, since {summary['stopped_by']}{kept}.")
    if start is not None:
        verb = "rose" if rl.value > start.value else "fell" if rl.value < start.value else "went"
        cases = f" on {rl.n} held-out cases" if rl.n else ""
        said.append(f"{primary} {verb} from {start.value:.3f} to {rl.value:.3f}{cases}; {overlap(rl, start)}.")
    moved = _moved(estimates(summary.get("eval_before")), after, primary)
    if moved:
        said.append(f"Beside it moved, by more than their 95 % intervals: {', '.join(moved)}.")
    remarks = summary.get("remarks")
    said += [str(remark) for remark in remarks] if isinstance(remarks, list) else []
    difference = mapping(summary.get("parity")).get("logprob_diff_max", 0.0)
    if difference > PARITY_LIMIT and summary.get("precision", "float32") == "float32":
        what = "sampling and training may not compute the same policy, so every other figure is in doubt"
        said.append(f"Parity is {difference:.1e}, above the float32 limit {PARITY_LIMIT:.0e}: {what}.")
    return said


def _moved(before: Mapping[str, Estimate], after: Mapping[str, Estimate], primary: str) -> list[str]:
    """`gold_accuracy 0.979 -> 0.667` of every other figure that surely moved: a reward that is hacked shows there."""
    known = [name for name in before if name in after and name != primary and 1 not in (before[name].n, after[name].n)]
    apart = [n for n in known if after[n].low > before[n].high or before[n].low > after[n].high]
    return [f"{name} {before[name].value:.3g} -> {after[name].value:.3g}" for name in apart]


def overlap(a: Estimate, b: Estimate) -> str:
    """What the intervals of two figures say of their difference."""
    if 1 in (a.n, b.n):
        return "from a single case, so this may be chance"
    apart = a.low > b.high or b.low > a.high
    return "the 95 % intervals do not overlap" if apart else "the 95 % intervals overlap, so this may be chance"


def shown(e: Estimate | None) -> str:
    """`0.860 [0.823, 0.890]`"""
    return "-" if e is None else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"
