"""Vision end to end on a tiny model: data, encoding, collection, evaluation, and the errors a user meets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.parts import Parts
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.settings import TrainConfig
from mmrl.surrogates import PPOClip
from mmrl.testing import check_collector, check_policy
from mmrl.trainer import Trainer
from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part, RewardError, WeightedSum
from rewards.text import AnswerMatch, TagFormat
from tests.tiny_vlms import make
from vision import prompts
from vision.collector import AnswerCollector, RolloutConfig, answered
from vision.conversation import Conversation, Limits
from vision.data import Digits, FewShot, ImageFolder
from vision.data.base import Example
from vision.demonstrations import DemonstrationCollector
from vision.encoding import Encoder, RefusedExample, asked, divide
from vision.evaluation import AnswerEvaluator, with_other_pictures
from vision.policy import PolicyConfig, VisionPolicy
from vision.transitions import TokenTransitions

SOURCE = Digits()
EXAMPLES = SOURCE.examples()[:24]
SHORT = Limits(1, 5, 4096)
GRPO = Algorithm(GroupRelative(), PPOClip(), TokenMean())
STYLES = (prompts.Think(), prompts.Direct(), prompts.ThinkAfterAnswer(), prompts.Adaptive())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("qwen")
    make("qwen2_5_vl", path)
    return path


@pytest.fixture
def policy(folder) -> VisionPolicy:
    return VisionPolicy.load(PolicyConfig(str(folder), freeze_vision=False)).eval()


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(RuntimeConfig(device="cpu"), seed=3)


def collector(policy, runtime, reward=None, prompts_=4, group=3, style=None) -> AnswerCollector:
    encode = Encoder(policy.processor, style or prompts.Direct(), ())
    reward = reward or WeightedSum({"accuracy": Part(AnswerMatch()), "format": Part(TagFormat(), 0.5)})
    return AnswerCollector(EXAMPLES, encode, reward, RolloutConfig(prompts_, group, 5), runtime)


def test_policy_and_collector_keep_their_contracts(policy, runtime):
    made = collector(policy, runtime)
    with acting(policy):
        rollout = made.collect(policy, torch.Generator().manual_seed(0))
    check_policy(policy, rollout)
    check_collector(collector(policy, runtime), policy, lambda: torch.Generator().manual_seed(0))


def test_an_optimiser_step_drops_what_was_kept_of_sampling(folder, runtime):
    """A fused optimiser writes weights without telling torch's version counters."""
    policy = VisionPolicy.load(PolicyConfig(str(folder), freeze_vision=False, reuse_prefill=True)).eval()
    made = collector(policy, runtime)
    trainer = Trainer(Parts(policy, made, None, GRPO), TrainConfig(lr=0.1), runtime)
    with acting(policy):
        made.collect(policy, torch.Generator().manual_seed(0))
    assert policy._kept is not None
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    assert policy._kept is None


def test_checkpointing_and_reused_prefills_are_refused_together():
    with pytest.raises(ValueError, match="exclude each other"):
        PolicyConfig("x", gradient_checkpointing=True, reuse_prefill=True)


def test_reward_falls_on_the_last_token_and_groups_are_prompts(policy, runtime):
    class Length(RewardFunction):
        def __call__(self, samples: Samples) -> Scores:
            values = torch.arange(1.0, len(samples) + 1)
            return Scores(values, torch.ones(len(samples), dtype=torch.bool))

    made = collector(policy, runtime, WeightedSum({"length": Part(Length(), 2.0)}))
    with acting(policy):
        rollout = made.collect(policy, torch.Generator().manual_seed(0))
    assert rollout.returns().tolist() == [2.0 * i for i in range(1, 13)]
    last = rollout.alive.sum(-1) - 1
    assert (rollout.rewards != 0).sum() == 12
    assert (rollout.rewards[torch.arange(12), last] != 0).all()
    assert rollout.group_ids.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert rollout.reward_parts["length"].tolist() == list(range(1, 13))  # a part is reported before its weight


def test_an_answer_to_which_no_reward_applies_leaves_its_group():
    transitions = TokenTransitions((), torch.zeros(2, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    scores = Scores(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    alive = torch.tensor([[True, True, False], [True, False, False]])
    rollout = answered(transitions, torch.zeros(2, 3), alive, scores, torch.zeros(2, dtype=torch.long))
    assert rollout.alive.tolist() == [[True, True, False], [False] * 3]
    assert rollout.rewards.tolist() == [[0.0, 1.0, 0.0], [0.0] * 3]


def test_every_example_comes_once_an_epoch_in_an_order_of_its_own(policy, runtime):
    order = collector(policy, runtime).order
    first, second = order.take(24), order.take(24)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    again = collector(policy, runtime).order
    again.drawn = 5
    assert again.take(24) == [*first[5:], *second[:5]]


def test_demonstrations_are_what_the_style_asks_for(policy, runtime):
    for style in STYLES:
        encode = Encoder(policy.processor, style, ())
        rollout = DemonstrationCollector(SOURCE, EXAMPLES, [encode], 8, runtime).collect(policy, torch.Generator())
        assert rollout.demonstration
        row = rollout.transitions.completions[0][rollout.alive[0]]
        text = policy.processor.tokenizer.decode(row)
        assert text.endswith("<|im_end|>")
        thought, answer = style.parse(text.removesuffix("<|im_end|>"))
        assert answer in {e.answer for e in EXAMPLES}
        assert thought == "" if isinstance(style, prompts.Direct) else SOURCE.thought_agrees(thought, answer)


@pytest.mark.parametrize("style", STYLES, ids=lambda s: type(s).__name__)
def test_a_demonstration_earns_the_full_reward_of_its_style(style):
    example = EXAMPLES[0]
    text = style.demonstration(example.answer, SOURCE.thought(example))
    forms = {
        "Think": TagFormat(),
        "ThinkAfterAnswer": TagFormat(("answer", "think")),
        "Adaptive": TagFormat(optional=("think",)),
    }
    samples = Samples([text], {"answer": [example.answer]})
    assert AnswerMatch()(samples).values.item() == 1.0
    if type(style).__name__ in forms:
        assert forms[type(style).__name__](samples).values.item() == 1.0


def test_closed_lists_hold_the_answer_and_stay_the_same():
    labels = tuple(sorted({e.answer for e in SOURCE.examples()}))
    style = prompts.Direct(choices=4)
    for example in EXAMPLES:
        options = style.options(example, labels)
        assert len(options) == len(set(options)) == 4
        assert example.answer in options
        assert options == style.options(example, labels)
        assert f"[{', '.join(options)}]" in style.text(example, labels)
    places = [style.options(e, labels).index(e.answer) for e in EXAMPLES]
    assert len(set(places)) == 4  # the right one is not always first


def test_batches_encode_as_examples_do_alone(policy):
    together, alone = (Encoder(policy.processor, prompts.Think(), ()) for _ in range(2))
    two = Example("two", (EXAMPLES[0].images[0],) * 2, "Which?", "one")
    none = Example("none", (), "No picture here", "one")
    for mine, theirs in zip(together.many([*EXAMPLES, two]), [alone(e) for e in [*EXAMPLES, two]], strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
        assert mine.image_key == theirs.image_key
        assert all(torch.equal(mine.vision[k], theirs.vision[k]) for k in theirs.vision)
        assert all(torch.equal(mine.per_token[k], theirs.per_token[k]) for k in theirs.per_token)
    assert together._batches
    assert alone(none).vision == {}


def test_an_output_that_cannot_be_divided_is_not():
    encoded = {"attention_mask": torch.ones(3, 5), "input_ids": torch.ones(3, 5), "odd": torch.zeros(7, 2)}
    assert divide(encoded, [1, 1, 1]) is None


def test_bad_examples_are_refused_by_id_before_training(policy):
    encode = Encoder(policy.processor, prompts.Direct(), (), max_prompt_tokens=60)
    picture = EXAMPLES[0].images
    bad = [
        Example("no-answer", picture, "Which?", ""),
        Example("long", picture, "why " * 200, "one"),
        Example("fine", picture, "Which?", "one"),
    ]
    with pytest.raises(RefusedExample) as error:
        encode.check(bad)
    message = str(error.value)
    assert message.startswith("2 of 3 examples are refused: ")
    assert "no-answer: the answer is empty" in message
    assert "long: the prompt has" in message
    assert "never cut" in message
    assert "fine" not in message


def test_a_corrupt_picture_is_named(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "good.png")
    whole = (tmp_path / "cat" / "good.png").read_bytes()
    (tmp_path / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match="cannot be decoded") as error:
        ImageFolder(str(tmp_path)).examples()
    assert "cut.png" in str(error.value)
    assert "text.jpg" in str(error.value)


def test_a_folder_with_one_class_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="holds 1 class folder"):
        ImageFolder(str(tmp_path)).examples()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ImageFolder(str(tmp_path / "nowhere")).examples()


def test_a_folder_of_pictures_is_read(tmp_path):
    for name in ("black_cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (16, 16), (i * 50, 0, 0)).save(tmp_path / name / f"{i}.png")
    found = ImageFolder(str(tmp_path), "What is it?").examples()
    assert [e.answer for e in found] == ["black cat", "black cat", "dog", "dog"]
    assert [e.id for e in found][:1] == ["black_cat/0.png"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0] * 11, "gave (11,) scores for 12 samples"),
        ([1.0] * 3 + [float("nan")] + [0.0] * 8, "rewards.mine is nan for sample 3 (example digits-"),
    ],
)
def test_a_wrong_reward_stops_the_run_with_one_sentence(policy, runtime, values, message):
    class Mine(RewardFunction):
        def __call__(self, samples: Samples) -> Scores:
            return Scores(torch.tensor(values), torch.ones(len(values), dtype=torch.bool))

    made = collector(policy, runtime, WeightedSum({"mine": Part(Mine())}))
    with pytest.raises(RewardError) as error, acting(policy):
        made.collect(policy, torch.Generator().manual_seed(0))
    assert message in str(error.value)


def test_evaluation_is_the_same_twice_and_counts_right_answers(policy, runtime):
    class Oracle(AnswerEvaluator):
        def answers(self, policy, examples, encode, generator):
            return [Conversation((encode.style.demonstration(e.answer, SOURCE.thought(e)),)) for e in examples]

    encode = Encoder(policy.processor, prompts.Think(), ())
    parts = (
        EXAMPLES,
        encode,
        SOURCE,
        SHORT,
        WeightedSum({"accuracy": Part(AnswerMatch()), "format": Part(TagFormat())}),
    )
    perfect = Oracle(*parts).evaluate(policy, torch.Generator())
    assert perfect["accuracy"].value == perfect["thought_agrees"].value == perfect["format"].value == 1.0
    assert perfect["accuracy"].n == len(EXAMPLES)
    real = AnswerEvaluator(*parts)
    with acting(policy):
        one = real.evaluate(policy, torch.Generator().manual_seed(5))
        two = real.evaluate(policy, torch.Generator().manual_seed(5))
    assert one == two


def test_shuffled_pictures_expose_a_policy_that_does_not_look(policy):
    """An oracle that answers from the picture falls to chance; one that answers from the id would not."""
    from_picture = {id(e.images[0]): e.answer for e in EXAMPLES}

    class Looks(AnswerEvaluator):
        def answers(self, policy, examples, encode, generator):
            return [Conversation((f"<answer>{from_picture[id(e.images[0])]}</answer>",)) for e in examples]

    encode = Encoder(policy.processor, prompts.Think(), ())
    found = Looks(EXAMPLES, encode, SOURCE, SHORT, WeightedSum({"accuracy": Part(AnswerMatch())})).evaluate(
        policy, torch.Generator()
    )
    assert found["accuracy"].value == 1.0
    assert found["accuracy_image_shuffled"].value == 0.0


def test_another_picture_is_of_another_answer_under_the_same_question():
    blind = with_other_pictures(EXAMPLES)
    answer_of = {id(e.images[0]): e.answer for e in EXAMPLES}
    labels = tuple(sorted({e.answer for e in EXAMPLES}))
    style = prompts.Direct(choices=4)
    for mine, example in zip(blind, EXAMPLES, strict=True):
        assert answer_of[id(mine.images[0])] != mine.answer == example.answer
        assert style.text(asked(mine), labels) == style.text(example, labels)


def test_samples_are_written_for_people(policy, tmp_path):
    encode = Encoder(policy.processor, prompts.Think(), ())
    AnswerEvaluator(EXAMPLES, encode, SOURCE, SHORT, WeightedSum({"accuracy": Part(AnswerMatch())})).samples(
        policy, torch.Generator().manual_seed(0), tmp_path / "s", 3
    )
    rows = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert len(rows) == 3
    assert rows[0]["expected"] == EXAMPLES[0].answer
    assert (tmp_path / "s" / rows[0]["images"][0]).exists()


def test_splits_do_not_overlap_and_held_out_is_never_trained_on():
    split = FewShot(shots=4, evaluation=400, dev=200).split(SOURCE)
    sets = [{e.id for e in part} for part in (split.demonstrations, split.pool, split.dev, split.evaluation)]
    assert [len(s) for s in sets] == [40, 1157, 200, 400]
    assert len(set.union(*sets)) == sum(len(s) for s in sets)
    per_class = {label: sum(e.answer == label for e in split.demonstrations) for label in split.labels}
    assert set(per_class.values()) == {4}


def test_thoughts_are_parsed_not_searched():
    """ "seven" contains "even": a thought is what its sentence claims."""
    assert SOURCE.thought_agrees("The digit is odd and has no hole.", "seven") is True
    assert SOURCE.thought_agrees("The digit is even and has no hole.", "seven") is False
    assert SOURCE.thought_agrees("seven", "seven") is None
