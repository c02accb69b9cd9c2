"""One self-contained HTML page of one or several runs, and their before/after table in the terminal.

Everything is read from the files of the run folder, so that a run which still trains, was killed or came from
another machine gets a page too. What the page shows, and in which order, is in report.html.j2.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image
from rich.console import Console
from rich.table import Table

from mmrl.charts import chart
from mmrl.checkpoint import write_atomically
from mmrl.comparison import Comparison
from mmrl.metrics import PARITY_LIMIT
from mmrl.run import find_run
from mmrl.run_files import Run, mapping, read_run
from mmrl.types import Estimate

EMBEDDED = 2**20
"""Bytes up to which a video is part of the page."""


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
    """What the figures say and what they do not, in plain sentences, the unwelcome ones included."""
    primary, after = str(summary.get("primary_metric")), estimates(summary.get("eval_after"))
    reached: dict[str, Estimate] = {name: arm["reached"] for name, arm in arms(summary).items()}
    rl, start, blind = after.get(primary), reached.get("start"), after.get(f"{primary}_image_shuffled")
    ceiling, continued = reached.get("sft_all_labels"), reached.get("sft_continued")
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
        said.append(f"{primary} {verb} from {start.value:.3f} to {rl.value:.3f}{cases}; {_overlap(rl, start)}.")
    moved = _moved(estimates(summary.get("eval_before")), after, primary)
    if moved:
        said.append(f"Beside it moved, by more than their 95 % intervals: {', '.join(moved)}.")
    if ceiling is not None:
        verdict = "is below" if rl.value < ceiling.value else "reaches"
        what = "which is a ceiling and not a rival: supervised on all labels, which RL never sees"
        said.append(f"RL ({rl.value:.3f}) {verdict} sft_all_labels ({ceiling.value:.3f}), {what}.")
    if continued is not None:
        verdict = "is above" if rl.value > continued.value else "is not above"
        so = _overlap(rl, continued) if rl.value > continued.value else "that buys as much"
        what = f"sft_continued ({continued.value:.3f}), more supervised training at the same CPU"
        said.append(f"RL ({rl.value:.3f}) {verdict} {what}: {so}.")
    if ceiling is None and continued is None and summary.get("controls") is not None:
        said.append("No supervised control was run: whether RL beats supervised training at its cost is not known.")
    if blind is not None:  # within a fifth of each other, most right answers do not need the picture
        close = blind.high >= rl.low or blind.value >= 0.8 * rl.value
        verdict = "the policy hardly looks at the picture" if close else "the answers depend on the picture"
        said.append(f"With another example's picture {primary} is {blind.value:.3f}, not {rl.value:.3f}: {verdict}.")
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


def _overlap(a: Estimate, b: Estimate) -> str:
    if 1 in (a.n, b.n):
        return "from a single case, so this may be chance"
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
    difference = mapping(summary.get("parity")).get("logprob_diff_max", math.nan)
    costs = f"CPU seconds of training / evaluation / controls: {spent}"
    said = [f"- {sentence}" for sentence in findings(summary)]
    console.print(table, *said, f"parity {difference:.1e} (limit {PARITY_LIMIT:.0e})", costs, sep="\n")


def picture(path: Path) -> str:
    """A data URI of at most 512 pixels a side, so that the page stays small enough to mail; tiny pictures get larger
    pixels, not blurred ones."""
    image, buffer = Image.open(path).convert("RGBA"), io.BytesIO()
    image.thumbnail((512, 512))
    if max(image.size) < 128:
        image = image.resize([side * (128 // max(image.size)) for side in image.size], Image.Resampling.NEAREST)
    image.save(buffer, "WEBP", quality=95)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def video(path: Path, page: Path) -> dict[str, str]:
    """A video inside the `page`, or a link to it where it is too large for that."""
    if path.stat().st_size > EMBEDDED:
        return {"link": os.path.relpath(path, page.parent)}
    return {"uri": f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"}


def samples(run: Run, page: Path | None = None) -> list[dict[str, Any]]:
    """The samples of the newest step (`now`), each with the same one at the first step (`start`). `page` is the file
    that they will stand in, by default the run's own report."""
    page = page or run.path / "report.html"
    files, pairs = sorted(run.path.glob("samples/step_*/samples.json")), dict[str, dict[str, Any]]()
    for when, file in zip(("now", "start"), files[-1:] + files[:1], strict=False):
        for row in json.loads(file.read_text(errors="replace")):
            found = [file.parent / Path(name).name for name in row.get("images", ())]  # never out of the folder
            shots = [picture(path) for path in found if path.is_file()]
            films = [file.parent / Path(name).name for name in row.get("videos", ())]
            clips = [video(path, page) for path in films if path.is_file()]
            seen = {"pictures": shots, "clips": clips, "step": int(file.parent.name[5:])}
            pairs.setdefault(row["id"], {})[when] = {**row, **seen}
    return [{"start": None, **pair} for pair in pairs.values() if "now" in pair]


def write_report(
    runs: Sequence[Path],
    output: Path | None = None,
    comparison: Comparison | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write one page about `runs`, by default into the folder of the first; returns where. Runs of a `comparison`
    have the labels of their arms, and each arm has a colour."""
    names = list(dict.fromkeys(labels or ()))
    found = [
        read_run(
            find_run(Path(path)), names.index(labels[number]) if labels else number, labels[number] if labels else None
        )
        for number, path in enumerate(runs)
    ]
    target = output or found[0].path / "report.html"
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    tools: dict[str, object] = {tool.__name__: tool for tool in (chart, estimates, arms, findings, shown)}
    tools["samples"] = partial(samples, page=target)
    template = page.get_template("report.html.j2")
    text = template.render(runs=found, limit=PARITY_LIMIT, comparison=comparison, **tools)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text.encode("utf-8", "replace").decode())  # a completion may hold half a character
    return target
