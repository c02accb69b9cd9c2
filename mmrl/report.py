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

from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from mmrl.charts import always_zero, chart
from mmrl.checkpoint import write_atomically
from mmrl.comparison import Comparison
from mmrl.findings import arms, estimates, findings, shown
from mmrl.metrics import PARITY_LIMIT
from mmrl.pages import environment
from mmrl.run import find_run
from mmrl.run_files import Run, mapping, read_run

EMBEDDED = 2**20
"""Bytes up to which a video is part of the page."""


def print_table(summary: Mapping[str, object]) -> None:
    """Before/after and the controls in the terminal, with the same sentences as on the page."""
    console, primary = Console(highlight=False, markup=False), str(summary.get("primary_metric"))
    before, after = estimates(summary.get("eval_before")), estimates(summary.get("eval_after"))
    table = Table("metric", "before (95 % interval)", "after (95 % interval)")
    for name in {**before, **after}:
        table.add_row(name, shown(before.get(name)), shown(after.get(name)), style="bold" if name == primary else "")
    spent = " / ".join(str(summary.get(key, "-")) for key in ("cpu_s", "eval_cpu_s", "controls_cpu_s"))
    difference = mapping(summary.get("parity")).get("logprob_diff_max", math.nan)
    costs = f"CPU seconds of training / evaluation / controls: {spent}"
    said = [f"- {sentence}" for sentence in findings(summary)]
    console.print(table)
    if summary.get("controls"):  # else it would say the same again
        bought = Table("what the same CPU buys", Column("CPU s", justify="right"), f"{primary} (95 % interval)")
        for name, arm in arms(summary).items():
            bought.add_row(name, f"{arm.get('cpu_s') or 0:.0f}", shown(arm["reached"]))
        console.print(bought)
    console.print(*said, f"parity {difference:.1e} (limit {PARITY_LIMIT:.0e})", costs, sep="\n")


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


def _drawn(folder: Path, row: Mapping[str, Any]) -> list[str]:
    """The pictures that a row names, as far as they are there."""
    found = [folder / Path(name).name for name in row.get("images", ())]  # never out of the folder
    return [picture(path) for path in found if path.is_file()]


def samples(run: Run, page: Path | None = None) -> list[dict[str, Any]]:
    """The samples of the newest step (`now`), each with the same one at the first step (`start`). `page` is the file
    that they will stand in, by default the run's own report."""
    page = page or run.path / "report.html"
    files, pairs = sorted(run.path.glob("samples/step_*/samples.json")), dict[str, dict[str, Any]]()
    for when, file in zip(("now", "start"), files[-1:] + files[:1], strict=False):
        for row in json.loads(file.read_text(errors="replace")):
            shots = _drawn(file.parent, row)
            films = [file.parent / Path(name).name for name in row.get("videos", ())]
            clips = [video(path, page) for path in films if path.is_file()]
            turns = [{**turn, "pictures": _drawn(file.parent, turn)} for turn in row.get("turns", ())]
            seen = {"turns": turns, "pictures": shots, "clips": clips, "step": int(file.parent.name[5:])}
            pairs.setdefault(row["id"], {})[when] = {**row, **seen}
    return [{"start": None, **pair} for pair in pairs.values() if "now" in pair]


def wall(run: Run) -> dict[str, Any] | None:
    """The pictures of the newest step that has some beside its samples: a title, and each with what belongs to it."""
    files = sorted(run.path.glob("samples/step_*/wall.json"))
    if not files:
        return None
    found = json.loads(files[-1].read_text(errors="replace"))
    shown = [
        {"text": row["text"], "uris": _drawn(files[-1].parent, {"images": [row["image"]]})} for row in found["shown"]
    ]
    return {"title": found["title"], "shown": shown}


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
    tools: dict[str, object] = {tool.__name__: tool for tool in (always_zero, chart, estimates, arms, findings, shown)}
    tools["samples"], tools["wall"] = partial(samples, page=target), wall
    template = environment().get_template("report.html.j2")
    text = template.render(runs=found, limit=PARITY_LIMIT, comparison=comparison, **tools)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text.encode("utf-8", "replace").decode())  # a completion may hold half a character
    return target
