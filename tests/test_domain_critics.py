"""The critics of vision and diffusion: re-scored as recorded, apart from the policy, trained, saved, left out of exports.
(That of vla: tests/test_vla_policy.py.)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion import adapters as diffusion_adapters
from diffusion.collector import PictureCollector
from diffusion.collector import RolloutConfig as PictureRollout
from diffusion.critic import feature_count, features
from diffusion.policy import DiffusionPolicy
from diffusion.policy import PolicyConfig as PicturePolicy
from diffusion.prompts import Asked
from diffusion.sampling import SamplingConfig
from mmrl.advantages import GAE
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.heads import HEADS, CriticConfig
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.surrogates import PPOClip
from mmrl.testing import check_collector, check_policy
from mmrl.types import Collector, Policy, Rollout
from mmrl.update import UpdateConfig, update
from mmrl.value_loss import ValueRegression
from rewards.compose import Part, WeightedSum
from rewards.pictures import Compressibility
from rewards.text import AnswerMatch
from tests import tiny_pipelines, tiny_vlms
from vision.adapters import LoRA
from vision.collector import AnswerCollector, RolloutConfig
from vision.data.digits import Digits
from vision.encoding import Encoder
from vision.policy import PolicyConfig, VisionPolicy
from vision.prompts import Direct

CRITIC = CriticConfig((16,))
PPO = Algorithm(GAE(), PPOClip(), TokenMean(), value_loss=ValueRegression())
KINDS = ("qwen2_5_vl", "llava_onevision", "sd", "flux")
VLMS, PIPELINES = KINDS[:2], KINDS[2:]


@dataclass(frozen=True)
class Made:
    """A domain on a tiny model, with a critic unless `critic` is None."""

    kind: str
    folder: Path

    def policy(self, critic: CriticConfig | None = CRITIC, **more: object) -> Policy:
        draws, found = torch.Generator().manual_seed(1), {"critic": critic, **more}
        if self.kind in VLMS:
            return VisionPolicy.load(PolicyConfig(str(self.folder), freeze_vision=False, **found), draws).eval()  # type: ignore[arg-type]
        return DiffusionPolicy.load(PicturePolicy(str(self.folder), **found), draws).eval()  # type: ignore[arg-type]

    def collector(self, policy: Policy, sampling: SamplingConfig | None = None) -> Collector:
        runtime = Runtime(RuntimeConfig(device="cpu"), 0)
        if isinstance(policy, VisionPolicy):
            encode, reward = Encoder(policy.processor, Direct(), ()), WeightedSum({"right": Part(AnswerMatch())})
            return AnswerCollector(Digits().examples()[:6], encode, reward, RolloutConfig(3, 2, 5), runtime)
        extra = {"max_sequence_length": 8} if self.kind == "flux" else {}
        sampling = sampling or SamplingConfig(4, 3.0, (16, 16), extra=extra)
        reward = WeightedSum({"small": Part(Compressibility())})
        prompts = [Asked(text, text) for text in ("a red cat", "a blue dog", "a cat")]
        return PictureCollector(prompts, reward, PictureRollout(3, 2), sampling, runtime)


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    (tiny_vlms if request.param in VLMS else tiny_pipelines).make(request.param, folder)
    return Made(request.param, folder)


def awake(policy: Policy) -> Policy:
    """With a critic that says something: a new one says 0."""
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.critic_parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draws)
    return policy


def collected(made: Made, policy: Policy, sampling: SamplingConfig | None = None) -> Rollout:
    with acting(policy):
        return made.collector(policy, sampling).collect(policy, torch.Generator().manual_seed(3))


def steps_of(rollout: Rollout) -> Tensor:
    return torch.arange(rollout.logprobs.shape[1]).expand(len(rollout), -1)


def scored(policy: Policy, rollout: Rollout) -> Tensor:
    found = policy(rollout.transitions, steps_of(rollout)).values
    assert found is not None
    return torch.where(rollout.alive, found, 0.0)


def assert_recorded(found: Tensor, rollout: Rollout) -> None:
    assert rollout.values is not None
    assert float(rollout.values.abs().max()) > 1e-2
    assert float((found.detach() - rollout.values).abs().max()) < 1e-5


def test_values_are_scored_again_as_recorded_whatever_the_portion(made):
    policy = awake(made.policy())
    rollout = collected(made, policy)
    check_policy(policy, rollout)
    check_collector(made.collector(policy), policy, lambda: torch.Generator().manual_seed(0))
    assert_recorded(scored(policy, rollout), rollout)
    assert bool((rollout.values[~rollout.alive] == 0).all())
    assert rollout.last_value.tolist() == [0.0] * 6  # an outcome is rewarded as it is: there is nothing after it
    assert len(rollout.values[rollout.alive].unique()) > 6  # it tells states apart
    rows = [policy(rollout.transitions.rows(index), steps_of(rollout)[index]).values
            for index in torch.arange(6).split(4)]  # fmt: skip
    assert_recorded(torch.where(rollout.alive, torch.cat(rows), 0.0), rollout)
    if policy.windowable:
        windows = [policy(rollout.transitions, window).values for window in steps_of(rollout).split(1, dim=1)]
        assert_recorded(torch.cat(windows, dim=1), rollout)


def test_without_one_there_are_no_values(made):
    policy = made.policy(critic=None)
    rollout = collected(made, policy)
    assert (rollout.values, rollout.last_value) == (None, None)
    assert policy(rollout.transitions, steps_of(rollout)).values is None
    assert not list(policy.critic_parameters())
    with_one = collected(made, made.policy())
    assert torch.equal(rollout.logprobs, with_one.logprobs)  # it changes nothing else
    assert not bool(with_one.values.any())  # and says 0 before it is trained


def test_its_loss_does_not_reach_the_policy_and_trains_it(made):
    policy = awake(made.policy())
    rollout = collected(made, policy)
    scored(policy, rollout).square().sum().backward()
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    assert all((p.grad is not None and bool(p.grad.any())) == (id(p) in critic) for p in policy.parameters() if p.requires_grad)  # fmt: skip
    policy.zero_grad()
    rollout = rollout.with_(rewards=torch.where(rollout.rewards != 0, rollout.rewards, 0.1 * rollout.alive))
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    optimizer = torch.optim.AdamW(policy.critic_parameters(), 0.01)
    config, runtime = UpdateConfig(epochs=8, micro_rows=4), Runtime(RuntimeConfig(device="cpu"), 0)
    errors = [
        update(policy, rollout, PPO, optimizer, runtime, config, critic_only=True)["update/value_error"]
        for _ in range(4)
    ]
    assert errors[-1] < 0.5 * errors[0]
    moved = {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {f"critic.{name}" for name, _ in policy.critic.named_parameters()}  # type: ignore[union-attr]


def test_the_policy_s_own_loss_does_not_reach_it(made):
    policy = awake(made.policy())
    rollout = collected(made, policy)
    found = policy(rollout.transitions, steps_of(rollout)).logprobs
    torch.where(rollout.mask, found, 0.0).sum().backward()
    assert all(parameter.grad is None for parameter in policy.critic_parameters())


def test_it_is_saved_beside_the_policy_and_comes_back(made, tmp_path):
    policy, bare = awake(made.policy()), made.policy(critic=None)
    for name, one in (("with", policy), ("without", bare)):
        (tmp_path / name).mkdir()
        one.save_pretrained(tmp_path / name)
    assert (tmp_path / "with" / HEADS).is_file()
    assert not (tmp_path / "without" / HEADS).exists()
    again = made.policy()
    again.load_weights(tmp_path / "with")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    bare.load_weights(tmp_path / "with")  # a fork without a critic, and one to a critic
    again.load_weights(tmp_path / "without")
    assert all(torch.equal(a, b) for a, b in zip(again.critic_parameters(), policy.critic_parameters(), strict=True))


def lora(made: Made) -> object:
    return LoRA(4, 8) if made.kind in VLMS else diffusion_adapters.LoRA(4, 8)


def test_it_stands_beside_an_adapter_and_its_reference(made):
    policy = awake(made.policy(adapter=lora(made)))
    rollout = collected(made, policy)
    reference: Policy = policy.reference()  # type: ignore[operator]
    with acting(reference):
        assert torch.equal(reference(rollout.transitions, steps_of(rollout)).logprobs * rollout.mask,
                           policy(rollout.transitions, steps_of(rollout)).logprobs * rollout.mask)  # fmt: skip
    assert_recorded(scored(policy, rollout), rollout)
    scored(policy, rollout).sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {f"critic.{name}" for name, _ in policy.critic.named_parameters()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("qwen")
    tiny_vlms.make("qwen2_5_vl", folder)
    return Made("qwen2_5_vl", folder)


@pytest.mark.parametrize("way", [{"shared_prefix": "never"}, {"gradient_checkpointing": True}, {"reuse_prefill": True}])
def test_every_way_to_score_tokens_gives_the_same_values(qwen, way):
    policy = awake(qwen.policy(**way))
    rollout = collected(qwen, policy)
    plain = collected(qwen, awake(qwen.policy()))
    assert torch.allclose(rollout.values, plain.values, atol=1e-5)  # type: ignore[arg-type]
    found = policy(rollout.transitions, steps_of(rollout))
    assert_recorded(torch.where(rollout.alive, found.values, 0.0), rollout)
    (found.logprobs * rollout.mask - found.values).sum().backward()  # together, as an update has them
    assert all(bool(p.grad.any()) for p in policy.critic_parameters())


def test_an_export_leaves_it_out(qwen, tmp_path):
    policy = qwen.policy()
    assert isinstance(policy, VisionPolicy)
    policy.export(tmp_path, merge=False, dtype=None)
    assert not (tmp_path / HEADS).exists()


def test_values_of_steps_that_are_no_decision_cancel(tmp_path):
    """The last step of a consistency model has no noise, so that nothing trains its value."""
    tiny_pipelines.make("sd", tmp_path)
    made = Made("sd", tmp_path)
    policy = awake(made.policy(scheduler="LCMScheduler"))
    rollout = collected(made, policy, SamplingConfig(5, 1.0, (16, 16), train_steps=2))
    assert rollout.mask.sum(-1).tolist() == [2] * 6
    gae: Callable[[Rollout], Tensor] = lambda found: GAE(0.7, whiten=False)(found).advantages  # noqa: E731
    untrained = torch.where(rollout.mask, rollout.values, 99.0)  # type: ignore[arg-type]
    assert torch.allclose(gae(rollout), gae(rollout.with_(values=untrained)), atol=1e-4)
    first, second = rollout.values[rollout.mask].view(6, 2).unbind(1)  # type: ignore[index]
    last = rollout.returns() - second
    expected = torch.stack([second - first + 0.7 * last, last], 1)
    assert torch.allclose(gae(rollout)[rollout.mask].view(6, 2), expected, atol=1e-5)


def test_features_are_of_channels_wherever_these_stand():
    x, prediction = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    found = features(x, prediction, torch.tensor([0.0, 0.5]))
    assert found.shape == (2, feature_count(3))
    assert torch.allclose(found[:, :3], x.mean((2, 3)))
    assert found[:, -1].tolist() == [0.0, 0.5]
    packed = [part.flatten(2).transpose(1, 2) for part in (x, prediction)]
    assert torch.allclose(features(*packed, torch.tensor([0.0, 0.5])), found, atol=1e-6)
    with pytest.raises(ValueError, match="reads latents of channels and places"):
        features(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))


def test_a_critic_without_layers_is_refused():
    with pytest.raises(ValueError, match="widths is"):
        replace(CRITIC, widths=())
