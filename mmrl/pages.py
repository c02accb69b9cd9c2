"""What all HTML pages share: one style, safe templates, and charts as inline SVG that suit light and dark."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

INK, GRID, RUNS = "#010101", "#020202", [f"#03000{index}" for index in range(8)]
THEME = {INK: "currentColor", GRID: "var(--grid)", **{colour: f"var(--run{i})" for i, colour in enumerate(RUNS)}}
"""What matplotlib draws with, and the CSS that takes its place, so that one chart suits light and dark."""
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "mmrl", "font.size": 9, "axes.grid": True, "grid.color": GRID}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "text.parse_math"), False)
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def environment(folder: Path | None = None) -> Environment:
    """Templates of `folder`, if one is given, and of this package, with page.css to include. Whatever a model wrote
    is escaped."""
    here = Path(__file__).parent
    folders = [here] if folder is None else [folder, here]
    return Environment(loader=FileSystemLoader(folders), autoescape=True, trim_blocks=True)


def styled() -> AbstractContextManager[None]:
    """In which figures for a page are drawn."""
    return matplotlib.rc_context(STYLE)


def inline(figure: Figure, label: str, prefix: str) -> Markup:
    """A figure that was drawn inside `styled()` as SVG whose texts matplotlib has escaped. `label` is for readers of
    screens; the ids in it start with `prefix`, which is unique in a page."""
    out = io.StringIO()
    with styled():
        figure.savefig(out, format="svg", transparent=True, metadata=NO_METADATA)
    svg = re.sub(r'(width|height)="[\d.]+pt" ', "", out.getvalue().partition("<svg ")[2], count=2)
    for stand_in, colour in THEME.items():
        svg = svg.replace(stand_in, colour)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Markup('<svg role="img" aria-label="{}" ').format(label) + Markup(svg)  # noqa: S704
