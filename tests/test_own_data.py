"""What a user brings: a JSONL file, plain reward functions, separate held-out questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl.config import ConfigError, load
from mmrl.types import Samples
from rewards.compose import Part, RewardError, WeightedSum
from rewards.functions import Function
from vision.data import JSONL, HeldOutFile, HubDataset
from vision.encoding import BATCH, Encoder
from vision.prompts import Direct


def write(folder: Path, rows: list, name: str = "train.jsonl") -> Path:
    for number in range(4):
        Image.new("RGB", (16, 16), (number * 40, 0, 0)).save(folder / f"{number}.png")
    file = folder / name
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return file


def test_jsonl_gives_pictures_questions_and_every_other_column(tmp_path):
    rows = [
        {"image": "0.png", "question": "How many?", "answer": 3, "kind": "count"},
        {"image": ["1.png", "2.png"], "question": "Same?", "answer": "no", "kind": "compare"},
        {"question": "2 + 2?", "answer": "4", "kind": "text"},
    ]
    found = JSONL(str(write(tmp_path, rows))).examples()
    assert [e.id for e in found] == ["train-1", "train-2", "train-3"]
    assert [e.answer for e in found] == ["3", "no", "4"]
    assert [len(e.pictures()) for e in found] == [1, 2, 0]
    assert [e.columns for e in found] == [{"kind": "count"}, {"kind": "compare"}, {"kind": "text"}]


def test_columns_can_be_called_otherwise(tmp_path):
    rows = [{"file": "0.png", "label": "cat", "split": "a"}]
    columns = {"image": "file", "answer": "label"}
    (example,) = JSONL(str(write(tmp_path, rows)), columns, question="What is it?").examples()
    assert (example.question, example.answer, example.columns) == ("What is it?", "cat", {"split": "a"})


def test_refused_rows_are_listed_by_number_with_the_reason(tmp_path, capsys):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = [
        {"image": "0.png", "question": "fine?", "answer": "yes"},
        {"image": "missing.png", "question": "q", "answer": "a"},
        {"image": "cut.png", "question": "q", "answer": "a"},
        "{not json",
        {"image": "1.png", "question": "q"},
        "[1]",
    ]
    file = str(write(tmp_path, rows))
    with pytest.raises(ValueError, match="5 of 6 rows are refused") as error:
        JSONL(file).examples()
    message = str(error.value)
    for words in ("row 2 (", "missing.png is missing", "row 3 (", "cannot be decoded", "row 4 (not JSON", "row 5 (no 'answer'",
                  "row 6 (holds list", "skip_bad=true"):  # fmt: skip
        assert words in message
    assert [e.answer for e in JSONL(file, skip_bad=True).examples()] == ["yes"]
    assert "5 of 6 rows are refused" in capsys.readouterr().out


def test_held_out_questions_must_not_be_trained_on(tmp_path):
    rows = [{"image": f"{i}.png", "question": "Which?", "answer": str(i)} for i in range(4)]
    train = JSONL(str(write(tmp_path, rows[:3])))
    held_out = JSONL(str(write(tmp_path, rows[3:], "val.jsonl")))
    split = HeldOutFile(held_out=held_out).split(train)
    assert sorted(e.answer for e in split.pool) == ["0", "1", "2"]
    assert [e.answer for e in split.evaluation] == ["3"]
    assert split.demonstrations == []
    with pytest.raises(ValueError, match="1 questions stand both in"):
        HeldOutFile(held_out=JSONL(str(write(tmp_path, rows[2:], "val.jsonl")))).split(train)


def test_functions_get_columns_by_name_and_may_not_apply(tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        "def named(completions, answer):\n    return [float(c == a) for c, a in zip(completions, answer)]\n"
        "def everything(completions, **row):\n    return [None if k == 'skip' else len(c) for c, k in zip(completions, row['kind'])]\n"
        "def ddpo(outputs, prompts, metadata):\n    return [m['kind'] == p for p, m in zip(prompts, metadata)], {}\n"
        "def asks(completions, colour):\n    return [0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    samples = Samples(["a", "bb"], {"answer": ["a", "b"], "kind": ["skip", "x"], "question": ["q", "x"]})
    assert Function("my_reward.named")(samples).values.tolist() == [1.0, 0.0]
    scores = Function("my_reward.everything")(samples)
    assert scores.values.tolist() == [0.0, 2.0]
    assert scores.applicable.tolist() == [False, True]
    assert Function("my_reward.ddpo")(samples).values.tolist() == [0.0, 1.0]
    own = Samples(["a"], {"answer": ["a"], "images": [["mine.png"]]})
    (tmp_path / "my_images.py").write_text(
        "def mine(images, **row):\n    return [float(i == ['mine.png']) for i in images]\n"
    )
    assert Function("my_images.mine")(own).values.tolist() == [1.0]  # a column called images stays the user's
    both = WeightedSum({"n": Part("my_reward.named", 2.0), "e": Part("my_reward.everything")})(samples)
    assert both.values.tolist() == [2.0, 2.0]
    with pytest.raises(RewardError, match=r"asks for \['colour'\], and the data has"):
        WeightedSum({"mine": Part("my_reward.asks")})(samples)
    with pytest.raises(ValueError, match="reward function 'my_reward.nmaed' cannot be imported"):
        Part("my_reward.nmaed")


def test_a_config_of_ones_own_loads_with_a_function_beside_it(tmp_path, monkeypatch):
    write(tmp_path, [{"image": "0.png", "question": "Which?", "answer": "a"}])
    write(tmp_path, [{"image": "1.png", "question": "Which?", "answer": "b"}], "val.jsonl")
    (tmp_path / "own_reward.py").write_text(
        "def score(completions, answer, **row):\n    return [0.0] * len(completions)\n"
    )
    (tmp_path / "config.yaml").write_text(
        "experiment: vision\npolicy: {model: assets/vision/digits}\n"
        "data:\n  source: {class_path: vision.data.JSONL, init_args: {path: train.jsonl}}\n"
        "  protocol: {class_path: vision.data.HeldOutFile, init_args: {held_out: {class_path: vision.data.JSONL, init_args: {path: val.jsonl}}}}\n"
        "  prompt: vision.prompts.Direct\n"
        "rewards:\n  correct: {use: own_reward.score, weight: 2.0}\n"
        "algorithm: {advantage: mmrl.advantages.GroupRelative, surrogate: mmrl.surrogates.PPOClip, aggregate: mmrl.aggregates.TokenMean}\n"
    )
    monkeypatch.chdir(tmp_path)
    experiment = load("config.yaml").experiment
    assert experiment.rewards["correct"].weight == 2.0
    assert [e.answer for e in experiment.data.split.evaluation] == ["b"]
    with pytest.raises(ConfigError, match="own_reward.socre"):
        load("config.yaml", ["rewards.correct.use=own_reward.socre"])


def test_encoded_prompts_stay_within_their_memory(tmp_path_factory):
    from tests.tiny_vlms import make
    from vision.data.digits import Digits
    from vision.policy import PolicyConfig, VisionPolicy

    folder = tmp_path_factory.mktemp("qwen")
    make("qwen2_5_vl", folder)
    processor = VisionPolicy.load(PolicyConfig(str(folder))).processor
    examples = Digits().examples()[:80]
    encode = Encoder(processor, Direct(), (), limit_mb=0.0)
    encode.check(examples)
    assert len(encode._encoded) == BATCH
    plain = Encoder(processor, Direct(), ())
    for one, other in zip(encode.many(examples), plain.many(examples), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert one.image_key == other.image_key


def test_a_data_set_of_hugging_face_is_read_from_disk(tmp_path):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageColumn

    pictures = [Image.new("RGB", (8, 8), (i * 60, 0, 0)) for i in range(3)]
    features = Features({"picture": ImageColumn(), "kind": ClassLabel(names=["cat", "dog"])})
    rows = {"picture": pictures, "kind": [0, 1, 0]}
    Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    found = HubDataset(
        str(tmp_path / "set"), columns={"image": "picture", "answer": "kind"}, question="What?"
    ).examples()
    assert [e.answer for e in found] == ["cat", "dog", "cat"]
    assert found[1].pictures()[0].getpixel((0, 0)) == (60, 0, 0)
    with pytest.raises(ValueError, match="has no column 'image'; it has"):
        HubDataset(str(tmp_path / "set")).examples()
