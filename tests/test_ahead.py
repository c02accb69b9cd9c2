"""Collecting ahead of the update: the stream, versions of weights, bounded staleness, and that staleness 0 and a resume
change nothing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import ahead as bandits
from mmrl import commands
from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.ahead import Ahead, Files, InMemory, Network, Sample, SampleStream, Stale, WeightStore
from mmrl.ahead import weights as weights_module
from mmrl.ahead.feed import Position
from mmrl.ahead.running import Running
from mmrl.ahead.source import Here, twin
from mmrl.ahead.weights import VersionError, put_into, trained
from mmrl.ahead.worker import Elsewhere
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.cli import main
from mmrl.metrics import PARITY_LIMIT
from mmrl.parts import Parts
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.scoring import score
from mmrl.selectors import TruncatedImportance
from mmrl.settings import TrainConfig
from mmrl.surrogates import AIPO, PPOClip, Reinforce
from mmrl.trainer import Trainer
from mmrl.types import Rollout
from tests.toy import (
    CategoricalPolicy,
    RightActions,
    ToyCollector,
    ToyEvaluator,
    ToyPolicyConfig,
    ToyRollout,
    fixed_rollout,
    toy_config,
)

RUNTIME = Runtime(RuntimeConfig(device="cpu"), 0)
POLICY = CategoricalPolicy(ToyPolicyConfig())
ROLLOUT = fixed_rollout(POLICY, prompts=2, group=2)
STEPS = 8


def sample(number: int, source: int = 0, version: int = 0) -> Sample:
    return Sample(number, source, version, ROLLOUT)


# ---- the stream -------------------------------------------------------------------------------------------


def test_every_consumer_gets_every_sample_once_and_in_order_whatever_comes_first() -> None:
    chance = random.Random(0)
    stream = SampleStream({"update": ("ref_logprobs",), "reference": ()}, sources=2)
    waiting = {source: list(range(6)) for source in range(2)}  # each source in its own order, the two at random
    while any(waiting.values()):
        source = chance.choice([s for s, left in waiting.items() if left])
        stream.put(sample(waiting[source].pop(0), source))
    assert len(stream) == 12
    for number in range(6):
        for taken in stream.take("reference", number) or ():
            stream.fill(taken.key, {"ref_logprobs": torch.full_like(ROLLOUT.logprobs, number)})
    assert len(stream) == 12
    for number in range(6):
        found = stream.take("update", number)
        assert found is not None
        assert [one.key for one in found] == [(number, 0), (number, 1)]
        assert all(bool((one.rollout.ref_logprobs == number).all()) for one in found)
    assert len(stream) == 0
    with pytest.raises(ValueError, match="update takes rollout 5 again"):
        stream.take("update", 5)


def test_a_sample_is_not_there_before_all_of_its_columns_and_sources_are() -> None:
    stream = SampleStream({"update": ("ref_logprobs",), "reference": ()}, sources=2)
    stream.put(sample(0))
    with pytest.raises(TimeoutError, match="rollout 0 was not ready for reference"):
        stream.take("reference", 0, timeout_s=0.01)
    stream.put(sample(0, 1))
    assert stream.take("reference", 0, timeout_s=0.01) is not None
    stream.fill((0, 0), {"ref_logprobs": ROLLOUT.logprobs})
    with pytest.raises(TimeoutError):
        stream.take("update", 0, timeout_s=0.01)
    stream.fill((0, 1), {"ref_logprobs": ROLLOUT.logprobs})
    assert stream.take("update", 0, timeout_s=0.01) is not None


def test_what_is_too_old_doubled_failed_or_closed_is_said() -> None:
    stream = SampleStream({"update": ()})
    stream.put(sample(3, version=1))
    with pytest.raises(Stale, match="rollout 3 was drawn by version 1 of the policy, and the bound is 2"):
        stream.take("update", 3, oldest=2)
    with pytest.raises(ValueError, match="source 0 puts rollout 3 again"):
        stream.put(sample(3))
    stream.fail(5, ArithmeticError("no reward"))
    stream.put(sample(4, version=3))
    assert stream.take("update", 4) is not None  # what came before the failure is still there
    with pytest.raises(ArithmeticError, match="no reward"):
        stream.take("update", 5)
    other = SampleStream({"update": ()})
    threading.Timer(0.05, other.close).start()
    assert other.take("update", 0) is None


# ---- versions of weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda _: InMemory(), Files, lambda _: Network()], ids=["memory", "files", "network"])
def test_versions_come_whole_and_go(make: Callable[[Path], WeightStore], tmp_path: Path) -> None:
    store, policy = make(tmp_path), CategoricalPolicy(ToyPolicyConfig(init_seed=1))
    with pytest.raises(VersionError, match="version 0 of the weights is"):
        store.get(0)
    for version in range(4):
        with torch.no_grad():
            policy.head.bias.fill_(version)
        store.publish(version, trained(policy))
    with torch.no_grad():
        policy.head.bias.fill_(9.0)  # of no consequence for what was published
    assert store.wait(2) == 3
    other = CategoricalPolicy(ToyPolicyConfig(init_seed=2))
    put_into(other, store.get(1))
    assert torch.equal(other.head.bias, torch.ones(4))
    assert torch.equal(other.embed.weight, policy.embed.weight)
    store.drop(9)
    assert store.versions() == [3]
    threading.Timer(0.05, store.close).start()
    assert store.wait(4) is None
    with pytest.raises(ValueError, match="not of this policy, which has no other"):
        put_into(other, {"other": torch.zeros(1)})
    store.clear()
    assert store.versions() == []


def test_a_file_that_is_not_as_it_was_written_is_not_loaded(tmp_path: Path) -> None:
    store = Files(tmp_path)
    store.publish(7, trained(POLICY))
    path = tmp_path / "version_000007.weights"
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(broken)
        with pytest.raises(VersionError, match="version 7 of the weights in .* is not as it was written"):
            store.get(7)


def test_the_network_has_versions_in_pieces_for_readers_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "PIECE", 100)
    monkeypatch.setattr(weights_module, "PATIENCE", timedelta(seconds=1))
    store, weights = Network(), trained(POLICY)
    store.publish(3, weights)
    first = store.reader()()
    assert first.versions() == [3] and all(torch.equal(first.get(3)[name], weight) for name, weight in weights.items())
    store.publish(4, weights)
    del first
    other = store.reader()()
    assert other.versions() == [3, 4]
    assert all(torch.equal(other.get(4)[name], weight) for name, weight in weights.items())
    store._store.set("3/0", "x" * 100)
    with pytest.raises(VersionError, match="version 3 of the weights in the store at .* is not as it was written"):
        other.get(3)
    store._store.delete_key("4/1")
    with pytest.raises(VersionError, match="version 4 of the weights was removed while it was read"):
        other.get(4)
    with pytest.raises(ValueError, match="InMemory cannot be read from another process"):
        InMemory().reader()


def test_a_twin_shares_what_is_frozen_and_nothing_else() -> None:
    policy = CategoricalPolicy(ToyPolicyConfig())
    policy.embed.requires_grad_(False)
    other = twin(policy)
    assert other.embed.weight is policy.embed.weight
    assert other.head.weight is not policy.head.weight
    assert torch.equal(other.head.weight, policy.head.weight)


# ---- bounded staleness ------------------------------------------------------------------------------------


class Dawdling(ToyCollector):
    """Takes a random time for every rollout."""

    chance = random.Random(1)

    def collect(self, policy: CategoricalPolicy, generator: torch.Generator) -> Rollout:
        time.sleep(self.chance.random() * 0.02)
        return super().collect(policy, generator)


def running(staleness: int, exact: bool, steps: int = 12) -> tuple[Running, CategoricalPolicy, InMemory]:
    policy = CategoricalPolicy(ToyPolicyConfig())
    collector = Dawdling(RightActions(), ToyRollout())
    parts = Parts(policy, collector, ToyEvaluator(), Algorithm(GroupRelative(), PPOClip(), TokenMean()))
    store, runtime = InMemory(), Runtime(RuntimeConfig(device="cpu"), 3)
    source = Here(parts, twin(policy), store, 0, 64, runtime)
    return Running(parts, [source], store, Ahead(staleness, exact), steps, 64, runtime), policy, store


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_rollout_is_of_the_version_it_says_and_no_older_than_allowed(staleness: int, exact: bool) -> None:
    feed, policy, _ = running(staleness, exact)
    chance, versions = random.Random(0), [trained(policy)]
    ages = []
    for step in range(12):
        rollout = feed.next(step)
        assert rollout.staleness is not None
        age = int(rollout.staleness[0])
        assert bool((rollout.staleness == age).all())
        drew = CategoricalPolicy(ToyPolicyConfig())
        put_into(drew, versions[step - age])
        assert torch.equal(score(drew, rollout, 64), torch.where(rollout.mask, rollout.logprobs, 0.0))
        ages.append(age)
        time.sleep(chance.random() * 0.02)
        with torch.no_grad():
            policy.head.bias.add_(torch.tensor([0.1, 0.0, -0.1, 0.2]))
        versions.append(trained(policy))
        feed.updated(step + 1)
    feed.close()
    assert max(ages) <= staleness
    if exact:
        assert ages == [min(step, staleness) for step in range(12)]


def test_weights_are_taken_while_a_reference_lets_a_frozen_adapter_need_gradients() -> None:
    policy = CategoricalPolicy(ToyPolicyConfig())
    policy.embed.requires_grad_(False)
    other, published = twin(policy), trained(policy)
    policy.embed.requires_grad_(True)  # the twin has the same parameter
    put_into(other, published)
    with pytest.raises(ValueError, match="has no elsewhere"):
        put_into(other, {"elsewhere": torch.zeros(1)})


def test_a_rank_that_was_not_there_goes_on_where_the_others_stand() -> None:
    feed, _, _ = running(1, exact=False)
    feed.restore(5, Position({"drawn": 40}, {}))
    assert feed.position().collector == {"drawn": 40}


def test_while_it_has_settled_nothing_is_drawn_and_no_more_than_asked_for_ever_is() -> None:
    feed, _, _ = running(2, exact=True, steps=4)
    feed.next(0)
    feed.settle()
    assert len(feed.stream) == 2  # rollouts 1 and 2: the third needs an update
    time.sleep(0.05)
    assert len(feed.stream) == 2
    for step in (1, 2, 3):
        feed.updated(step)
        feed.next(step)
    feed.updated(4)
    feed.settle()
    assert len(feed.stream) == 0
    feed.close()


def test_an_error_in_the_thread_comes_where_its_rollout_would_have() -> None:
    feed, _, _ = running(1, exact=True)
    collector = feed.parts.collector
    assert isinstance(collector, Dawdling)
    collector.reward = Breaking(at=2)
    feed.next(0)
    feed.updated(1)
    feed.next(1)
    before = feed.position()
    feed.updated(2)
    with pytest.raises(ArithmeticError, match="a reward of rollout 2"):
        feed.next(2)
    assert before.collector == {"drawn": 8} == feed.position().collector
    feed.close()


@dataclass(frozen=True)
class Breaking(RightActions):
    """Raises at its rollout `at`."""

    at: int = 0

    def __call__(self, samples):  # type: ignore[no-untyped-def]
        counted = vars(self).setdefault("_count", [0])
        counted[0] += 1
        if counted[0] > self.at:
            raise ArithmeticError(f"a reward of rollout {counted[0] - 1}")
        return super().__call__(samples)


# ---- runs -------------------------------------------------------------------------------------------------


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "ahead/"))} for line in found]


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "write_report", lambda runs: "not drawn")


def trained_run(folder: Path, name: str, *words: str) -> Path:
    config = folder / "toy.yaml"
    if not config.exists():
        toy_config(folder, STEPS)
    assert main(["train", str(config), "--run", str(folder / name), *words]) == 0
    return folder / name


def weights(run: Path) -> dict[str, Tensor]:
    policy = ToyPolicyConfig().make()
    policy.load_weights(run / "checkpoints" / f"step_{STEPS:06d}" / "policy")
    return policy.state_dict()


def assert_same(run: Path, other: Path) -> None:
    assert lines(run) == lines(other)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(run).items())


@pytest.fixture(scope="module")
def one_step_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "write_report", lambda runs: "not drawn")
        return trained_run(tmp_path_factory.mktemp("one"), "run", "train.ahead={staleness: 1}")


def test_staleness_0_equals_collecting_on_demand_bit_for_bit(tmp_path: Path, one_step_off: Path) -> None:
    plain = trained_run(tmp_path, "plain")
    assert_same(trained_run(tmp_path, "zero", "train.ahead={staleness: 0}"), plain)
    assert_same(trained_run(tmp_path, "free", "train.ahead={staleness: 0, exact: false}"), plain)
    assert lines(one_step_off) != lines(plain)


@pytest.mark.parametrize("staleness", [1, 3])
def test_a_run_that_is_interrupted_goes_on_with_the_same_numbers(
    staleness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollouts that were drawn ahead when it stopped are drawn again, by the versions that drew them."""
    words, step = f"train.ahead={{staleness: {staleness}}}", Trainer.step
    whole = trained_run(tmp_path, "whole", words)

    def interrupting(self: Trainer) -> dict[str, float]:
        found = step(self)
        self.interrupted = self.state.step in (3, 4)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupting)
        assert main(["train", str(tmp_path / "toy.yaml"), "--run", str(tmp_path / "cut"), words]) == 130
        behind = torch.load(tmp_path / "cut" / "checkpoints" / "step_000003" / "behind.pt", weights_only=True)
        assert list(behind) == list(range(3 - staleness, 3))
        assert main(["train", "--run", str(tmp_path / "cut"), "--resume"]) == 130
    assert main(["train", "--run", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same(tmp_path / "cut", whole)


def test_processes_draw_what_a_thread_draws_and_one_that_is_killed_is_replaced(
    tmp_path: Path, one_step_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], Elsewhere.draw

    def killed_now_and_then(self: Elsewhere, number: int, version: int) -> Sample:
        self.place()
        if number in (2, 5):
            os.kill(self.pid, signal.SIGKILL)
        drawn.append(number)
        found = draw(self, number, version)
        assert self.restarts == (number >= 2) + (number >= 5)
        return found

    monkeypatch.setattr(Elsewhere, "draw", killed_now_and_then)
    found = trained_run(tmp_path, "run", "train.ahead={staleness: 1, processes: 1}")
    assert drawn == list(range(STEPS))
    assert_same(found, one_step_off)
    assert not (found / ".ahead").exists()


def test_two_processes_share_a_rollout_as_ranks_do(tmp_path: Path) -> None:
    found = lines(
        trained_run(tmp_path, "run", "train.ahead={staleness: 1, processes: 2, weights: network}", "train.steps=2")
    )
    assert [line["rollout/failed_rows"] for line in found if "update/loss" in line] == [0.0, 0.0]
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_000002" / "state.json").read_text())
    assert state["samples"] == 2 * 16  # 4 prompts of 4 answers, 2 prompts from each


def test_what_draws_counts_as_training(tmp_path: Path) -> None:
    """Whenever it draws: here for the most part while the trainer evaluates, and waits for it."""
    found = {}
    for name, words in {"plain": [], "ahead": ["train.ahead={staleness: 1}"]}.items():
        run = trained_run(tmp_path, name, *words, "evaluate.every=1", "rollout.prompts=32", "rollout.group=32")
        found[name] = json.loads((run / "summary.json").read_text())
    assert found["ahead"]["cpu_s"] > 0.5 * found["plain"]["cpu_s"]
    assert found["ahead"]["eval_cpu_s"] < 0.5 * found["ahead"]["cpu_s"]


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="which needs a run with a folder"):
        Trainer(toy_parts(), TrainConfig(ahead=Ahead(processes=1)), RUNTIME)
    with pytest.raises(ValueError, match="train.resample is 1 and train.ahead.processes is 2"):
        TrainConfig(ahead=Ahead(processes=2), resample=1)
    with pytest.raises(ValueError, match="no part reads those of the policy that drew"):
        Trainer(toy_parts(), TrainConfig(ahead=Ahead(1), update=UpdateConfig(rescore=True)), RUNTIME)
    with pytest.raises(ValueError, match="train.ahead.staleness is -1"):
        Ahead(-1)
    with pytest.raises(ValueError, match="train.ahead.tries is 0"):
        Ahead(tries=0)


def toy_parts(algorithm: Algorithm | None = None) -> Parts:
    policy = CategoricalPolicy(ToyPolicyConfig())
    collector = ToyCollector(RightActions(), ToyRollout())
    return Parts(policy, collector, ToyEvaluator(), algorithm or Algorithm(GroupRelative(), PPOClip(), TokenMean()))


# ---- what is learnt from it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "update"),
    [
        (Algorithm(GroupRelative(), AIPO(), TokenMean()), UpdateConfig()),
        (Algorithm(GroupRelative(), PPOClip(), TokenMean()), UpdateConfig()),
        (
            Algorithm(GroupRelative(), Reinforce(), TokenMean(), selectors=(TruncatedImportance(),)),
            UpdateConfig(rescore=True),
        ),
    ],
    ids=["AIPO", "PPO", "TIS"],
)
def test_corrections_read_the_log_probs_of_who_drew(algorithm: Algorithm, update: UpdateConfig) -> None:
    """Ratios are to the policy that drew, unless old log-probs were computed again."""
    trainer = Trainer(toy_parts(algorithm), TrainConfig(steps=6, lr=0.05, update=update, ahead=Ahead(2)), RUNTIME)
    found: list[Mapping[str, float]] = [trainer.step() for _ in range(5)]
    trainer.feed.close()
    assert [metrics["ahead/staleness"] for metrics in found] == [0, 1, 2, 2, 2]
    assert all(metrics["parity/logprob_diff_max"] <= PARITY_LIMIT for metrics in found)
    moved = [metrics["update/ratio_max"] for metrics in found]
    if update.rescore:
        assert all(ratio == pytest.approx(1.0, abs=1e-5) for ratio in moved)
    else:
        assert moved[0] == pytest.approx(1.0, abs=1e-5)
        assert all(ratio > 1.01 for ratio in moved[1:])


@pytest.mark.parametrize(("drew", "theta"), bandits.STALE.values(), ids=bandits.STALE)
def test_on_a_stale_bandit_the_weights_give_the_exact_gradient_but_for_what_is_cut(drew: float, theta: float) -> None:
    better, now = (1 / (1 + math.exp(-x)) for x in (drew, theta))
    exact = now * (1 - now) * (bandits.REWARDS[1] - bandits.REWARDS[0])

    def mean(surrogate: AIPO | Reinforce) -> float:
        worse_arm, better_arm = bandits.gradients(surrogate, drew, theta)
        return (1 - better) * worse_arm + better * better_arm

    assert mean(AIPO(math.inf)) == pytest.approx(exact, rel=1e-9)
    score = {1: (now, better, 1 - now), 0: (1 - now, 1 - better, -now)}  # pi, mu, d log pi / d theta
    cut = {
        arm: max(0.0, pi - 2.0 * mu) * (bandits.REWARDS[arm] - bandits.BASELINE) * d
        for arm, (pi, mu, d) in score.items()
    }
    assert mean(AIPO(2.0)) == pytest.approx(exact - sum(cut.values()), rel=1e-9)
    assert (mean(Reinforce()) == pytest.approx(exact)) == (drew == theta)
