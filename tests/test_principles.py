"""Binary principles: closed forms of loss and margin, what the reward is invariant to, rows and filters, and a model
that reads a "not"."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmrl.cli import main
from mmrl.testing import check_reward
from mmrl.types import Samples, Scores
from rewards.compose import RewardError
from rewards.evaluation import Pair, Source
from rewards.evaluation.accuracy import accuracy
from rewards.evaluation.scoring import score
from rewards.generative import GenerativeYesNo
from rewards.pictures.base import scores_of
from rewards.pictures.clip import Tower
from rewards.pictures.emoji import BACKGROUNDS, OBJECTS
from rewards.principles import Principle, Principles, YesNo
from rewards.rubric import Criterion, Rubric
from rewards.training import (
    EmojiPrinciples,
    Feedback,
    OpenClip,
    PrinciplePairs,
    PrincipleRows,
    TrainBradleyTerry,
    Trained,
    TrainedYesNo,
    TrainPrinciples,
)
from rewards.training.emoji_rows import is_held_out
from rewards.training.entailment import EntailmentHead
from rewards.training.feedback import Claim, agreed, decided, quoted, same_words
from rewards.training.fitting import split
from rewards.training.principles import holds_of, measured, principle_loss
from rewards.training.rows import PrincipleRow, RowSource, paired

CLIP = OpenClip(model="assets/rewards/clip_a", patches=True)


@dataclass(frozen=True)
class Says(YesNo):
    """r = length of the output less that of the principle; the empty output cannot be read."""

    def margins(self, samples: Samples, principles: Sequence[str]) -> Scores:
        return scores_of(
            [
                len(o) - len(p) if isinstance(o, str) and o else None
                for o, p in zip(samples.outputs, principles, strict=True)
            ]
        )


@dataclass(frozen=True)
class Fixed(RowSource):
    given: tuple[PrincipleRow, ...]

    def rows(self) -> list[PrincipleRow]:
        return list(self.given)


@dataclass(frozen=True)
class FixedPairs(Source):
    given: tuple[Pair, ...]

    def pairs(self) -> list[Pair]:
        return list(self.given)


# ---- closed forms -----------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    margins = torch.tensor([[2.0], [-1.0]])
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert float(principle_loss(margins, torch.tensor([1.0, 0.0]))) == pytest.approx(wanted)
    assert float(principle_loss(torch.zeros(2, 1), torch.tensor([1.0, 0.0]))) == pytest.approx(math.log(2))
    both = torch.tensor([[2.0, -2.0], [-1.0, 1.0]])  # the negation is right where the principle is wrong
    assert float(principle_loss(both, torch.tensor([1.0, 0.0]))) == pytest.approx(wanted)
    assert (
        float(principle_loss(margins + 3, torch.tensor([1.0, 0.0]))) > wanted
    )  # unlike Bradley-Terry's, it has a zero


def test_the_head_is_a_product_that_starts_at_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    premises, hypotheses = torch.randn(7, 5, generator=generator), torch.randn(7, 3, generator=generator)
    head = EntailmentHead.new(premises, hypotheses, 0, 2, generator)
    assert head(premises, hypotheses).abs().max() == 0.0
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    unit, text = (premises - premises.mean(0)) / premises.std(0), (hypotheses - hypotheses.mean(0)) / hypotheses.std(0)
    u, w = (
        unit @ head.output[1].weight.T + head.output[1].bias,
        text @ head.principle[1].weight.T + head.principle[1].bias,
    )
    by_hand = u[:, 0] * w[:, 0] + u[:, 1] * w[:, 1] + w[:, 2]
    torch.testing.assert_close(head(premises, hypotheses), by_hand)
    many = head(premises[:, None], hypotheses[None])  # any output with any principle
    torch.testing.assert_close(many.diagonal(), by_hand)


def test_the_reward_is_the_weighted_sum_of_probabilities_or_of_margins() -> None:
    principles = {"b": Principle("ab", -0.5), "a": Principle("a", 2.0)}
    reward = Principles(Says(), principles)
    samples = Samples(["a", "abc", ""], {"prompt": ["q"] * 3})
    scores = reward(samples)
    s = [1 / (1 + math.exp(-r)) for r in (0, -1, 2, 1)]  # r of "a" and "ab" for "a", then for "abc"
    assert scores.values.tolist() == pytest.approx([2 * s[0] - 0.5 * s[1], 2 * s[2] - 0.5 * s[3], 0.0])
    assert scores.applicable.tolist() == [True, True, False]
    assert scores.parts["a"].values.tolist() == pytest.approx([0.5, s[2], 0.0])
    assert replace(reward, scale="margin")(samples).values.tolist() == pytest.approx([0.5, 3.5, 0.0])
    turned = Principles(Says(), dict(reversed(principles.items())))
    assert torch.equal(turned(samples).values, scores.values)
    check_reward(reward, samples, ("", None))


def test_a_principle_of_the_row_and_a_rubric_of_principles() -> None:
    samples = Samples(["abc", "abc"], {"principle": ["a", "abcde"]})
    each = Principles(Says(), {"own": Principle("{principle}")}, "margin")
    assert each(samples).values.tolist() == [2.0, -2.0]
    criterion = Criterion(Principles(Says(), {"own": Principle("{principle}")}))  # yes: p of at least 1/2
    assert Rubric({"own": criterion})(samples).values.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="reads the column 'colour'"):
        Principles(Says(), {"own": Principle("{colour}")})(samples)
    assert Principles(Says(), {"own": Principle("{}")}, "margin")(samples).values.tolist() == [1.0, 1.0]  # plain text


def test_measured_by_hand() -> None:
    rows = [PrincipleRow("x", "", "p", holds, f"c{i}") for i, holds in enumerate((True, True, False, False))]
    found = measured(torch.tensor([math.log(3), -1.0, -1.0, 0.0]), rows)
    assert found["accuracy"]["value"] == 0.75  # 0 is no yes
    chances = [0.75, 1 / (1 + math.e), 1 / (1 + math.e), 0.5]
    assert found["ece"]["value"] == pytest.approx(abs(sum(chances) / 4 - 0.5))  # four rows are one bin


# ---- rows -------------------------------------------------------------------------------------------------


def write(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_from_a_file_and_what_is_refused_of_them(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "grey.png")
    good = {"output": "grey.png", "principle": "dark", "holds": True, "prompt": "a picture", "category": "light"}
    rows = PrincipleRows(write(tmp_path / "rows.jsonl", [good, {**good, "output": "text", "holds": False}])).rows()
    assert isinstance(rows[0].output, Image.Image) and rows[0].holds and rows[0].category == "light"
    assert (rows[1].output, rows[1].prompt, rows[1].holds) == ("text", "a picture", False)
    assert rows[0].cluster != rows[1].cluster
    for wrong, told in (
        ({"holds": "yes"}, "row 2 .holds is 'yes': give true or false"),
        ({"principle": " "}, "row 2 .principle is ' ': give a sentence"),
        ({"output": "none.png"}, "row 2 .'none.png' cannot be read as a picture"),
    ):
        with pytest.raises(ValueError, match=told):
            PrincipleRows(write(tmp_path / "bad.jsonl", [good, {**good, **wrong}])).rows()
    with pytest.raises(ValueError, match=r"1 rows cannot be read: row 1 .no 'holds' among"):
        PrincipleRows(write(tmp_path / "bad.jsonl", [{"output": "a", "principle": "b"}])).rows()
    with pytest.raises(ValueError, match=r"rows.path 'nowhere.jsonl' is not there"):
        PrincipleRows("nowhere.jsonl")


def test_emoji_rows_hold_out_combinations_and_tell_nothing_by_chance() -> None:
    train, held = EmojiPrinciples(600).rows(), EmojiPrinciples(200, part="held_out").rows()
    assert len(train) == 600 and not {row.cluster for row in train} & {row.cluster for row in held}
    assert all(is_held_out(*row.cluster.split("|")) for row in held)
    assert {row.principle for row in train} & {row.principle for row in held}
    assert all(
        any(not is_held_out(other, f"a {name}") for other in BACKGROUNDS) for name in OBJECTS
    )  # is met elsewhere
    assert abs(np.mean([row.holds for row in train]) - 0.5) < 0.1
    again = EmojiPrinciples(600).rows()
    assert all(a.output == b.output and a.principle == b.principle for a, b in zip(train, again, strict=True))
    light = [(np.asarray(row.output).mean(), row.principle, row.holds) for row in train if row.category == "light"]
    bright = [mean for mean, word, holds in light if (word == "bright") == holds]
    dark = [mean for mean, word, holds in light if (word == "dark") == holds]
    assert np.mean(bright) - np.mean(dark) > 40  # what is said of pictures is there in the pixels
    with pytest.raises(ValueError, match=r"rows.count is 0: give 1 row or more"):
        EmojiPrinciples(0)


def test_pairs_of_rows() -> None:
    rows = [PrincipleRow(f"{p}{i}", "q", p, i < 2, f"{p}{i}", "c") for p in "ab" for i in range(4)]
    pairs = paired([*rows, PrincipleRow("z", "q", "never", False, "z")])
    assert [(pair.outputs, pair.better) for pair in pairs] == [
        (("a0", "a2"), 0), (("a3", "a1"), 1), (("b0", "b2"), 0), (("b3", "b1"), 1),
    ]  # fmt: skip
    assert pairs[0].columns == {"principle": "a"} and pairs[0].categories == ("c",)
    with pytest.raises(ValueError, match="no principle both holds of an output and fails of another"):
        PrinciplePairs(Fixed((rows[0],))).pairs()


# ---- what annotators wrote --------------------------------------------------------------------------------

WORDS = "It is short,\n but WRONG in places."


def claim(annotator: str, principle: str, answer: str, quote: str = "it is short") -> Claim:
    return Claim(annotator, WORDS, principle, quote, answer)


def test_what_is_kept_of_claims() -> None:
    yes, partly = claim("one", "concise", "yes"), claim("two", "concise", "partly")
    assert decided([yes, partly]) == [yes]
    assert quoted([yes, claim("one", "x", "no", "short, but wrong"), claim("one", "x", "no", "very short"), claim("one", "x", "no", " ")]) == [
        yes, claim("one", "x", "no", "short, but wrong"),
    ]  # fmt: skip
    others = [claim("two", "Concise", "yes"), claim("one", "correct", "no"), claim("two", "correct", "yes"), claim("one", "kind", "yes")]  # fmt: skip
    assert agreed([yes, *others], 2, same_words, 1.0) == [yes]  # of "correct" they say both, of "kind" there is one
    assert agreed([yes, yes], 2, same_words, 1.0) == []  # saying it twice does not make two people
    assert agreed([yes, *others], 1, same_words, 1.0) == [yes, others[3]]
    assert agreed([yes, claim("two", "brief", "yes")], 2, lambda texts: torch.full((2, 2), 0.8), 0.8) == [yes]
    assert agreed([yes, claim("two", "brief", "yes")], 2, lambda texts: torch.full((2, 2), 0.79), 0.8) == []


def test_feedback_as_rows(tmp_path: Path) -> None:
    def by(annotator: str, *claims: tuple[str, str]) -> dict[str, object]:
        told = [{"principle": p, "quote": "it is short", "answer": answer} for p, answer in claims]
        return {"annotator": annotator, "text": WORDS, "principles": told}

    row = {"output": "no", "prompt": "why?", "feedback": [by("one", ("concise", "yes"), ("kind", "no")), by("two", ("concise", "yes"))]}  # fmt: skip
    path = write(tmp_path / "said.jsonl", [row])
    assert Feedback(path).rows() == [PrincipleRow("no", "why?", "concise", True, "feedback-1")]
    with pytest.raises(ValueError, match="no principle passes the filters"):  # to a CLIP "kind" is as "concise": denied
        Feedback(path, alike=OpenClip(model=CLIP.model), similarity=1e-3).rows()
    with pytest.raises(ValueError, match="no principle passes the filters"):
        Feedback(path, annotators=3).rows()
    row["feedback"] = [by("one", ("concise", "maybe"))]
    with pytest.raises(ValueError, match=r"row 1 cannot be read .answer is 'maybe': give yes, no or partly"):
        Feedback(write(tmp_path / "bad.jsonl", [row])).rows()
    with pytest.raises(ValueError, match=r"rows.similarity is 2: give a cosine"):
        Feedback(path, similarity=2)


# ---- training ---------------------------------------------------------------------------------------------


def asked(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[PrincipleRow]]:
    """Outputs of 8 numbers, and of each one of 6 principles and its negation: the k-th holds with the chance
    sigmoid(2 x_k). A principle is a one and a place that says "not"."""
    generator = torch.Generator().manual_seed(seed)
    premises, which = torch.randn(count, 8, generator=generator), torch.randint(6, (count,), generator=generator)
    plain = torch.nn.functional.one_hot(which, 7).float()
    negated = plain.clone()
    negated[:, 6] = 1.0
    chance = torch.sigmoid(2 * premises[torch.arange(count), which])
    holds = torch.rand(count, generator=generator) < chance
    rows = [
        PrincipleRow("", "", str(int(k)), bool(h), f"{i}") for i, (k, h) in enumerate(zip(which, holds, strict=True))
    ]
    return premises, torch.stack([plain, negated], dim=1), rows


def test_margins_are_the_log_odds_negation_turns_them_and_shuffled_answers_teach_nothing() -> None:
    premises, hypotheses, rows = asked(2400, 0)
    parts = split([row.cluster for row in rows])
    task = TrainPrinciples(
        CLIP, Fixed(()), negation="not {principle}", hidden=64, rank=8, epochs=15, weight_decay=0.3, batch=128
    )
    head, losses = task.fitted(premises, hypotheses, holds_of(rows), parts)
    assert min(losses) < 0.5 < math.log(2)
    new, texts, answers = asked(2000, 1)
    signs = 2 * holds_of(answers) - 1
    with torch.no_grad():
        margins = head(new[:, None], texts)
    best = ((2 * new[torch.arange(2000), texts[:, 0, :6].argmax(1)] > 0) == (signs > 0)).float().mean()
    found = measured(margins[:, 0], answers)
    assert found["accuracy"]["value"] > float(best) - 0.02  # what is left is chance
    assert found["ece"]["value"] < 0.05
    assert (margins[:, 0] * signs).mean() > 0.8 and (margins[:, 1] * signs).mean() < -0.8
    order = torch.randperm(2400, generator=torch.Generator().manual_seed(0))
    none, losses = task.fitted(premises, hypotheses, holds_of(rows)[order], parts)
    assert min(losses) > 0.68
    with torch.no_grad():
        assert abs(measured(none(new, texts[:, 0]), answers)["accuracy"]["value"] - 0.5) < 0.05


def test_a_trained_model_comes_back_from_disk_and_is_a_reward(tmp_path: Path) -> None:
    rows = EmojiPrinciples(120).rows()
    task = TrainPrinciples(CLIP, Fixed(tuple(rows)), prompts=False, negation="not {principle}", epochs=5)
    assert task.run(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.safetensors", "training.json"]
    about = json.loads((tmp_path / "training.json").read_text())
    assert about["test"]["accuracy"]["n"] == about["rows"]["test"] > 0
    model = TrainedYesNo(str(tmp_path))
    reward = Principles(model, {"dark": Principle("dark"), "blue": Principle("covered", 0.5)})
    samples = Samples([row.output for row in rows[:3]], {"prompt": [row.prompt for row in rows[:3]]})
    check_reward(reward, samples, (None, "text"))
    turned = Samples(samples.outputs[::-1], samples.columns)  # the prompt is not looked at, as `prompts` says
    torch.testing.assert_close(reward(turned).values.flip(0), reward(samples).values)
    opposite = Principles(model, {"dark": Principle("dark", -1.0)})(samples).values
    torch.testing.assert_close(opposite, -reward(samples).parts["dark"].values)
    told = [
        f"rewards={{mine: {{class_path: rewards.principles.Principles, init_args: {{model: {{class_path: "
        f"rewards.training.TrainedYesNo, init_args: {{folder: {tmp_path}}}}}, principles: {{own: {{text: '{{principle}}'}}}}}}}}}}",
        "pairs={class_path: rewards.training.PrinciplePairs, init_args: {rows: {class_path: "
        "rewards.training.EmojiPrinciples, init_args: {count: 60, part: held_out}}}}",
        "probes={bias: false, robustness: false}",
    ]
    assert main(["rewards", "evaluate", "rewards/evaluate", *told, "--run", str(tmp_path / "evaluation")]) == 0
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    pairs = PrinciplePairs(EmojiPrinciples(60, part="held_out")).pairs()
    found = accuracy(score("p", Principles(model, {"own": Principle("{principle}")}, "margin"), pairs))["accuracy"]
    assert evaluation["pairs"] == len(pairs) > 10
    assert evaluation["figures"]["mine"]["accuracy"]["value"] == found.value  # the same order, by margin or chance
    with pytest.raises(RewardError, match="holds another kind of head"):
        Trained(str(tmp_path))(samples)


def test_patches_are_added_to_the_same_vectors_and_tell_small_from_large() -> None:
    whole = Image.new("RGB", (32, 32), (90, 150, 230))
    spotted = whole.copy()
    spotted.paste((250, 250, 250), (12, 12, 20, 20))
    samples = Samples([whole, spotted, whole], {"prompt": ["a car", "a car", "a panda"]})
    (vectors, usable), (plain, _) = CLIP.features(samples), OpenClip(model=CLIP.model).features(samples)
    assert bool(usable.all())
    torch.testing.assert_close(vectors[:, : plain.shape[1]], plain)
    mean, deviation = vectors[:, plain.shape[1] :].chunk(2, dim=1)
    torch.testing.assert_close(mean[0], mean[2])  # of the picture alone
    assert float(deviation[1].mean()) > 1.2 * float(deviation[0].mean())  # its parts are less alike
    torch.testing.assert_close(CLIP.hypotheses(["a car", "a panda"]), plain[[0, 2], 64:128])
    with pytest.raises(RewardError, match="gives no vectors of patches"):
        Tower(lambda x: x, lambda texts: torch.zeros(1, 1), "cpu").parts(torch.zeros(1, 3, 2, 2))


def test_a_head_of_preferences_is_no_model_of_principles(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    pairs = [
        Pair(
            f"p{i}",
            "a car",
            tuple(Image.fromarray(chance.integers(0, 255, (8, 8, 3)).astype(np.uint8)) for _ in "ab"),
            0,
        )
        for i in range(40)
    ]  # type: ignore[arg-type]
    assert TrainBradleyTerry(OpenClip(model=CLIP.model), FixedPairs(tuple(pairs)), epochs=1).run(tmp_path) == 0
    with pytest.raises(RewardError, match="holds another kind of head"):
        TrainedYesNo(str(tmp_path)).margins(Samples([pairs[0].outputs[0]], {}), ["dark"])


def test_what_cannot_be_trained_or_used_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="negation is 'not': write {principle} where the principle goes"):
        TrainPrinciples(CLIP, Fixed(()), negation="not")
    with pytest.raises(ValueError, match="rank is 0: give 1 or more"):
        TrainPrinciples(CLIP, Fixed(()), rank=0)
    with pytest.raises(ValueError, match="0 of 40 rows can be read by the backbone: 30 are needed"):
        TrainPrinciples(CLIP, Fixed((PrincipleRow("text", "", "p", True, "c"),) * 40)).run(tmp_path)
    with pytest.raises(ValueError, match=r"TrainedYesNo.folder .* has no head.json"):
        TrainedYesNo(str(tmp_path))
    with pytest.raises(ValueError, match=r"principles is empty: give at least one"):
        Principles(Says(), {})
    with pytest.raises(ValueError, match="a principle's text is empty"):
        Principle(" ")
    with pytest.raises(ValueError, match="the weight of the principle 'dark' is 0"):
        Principle("dark", 0.0)
    assert main(["rewards", "train", "rewards/principles", "rank=0"]) == 2
    assert "rank is 0" in capsys.readouterr().err


# ---- a language model that is asked -----------------------------------------------------------------------


def tiny_llama(folder: Path) -> Path:
    words = ["[UNK]", "Yes", "No", "dark", "bright", "night", "day", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(folder)
    return folder


def test_a_language_model_is_asked_by_the_logits_of_its_next_token(tmp_path: Path) -> None:
    model = GenerativeYesNo(model=str(tiny_llama(tmp_path)), question="{output} {principle} ?")
    samples = Samples(["night", "day", None], {})
    scores = model.margins(samples, ["dark", "bright", "dark"])
    llama = LlamaForCausalLM.from_pretrained(tmp_path)
    for i, ids in enumerate(([5, 3, 7], [6, 4, 7])):
        with torch.no_grad():
            probability = torch.softmax(llama(torch.tensor([ids])).logits[0, -1], 0)
        assert float(scores.values[i]) == pytest.approx(float((probability[1] / probability[2]).log()), abs=1e-5)
    assert scores.applicable.tolist() == [True, True, False]
    check_reward(
        Principles(model, {"dark": Principle("dark"), "day": Principle("day")}), Samples(["night"], {}), (None,)
    )
    turned = replace(model, yes="No", no="Yes").margins(samples, ["dark", "bright", "dark"])
    torch.testing.assert_close(turned.values, -scores.values)
    with pytest.raises(RewardError, match="'Maybe' is not one token of the model"):
        replace(model, yes="Maybe").margins(samples, ["dark"] * 3)
    with pytest.raises(ValueError, match=r"question does not name \['output'\]"):
        replace(model, question="{principle}?")
    with pytest.raises(ValueError, match="yes and no are both 'No'"):
        replace(model, yes="No")
    with pytest.raises(RewardError, match="cannot be loaded"):
        GenerativeYesNo(model=str(tmp_path / "nothing")).margins(samples, ["dark"] * 3)


def test_an_image_text_model_is_asked_about_pictures() -> None:
    words = json.loads(Path("assets/vision/judge/tokenizer.json").read_text())["model"]["vocab"]
    assert {"even", "odd"} <= set(words)
    model = GenerativeYesNo(model="assets/vision/judge", pictures=True, question="{principle}", yes="even", no="odd")
    pictures = [Image.new("RGB", (28, 28), (shade,) * 3) for shade in (0, 200)]
    samples = Samples([*pictures, "text"], {})
    scores = model.margins(samples, ["Is it even or odd?"] * 3)
    assert scores.applicable.tolist() == [True, True, False]
    assert float(scores.values[0]) != float(scores.values[1])  # it looks
    check_reward(Principles(model, {"even": Principle("Is it even or odd?")}), Samples(pictures, {}), (None, "text"))
