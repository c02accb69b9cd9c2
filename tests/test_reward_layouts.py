"""Rows as the public benchmarks have them become pairs; rows that are not of a layout are refused by number."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rewards.evaluation.layouts import (
    GenAIBench,
    HPDv2,
    JudgeBench,
    MultimodalRewardBench,
    PickAPic,
    RewardBench,
    RMBench,
    VLRewardBench,
)
from rewards.evaluation.pairs import Layout, Pairs, Plain, as_samples


def jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def level(picture: object) -> int:
    assert isinstance(picture, Image.Image)
    return int(picture.getpixel((0, 0))[0])  # type: ignore[index]


BYTES = {"bytes": jpeg(9), "path": None}


@pytest.mark.parametrize(
    ("layout", "row", "outputs", "better", "categories"),
    [
        (RewardBench(), {"prompt": "q", "chosen": "x", "rejected": "y", "subset": "math-prm", "id": 3}, ("x", "y"), 0, ("math-prm",)),
        (JudgeBench(), {"question": "q", "response_A": "x", "response_B": "y", "label": "B>A", "source": "livebench"}, ("x", "y"), 1, ("livebench",)),
        (VLRewardBench(), {"query": "q", "response": ["x", "y"], "human_ranking": [1, 0], "image": BYTES, "query_source": "POVID"}, ("x", "y"), 1, ("POVID",)),
        (VLRewardBench(), {"query": "q", "response": ["x", "y"], "human_ranking": [0, 1], "image": BYTES}, ("x", "y"), 0, ("all",)),
        (MultimodalRewardBench(), {"ID": "pairs_1", "Category": "safety", "Text": "q", "Output1": "x", "Output2": "y", "Better": "Output2", "Image": BYTES}, ("x", "y"), 1, ("safety/bias",)),
        (MultimodalRewardBench(), {"ID": "code_1", "Category": "reasoning", "Text": "q", "Output1": "x", "Output2": "y", "Better": "Output1"}, ("x", "y"), 0, ("reasoning/coding",)),
        (GenAIBench(), {"prompt": "q", "left_image": BYTES, "right_image": {"bytes": jpeg(200)}, "vote_type": "rightvote"}, (9, 200), 1, ("generation",)),
        (GenAIBench(), {"instruct_prompt": "q", "left_output_image": BYTES, "right_output_image": {"bytes": jpeg(200)}, "source_image": BYTES, "vote_type": "bothbad_vote"}, (9, 200), None, ("edits",)),
        (PickAPic(), {"caption": "q", "jpg_0": jpeg(9), "jpg_1": jpeg(200), "label_0": 0.0, "label_1": 1.0, "has_label": True}, (9, 200), 1, ()),
        (PickAPic(), {"caption": "q", "jpg_0": jpeg(9), "jpg_1": jpeg(200), "label_0": 0.5, "has_label": True}, (9, 200), None, ()),
        (Plain(), {"prompt": "q", "a": "x", "b": "y", "better": "tie", "category": "z"}, ("x", "y"), None, ("z",)),
        (Plain(), {"prompt": "q", "chosen": "x", "rejected": "y"}, ("x", "y"), 0, ()),
    ],
)  # fmt: skip
def test_a_row_becomes_a_pair(
    layout: Layout, row: dict[str, Any], outputs: tuple[object, object], better: int | None, categories: tuple[str, ...]
) -> None:
    (pair,) = layout.pairs(row, "row", Path())
    shown = tuple(o if isinstance(o, str) else level(o) for o in pair.outputs)
    assert (shown, pair.better, pair.categories, pair.prompt) == (outputs, better, categories, "q")
    if row.get("image") or row.get("Image"):
        assert level(pair.columns["image"]) == 9


def test_rm_bench_has_nine_pairs_a_row_of_one_cluster() -> None:
    row = {"id": 7, "prompt": "q", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"], "domain": "chat"}
    pairs = RMBench().pairs(row, "row", Path())
    found = {pair.outputs: pair.categories[1] for pair in pairs}
    assert (found["c0", "r2"], found["c1", "r1"], found["c2", "r0"]) == ("hard", "normal", "easy")
    assert [list(found.values()).count(kind) for kind in ("easy", "normal", "hard")] == [3, 3, 3]
    assert {pair.cluster for pair in pairs} == {"7"} and {pair.better for pair in pairs} == {0}


def test_rankings_become_all_their_pairs_with_ties(tmp_path: Path) -> None:
    for name, grey in (("a", 10), ("b", 20), ("c", 30)):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(grey))
    test = {"prompt": "q", "image_path": ["a.jpg", "b.jpg", "c.jpg"], "rank": [2, 1, 2]}
    train = {"prompt": "q", "file_path": ["a.jpg", "b.jpg"], "human_preference": [0, 1]}
    (tmp_path / "test.json").write_text(json.dumps([test, train]))
    pairs = Pairs(str(tmp_path / "test.json"), HPDv2()).pairs()
    assert [pair.better for pair in pairs] == [1, None, 0, 1]
    assert [pair.cluster for pair in pairs] == ["test-1"] * 3 + ["test-2"]
    assert [level(o) for o in pairs[1].outputs] == [10, 30]


def test_parquet_files_are_read_as_the_hub_has_them(tmp_path: Path) -> None:
    rows = [{"caption": "q", "jpg_0": jpeg(1), "jpg_1": jpeg(2), "label_0": 1.0, "has_label": h} for h in (True, False)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    (pair,) = Pairs(str(tmp_path / "test.parquet"), PickAPic()).pairs()
    assert pair.better == 0 and level(pair.outputs[1]) == 2


def test_samples_of_pairs_have_prompts_groups_and_columns(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "x", "rejected": "y", "answer": "7"},
        {"prompt": "q", "outputs": ["1", "2"], "ranks": [2, 1]},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = as_samples(Pairs(str(tmp_path / "pairs.jsonl")).pairs(), swapped=True)
    assert samples.outputs == ["y", "x", "2", "1"]
    assert samples.columns == {"answer": ["7", "7", None, None], "prompt": ["p", "p", "q", "q"], "group": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    ("layout", "row", "message"),
    [
        (Plain(), {"prompt": "q", "chosen": "x"}, "row 1 (no 'rejected' among ['chosen', 'prompt'])"),
        (Plain(), {"a": "x", "b": "y", "better": "c"}, "row 1 (better is 'c': give a, b or tie)"),
        (Plain(), {"outputs": ["x", "y"], "ranks": [1]}, "row 1 (ranks is [1] for 2 outputs: give one a output)"),
        (Plain(), {"chosen": "no.png", "rejected": "y"}, "row 1 ('no.png' cannot be read as a picture)"),
        (JudgeBench(), {"label": "A>>B"}, "row 1 (label is 'A>>B': JudgeBench has A>B and B>A)"),
        (RMBench(), {"chosen": ["x"], "rejected": ["y"]}, "row 1 (1 chosen and 1 rejected texts: there are 3 of each)"),
        (GenAIBench(), {"vote_type": "up"}, "row 1 (vote_type is 'up': there are leftvote, rightvote"),
        (PickAPic(), {"label_0": 0.7}, "row 1 (label_0 is 0.7: there are 0, 0.5 and 1)"),
        (HPDv2(), {"image_path": ["a"], "rank": []}, "row 1 (0 ranks for 1 pictures: there is one each)"),
        (PickAPic(), {"has_label": False}, "has no pair with a preference: look at its rows"),
    ],
)
def test_what_is_not_of_the_layout_is_refused(
    layout: Layout, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError) as found:
        Pairs(str(tmp_path / "pairs.jsonl"), layout).pairs()
    assert message in str(found.value)


def test_files_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Pairs(str(tmp_path / "x.jsonl")).pairs()
    (tmp_path / "x.json").write_text("7")
    with pytest.raises(ValueError, match="holds no list of objects"):
        Pairs(str(tmp_path / "x.json")).pairs()
    with pytest.raises(ValueError, match="is not there: give a .jsonl"):
        Pairs("nowhere").pairs()
    with pytest.raises(ValueError, match="limit is 0"):
        Pairs("x.json", limit=0)
    with pytest.raises(ValueError, match="'y.json' is not there"):
        Pairs("y.json")  # before anything runs
