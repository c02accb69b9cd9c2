"""Conversations of several turns with pictures in between: log-probs, masks, tokens and limits."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from mmrl.advantages import GAE, GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.heads import CriticConfig
from mmrl.parts import Parts
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.settings import TrainConfig
from mmrl.surrogates import PPOClip
from mmrl.testing import check_collector, check_policy
from mmrl.trainer import Trainer
from mmrl.types import RewardFunction, Samples, Scores
from mmrl.value_loss import ValueRegression
from rewards.compose import Part, WeightedSum
from rewards.text import AnswerMatch
from tests.tiny_vlms import ARCHITECTURES, make
from vision.collector import AnswerCollector, RolloutConfig
from vision.conversation import Limits, as_samples, converse
from vision.data import Digits
from vision.data.base import Example
from vision.demonstrations import Corrections, DemonstrationCollector
from vision.dialogue import ContextFull, Dialogue
from vision.encoding import Encoder
from vision.evaluation import AnswerEvaluator
from vision.policy import PolicyConfig, VisionPolicy
from vision.prompts import Direct
from vision.tools import Reply, Tool

DIGITS = Digits().examples()[:12]
LIMITS = Limits(turns=3, max_new_tokens=4, max_prompt_tokens=4096)


class Echo(Tool):
    """Shows another picture with a sentence; stops a conversation after `stop(row)` turns."""

    def __init__(self, stop=lambda row: 9, pictures=True) -> None:
        self.stop, self.pictures = stop, pictures
        self.heard: list[list[Sequence[str]]] = []

    def replies(self, turns: Sequence[Sequence[str]], examples: Sequence[Example]) -> list[Reply]:
        self.heard.append([tuple(said) for said in turns])
        found = []
        for row, said in enumerate(turns):
            shade = Image.new("RGB", (32, 32), (40 * len(said), 10 * row % 255, 99))
            over = len(said) >= self.stop(row)
            found.append(Reply("Look again.", (shade,) if self.pictures else (), over, record=len(said)))
        return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    make(request.param, path)
    return path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    make("qwen2_5_vl", path)
    return path


def load(folder, **options) -> VisionPolicy:
    config = PolicyConfig(str(folder), **{"freeze_vision": False, **options})
    return ending(VisionPolicy.load(config, torch.Generator().manual_seed(0)).eval())


def ending(policy: VisionPolicy) -> VisionPolicy:
    """A third of all tokens end a turn, so that random weights end most of theirs."""
    policy.eos_ids = tuple(sorted({*policy.eos_ids, *range(0, len(policy.banned), 3)}))
    return policy


def hold(policy: VisionPolicy, tool: Tool | None, limits: Limits = LIMITS, seed: int = 0):
    encode = Encoder(policy.processor, Direct(suffix=""), ())
    return converse(policy, encode, DIGITS[:3], 2, limits, tool, torch.Generator().manual_seed(seed))


def rescored(policy: VisionPolicy, held) -> torch.Tensor:
    steps = torch.arange(held.logprobs.shape[1]).expand(len(held.logprobs), -1)
    return torch.where(held.alive, policy(held.transitions, steps).logprobs, 0.0)


def test_rescored_logprobs_are_the_recorded_ones_over_turns_and_pictures(folder):
    policy = load(folder)
    held = hold(policy, Echo())
    assert max(len(c.turns) for c in held.conversations) > 1
    assert (rescored(policy, held) - held.logprobs).abs().max() < 1e-5


def test_the_same_numbers_where_prompts_cannot_be_shared(qwen):
    held = hold(load(qwen), Echo())
    plain = load(qwen, shared_prefix="never")
    assert (rescored(plain, held) - held.logprobs).abs().max() < 1e-5


def test_rescored_values_are_the_recorded_ones(qwen):
    policy = load(qwen, critic=CriticConfig())
    torch.nn.init.normal_(next(policy.critic.parameters()))
    held = hold(policy, Echo())
    steps = torch.arange(held.logprobs.shape[1]).expand(len(held.logprobs), -1)
    values = torch.where(held.alive, policy(held.transitions, steps).values, 0.0)
    assert (values - held.values).abs().max() < 1e-5


def test_a_chosen_few_are_scored_as_among_all(qwen):
    policy = load(qwen)
    held = hold(policy, Echo(stop=lambda row: 1 + row % 3))
    index = torch.tensor([4, 0, 3])
    few = held.transitions.rows(index)
    steps = torch.arange(held.logprobs.shape[1]).expand(3, -1)
    found = torch.where(held.alive[index], policy(few, steps).logprobs, 0.0)
    assert len(few) == 3
    assert (found - held.logprobs[index]).abs().max() < 1e-5


def test_decisions_are_what_the_policy_wrote_and_nothing_else(qwen):
    policy = load(qwen)
    tokenizer, tool = policy.processor.tokenizer, Echo(stop=lambda row: 1 + row % 3)
    held = hold(policy, tool)
    for row, conversation in enumerate(held.conversations):
        told = 0
        for turns, rows, lengths in zip(
            held.transitions.turns, held.transitions.row, held.transitions.length, strict=True
        ):
            for n in (rows == row).nonzero().flatten().tolist():
                told += int(lengths[n])
                tokens = turns.completions[n, : int(lengths[n])].tolist()
                kept = [token for token in tokens if token not in policy.eos_ids]
                assert tokenizer.decode(kept) in conversation.turns
        assert int(held.alive[row].sum()) == told == len(held.transitions.written(row))


def test_a_later_turn_follows_the_very_tokens_that_were_written(qwen):
    policy = load(qwen)
    policy.banned[list(policy.eos_ids)] = True  # no turn ends before its limit
    encode = Encoder(policy.processor, Direct(suffix=""), ())
    held = converse(policy, encode, DIGITS[:2], 1, Limits(2, 4, 4096), Echo(), torch.Generator().manual_seed(1))
    assert held.truncated.all()  # no end: cut, so that there is no second turn
    dialogue, prompt = Dialogue(policy.processor, 4096), encode(DIGITS[0])
    written = held.transitions.completions[0].tolist()
    following = dialogue.follow(prompt, written, Echo().replies([["x"]], DIGITS[:1])[0], "second")
    length = len(prompt.tokens)
    assert following.tokens[:length].tolist() == prompt.tokens.tolist()
    assert following.tokens[length : length + 4].tolist() == written
    assert following.vision["image_grid_thw"].shape[0] == 2
    assert all(len(t) == len(following.tokens) for t in following.per_token.values())


def test_a_continued_prompt_is_that_of_the_whole_chat(qwen):
    """Where decoding and encoding gives the same tokens, the template of the whole conversation says the same."""
    policy = load(qwen)
    encode, reply = Encoder(policy.processor, Direct(suffix=""), ()), Echo().replies([["x"]], DIGITS[:1])[0]
    written = policy.processor.tokenizer.encode("four", add_special_tokens=False)
    following = Dialogue(policy.processor, 4096).follow(encode(DIGITS[0]), written, reply, "second")
    user = [{"type": "image", "image": DIGITS[0].images[0]}, {"type": "text", "text": DIGITS[0].question}]
    shown = [{"type": "image", "image": reply.pictures[0]}, {"type": "text", "text": reply.text}]
    whole = policy.processor.apply_chat_template(
        [{"role": "user", "content": user}, {"role": "assistant", "content": [{"type": "text", "text": "four"}]},
         {"role": "user", "content": shown}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert policy.processor.tokenizer.decode(following.tokens) == policy.processor.tokenizer.decode(
        whole["input_ids"][0]
    )
    for name in following.vision:
        torch.testing.assert_close(following.vision[name], whole[name])


def test_the_tool_hears_every_turn_and_ends_conversations(qwen):
    tool = Echo(stop=lambda row: 1)
    held = hold(load(qwen), tool)
    assert [len(c.turns) for c in held.conversations] == [1] * 6
    assert all(c.replies[-1].over for c in held.conversations)
    once = hold(load(qwen), tool := Echo(), Limits(1, 4, 4096))
    assert len(tool.heard) == 1  # the last turn is heard too
    assert all(len(c.replies) == 1 for c in once.conversations)


def test_what_does_not_fit_ends_a_conversation_and_counts_as_cut(qwen):
    policy = load(qwen)
    longest = max(len(p.tokens) for p in Encoder(policy.processor, Direct(suffix=""), ()).many(DIGITS[:3]))
    held = hold(policy, Echo(), Limits(3, 4, longest + 2))
    assert all(len(c.turns) == 1 for c in held.conversations)
    assert held.truncated.all()
    assert float(held.alive.sum()) > 0
    with pytest.raises(ContextFull, match=r"rollout\.max_prompt_tokens is 3"):
        Dialogue(policy.processor, 3).follow(
            Encoder(policy.processor, Direct(suffix=""), ())(DIGITS[0]), [1, 2], Reply("more"), "x"
        )


def test_one_turn_is_what_it_is_without_a_tool(qwen):
    policy = load(qwen)
    alone, heard = hold(policy, None), hold(policy, Echo(), Limits(1, 4, 4096))
    torch.testing.assert_close(alone.logprobs, heard.logprobs)
    assert [c.turns for c in alone.conversations] == [c.turns for c in heard.conversations]


def test_rewards_read_turns_records_and_pictures(qwen):
    held = hold(load(qwen), Echo())
    samples = as_samples([example for example in DIGITS[:3] for _ in range(2)], held.conversations)
    assert [len(turns) for turns in samples.columns["turns"]] == [len(r) for r in samples.columns["records"]]
    assert samples.columns["records"][0][0] == 1
    assert samples.columns["pictures"][2][0] is DIGITS[1].images[0]
    assert list(samples.outputs) == [c.turns[-1] for c in held.conversations]


class Turns(RewardFunction):
    """The number of turns."""

    def __call__(self, samples: Samples) -> Scores:
        values = torch.tensor([float(len(turns)) for turns in samples.columns["turns"]])
        return Scores(values, torch.ones(len(samples), dtype=torch.bool))


def collector(policy: VisionPolicy, runtime: Runtime, tool: Tool) -> AnswerCollector:
    encode, reward = Encoder(policy.processor, Direct(suffix=""), ()), WeightedSum({"turns": Part(Turns())})
    return AnswerCollector(DIGITS, encode, reward, RolloutConfig(4, 3, 4, turns=3), runtime, tool)


@pytest.mark.parametrize("critic", [None, CriticConfig()])
def test_policy_and_collector_keep_their_contracts_and_a_step_is_taken(qwen, critic):
    runtime = Runtime(RuntimeConfig(device="cpu"), seed=3)
    policy = load(qwen, critic=critic, reuse_prefill=critic is None)
    tool = Echo(stop=lambda row: 1 + row % 3)
    made = collector(policy, runtime, tool)
    with acting(policy):
        rollout = made.collect(policy, torch.Generator().manual_seed(0))
    assert float(rollout.stats["turns"].max()) > 1
    last = rollout.alive.sum(-1) - 1
    assert (rollout.rewards != 0).sum() == 12  # one reward a conversation, on its very last token
    assert (rollout.rewards[torch.arange(12), last] != 0).all()
    policy._kept = None
    check_policy(policy, rollout)
    check_collector(collector(policy, runtime, tool), policy, lambda: torch.Generator().manual_seed(0))
    advantage, value_loss = (GroupRelative(), None) if critic is None else (GAE(), ValueRegression())
    algorithm = Algorithm(advantage, PPOClip(), TokenMean(), value_loss=value_loss)
    trainer = Trainer(Parts(policy, made, None, algorithm), TrainConfig(lr=1e-3), runtime)
    for metrics in (trainer.step(), trainer.step()):
        assert metrics["parity/logprob_diff_max"] < 1e-5
        assert metrics["update/grad_norm"] > 0


class Drafts(Digits):
    def draft(self, example: Example, chance: random.Random) -> str:
        return chance.choice(["zero", "one"])


def test_demonstrations_mix_first_turns_and_corrections_of_drafts(qwen):
    policy, runtime, tool = load(qwen), Runtime(RuntimeConfig(device="cpu"), seed=3), Echo()
    encode = Encoder(policy.processor, Direct(suffix=""), ())
    made = DemonstrationCollector(Drafts(), DIGITS, [encode], 12, runtime, Corrections(tool, 0.5))
    rollout = made.collect(policy, torch.Generator().manual_seed(0))
    pictures = [len(prompt.vision["image_grid_thw"]) for prompt in rollout.transitions.prompts]
    assert {1, 2} == set(pictures)
    assert {said for heard in tool.heard for (said,) in heard} == {"zero", "one"}
    decode = policy.processor.tokenizer.decode
    for row, example in enumerate(rollout.transitions.prompts):
        written = decode(rollout.transitions.completions[row][rollout.alive[row]])
        asked = next(e for e in DIGITS if e.id == example.id.removesuffix("/corrected"))
        assert written == f"{asked.answer}<|im_end|>"  # the right answer, after a draft too
    with pytest.raises(ValueError, match="has no drafts"):
        Digits().draft(DIGITS[0], random.Random(0))


def test_evaluation_shows_turns_and_what_is_written_without_looking(qwen, tmp_path):
    policy = load(qwen)
    encode = Encoder(policy.processor, Direct(suffix=""), ())
    reward = WeightedSum({"accuracy": Part(AnswerMatch())})
    evaluator = AnswerEvaluator(
        DIGITS, encode, Digits(), LIMITS, reward, metrics={"turns": Turns()}, tool=Echo(stop=lambda row: 2)
    )
    with acting(policy):
        found = evaluator.evaluate(policy, torch.Generator().manual_seed(0))
        evaluator.samples(policy, torch.Generator().manual_seed(0), tmp_path, 2)
    assert {"turns", "turns_image_shuffled", "accuracy_image_shuffled"} <= found.keys()
    assert found["turns"].value <= 2
    rows = json.loads((tmp_path / "samples.json").read_text())
    assert [turn["reply"] for turn in rows[0]["turns"]]
    assert (tmp_path / rows[0]["turns"][0]["images"][0]).is_file()
