"""One self-contained HTML page of one or several runs, and their before/after table in the terminal.

Everything is read from the files of the run folder, so that a run which still trains, was killed or came from
another machine gets a page too. What the page shows, and in which order, is in report.html.j2.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from rich.console import Console
from rich.table import Table

from mmrl.checkpoint import write_atomically
from mmrl.metrics import PARITY_LIMIT
from mmrl.run import find_run
from mmrl.types import Estimate

PARITY = "parity/logprob_diff_max"
INK, GRID, RUNS = "#010101", "#020202", [f"#03000{index}" for index in range(8)]
THEME = {INK: "currentColor", GRID: "var(--grid)", **{colour: f"var(--run{i})" for i, colour in enumerate(RUNS)}}
"""What matplotlib draws with, and the CSS that takes its place, so that one chart suits light and dark."""
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "mmrl", "font.size": 9, "axes.grid": True, "grid.color": GRID}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "text.parse_math"), False)
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Run:
    """What the files of one run folder say; `summary` is made of the metrics so far when it is not finished."""

    path: Path
    finished: bool
    summary: dict[str, Any]
    lines: list[dict[str, float]]
    provenance: dict[str, Any]
    config: str

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and finite values of one metric."""
        kept = [(line["step"], line[name]) for line in self.lines if math.isfinite(line.get(name, math.nan))]
        return [step for step, _ in kept], [value for _, value in kept]


def read_run(path: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        FileNotFoundError: it holds neither summary.json nor metrics.jsonl.
    """
    names = ("summary.json", "metrics.jsonl", "config.yaml", "provenance.json")
    texts = ((path / name).read_text(errors="replace") if (path / name).is_file() else "" for name in names)
    summary, metrics, config, provenance = texts
    if not summary and not (path / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{path} has neither summary.json nor metrics.jsonl: give the folder of a run")
    lines = [line for text in metrics.splitlines() if "step" in (line := _parsed(text))]
    settings = _mapping(yaml.safe_load(config))
    known = {"recipe": settings.get("recipe", path.parent.name), "seed": settings.get("seed", "?"), **_so_far(lines)}
    return Run(path, bool(summary), known | _parsed(summary), lines, _parsed(provenance), config)


def _mapping(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        return _mapping(json.loads(text))
    except json.JSONDecodeError:  # the last line of a killed or living run may be cut
        return {}


def _so_far(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The part of a summary that metrics can tell; the evaluator's first metric is taken for the primary one."""
    found = []
    for line in lines:
        names = [key for key in line if f"{key}/low" in line]
        read = {n[5:]: {"value": line[n], "low": line[f"{n}/low"], "high": line[f"{n}/high"]} for n in names}
        found += [(line["step"], read)] if read else []
    return {
        "steps": max((int(line["step"]) for line in lines), default=0),
        "eval_before": found[0][1] if found else {},
        "eval_after": found[-1][1] if len(found) > 1 else {},
        "evaluated_at": found[-1][0] if found else 0,
        "primary_metric": next(iter(found[0][1])) if found else "",
        "parity": {"logprob_diff_max": max((line.get(PARITY, 0.0) for line in lines), default=0.0)},
    }


def estimates(found: object) -> dict[str, Estimate]:
    """The {metric: {value, low, high, n}} of a summary; a missing interval is taken as a point."""
    known = {name: {"low": e["value"], "high": e["value"], "n": 0, **e} for name, e in _mapping(found).items()}
    return {name: Estimate(e["value"], e["low"], e["high"], e["n"]) for name, e in known.items()}


def arms(summary: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """RL, its start and the controls: the estimate of the primary metric and what it cost."""
    rl = {"eval": summary.get("eval_after"), "cpu_s": summary.get("cpu_s"), "steps": summary.get("steps")}
    start = {"eval": summary.get("eval_before"), "cpu_s": 0.0, "steps": 0}
    found = {"RL (this run)": rl, "start": start, **_mapping(summary.get("controls"))}
    reached = {name: estimates(arm.get("eval")).get(str(summary.get("primary_metric"))) for name, arm in found.items()}
    return {name: {**arm, "reached": reached[name]} for name, arm in found.items() if reached[name] is not None}


def findings(summary: Mapping[str, object]) -> list[str]:
    """What the figures say and what they do not, in plain sentences, the unwelcome ones included."""
    primary, after = str(summary.get("primary_metric")), estimates(summary.get("eval_after"))
    reached: dict[str, Estimate] = {name: arm["reached"] for name, arm in arms(summary).items()}
    rl, start, blind = after.get(primary), reached.get("start"), after.get(f"{primary}_image_shuffled")
    ceiling, continued = reached.get("sft_all_labels"), reached.get("sft_continued")
    if rl is None:
        return ["There is no evaluation after training yet, so nothing can be said about the result."]
    said = []
    if start is not None:
        verb = "rose" if rl.value > start.value else "fell" if rl.value < start.value else "went"
        cases = f" on {rl.n} held-out cases" if rl.n else ""
        said.append(f"{primary} {verb} from {start.value:.3f} to {rl.value:.3f}{cases}; {_overlap(rl, start)}.")
    if ceiling is not None:
        verdict = "is below" if rl.value < ceiling.value else "reaches"
        what = "which is a ceiling and not a rival: supervised on all labels, which RL never sees"
        said.append(f"RL ({rl.value:.3f}) {verdict} sft_all_labels ({ceiling.value:.3f}), {what}.")
    if continued is not None:
        verdict = "is above" if rl.value > continued.value else "is not above"
        so = _overlap(rl, continued) if rl.value > continued.value else "that buys as much"
        what = f"sft_continued ({continued.value:.3f}), more supervised training at the same CPU"
        said.append(f"RL ({rl.value:.3f}) {verdict} {what}: {so}.")
    if ceiling is None and continued is None and "controls" in summary:
        said.append("No supervised control was run: whether RL beats supervised training at its cost is not known.")
    if blind is not None:  # within a fifth of each other, most right answers do not need the picture
        close = blind.high >= rl.low or blind.value >= 0.8 * rl.value
        verdict = "the policy hardly looks at the picture" if close else "the answers depend on the picture"
        said.append(f"With another example's picture {primary} is {blind.value:.3f}, not {rl.value:.3f}: {verdict}.")
    difference = _mapping(summary.get("parity")).get("logprob_diff_max", 0.0)
    if difference > PARITY_LIMIT and summary.get("precision", "float32") == "float32":
        what = "sampling and training may not compute the same policy, so every other figure is in doubt"
        said.append(f"Parity is {difference:.1e}, above the float32 limit {PARITY_LIMIT:.0e}: {what}.")
    return said


def _overlap(a: Estimate, b: Estimate) -> str:
    apart = a.low > b.high or b.low > a.high
    return "the 95 % intervals do not overlap" if apart else "the 95 % intervals overlap, so this may be chance"


def shown(e: Estimate | None) -> str:
    """`0.860 [0.823, 0.890]`"""
    return "-" if e is None else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def print_table(summary: Mapping[str, object]) -> None:
    """Before/after and the controls in the terminal, with the same sentences as on the page."""
    console, primary = Console(highlight=False, markup=False), str(summary.get("primary_metric"))
    before, after = estimates(summary.get("eval_before")), estimates(summary.get("eval_after"))
    table = Table("metric", "before (95 % interval)", "after (95 % interval)")
    for name in {**before, **after}:
        table.add_row(name, shown(before.get(name)), shown(after.get(name)), style="bold" if name == primary else "")
    table.add_section()
    for name, arm in arms(summary).items():
        table.add_row(f"{primary}: {name}", f"{arm.get('cpu_s') or 0:.0f} CPU s", shown(arm["reached"]))
    spent = " / ".join(str(summary.get(key, "-")) for key in ("cpu_s", "eval_cpu_s", "controls_cpu_s"))
    difference = _mapping(summary.get("parity")).get("logprob_diff_max", math.nan)
    costs = f"CPU seconds of training / evaluation / controls: {spent}"
    said = [f"- {sentence}" for sentence in findings(summary)]
    console.print(table, *said, f"parity {difference:.1e} (limit {PARITY_LIMIT:.0e})", costs, sep="\n")


def chart(runs: Sequence[Run], title: str, label: str, metric: str) -> Markup:
    """One metric of all runs as inline SVG, whose texts matplotlib has escaped; empty if no run logged it."""
    if not any(run.series(metric)[0] for run in runs):
        return Markup("")
    with matplotlib.rc_context(STYLE):
        figure, out = Figure(figsize=(4.2, 2.6), layout="constrained"), io.StringIO()
        axes = figure.subplots()
        axes.set(xlabel="step", ylabel=label, yscale="log" if metric == PARITY else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for index, run in enumerate(runs):
            _draw(axes, run, metric, index)
        if metric == PARITY:
            axes.axhline(PARITY_LIMIT, color=INK, linestyle=":")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.set_ylim(bottom=0 if metric.startswith("update/") else None)  # last: it ends autoscaling
        figure.savefig(out, format="svg", transparent=True, metadata=NO_METADATA)
    svg = re.sub(r'(width|height)="[\d.]+pt" ', "", out.getvalue().partition("<svg ")[2], count=2)
    for stand_in, colour in THEME.items():
        svg = svg.replace(stand_in, colour)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{metric.replace('/', '-')}-", svg)  # ids are unique in a page
    return Markup('<svg role="img" aria-label="{}: {}, over steps" ').format(title, label) + Markup(svg)  # noqa: S704


def _draw(axes: Axes, run: Run, metric: str, index: int) -> None:
    """A metric of one run: what was measured thin, and for a noisy one the running mean thick."""
    (steps, values), colour, line = run.series(metric), RUNS[index % 8], ("-", "--", ":")[index // 8 % 3]
    if metric.startswith("eval/"):
        lows, highs = (run.series(f"{metric}/{end}")[1] for end in ("low", "high"))
        axes.plot(steps, values, color=colour, linestyle=line, marker="o", markersize=4)
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
        return
    window = np.ones(1 if metric == PARITY else 2 * (len(values) // 40) + 1)
    drawn = np.maximum(values, 1e-9) if metric == PARITY else np.array(values)  # a logarithm has no 0
    if len(window) > 1:
        axes.plot(steps, drawn, color=colour, alpha=0.4, linewidth=0.8)
        drawn = np.convolve(drawn, window, "same") / np.convolve(np.ones(len(drawn)), window, "same")
    axes.plot(steps, drawn, color=colour, linestyle=line, linewidth=1.6)


def picture(path: Path) -> str:
    """A data URI of at most 512 pixels a side, so that the page stays small enough to mail."""
    image, buffer = Image.open(path).convert("RGBA"), io.BytesIO()
    image.thumbnail((512, 512))
    image.save(buffer, "WEBP", quality=95)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def samples(run: Run) -> list[dict[str, Any]]:
    """The samples of the newest step (`now`), each with the same one at the first step (`start`)."""
    files, pairs = sorted(run.path.glob("samples/step_*/samples.json")), dict[str, dict[str, Any]]()
    for when, file in zip(("now", "start"), files[-1:] + files[:1], strict=False):
        for row in json.loads(file.read_text(errors="replace")):
            found = [file.parent / Path(name).name for name in row.get("images", ())]  # never out of the folder
            shots = [picture(path) for path in found if path.is_file()]
            pairs.setdefault(row["id"], {})[when] = {**row, "pictures": shots, "step": int(file.parent.name[5:])}
    return [{"start": None, **pair} for pair in pairs.values() if "now" in pair]


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write one page about `runs`, by default into the folder of the first; returns where."""
    found = [read_run(find_run(Path(path))) for path in runs]
    target = output or found[0].path / "report.html"
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    tools = {tool.__name__: tool for tool in (chart, samples, estimates, arms, findings, shown)}
    text = page.get_template("report.html.j2").render(runs=found, limit=PARITY_LIMIT, **tools)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text.encode("utf-8", "replace").decode())  # a completion may hold half a character
    return target
