"""Answers from a generation server: the same as drawn here, whatever fails on the way; and no lie is learnt from."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.config import ConfigError, load
from mmrl.parts import Parts
from mmrl.run import RunFolder
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.selectors import TruncatedImportance
from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
from mmrl.surrogates import PPOClip
from mmrl.trainer import Trainer
from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part, WeightedSum
from tests.fake_vllm import FakeVLLM, Said, serving
from tests.tiny_vlms import make
from vision import prompts
from vision.adapters import LoRA
from vision.collector import AnswerCollector, RolloutConfig
from vision.data import Digits
from vision.encoding import Encoder
from vision.evaluation import AnswerEvaluator
from vision.policy import PolicyConfig, VisionPolicy
from vision.sampling import draw
from vision.serving import VLLM, ServerError

EXAMPLES = Digits().examples()[:8]
GROUP, LIMIT = 3, 5
CORRECTED = Algorithm(GroupRelative(), PPOClip(), TokenMean(), selectors=(TruncatedImportance(),))


class Spread(RewardFunction):
    """Something that answers of a random model differ in."""

    def __call__(self, samples: Samples) -> Scores:
        values = torch.tensor([float(sum(map(ord, str(text))) % 5) for text in samples.outputs])
        return Scores(values, torch.ones(len(samples), dtype=torch.bool))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("qwen")
    make("qwen2_5_vl", path)
    return path


@functools.cache
def loaded(model: Path, adapter: bool) -> VisionPolicy:
    torch.manual_seed(1)  # a new adapter draws its A from the global generator
    config = PolicyConfig(str(model), adapter=LoRA(4, 8) if adapter else None, freeze_vision=False)
    return VisionPolicy.load(config).eval()


def load_policy(model: Path, adapter: bool = True) -> VisionPolicy:
    return copy.deepcopy(loaded(model, adapter))


Serve = Callable[[bool], FakeVLLM]


@pytest.fixture
def serve(model, monkeypatch) -> Iterator[Serve]:
    """Starts a server for a LoRA, or for full weights."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as open_ones:
        yield lambda adapter: open_ones.enter_context(serving(FakeVLLM(load_policy(model, adapter))))


@pytest.fixture
def fake(serve) -> FakeVLLM:
    return serve(True)


@pytest.fixture
def full(serve) -> FakeVLLM:
    """The same, whose whole weights are trained."""
    return serve(False)


def server(fake: FakeVLLM, folder: Path, **keys: object) -> VLLM:
    patient = {"pause_s": 0.01, "wait_s": 5.0, "timeout_s": 10.0, "concurrency": 4, "check_rows": 4}
    return VLLM(url=fake.url, folder=str(folder), **{**patient, **keys})


def collector(policy: VisionPolicy, runtime: Runtime, asked: VLLM | None) -> AnswerCollector:
    encode = Encoder(policy.processor, prompts.Direct(), ())
    config = RolloutConfig(4, GROUP, LIMIT, server=asked)
    return AnswerCollector(EXAMPLES, encode, WeightedSum({"spread": Part(Spread())}), config, runtime)


def collect(policy: VisionPolicy, asked: VLLM):
    made = collector(policy, Runtime(RuntimeConfig(device="cpu"), seed=3), asked)
    with acting(policy):
        return made.collect(policy, torch.Generator().manual_seed(0)), made


def moved(policy: VisionPolicy, by: float = 0.05) -> VisionPolicy:
    """As after an optimiser's step."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=by)
    policy.weights_changed()
    return policy


def same(one, other) -> None:
    assert torch.equal(one.transitions.completions, other.transitions.completions)
    for name in ("logprobs", "mask", "alive", "rewards", "group_ids"):
        assert torch.equal(vars(one)[name], vars(other)[name]), name


# ---- the same as drawn here -------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [True, False], ids=["LoRA", "full weights"])
def test_answers_and_logprobs_are_those_of_drawing_here(model, serve, tmp_path, adapter):
    asked, policy = serve(adapter), moved(load_policy(model, adapter))
    rollout, made = collect(policy, server(asked, tmp_path))
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(2**31, (4,), generator=generator).tolist()
    chosen = [made.encode(example) for example in made.asked[::GROUP]]
    for number, (prompt, seed) in enumerate(zip(chosen, seeds, strict=True)):
        with torch.no_grad():
            drawn = draw(policy, [prompt], GROUP, LIMIT, torch.Generator().manual_seed(seed))
        rows, length = slice(number * GROUP, (number + 1) * GROUP), drawn.alive.shape[1]
        assert torch.equal(rollout.transitions.completions[rows, :length], drawn.transitions.completions)
        assert torch.equal(rollout.alive[rows, :length], drawn.alive)
        assert not rollout.alive[rows, length:].any()
        expected = torch.where(drawn.alive, drawn.logprobs, 0.0)
        assert (rollout.logprobs[rows, :length] - expected).abs().max() < 1e-5
        assert torch.equal(rollout.stats["truncated"][rows, 0].bool(), drawn.truncated)
    assert made.measured()["server/logprob_diff_max"] < 1e-5
    assert asked.drawn_with == asked.pushed * 4 == [made.session.version] * 4


@pytest.mark.parametrize("adapter", [True, False], ids=["LoRA", "full weights"])
def test_every_step_is_drawn_with_its_own_weights_and_old_ones_are_removed(model, serve, tmp_path, adapter):
    asked, policy = serve(adapter), load_policy(model, adapter)
    made = collector(policy, runtime := Runtime(RuntimeConfig(device="cpu"), seed=3), server(asked, tmp_path))
    config = TrainConfig(steps=2, lr=1e-2, update=UpdateConfig(rescore=True))
    trainer = Trainer(Parts(policy, made, None, CORRECTED), config, runtime)
    for number in range(1, 3):
        metrics = trainer.step()
        assert metrics["server/logprob_diff_max"] < 1e-5
        assert metrics["parity/logprob_diff_max"] < 1e-5
        assert len(asked.pushed) == number
        assert asked.drawn_with[-4:] == [asked.pushed[-1]] * 4
        assert [path.name for path in tmp_path.iterdir()] == [asked.pushed[-1]]
    assert len(set(asked.pushed)) == 2
    assert list(asked.adapters) == (asked.pushed[-1:] if adapter else [])
    with acting(policy):  # its weights moved, so what was drawn before is not what it would draw now
        made.collect(policy, torch.Generator().manual_seed(0))
        pushes = len(asked.pushed)
        made.collect(policy, torch.Generator().manual_seed(0))
    assert len(asked.pushed) == pushes == 3  # no new weights, no push


def test_at_most_so_many_questions_at_a_time(model, fake, tmp_path):
    collect(load_policy(model), server(fake, tmp_path, concurrency=2))
    assert 1 <= fake.most_at_once <= 2


# ---- what fails -------------------------------------------------------------------------------------------


def often(*ways: str, every: int = 5) -> Callable[[str], str | None]:
    """Every fifth call fails, in one way after the other."""
    calls, way = itertools.count(1), itertools.cycle(ways)
    return lambda path: next(way) if next(calls) % every == 0 else None


def test_a_fifth_of_failures_changes_nothing(model, full, tmp_path):
    asked, policy = full, moved(load_policy(model, adapter=False))
    whole, _ = collect(policy, server(asked, tmp_path / "whole"))
    calls = len(asked.asked)
    asked.fails = often("500", "cut", "garbled", "lost")
    found, _ = collect(policy, server(asked, tmp_path / "again"))
    same(whole, found)
    assert len(asked.asked) - calls > calls  # some were asked again


def test_a_server_that_hangs_is_asked_again(model, fake, tmp_path):
    policy = load_policy(model)
    whole, _ = collect(policy, server(fake, tmp_path / "whole"))
    hanging = iter(["hang", None, None, "hang"])
    fake.hang_s, fake.fails = 1.5, lambda path: next(hanging, None) if "chat" in path else None
    found, _ = collect(policy, server(fake, tmp_path, timeout_s=0.7))
    same(whole, found)


def test_one_that_hangs_for_good_is_given_up(model, fake, tmp_path):
    fake.hang_s, fake.fails = 0.4, lambda path: "hang" if "chat" in path else None
    with pytest.raises(ServerError, match=r"gave no answer at /v1/chat/completions for 0\.2 s .* within 0\.1 s"):
        collect(load_policy(model), server(fake, tmp_path, timeout_s=0.1, wait_s=0.2, concurrency=1))


def test_one_that_is_away_for_a_while_is_waited_for(model, fake, tmp_path):
    policy = load_policy(model)
    whole, _ = collect(policy, server(fake, tmp_path / "whole"))
    fake.away = True
    threading.Timer(0.6, lambda: setattr(fake, "away", False)).start()
    found, _ = collect(policy, server(fake, tmp_path))
    same(whole, found)


@pytest.mark.parametrize(("adapter", "after"), [(True, 3), (False, 1)])
def test_one_that_was_started_anew_is_given_the_weights_again(model, serve, tmp_path, adapter, after):
    """Before its answers, and between them, where some were drawn with the right weights and some were not."""
    asked, policy, chats = serve(adapter), moved(load_policy(model, adapter)), itertools.count(1)
    whole, _ = collect(policy, server(asked, tmp_path / "whole"))

    def crashed(path: str) -> None:
        if "chat" in path and next(chats) == after:
            asked.restart()

    pushes, asked.fails = len(asked.pushed), crashed
    found, _ = collect(policy, server(asked, tmp_path / "again", concurrency=1))
    same(whole, found)
    assert len(asked.pushed) == pushes + 2


def test_one_that_loses_them_each_time_is_given_up(model, fake, tmp_path):
    fake.fails = lambda path: fake.restart() if "chat" in path else None
    with pytest.raises(ServerError, match="does not know the model mmrl-"):
        collect(load_policy(model), server(fake, tmp_path))
    assert len(fake.pushed) == 3


# ---- pushes -----------------------------------------------------------------------------------------------


def test_a_refused_push_says_what_to_do_and_nothing_is_drawn(model, fake, tmp_path):
    fake.refuses["/v1/load_lora_adapter"] = (404, '{"detail": "Not Found"}')
    with pytest.raises(ServerError, match="start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora"):
        collect(load_policy(model), server(fake, tmp_path))
    assert not fake.drawn_with
    fake.refuses["/v1/load_lora_adapter"] = (500, "rank 64 is greater than max_lora_rank 16")
    with pytest.raises(ServerError, match=r"HTTP 500 rank 64 is greater than max_lora_rank 16"):
        collect(load_policy(model), server(fake, tmp_path / "again", wait_s=0.1))
    assert not fake.drawn_with


def test_a_push_that_is_not_confirmed_is_repeated_and_then_refused(model, full, tmp_path):
    full.refuses["/update_weight_version"] = (200, "{}")
    with pytest.raises(ServerError, match="3 times and does not say that it has them: nothing was drawn with old ones"):
        collect(load_policy(model, adapter=False), server(full, tmp_path))
    assert full.asked.count("/collective_rpc") == 3
    assert not full.drawn_with


def test_full_weights_need_a_server_that_can_name_them(model, full, tmp_path):
    full.refuses["/weight_info"] = (404, "{}")
    with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1, or train a LoRA"):
        server(full, tmp_path).check(load_policy(model, adapter=False))
    server(full, tmp_path).check(load_policy(model))
    with pytest.raises(ServerError, match=r"serves \['tiny'\] and rollout.server.model is 'qwen'"):
        server(full, tmp_path, model="qwen").check(load_policy(model))


def test_a_folder_is_never_seen_before_it_is_whole(model, tmp_path, monkeypatch):
    from vision.serving.weights import hand_over

    policy = load_policy(model)

    def interrupted(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(policy, "save_model", interrupted)
        hand_over(policy, tmp_path, "v1")
    assert not (tmp_path / "v1").exists()
    found = hand_over(policy, tmp_path, "v1")
    assert {path.name for path in found.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


# ---- lies -------------------------------------------------------------------------------------------------


def lying(change: Callable[[Said], object]) -> Callable[[Said], None]:
    return lambda said: change(said["choices"][0]) and None


def set_logprob(value: object) -> Callable[[Said], object]:
    return lambda choice: choice["logprobs"]["content"][0].update(logprob=value)


LIES = {
    "another model": (lambda said: said.update(model="gpt"), "was asked for the model 'mmrl-.*' and answered as 'gpt'"),
    "no prompt": (lambda said: said.pop("prompt_token_ids"), "does not say which tokens it read"),
    "another prompt": (
        lambda said: said["prompt_token_ids"].__setitem__(7, 3), r"other ones from token 7 on: start it with policy\."
    ),
    "fewer picture tokens": (lambda said: said["prompt_token_ids"].pop(), r"read \d+ tokens and the policy's processor"),
    "too few answers": (lambda said: said["choices"].pop(), "gave 2 answers, asked for 3"),
    "no tokens": (lying(lambda choice: choice.pop("token_ids")), "gave no token ids"),
    "no log-probs": (lying(lambda choice: choice.update(logprobs=None)), r"gave 0 log-probs of \d tokens"),
    "a log-prob short": (lying(lambda choice: choice["logprobs"]["content"].pop()), r"gave \d log-probs of \d tokens"),
    "above 0": (lying(set_logprob(0.5)), "the log-prob 0.5, and none is above 0"),
    "null": (lying(set_logprob(None)), "the log-prob nan"),
    "vLLM's minus infinity": (lying(set_logprob(-9999.0)), "the log-prob -9999.0"),
    "aborted": (lying(lambda choice: choice.update(finish_reason="abort")), "for 'abort', neither stop nor length"),
    "a stop word": (
        lying(lambda choice: (choice["token_ids"].__setitem__(-1, 20), choice.update(finish_reason="stop"))),
        "stopped it at token 20, none of the policy's end tokens",
    ),
    "full": (
        lying(lambda choice: (choice["token_ids"].__setitem__(slice(None), [20]),
                              choice["logprobs"]["content"].__setitem__(slice(1, None), []),
                              choice.update(finish_reason="length"))),
        "for length after 1 of 5 tokens: start it with a larger --max-model-len",
    ),
    "too long": (
        lying(lambda choice: (choice["token_ids"].__setitem__(slice(None), [20] * 6),
                              choice["logprobs"]["content"].__setitem__(slice(None), [{"logprob": -1.0}] * 6))),
        "gave 6 tokens, asked for 5 at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_each_lie_is_one_sentence(model, fake, tmp_path, name):
    fake.lie, sentence = LIES[name]
    with pytest.raises(ServerError, match=sentence) as caught:
        collect(load_policy(model), server(fake, tmp_path))
    assert "\n" not in str(caught.value)


def test_tokens_that_are_banned_or_follow_the_end_are_refused(model, fake, tmp_path):
    policy = load_policy(model)
    for token, sentence in ((int(policy.banned.nonzero()[0]), "stands for a picture"), (policy.eos_ids[0], "wrote on")):

        def write(said: Said, token: int = token) -> None:
            choice = said["choices"][0]
            choice["token_ids"] = [token, 20]
            choice["logprobs"]["content"] = [{"logprob": -1.0}] * 2

        fake.lie = write
        with pytest.raises(ServerError, match=sentence):
            collect(policy, server(fake, tmp_path / sentence))


def test_logprobs_that_are_not_the_policys_are_refused_beyond_the_limits(model, fake, tmp_path):
    """Each number is possible; they are of another temperature, or one is made up."""
    policy = load_policy(model)

    def halved(said: Said) -> None:
        for choice in said["choices"]:
            for entry in choice["logprobs"]["content"]:
                entry["logprob"] /= 2

    def one(said: Said) -> None:
        for choice in said["choices"]:
            choice["logprobs"]["content"][0]["logprob"] -= 7

    for number, lie in enumerate((halved, one)):
        fake.lie = lie
        with pytest.raises(
            ServerError, match="on average and .* at most, rollout.server allows 0.1 and 5: it has other"
        ):
            collect(policy, server(fake, tmp_path / str(number)))
    loose = server(fake, tmp_path / "loose", mean_difference=9.0, largest_difference=9.0)
    _, made = collect(policy, loose)
    assert 6.9 < made.measured()["server/logprob_diff_max"] < 7.1
    assert 0 < made.measured()["server/logprob_diff_mean"] < 7


@pytest.mark.parametrize("adapter", [True, False], ids=["LoRA", "full weights"])
def test_one_that_says_it_took_the_weights_and_did_not_is_found_out(model, serve, tmp_path, adapter):
    asked, policy = serve(adapter), moved(load_policy(model, adapter), by=0.3)
    asked.deaf = True
    with pytest.raises(ServerError, match="it has other weights, pictures or sampling"):
        collect(policy, server(asked, tmp_path))


# ---- in a run ---------------------------------------------------------------------------------------------


def trainer(model: Path, asked: VLLM, run: Path) -> Trainer:
    policy, runtime = load_policy(model), Runtime(RuntimeConfig(device="cpu"), seed=3)
    train = TrainConfig(steps=3, lr=1e-2, update=UpdateConfig(rescore=True))
    run.mkdir(exist_ok=True)
    made = collector(policy, runtime, asked)
    evaluator = AnswerEvaluator(EXAMPLES[:2], made.encode, Digits(), made.config.limits, made.reward)
    return Trainer(
        Parts(policy, made, evaluator, CORRECTED), train, runtime, RunFolder(run),
        EvaluateConfig(every=None), logging=LoggingConfig(progress=False),
    )  # fmt: skip


def test_a_server_that_stays_away_stops_the_run_which_goes_on_as_if_nothing_had_been(model, fake, tmp_path, capfd):
    def weights(found: Trainer) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in found.parts.policy.parameters() if p.requires_grad])

    whole = trainer(model, server(fake, tmp_path / "a"), tmp_path / "whole")
    whole.fit()
    fake.restart()
    halves = trainer(model, server(fake, tmp_path / "b", wait_s=0.2), tmp_path / "halves")
    chats = itertools.count(1)

    def leaves(path: str) -> str | None:
        if "chat" in path and next(chats) > 6:  # in the second step
            fake.away = True
        return "cut" if fake.away else None

    fake.fails = leaves
    with pytest.raises(ServerError, match=r"start it again, then --resume; rollout\.server\.wait_s is how long"):
        halves.fit()
    out, err = capfd.readouterr()
    assert "saved at step 1: mend the cause below, then --resume" in out + err
    fake.away, fake.fails = False, lambda path: None
    fake.restart()
    resumed = trainer(model, server(fake, tmp_path / "b"), tmp_path / "halves")
    resumed.fit(resume=True)
    assert resumed.state.step == 3
    assert torch.equal(weights(resumed), weights(whole))


def test_configs_say_what_does_not_go_together(tmp_path):
    spec = {"class_path": "vision.serving.VLLM", "init_args": {"url": "http://localhost:8000", "folder": "weights"}}
    given = [f"rollout.server={spec}".replace("'", '"'), "policy.reuse_prefill=false"]
    rescored = [*given, "train.update.rescore=true"]
    found = load("vision/cls_rl_nothink", rescored).experiment
    assert found.rollout.server == VLLM(url="http://localhost:8000", folder="weights")
    cases = [
        (given, "train.update.rescore is false"),
        (["policy.reuse_prefill=true", *rescored[:1], rescored[2]], "rollout.server and policy.reuse_prefill are set"),
        ([*rescored, "policy.critic={}"], "rollout.server and policy.critic are set"),
        ([*rescored, "rollout.plan=vision.plans.CURE"], "rollout.server is set and rollout.plan is CURE"),
        ([*rescored, "rollout.server.init_args.url=localhost"], "give a URL such as http://localhost:8000"),
        ([*rescored, 'rollout.server.init_args.folder=""'], "rollout.server.folder is empty"),
        ([*rescored, "rollout.server.init_args.check_rows=0"], "rollout.server.check_rows is 0"),
        ([*rescored, "rollout.server.init_args.key_env=NOT_SET"], "'NOT_SET', which is not set"),
        ([*rescored, "rollout.server.init_args.wait_s=-1"], "rollout.server.wait_s is -1"),
    ]
    for overrides, sentence in cases:
        with pytest.raises((ConfigError, ValueError), match=sentence):
            load("vision/cls_rl_nothink", overrides)
    with pytest.raises(ValueError, match="rollout.server is set and rollout.turns is 2"):
        replace(RolloutConfig(), turns=2, server=found.rollout.server)
