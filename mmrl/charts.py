"""Curves of runs as inline SVG, drawn once for light and dark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmrl.metrics import PARITY_LIMIT
from mmrl.pages import INK, RUNS, inline, styled
from mmrl.run_files import PARITY, Run

FEW = 3
"""Runs up to which each interval can be told in a chart."""
ROUNDING = 1e-8
"""Up to which a metric counts as 0."""


def always_zero(runs: Sequence[Run], metric: str) -> bool:
    """Whether a metric is 0, up to rounding, at all steps of all runs: better said than drawn."""
    values = [abs(value) for run in runs for value in run.series(metric)[1]]
    return bool(values) and max(values) <= ROUNDING and metric != PARITY


def chart(runs: Sequence[Run], title: str, label: str, metric: str) -> Markup:
    """One metric of all runs as inline SVG, whose texts matplotlib has escaped; empty if no run logged it."""
    if not any(run.series(metric)[0] for run in runs):
        return Markup("")
    with styled():
        figure = Figure(figsize=(3.7, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="training step", ylabel=label, yscale="log" if metric == PARITY else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for run in runs:
            _draw(axes, run, metric, band=0.18 if len(runs) <= FEW else 0.06)
        if metric == PARITY:
            axes.axhline(PARITY_LIMIT, color=INK, linestyle=":")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.set_ylim(bottom=0 if metric.startswith("update/") else None)  # last: it ends autoscaling
    return inline(figure, f"{title}: {label}, over steps", metric.replace("/", "-"))


def _draw(axes: Axes, run: Run, metric: str, band: float) -> None:
    """A metric of one run: what was measured thin, and for a noisy one the running mean thick. `band`: how opaque that
    of an interval is."""
    (steps, values), colour, line = run.series(metric), RUNS[run.colour % 8], ("-", "--", ":")[run.colour // 8 % 3]
    if metric.startswith("eval/"):
        lows, highs = (run.series(f"{metric}/{end}")[1] for end in ("low", "high"))
        axes.plot(steps, values, color=colour, linestyle=line, marker="o", markersize=4)
        axes.fill_between(steps, lows, highs, color=colour, alpha=band, linewidth=0)
        return
    window = np.ones(1 if metric == PARITY else 2 * (len(values) // 40) + 1)
    drawn = np.maximum(values, 1e-9) if metric == PARITY else np.array(values)  # a logarithm has no 0
    if len(window) > 1:
        axes.plot(steps, drawn, color=colour, alpha=0.4, linewidth=0.8)
        drawn = np.convolve(drawn, window, "same") / np.convolve(np.ones(len(drawn)), window, "same")
    axes.plot(steps, drawn, color=colour, linestyle=line, linewidth=1.6)
