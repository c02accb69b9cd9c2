"""What a differ says of rendered pairs. Its pictures are drawn from chart records, as the sandbox draws their programs
(tests/test_rrvf.py checks that they are equal)."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rewards.render import Differences
from rewards.render.differ import REGIONS, SAME
from rewards.render.elements import chart_of
from rewards.render.shapes import NAMES, plain_colours, shape_of
from vision.data.charts import drawn

DIFFER = Differences()
BAR = 'plt.bar([0,1,2],[{},{},{}],color="{}")'
LINE = 'plt.plot([{},{},{}],color="{}")'
PIE = 'plt.pie([{},{},{}],colors=["{}","{}","{}"])'
A, B, C = (3, 7, 2, "red"), (3, 6, 2, "red"), (1, 6, 8, "blue")
SENTENCES = [
    r"should be (bars|a line|a pie)\.", r"should have \d+ bars\.", r"bar \d+ (far )?too (low|high)\.",
    r"(color|bar \d+) should be [a-z]+\.", r"line (far )?too (low|high) (left|middle|right)\.",
    r"[a-z]+ slice too (small|large)\.", r"(no|needs) [a-z]+\.",
    rf"({'|'.join(REGIONS)}) (should be [a-z]+|too dark|too light)\.", r"same\.",
]  # fmt: skip


def picture(program: str, size: int = 32) -> np.ndarray:
    chart = chart_of(program)
    assert chart is not None
    return np.asarray(drawn([chart], size)[0])


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (BAR.format(*A), BAR.format(*A), SAME),
        (BAR.format(*A), BAR.format(*B), "bar 2 too high."),
        (BAR.format(*B), BAR.format(*A), "bar 2 too low."),
        (BAR.format(*A), BAR.format(*C), "color should be blue. bar 3 far too low. bar 1 too high. bar 2 too high."),
        (BAR.format(*A), BAR.format(3, 7, 2, "green"), "color should be green."),
        ('plt.bar([0,1,2,3],[3,7,2,5],color="red")', BAR.format(*A), "should have 3 bars."),
        (LINE.format(*A), BAR.format(*B), "should be bars."),
        (BAR.format(*A), LINE.format(3, 7, 2, "blue"), "should be a line. color should be blue."),
        (LINE.format(*A), LINE.format(8, 7, 2, "red"), "line far too low left."),
        (LINE.format(*A), LINE.format(3, 7, 4, "red"), "line too low right."),
        (LINE.format(*A), LINE.format(3, 5, 2, "orange"), "color should be orange. line too high middle."),
        (BAR.format(*A), PIE.format(5, 3, 2, "red", "blue", "green"), "should be a pie."),
        (
            PIE.format(5, 3, 2, "red", "blue", "green"),
            PIE.format(4, 4, 2, "red", "blue", "green"),
            "red slice too large. blue slice too small.",
        ),
        (
            PIE.format(5, 3, 2, "red", "blue", "orange"),
            PIE.format(5, 3, 2, "red", "blue", "green"),
            "no orange. needs green.",
        ),
    ],
)
def test_what_is_said_of_charts(ours: str, theirs: str, said: str, size: int) -> None:
    assert DIFFER(picture(ours, size), picture(theirs, size)) == said


def test_every_bar_of_every_height_is_told_from_the_next() -> None:
    heights = [picture(BAR.format(4, h, 4, "green")) for h in range(1, 9)]
    for low, high in itertools.pairwise(heights):
        assert DIFFER(low, high) == "bar 2 too low."
        assert DIFFER(high, low) == "bar 2 too high."


def test_bars_of_several_colours_and_a_chart_with_axes() -> None:
    mixed = np.full((40, 60, 3), 255, np.uint8)
    for left, name in ((5, "red"), (20, "green"), (35, "blue")):
        mixed[10:35, left : left + 10] = NAMES[name]
    other = mixed.copy()
    other[10:35, 20:30] = NAMES["orange"]
    assert DIFFER(other, mixed) == "bar 2 should be green."
    for each in (mixed, other):  # spines, ticks and grid in black and grey are not what is compared
        each[:, 2], each[36], each[20, ::3] = 0, 0, 128
    assert [bar.colour for bar in shape_of(mixed).bars] == ["red", "green", "blue"]


def test_anything_else_is_compared_by_regions() -> None:
    def scene(dot: str, box: tuple[int, int, int, int]) -> np.ndarray:
        canvas = Image.new("RGB", (90, 90), "white")
        ImageDraw.Draw(canvas).ellipse(box, fill=dot)
        ImageDraw.Draw(canvas).polygon([(0, 89), (25, 60), (60, 89)], fill="green")
        return np.asarray(canvas)

    left, right = scene("red", (2, 2, 28, 28)), scene("red", (62, 2, 88, 28))
    said = DIFFER(left, right)
    assert "top left should be white." in said
    assert "top right should be red." in said
    grey = np.full((30, 30, 3), 90, np.uint8)
    grey[::2, ::2] = 120
    assert DIFFER(grey, np.clip(grey + 30, 0, 255).astype(np.uint8)).startswith("top left too dark.")
    assert DIFFER(left, left) == SAME


def test_the_vocabulary_is_closed_and_sizes_may_differ() -> None:
    chance, form = np.random.default_rng(0), re.compile(f"({'|'.join(SENTENCES)})")
    pictures = [chance.integers(0, 256, (24, 40, 3), dtype=np.uint8), np.zeros((1, 9, 3), np.uint8)]
    pictures += [picture(BAR.format(*A), 48), picture(LINE.format(*C), 64), np.full((50, 30, 3), 255, np.uint8)]
    for ours in pictures:
        for theirs in pictures:
            said = DIFFER(ours, theirs)
            assert form.sub("", said).strip() == "", said
            assert said.count(".") <= 4


def test_hostile_pictures_take_no_long_time() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    labels, colours = plain_colours(noise[:128, :128])
    assert labels.shape == (128, 128)
    assert len(colours) <= 32
    assert DIFFER(noise, picture(BAR.format(*A)))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="Differences.most is 0"):
        Differences(most=0)


def test_tall_bars_are_not_taken_for_the_background() -> None:
    tall, other = (np.full((32, 32, 3), 255, np.uint8) for _ in range(2))
    for picture, heights in ((tall, (30, 30, 28)), (other, (30, 22, 28))):
        for place, height in enumerate(heights):
            picture[32 - height :, 1 + 10 * place : 10 + 10 * place] = (255, 0, 0)
    assert (tall == [255, 0, 0]).all(-1).mean() > 0.5
    assert Differences()(other, tall) == "bar 2 too low."
    assert Differences()(tall, other) == "bar 2 too high."
