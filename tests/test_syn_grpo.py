"""Syn-GRPO end to end: descriptions come back as replayed rows, everything is accounted for, runs resume to the same."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.parts import Parts
from mmrl.recipes import find_asset
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.scoring import score
from mmrl.settings import TrainConfig
from mmrl.surrogates import CISPO, PPOClip
from mmrl.testing import check_policy
from mmrl.trainer import Trainer
from mmrl.types import Rollout
from rewards.compose import Part, WeightedSum
from rewards.text import AnswerMatch, TagFormat
from vision.collector import AnswerCollector, RolloutConfig
from vision.data import Placed
from vision.encoding import Encoder
from vision.policy import PolicyConfig, VisionPolicy
from vision.prompts import Describe
from vision.synthetic import Backgrounds, Generator, Request, ServerConfig, Unmade
from vision.synthetic.collector import EvolvingCollector
from vision.synthetic.config import SyntheticConfig
from vision.synthetic.described import Written, description_span

pytestmark = pytest.mark.timeout(240)

EXAMPLES = Placed(count=64, scale=(0.85, 0.95)).examples()
RUNTIME = Runtime(RuntimeConfig(device="cpu"), seed=3)
GRPO = Algorithm(GroupRelative(), PPOClip(), TokenMean(), replayed=CISPO(clip_high=1.0))
WAITING = SyntheticConfig(Backgrounds(), per_prompt=3, wait_s=120.0)


@pytest.fixture
def policy() -> VisionPolicy:
    return VisionPolicy.load(PolicyConfig(find_asset("assets/vision/placed"), freeze_vision=False)).eval()


@contextmanager
def evolving(policy: VisionPolicy, config: SyntheticConfig = WAITING, seed: int = 3) -> Iterator[EvolvingCollector]:
    runtime = Runtime(RuntimeConfig(device="cpu"), seed=seed)
    reward = WeightedSum({"accuracy": Part(AnswerMatch()), "format": Part(TagFormat(("answer", "desc")), 0.5)})
    encode = Encoder(policy.processor, Describe(), ())
    answers = AnswerCollector(EXAMPLES, encode, reward, RolloutConfig(4, 4, 16), runtime)
    collector = EvolvingCollector(answers, config)
    try:
        yield collector
    finally:
        collector.close()


def collected(collector: EvolvingCollector, policy: VisionPolicy, steps: int) -> list[Rollout]:
    generator = torch.Generator().manual_seed(0)
    with acting(policy):
        return [collector.collect(policy, generator) for _ in range(steps)]


def accounted(collector: EvolvingCollector) -> None:
    counts, waiting = collector.counts, len(collector.state_dict()["synthetic"]["open"])
    assert counts.posted == counts.answered + counts.refused + counts.broken + counts.dropped + counts.stale + waiting


def test_a_description_comes_back_with_what_it_is_paid(policy: VisionPolicy) -> None:
    with evolving(policy) as collector:
        first, second = collected(collector, policy, 2)
        shown = collector.measured()["synthetic/share"]
        accounted(collector)
    assert len(first) == 16
    assert not first.replayed.any()
    assert shown == 0.5
    old = second.replayed
    assert int(old.sum()) >= 2
    assert len(second) == 16 + int(old.sum())
    assert torch.equal(second.applicable["diversity"], old)
    assert torch.allclose(second.returns()[old], second.reward_parts["diversity"][old])
    credit = GRPO.assign(second).advantages
    assert torch.allclose(credit[old].amax(-1) + credit[old].amin(-1), second.returns()[old])  # elsewhere it is 0


def test_parity_of_fresh_and_of_replayed_rows(policy: VisionPolicy) -> None:
    """With unchanged weights a row that comes back later is scored as it was drawn: ratio 1 within 1e-5."""
    with evolving(policy) as collector:
        _, second = collected(collector, policy, 2)
    check_policy(policy, second)
    found = score(policy, second, 5)
    assert second.mask[second.replayed].any()
    assert float((found - second.logprobs)[second.mask].abs().max()) < 1e-5


def test_each_token_is_trained_by_the_reward_that_it_caused(policy: VisionPolicy) -> None:
    with evolving(policy) as collector:
        _, second = collected(collector, policy, 2)
    tokenizer = policy.processor.tokenizer
    assert int(second.replayed.sum()) > 0
    for row in range(len(second)):
        tokens, trained = second.transitions.completions[row], second.mask[row]
        said = tokenizer.decode(tokens[trained])
        whole = tokenizer.decode(tokens[second.alive[row]])
        if second.replayed[row]:
            assert f"<desc>{said}</desc>" in whole
        elif "</desc>" in whole:
            assert "<desc></desc>" in said
            assert said.split("<desc>")[0] == whole.split("<desc>")[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<answer>one</answer><desc>red stripes</desc>", "red stripes"),
        ("<answer>one</answer><desc>  grass </desc>", "grass"),
        ("<answer>one</answer><desc></desc>", None),
        ("<answer>one</answer><desc>grass", None),
        ("grass</desc>", None),
        ("</desc><desc>", None),
        ("<desc>grass</desc><desc>stars</desc>", "grass"),
        ("", None),
    ],
)
def test_where_a_description_stands(policy: VisionPolicy, text: str, found: str | None) -> None:
    tokens = policy.processor.tokenizer.encode(text, add_special_tokens=False)
    span = description_span(policy, tokens)
    if found is None:
        assert span is None
        return
    words, own = span
    assert words == found
    assert policy.processor.tokenizer.decode(tokens[own.start : own.stop]).strip() == found
    assert policy.processor.tokenizer.decode(tokens[: own.start]).endswith("<desc>")


def test_random_descriptions_train_no_description(policy: VisionPolicy) -> None:
    config = replace(WAITING, descriptions="random", vocabulary=("grass", "red plain"))
    with evolving(policy, config) as collector:
        _, second = collected(collector, policy, 2)
        assert collector.measured()["synthetic/share"] > 0
        assert {one.columns["provenance"]["description"] for one in collector.wall} <= {"grass", "red plain"}
    assert not second.replayed.any()


def test_without_a_share_there_is_no_server(policy: VisionPolicy) -> None:
    with evolving(policy, replace(WAITING, share=0.0)) as collector:
        assert collector.server is None
        rollouts = collected(collector, policy, 2)
        assert collector.measured()["diversity/agreed"] <= 1
    assert [len(rollout) for rollout in rollouts] == [16, 16]


def test_the_server_ends_with_its_collector(policy: VisionPolicy) -> None:
    import gc
    from pathlib import Path

    with evolving(policy) as collector:
        pid = collector.server.pid
        collector.close = lambda: None  # as in a run, where nobody closes it
    del collector
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_what_is_too_old_is_discarded(policy: VisionPolicy) -> None:
    config = replace(WAITING, share=0.25, max_staleness=1, per_prompt=4)
    with evolving(policy, config) as collector:
        rollouts = collected(collector, policy, 4)
        assert collector.counts.stale > 0
        assert collector.measured()["synthetic/staleness"] == 1
        accounted(collector)
    assert all(int(rollout.replayed.sum()) >= 1 for rollout in rollouts[1:])


def test_a_resumed_collector_goes_on_as_the_uninterrupted_one(policy: VisionPolicy) -> None:
    generator = torch.Generator().manual_seed(0)
    with evolving(policy) as collector, acting(policy):
        for _ in range(3):
            collector.collect(policy, generator)
        state, drawn = collector.state_dict(), generator.get_state()
        expected = [collector.collect(policy, generator) for _ in range(2)]
        counts = collector.counts
    with evolving(policy) as collector, acting(policy):
        collector.load_state_dict(state)
        generator.set_state(drawn)
        found = [collector.collect(policy, generator) for _ in range(2)]
        assert collector.counts == counts
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.transitions.completions, other.transitions.completions)
        assert torch.equal(one.rewards, other.rewards)
        assert torch.equal(one.replayed, other.replayed)


def test_a_run_whose_server_is_killed_loses_no_sample(policy: VisionPolicy) -> None:
    """Five kills here; `python -m benchmarks.syn_grpo kills` makes twenty of a longer run."""
    killed, over = [0], threading.Event()
    with evolving(policy, replace(WAITING, wait_s=0.0)) as collector:

        def kill() -> None:
            chance = random.Random(0)
            while not over.wait(chance.uniform(0.1, 2.0)) and killed[0] < 5:
                if collector.server is not None:
                    try:
                        os.kill(collector.server.pid, signal.SIGKILL)
                        killed[0] += 1
                    except ProcessLookupError:  # it was not back yet
                        pass

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            trainer = Trainer(Parts(policy, collector, None, GRPO), TrainConfig(lr=1e-4), RUNTIME)
            began = time.monotonic()
            while collector.counts.answered == 0 or killed[0] < 5:
                metrics = trainer.step()
                accounted(collector)
                assert metrics.get("parity/logprob_diff_max", 0.0) < 1e-5  # nothing is scored where all agree
                assert time.monotonic() - began < 120
        finally:
            over.set()
            killer.join()


def test_the_update_does_not_depend_on_micro_rows(policy: VisionPolicy) -> None:
    from mmrl.update import update

    with evolving(policy) as collector:
        _, rollout = collected(collector, policy, 2)
    start, found = {k: v.clone() for k, v in policy.state_dict().items()}, []
    for rows in (64, 3):
        policy.load_state_dict(start)
        config = UpdateConfig(micro_rows=rows, max_grad_norm=1e9)
        update(policy, rollout, GRPO, torch.optim.SGD(policy.parameters(), 0.1), RUNTIME, config)
        found.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"share": 1.5}, "synthetic.share is 1.5"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"per_prompt": 0}, "per_prompt 0"),
        ({"descriptions": "random"}, "vocabulary is empty"),
    ],
)
def test_bad_settings_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SyntheticConfig(Backgrounds(), **changes)


class Broken(Generator):
    """Always out of memory."""

    def fill(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Unmade]:
        raise RuntimeError(f"out of memory, {len(requests)} MB")


def test_a_broken_generator_is_no_description_s_fault(policy: VisionPolicy) -> None:
    """Nothing is paid, and the reason is said once."""
    with (
        evolving(policy, replace(WAITING, generator=Broken())) as collector,
        pytest.warns(UserWarning, match="Broken made no picture of a description: RuntimeError: out of memory") as said,
    ):
        rollouts = collected(collector, policy, 3)
        assert collector.counts.broken > 0 == collector.counts.refused
        assert all(rollout.replayed is None or not bool(rollout.replayed.any()) for rollout in rollouts)
        accounted(collector)
    assert len(said) == 1


def test_backgrounds_are_as_large_as_the_picture() -> None:
    mask = np.zeros((24, 32), dtype=bool)
    request = Request(0, "a", ("b",), np.zeros((24, 32, 3), np.uint8), mask, "red stripes", 0, seed=1)
    (wide,) = Backgrounds().fill([request])
    (square,) = Backgrounds().fill([replace(request, mask=np.zeros((32, 32), dtype=bool))])
    assert np.array_equal(wide, square[:24])


def test_what_the_server_could_never_take_is_refused() -> None:
    with pytest.raises(ValueError, match="queue is 64, and a step posts up to 66 descriptions"):
        WAITING.check(RolloutConfig(22, 4, 16), 1)
    WAITING.check(RolloutConfig(21, 4, 16), 1)
    with pytest.raises(ValueError, match="synthetic is set on 2 processes"):
        WAITING.check(RolloutConfig(4, 4, 16), 2)


def test_an_example_without_a_mask_is_refused(policy: VisionPolicy) -> None:
    bare = [replace(example, columns={}) for example in EXAMPLES]
    encode = Encoder(policy.processor, Describe(), ())
    answers = AnswerCollector(
        bare, encode, WeightedSum({"accuracy": Part(AnswerMatch())}), RolloutConfig(4, 4), RUNTIME
    )
    with pytest.raises(ValueError, match="placed-digits-name-00000 has no column 'mask'"):
        EvolvingCollector(answers, WAITING)


def test_a_reward_that_is_not_there_is_named(policy: VisionPolicy) -> None:
    with evolving(policy, replace(WAITING, accuracy="right")) as collector, pytest.raises(ValueError, match="'right'"):
        collected(collector, policy, 1)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rollout.turns=2", "synthetic is set with rollout.turns 2"),
        ("policy.critic={}", "synthetic is set with rollout.turns 1 and policy.critic"),
        (
            "algorithm.selectors=[mmrl.selectors.ForkingTokens]",
            "algorithm has ForkingTokens, which plans on statistics",
        ),
        ("train.resample=1", "synthetic is set and train.resample is 1"),
        ("rollout.plan=vision.plans.CURE", "rollout.plan is CURE and `synthetic` is set"),
        ("synthetic.accuracy=right", "synthetic.accuracy is 'right'"),
        ("synthetic.generator.init_args.photographs=[moon]", "names 'moon'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(override: str, told: str) -> None:
    from mmrl.config import ConfigError, load

    with pytest.raises(ConfigError, match=told):
        load("vision/syn_grpo", [override])


def test_written_survives_json() -> None:
    import json

    one = Written(3, "grass", (1, 2), (-0.1, -1.5), 0, 2, 7, 9, 11)
    assert Written.from_json(json.loads(json.dumps(one.as_json()))) == one
    assert ServerConfig().queue == 64
