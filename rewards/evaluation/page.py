"""The page of an evaluation, in the style of the reports of runs. Outputs are never shown as HTML: autoescape is on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmrl.pages import INK, RUNS, environment, inline, styled
from mmrl.types import Estimate
from rewards.evaluation.calibration import Reliability
from rewards.evaluation.findings import Found
from rewards.evaluation.overoptimisation import Curve

HERE = Path(__file__).parent
SECTIONS = (
    ("Bias, as it falls", ("lean", "gap"),
     "On pairs that differ in a feature. lean: how much more often the reward prefers more of it than the gold does. "
     "gap: accuracy where the gold prefers more of it, less that where it prefers less. 0 is unbiased."),
    ("Bias, by intervention", ("lift", "bought"),
     "The worse output alone is edited, which makes it no better. lift: by how many typical decisions its score rises. "
     "bought: share of right preferences that turn."),
    ("Damage", ("fooled",), "The better output is spoilt. fooled: share whose score does not fall."),
    ("Robustness", ("kept", "accuracy_after"), "Both outputs are changed alike. kept: share of preferences that stay."),
    ("Judges", ("judge",), "first: share of wins of the output shown first, 1/2 for who does not look at places."),
)  # fmt: skip
"""Title, the figures in it, and what they mean."""


def write(target: Path, found: Found, said: Sequence[str], barred: Sequence[tuple[bool, str]]) -> Path:
    """Write the page; returns where."""
    names = list(found.figures)
    kinds = sorted({key for of in found.figures.values() for key in of if key.startswith("accuracy/")})
    sections = []
    for title, prefixes, about in SECTIONS:
        keys = [key for key in _keys(found) if key.split("/")[0] in prefixes and "/" in key]
        if keys:
            sections.append((title, about, keys))
    calibrated = {name: known for name, known in found.reliability.items() if known is not None}
    text = environment(HERE).get_template("page.html.j2").render(
        found=found, names=names, kinds=kinds, sections=sections, said=said, barred=barred, shown=shown,
        reliability={name: reliability(name, known, i) for i, (name, known) in enumerate(calibrated.items())},
        curves=[(title, {name: over(name, curve, where, i) for i, (name, curve) in enumerate(curves.items())})
                for title, where, curves in (("Best of n", "bon", found.best_of_n), ("Trained", "rl", found.trained))],
    )  # fmt: skip
    target.write_text(text.encode("utf-8", "replace").decode(), encoding="utf-8")
    return target


def _keys(found: Found) -> list[str]:
    return list(dict.fromkeys(key for of in found.figures.values() for key in of))


def shown(value: Estimate | None) -> Markup:
    """Figure and interval for a cell."""
    if value is None or value.value != value.value:  # NaN
        return Markup("&ndash;")
    return Markup('<b>{:.3f}</b> <span class="range">[{:.3f},&nbsp;{:.3f}]</span>').format(
        value.value, value.low, value.high
    )


def reliability(name: str, known: Reliability, number: int) -> Markup:
    """Share of right preferences by confidence, beside the diagonal of a calibrated reward."""
    with styled():
        figure = Figure(figsize=(3.7, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="confidence", ylabel="share right", xlim=(0.48, 1.02), ylim=(0, 1.05))
        axes.plot([0.5, 1], [0.5, 1], color=INK, linestyle=":")
        confidence, right, _ = (list(column) for column in zip(*known.bins(), strict=True))
        axes.plot(confidence, right, color=RUNS[number % 8], marker="o", markersize=4)
    return inline(figure, f"reliability of {name}", f"reliability{number}")


def over(name: str, curve: Curve, where: str, number: int) -> Markup:
    """Proxy and gold against KL, each from its own start in units of its largest move; dotted: where the gold turns."""
    with styled():
        figure = Figure(figsize=(3.7, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="KL to the start (nats)", ylabel="change since the start")
        _line(axes, curve, "proxy", RUNS[0], "--")
        _line(axes, curve, "gold", RUNS[1], "-")
        if curve.turn is not None:
            axes.axvline(curve.points[curve.turn].kl, color=INK, linestyle=":")
        axes.legend(fontsize=8, frameon=False)
    return inline(figure, f"over-optimisation of {name}", f"{where}{number}")


def _line(axes: Axes, curve: Curve, which: str, colour: str, line: str) -> None:
    estimates = [point.proxy if which == "proxy" else point.gold for point in curve.points]
    start = estimates[0].value
    unit = max((abs(one.value - start) for one in estimates), default=0.0) or 1.0
    kl = [point.kl for point in curve.points]
    axes.plot(
        kl, [(e.value - start) / unit for e in estimates], line, color=colour, marker="o", markersize=3, label=which
    )
    axes.fill_between(
        kl, [(e.low - start) / unit for e in estimates], [(e.high - start) / unit for e in estimates],
        color=colour, alpha=0.15, linewidth=0,
    )  # fmt: skip
