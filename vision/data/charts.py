"""Small charts of real tables, and the matplotlib programs that draw them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from rewards.render.elements import Chart, chart_of
from rewards.render.programs import program_of
from vision.data.base import Example, Source
from vision.data.tables import Column, columns

COLOURS = ("red", "green", "blue", "orange")
LEVELS = 8
"""Heights are 1 to 8: 32 pixels show them apart."""
TENTHS = 10
"""The slices of a pie add up to them."""
KINDS = {"bar": "bars", "plot": "a line", "pie": "a pie"}
DPI = 100
BEFORE = (
    "import matplotlib.pyplot as plt; plt.figure(figsize=({inches:g}, {inches:g}), dpi={dpi}); "
    "plt.axes((0, 0, 1, 1)); plt.axis('off'); plt.ylim(0, {top:g})\n"
)
_CLAIM = re.compile(r"\bThis is (bars|a line|a pie) in ([a-z ]+)\.")


@dataclass(frozen=True)
class TableCharts(Source):
    """Which program draws this chart? Bars, lines and pies of `values` numbers from the tables of `vision.data.tables`,
    `count` of them, no program twice.

    A chart shows a few rows of a column. Heights are rounded to 1..8 between the 2nd and the 98th percentile of the
    column, slices to tenths. Pictures of `size` pixels a side are drawn by matplotlib in this process, once, and are
    equal to what the sandbox makes of `before()` and the program, which is what the renderer of a config has to begin
    with (rewards.render.Within).

    Raises:
        ValueError: a number is out of range.
    """

    count: int = 3000
    size: int = 32
    values: int = 3
    kinds: tuple[str, ...] = ("bar", "plot", "pie")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 16 or not 2 <= self.values <= len(COLOURS):
            raise ValueError(
                f"TableCharts has count {self.count}, size {self.size} and values {self.values}: give at least 1 chart "
                f"of 16 pixels with 2 to {len(COLOURS)} values"
            )
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"TableCharts.kinds is {self.kinds}: give one or more of {', '.join(KINDS)}")

    def before(self) -> str:
        """What stands before a program: the figure is there already."""
        return BEFORE.format(inches=self.size / DPI, dpi=DPI, top=LEVELS + 0.5)

    def examples(self) -> Sequence[Example]:
        return _examples(self)

    def thought(self, example: Example) -> str:
        chart = chart_of(example.answer)
        assert chart is not None
        return f"This is {KINDS[chart.kind]} in {' '.join(chart.colours)}."

    def draft(self, example: Example, chance: random.Random) -> str:
        chart = chart_of(example.answer)
        assert chart is not None
        return program(slipped(chart, np.random.default_rng(chance.getrandbits(32))))

    def thought_agrees(self, thought: str, answer: str) -> bool | None:
        claim, chart = _CLAIM.search(thought), chart_of(program_of(answer))
        if claim is None or chart is None:
            return None
        return claim.group(1) == KINDS[chart.kind] and claim.group(2).split() == list(chart.colours)


@cache
def _examples(source: TableCharts) -> list[Example]:
    chance, known, found = np.random.default_rng(source.seed), columns(), []
    programs: dict[str, tuple[Chart, Column]] = {}
    tries = 0
    while len(programs) < source.count:
        kind = source.kinds[tries % len(source.kinds)]
        column = known[int(chance.integers(len(known)))]
        chart = _chart(kind, column, source.values, chance)
        tries += 1
        if tries > 50 * source.count:
            raise ValueError(f"TableCharts.count is {source.count}: there are only {len(programs)} different charts")
        if chart is not None:
            programs.setdefault(program(chart), (chart, column))
    pictures = drawn([chart for chart, _ in programs.values()], source.size)
    for number, ((text, (chart, column)), picture) in enumerate(zip(programs.items(), pictures, strict=True)):
        about = {"kind": chart.kind, "table": column.table, "column": column.name}
        found.append(Example(f"charts-{number:05d}", (picture,), "Draw this chart.", text, about))
    return found


def _chart(kind: str, column: Column, values: int, chance: np.random.Generator) -> Chart | None:
    """A few rows of `column`; None where they make no chart of this kind."""
    numbers = np.asarray(column.numbers)
    rows = numbers[np.sort(chance.choice(len(numbers), values, replace=False))]
    if kind == "pie":
        colours = tuple(COLOURS[int(i)] for i in chance.permutation(len(COLOURS))[:values])
        return Chart(kind, _tenths(rows), colours) if rows.min() > 0 else None
    low, high = np.quantile(numbers, (0.02, 0.98))
    if high <= low:
        return None
    levels = np.clip(np.rint(1 + (LEVELS - 1) * (rows - low) / (high - low)), 1, LEVELS)
    return Chart(kind, tuple(levels.tolist()), (COLOURS[int(chance.integers(len(COLOURS)))],))


def _tenths(rows: np.ndarray) -> tuple[float, ...]:
    """Shares in tenths, at least one each: rounded down, and what is left goes to the largest remainders."""
    free = TENTHS - len(rows)
    exact = rows / rows.sum() * free
    parts = np.floor(exact)
    for index in np.argsort(parts - exact, kind="stable")[: int(free - parts.sum())]:
        parts[index] += 1
    return tuple((parts + 1).tolist())


def program(chart: Chart) -> str:
    """The matplotlib of a chart."""
    values = ",".join(f"{value:g}" for value in chart.values)
    if chart.kind == "pie":
        colours = ",".join(f'"{name}"' for name in chart.colours)
        return f"plt.pie([{values}],colors=[{colours}])"
    places = f"[{','.join(map(str, range(len(chart.values))))}]," if chart.kind == "bar" else ""
    return f'plt.{chart.kind}({places}[{values}],color="{chart.colours[0]}")'


def slipped(chart: Chart, chance: np.random.Generator) -> Chart:
    """`chart` with one element wrong, for demonstrations of how to correct it: a value that another one of 1..8 takes
    the place of (of a pie, the largest slice gives a tenth to the smallest), or a colour."""
    values = [round(TENTHS * v) if chart.kind == "pie" else round(v) for v in chart.values]
    colours, place = list(chart.colours), int(chance.integers(len(values) + 1))
    if place == len(values):
        others = [name for name in COLOURS if name not in colours] or [colours[-1]]
        colours[int(chance.integers(len(colours)))] = others[int(chance.integers(len(others)))]
    elif chart.kind == "pie":
        giver, taker = max(range(len(values)), key=values.__getitem__), min(range(len(values)), key=values.__getitem__)
        values[giver], values[taker] = values[giver] - 1, values[taker] + 1
    else:
        others_values = [level for level in range(1, LEVELS + 1) if level != values[place]]
        values[place] = others_values[int(chance.integers(len(others_values)))]
    return Chart(chart.kind, tuple(map(float, values)), tuple(colours))


def drawn(charts: Sequence[Chart], size: int) -> list[Image.Image]:
    """The charts as `TableCharts.before` and their programs draw them.

    Axes are most of the work, so each kind has its own, which are emptied between charts: the limits are the same for
    all of a kind and number of values.
    """
    import matplotlib as mpl
    from matplotlib import style
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found, made = [], {}
    with mpl.rc_context(), style.context("default"):  # whatever the user's matplotlibrc says
        for chart in charts:
            key = chart.kind, len(chart.values)
            if key not in made:
                canvas = FigureCanvasAgg(Figure(figsize=(size / DPI, size / DPI), dpi=DPI))
                axes: Axes = canvas.figure.add_axes((0, 0, 1, 1))
                axes.axis("off")
                axes.set_ylim(0, LEVELS + 0.5)
                made[key] = canvas, axes
            canvas, axes = made[key]
            if chart.kind == "pie":
                axes.pie(chart.values, colors=chart.colours)
            elif chart.kind == "bar":
                axes.bar(range(len(chart.values)), chart.values, color=chart.colours[0])
            else:
                axes.plot(chart.values, color=chart.colours[0])
            canvas.draw()
            found.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]))
            for artist in [*axes.patches, *axes.lines, *axes.texts]:
                artist.remove()
    return found
