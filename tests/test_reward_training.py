"""A Bradley-Terry head: closed forms of its loss, preferences learnt and shuffled ones not, and back from disk."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmrl.cli import main
from mmrl.testing import check_reward
from mmrl.types import Samples
from rewards.compose import RewardError
from rewards.evaluation import GoldPairs, Pair, Source
from rewards.evaluation.accuracy import accuracy
from rewards.evaluation.scoring import score
from rewards.training import OpenClip, TrainBradleyTerry, Trained, Transformers
from rewards.training.bradley_terry import preference_loss
from rewards.training.fitting import split
from rewards.training.trained import Head

CLIP = "assets/rewards/clip_a"


@dataclass(frozen=True)
class Fixed(Source):
    """Pairs by hand."""

    given: tuple[Pair, ...]

    def pairs(self) -> list[Pair]:
        return list(self.given)


def vectors_of(count: int, seed: int) -> tuple[torch.Tensor, list[Pair]]:
    """Vectors of 8 numbers; preferences are drawn by a Bradley-Terry judge of the first number, with scale 2."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 2, 8, generator=generator)
    margin = 2 * (vectors[:, 0, 0] - vectors[:, 1, 0])
    first = torch.rand(count, generator=generator) < torch.sigmoid(margin)
    return vectors, [Pair(f"p{i}", "q", ("a", "b"), 0 if won else 1) for i, won in enumerate(first.tolist())]


def config(**changes: object) -> TrainBradleyTerry:
    return replace(TrainBradleyTerry(OpenClip(model=CLIP), Fixed(())), **changes)  # type: ignore[arg-type]


def test_the_loss_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    wanted = (right + wrong + (right + wrong) / 2) / 3
    assert float(preference_loss(scores, torch.tensor([1.0, 0.0, 0.5]))) == pytest.approx(wanted)
    assert float(preference_loss(scores + 7, torch.tensor([1.0, 0.0, 0.5]))) == pytest.approx(
        wanted
    )  # no unit, no zero


def test_the_scale_of_the_judge_is_learnt_and_shuffled_preferences_teach_nothing() -> None:
    vectors, pairs = vectors_of(3000, 0)
    parts = {"train": list(range(2400)), "validation": list(range(2400, 2700)), "test": list(range(2700, 3000))}
    head, losses = config(epochs=30, lr=0.01).fitted(vectors, pairs, parts)
    weight = head.layers[0].weight[0].detach() / head.scale
    assert float(weight[0]) == pytest.approx(2.0, rel=0.2)
    assert float(weight[1:].abs().max()) < 0.2
    assert min(losses) < 0.45 < math.log(2)
    order = np.random.default_rng(0).permutation(3000)
    shuffled = [replace(pairs[int(i)], id=f"p{place}") for place, i in enumerate(order)]
    _, none = config(epochs=5, lr=0.01).fitted(vectors, shuffled, parts)
    assert min(none) > 0.68


def test_a_fresh_head_prefers_nothing() -> None:
    head = Head.new(4, 16, torch.zeros(4), torch.ones(4), torch.Generator().manual_seed(0))
    assert head(torch.randn(5, 2, 4)).abs().max() == 0.0


def test_clusters_stay_together() -> None:
    pairs = [Pair(f"{c}-{i}", "q", ("a", "b"), 0, (), f"c{c}") for c in range(60) for i in range(5)]
    parts = split([pair.cluster for pair in pairs])
    homes = [{pairs[i].cluster for i in ids} for ids in parts.values()]
    assert sum(len(home) for home in homes) == 60 and all(homes)
    assert 30 <= len(homes[0]) <= 58


def test_a_clip_head_learns_what_the_clip_is_blind_to_and_comes_back_from_disk(tmp_path: Path) -> None:
    def blurred(seed: int, count: int) -> tuple[Pair, ...]:
        chance, found = np.random.default_rng(seed), []
        for number in range(count):
            sharp = Image.fromarray(chance.integers(0, 255, (8, 8, 3)).astype(np.uint8)).resize((32, 32), 0)
            outputs = (sharp, sharp.resize((4, 4)).resize((32, 32)))
            better = int(chance.integers(2))
            found.append(
                Pair(
                    f"b{seed}-{number}",
                    "a panda on a blue background",
                    outputs if not better else outputs[::-1],
                    better,
                )
            )
        return tuple(found)

    task = config(pairs=Fixed(blurred(0, 150)), epochs=40)
    assert task.run(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.safetensors", "training.json"]
    reward = Trained(str(tmp_path))
    fresh = blurred(1, 60)
    assert accuracy(score("trained", reward, fresh))["accuracy"].value > 0.95
    samples = Samples([pair.outputs[0] for pair in fresh[:3]], {"prompt": [pair.prompt for pair in fresh[:3]]})
    check_reward(reward, samples, (None, "text"))
    about = json.loads((tmp_path / "training.json").read_text())
    assert about["accuracy"]["test"]["n"] == about["pairs"]["test"] > 0


def tiny_bert(folder: Path) -> Path:
    words = ["[UNK]", "which", "good", "bad", "a", "b", "c", "d"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    return folder


def test_a_text_head_on_any_model_of_transformers(tmp_path: Path) -> None:
    chance, given = np.random.default_rng(0), []
    for number in range(200):
        filler = [" ".join(chance.choice(list("abcd"), 4)) for _ in range(2)]
        outputs, better = (f"good {filler[0]}", f"bad {filler[1]}"), int(chance.integers(2))
        given.append(Pair(f"t{number}", "which", outputs if not better else outputs[::-1], better))
    backbone = Transformers(model=str(tiny_bert(tmp_path / "bert")), pool="mean")
    assert TrainBradleyTerry(backbone, Fixed(tuple(given)), epochs=60, lr=0.01).run(tmp_path / "head") == 0
    reward = Trained(str(tmp_path / "head"))
    new = [Pair(f"n{i}", "which", ("good d d a b", "bad a c c d"), 0) for i in range(3)]
    assert accuracy(score("trained", reward, new))["accuracy"].value == 1.0
    check_reward(reward, Samples(["good a", "bad a b c d"], {"prompt": ["which"] * 2}), ("", None))


def test_what_cannot_be_trained_or_used_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="epochs is 0: give 1 or more"):
        config(epochs=0)
    with pytest.raises(ValueError, match="lr is 0"):
        config(lr=0.0)
    with pytest.raises(ValueError, match="0 of 40 pairs can be read by the backbone: 30 are needed"):
        config(pairs=Fixed(tuple(Pair(f"t{i}", "q", ("a", "b"), 0) for i in range(40)))).run(tmp_path)
    with pytest.raises(ValueError, match="has no head.json"):
        Trained(str(tmp_path))
    (tmp_path / "head.json").write_text('{"backbone": "os.system", "fields": {}, "hidden": 0}')
    with pytest.raises(RewardError, match="holds no head of `mmrl rewards train`"):
        Trained(str(tmp_path))(Samples(["a"], {"prompt": ["q"]}))
    with pytest.raises(ValueError, match="subjects names 'a dog'"):
        GoldPairs(subjects=("a dog",))
    assert main(["rewards", "train", "epochs=0"]) == 2
    assert "epochs is 0" in capsys.readouterr().err
