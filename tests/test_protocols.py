"""How sources are divided: nothing stands in two parts, new classes stay out of training, the same every time."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import pytest
from PIL import Image

from vision.data import BaseToNew, CrossDataset, Example, FewShot, FewShotOfEach, Mixed, Source, Split

PARTS = ("demonstrations", "pool", "dev", "evaluation")


@dataclass(frozen=True)
class Toy(Source):
    """`classes` colours, `per_class` pictures of each."""

    classes: int = 5
    per_class: int = 40
    name: str = "toy"

    def examples(self) -> list[Example]:
        picture = Image.new("RGB", (2, 2))
        return [
            Example(f"{self.name}-{label}-{number}", (picture,), f"Which {self.name}?", f"{self.name} {label}")
            for label in "abcdefgh"[: self.classes]
            for number in range(self.per_class)
        ]

    def thought(self, example: Example) -> str:
        return f"It is of {self.name}."

    def thought_agrees(self, thought: str, answer: str) -> bool | None:
        return thought == f"It is of {self.name}." if answer.startswith(self.name) else None


def ids(split: Split) -> dict[str, list[str]]:
    return {part: [example.id for example in vars(split)[part]] for part in PARTS}


def held_out(split: Split) -> set[str]:
    """Ids that no start policy of the same division may have learnt from."""
    found = {example.id for part in (split.evaluation, split.dev) for example in part}
    return found | {example.id for part in split.transfer.values() for example in part}


SIZES = {"shots": 3, "evaluation": 50, "dev": 20}
MIXED = Mixed({"one": Toy(name="shape"), "other": Toy(classes=2, name="colour")})


@pytest.mark.parametrize(
    ("protocol", "source"),
    [
        (FewShot(**SIZES), Toy()),
        (BaseToNew(**SIZES), Toy()),
        (CrossDataset(**{**SIZES, "evaluation": 30}, others={"other": Toy(name="other")}), Toy()),
        (FewShotOfEach(**{**SIZES, "evaluation": 30}), MIXED),
    ],
)
def test_no_example_stands_in_two_parts_and_the_division_depends_on_the_seed_alone(protocol, source):
    split = protocol.split(source)
    parts = {**ids(split), **{name: [e.id for e in part] for name, part in split.transfer.items()}}
    assert all(parts.values())
    for one, other in combinations(parts.values(), 2):
        assert not set(one) & set(other)
    assert all(len(set(part)) == len(part) for part in parts.values())
    assert ids(protocol.split(source)) == ids(split)
    assert ids(type(protocol)(**{**vars(protocol), "seed": 1}).split(source)) != ids(split)


def test_base_to_new_never_trains_on_new_classes():
    split = BaseToNew(**SIZES).split(Toy())
    base, new = {"toy a", "toy b", "toy c"}, {"toy d", "toy e"}
    for part in PARTS:
        assert {example.answer for example in vars(split)[part]} == base
    assert {example.answer for example in split.transfer["new"]} == new
    assert set(split.labels) == base | new
    assert Counter(example.answer for example in split.demonstrations) == dict.fromkeys(base, 3)


def test_base_to_new_is_few_shot_with_the_new_classes_taken_out():
    whole, split = FewShot(**SIZES).split(Toy()), BaseToNew(**SIZES).split(Toy())
    base = {example.answer for example in split.pool}
    for part in PARTS:
        assert ids(split)[part] == [example.id for example in vars(whole)[part] if example.answer in base]
    assert [e.id for e in split.transfer["new"]] == [e.id for e in whole.evaluation if e.answer not in base]


def test_a_limited_pool_is_limited_after_the_new_classes_are_out():
    assert len(BaseToNew(**SIZES, pool=40).split(Toy()).pool) == 40


@pytest.mark.parametrize("source", [Toy(classes=2), Toy(per_class=15)])
def test_base_to_new_refuses_a_source_that_leaves_nothing(source):
    with pytest.raises(ValueError, match=r"data\.protocol"):
        BaseToNew(**SIZES).split(source)


def test_cross_dataset_trains_on_its_source_alone():
    split = CrossDataset(**SIZES, others={"other": Toy(name="other", per_class=9)}).split(Toy())
    assert all(example.id.startswith("toy-") for part in PARTS for example in vars(split)[part])
    assert {example.id.partition("-")[0] for example in split.transfer["other"]} == {"other"}
    with pytest.raises(ValueError, match="others is empty"):
        CrossDataset(**SIZES).split(Toy())


def test_a_start_made_on_all_sources_has_seen_nothing_that_is_held_out_later():
    sizes = {**SIZES, "evaluation": 30}
    start = FewShotOfEach(**sizes).split(MIXED)
    seen = {example.id.partition("/")[2] for example in start.demonstrations}
    one, other = MIXED.sources["one"], MIXED.sources["other"]
    for split in (
        FewShot(**sizes).split(other),
        BaseToNew(**sizes).split(one),
        CrossDataset(**sizes, others={"other": other}).split(one),
        CrossDataset(**sizes, others={"one": one}).split(other),
    ):
        assert not seen & held_out(split)
        assert not seen & {example.id for example in split.pool}
        assert {example.id for example in split.demonstrations} <= seen


def test_mixed_keeps_questions_and_thoughts_and_prefixes_ids():
    examples = MIXED.examples()
    assert len({example.id for example in examples}) == len(examples) == 5 * 40 + 2 * 40
    first, last = examples[0], examples[-1]
    assert (first.id, first.question, first.answer) == ("one/shape-a-0", "Which shape?", "shape a")
    assert (last.id, last.question, last.answer) == ("other/colour-b-39", "Which colour?", "colour b")
    assert (MIXED.thought(first), MIXED.thought(last)) == ("It is of shape.", "It is of colour.")
    assert MIXED.thought_agrees("It is of colour.", "colour a") is True
    assert MIXED.thought_agrees("It is of colour.", "shape a") is False
    assert MIXED.thought_agrees("It is of colour.", "number a") is None


def test_few_shot_of_each_takes_its_numbers_from_every_source():
    split = FewShotOfEach(**SIZES).split(MIXED)
    assert Counter(example.answer for example in split.demonstrations) == dict.fromkeys(split.labels, 3)
    assert len(split.labels) == 7
    for part, count in (("evaluation", 50), ("dev", 20)):
        found = Counter(example.id.partition("/")[0] for example in vars(split)[part])
        assert found == {"one": count, "other": count}
    alone = FewShot(**SIZES).split(Toy())
    assert ids(FewShotOfEach(**SIZES).split(Toy())) == ids(alone)


@pytest.mark.parametrize("sources", [{}, {"a/b": Toy()}])
def test_mixed_refuses_names_it_cannot_prefix(sources):
    with pytest.raises(ValueError, match="without a slash"):
        Mixed(sources)
