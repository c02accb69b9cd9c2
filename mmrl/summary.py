"""The figures of a whole run, for summary.json."""

from __future__ import annotations

from mmrl.runtime import Runtime
from mmrl.state import State


def summarise(state: State, primary_metric: str | None, runtime: Runtime) -> dict[str, object]:
    """What a run reached and what it cost. `kept_step` is where the result is from, when that is not the last."""
    summary: dict[str, object] = {
        "steps": state.step,
        "wall_s": round(state.wall_s, 2),
        "cpu_s": round(state.cpu_s, 2),
        "eval_cpu_s": round(state.eval_cpu_s, 2),
        "eval_before": state.eval_before,
        "eval_after": state.eval_after or state.eval_before,
        "primary_metric": primary_metric or next(iter(state.eval_before), ""),
        "parity": state.parity,
        "throughput": {
            "decisions_per_s": round(state.decisions / max(state.wall_s, 1e-9), 1),
            "samples_per_s": round(state.samples / max(state.wall_s, 1e-9), 2),
        },
        "peak_rss_mb": round(runtime.memory_mb()[0], 1),
        "precision": "bf16" if runtime.reduced_precision else "float32",
    }
    if state.best_step is not None:
        summary["best"] = {"step": state.best_step, "value": state.best_value}
    if state.stopped_by:
        summary["stopped_by"] = state.stopped_by
    if state.keep_best:
        summary["kept_step"] = state.best_step
    return summary
