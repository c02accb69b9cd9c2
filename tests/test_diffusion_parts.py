"""The parts of a diffusion run: exact KL, the pathwise gradient, portions, the cache of prompts, evaluation, adapters.

Bugs that were planted in a scratch copy, and the test that fails on each:

| planted bug | caught by |
|---|---|
| the reference asks for its own reference; the KL has no gradient; requires_grad not restored | test_exact_kl_of_a_policy |
| the outcome at the first step, its latent not scaled back, or its sign turned | test_the_pathwise_gradient_is_that_of_the_reward_of_the_picture |
| prompt numbers of portions not counted on | test_portions_are_the_rollout |
| rewards of a portion waited for before the next is drawn | test_a_portion_is_rewarded_while_the_next_is_drawn |
| guidance left out of the key of the cache | test_the_cache_tells_calls_apart |
| the least recently used prompt is kept | test_the_cache_forgets_the_prompt_that_was_not_asked_for_longest |
| the sheet's noise goes on from prompt to prompt; its scheduler stays | test_a_sheet_shows_the_sampler_the_pictures_are_for |
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion import collector as collecting
from diffusion.adapters import LoRA
from diffusion.capture import CannotReplay
from diffusion.collector import PictureCollector, RolloutConfig
from diffusion.encoding import PromptCache
from diffusion.evaluation import WATCHED, PictureEvaluator, SheetConfig, kl_to
from diffusion.policy import DiffusionPolicy, PolicyConfig
from diffusion.prompts import Asked
from diffusion.sampling import Drawn, SamplingConfig, draw
from diffusion.transitions import DenoiseTransitions
from mmrl import commands
from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.cli import main
from mmrl.config import load as load_config
from mmrl.regularisers import ExactKL, Pathwise
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.scoring import score
from mmrl.surrogates import Reinforce
from mmrl.types import RewardFunction, Rollout, Samples, Scores
from rewards.compose import Part, RewardError, WeightedSum
from rewards.pictures import Compressibility
from rewards.pictures.base import differentiable, pixels_of
from tests.test_update import run as updated
from tests.tiny_pipelines import make, unet, vae

KINDS = ("sd", "sdxl", "sd3", "flux")
PROMPTS = ["a red cat", "a blue dog"]
SHORT = {"max_sequence_length": 8}
EXTRA = {"flux": SHORT, "sd3": SHORT}
STEPS = torch.arange(4)
RUNTIME = Runtime(RuntimeConfig(device="cpu"), 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    found = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in found.items():
        make(kind, folder)
    return found


def load(folders, kind: str, **more) -> DiffusionPolicy:
    return DiffusionPolicy.load(PolicyConfig(str(folders[kind]), **more)).eval()


def asked(*texts: str) -> list[Asked]:
    return [Asked(text, text) for text in texts]


def sampling(kind: str, **more) -> SamplingConfig:
    return SamplingConfig(**{"steps": 4, "guidance": 3.0, "size": (16, 16), "extra": EXTRA.get(kind, {}), **more})


def sampled(policy, kind: str, group: int = 2, prompts=PROMPTS, **more) -> Drawn:
    return draw(policy, asked(*prompts), group, sampling(kind, **more), torch.Generator().manual_seed(3))


def rollout_of(drawn: Drawn, rewards: Tensor | None = None) -> Rollout:
    alive, blank = torch.ones_like(drawn.mask), torch.zeros_like(drawn.logprobs)
    groups = torch.arange(2).repeat_interleave(len(alive) // 2)
    given = blank if rewards is None else rewards
    return Rollout(drawn.transitions, drawn.logprobs, drawn.mask, alive, given, blank + 1, groups)


def moved(policy: DiffusionPolicy, by: float = 0.05) -> None:
    """The trained weights elsewhere."""
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=chance)


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[int]]:
    """Rows of every call of the modules inside."""
    rows: list[int] = []
    hooks = [module.register_forward_hook(lambda _, __, found: rows.append(len(found[0]))) for module in modules]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


# ---- KL in closed form ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["new adapter", "adapter to go on from", "whole"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_exact_kl_of_a_policy(folders, kind, reduction, monkeypatch, tmp_path):
    adapter = None if kind == "whole" else LoRA(rank=4, alpha=8)
    policy = load(folders, "sd", adapter=adapter, logprob_reduction=reduction)
    if kind == "adapter to go on from":
        filled(policy).save_pretrained(tmp_path)
        policy = load(folders, "sd", adapter=str(tmp_path), logprob_reduction=reduction)
    reference = policy.reference()
    frozen = next(parameter for parameter in policy.parameters() if parameter.requires_grad)
    frozen.requires_grad_(False)  # by hand: no part of the policy may turn it on again
    wanted = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    assert kind == "whole" or {name for name in wanted if wanted[name]} < {
        name for name in wanted if ".default." in name
    }
    drawn, steps = sampled(policy, "sd"), STEPS.expand(4, -1)
    calls, denoise = [], DiffusionPolicy._denoise
    monkeypatch.setattr(DiffusionPolicy, "_denoise", lambda self, *a: calls.append(1) or denoise(self, *a))
    assert policy(drawn.transitions, steps).exact_kl is None
    policy.kl_reference = (reference,)
    calls.clear()
    with torch.no_grad():
        assert bool((policy(drawn.transitions, steps).exact_kl == 0).all())
    assert len(calls) == 2  # its own and the reference's, not the reference's of the reference
    assert policy.kl_reference == (reference,)
    moved(policy)
    others, divergence = [], DiffusionPolicy.divergence
    monkeypatch.setattr(policy, "divergence", lambda *a: others.append(a[1]) or divergence(policy, *a))
    evaluation = policy(drawn.transitions, steps)
    found = evaluation.exact_kl
    assert [mean.requires_grad for mean in others] == [False]  # no graph is kept of the reference
    policy.kl_reference = ()
    with torch.no_grad():
        theirs = reference(drawn.transitions, steps)
        assert theirs.exact_kl is None
        assert torch.allclose(found.sum(-1), kl_to(reference, policy, drawn), rtol=1e-6)
    distance = ((evaluation.means - theirs.means).square() / (2 * evaluation.stds.square())).flatten(2)
    plain = distance.sum(-1) if reduction == "sum" else distance.mean(-1)
    assert torch.allclose(found[:, :3], plain[:, :3], rtol=1e-4)
    assert bool((found[:, :3] > 0).all())
    assert bool((found[:, 3] == 0).all())  # no decision, no KL
    found.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad == wanted[name], name
        assert wanted[name] or parameter.grad is None, name
    largest = max(float(p.grad.abs().max()) for p in policy.parameters() if p.requires_grad and p.grad is not None)
    assert largest > 0
    assert all(parameter.grad is None for parameter in (reference.denoiser or nn.Identity()).parameters())


def test_the_update_descends_the_exact_kl(folders):
    policy = load(folders, "sd", adapter=LoRA(rank=4, alpha=8))
    policy.kl_reference = (policy.reference(),)
    rollout = rollout_of(sampled(policy, "sd"))  # no reward: only the KL has a gradient
    moved(policy)
    algorithm = Algorithm(GroupRelative(), Reinforce(), TokenMean(), regularisers=(ExactKL(0.5),))
    (found,), metrics = updated(policy, rollout, algorithm, micro_rows=2)
    mean = policy(rollout.transitions, STEPS.expand(4, -1)).exact_kl[rollout.mask].mean()
    gradients = torch.autograd.grad(0.5 * mean, [p for p in policy.parameters() if p.requires_grad])
    wanted = torch.cat([gradient.flatten() for gradient in gradients])
    ours = found[torch.cat([torch.full((p.numel(),), p.requires_grad) for p in policy.parameters()])]
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5
    assert float(found.norm()) == pytest.approx(float(ours.norm()))
    assert metrics["update/kl"] == pytest.approx(float(mean.detach()), rel=1e-5)


# ---- the gradient of a reward through the last step --------------------------------------------------------


WEIGHT = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(5))


def linear(pixels: Tensor, samples: Samples) -> Tensor:
    """A reward by pixels and, so that rows are not mixed up, by prompt."""
    signs = torch.tensor([1.0 if prompt == PROMPTS[0] else -2.0 for prompt in samples.columns["prompt"]])
    return signs * (pixels * WEIGHT).sum((1, 2, 3))


def consistent(folders, kind: str = "sd", **more) -> DiffusionPolicy:
    """A policy whose pictures are a function of its last latents' scale alone."""
    policy = load(folders, kind, **{"scheduler": "LCMScheduler", **more})
    policy.pipeline.vae.register_to_config(shift_factor=None)  # which this kind of pipeline does not read
    policy.report_outcome, policy.differentiable_reward = True, linear
    return policy


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pathwise_gradient_is_that_of_the_reward_of_the_picture(folders, guidance):
    policy = consistent(folders)
    drawn = sampled(policy, "sd", guidance=guidance)
    assert drawn.mask.tolist() == [[False, False, False, True]] * 4
    assert bool((drawn.logprobs == 0).all())
    rewards = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))  # advantages that must have no effect
    algorithm = Algorithm(GroupRelative(), Reinforce(), TokenMean(), regularisers=(Pathwise(0.7),))
    with counted(policy.denoiser) as calls:
        (found,), metrics = updated(policy, rollout_of(drawn, rewards), algorithm)
    assert calls == [4 * (2 if guidance > 1 else 1)]  # the last step of each row, once
    (split,), _ = updated(policy, rollout_of(drawn, rewards), algorithm, micro_rows=1)

    pipeline, scheduler = policy.pipeline, policy.pipeline.scheduler
    texts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    told, untold = pipeline.encode_prompt(texts, "cpu", 1, guidance > 1)
    x, step = drawn.transitions.latents[:, -2], scheduler.timesteps[-1]
    epsilon = policy.denoiser(x, step, encoder_hidden_states=told).sample
    if guidance > 1:
        without = policy.denoiser(x, step, encoder_hidden_states=untold).sample
        epsilon = without + guidance * (epsilon - without)
    alpha = scheduler.alphas_cumprod[step]
    skip, out = scheduler.get_scalings_for_boundary_condition_discrete(step)
    clean = out * (x - (1 - alpha).sqrt() * epsilon) / alpha.sqrt() + skip * x
    vae: AutoencoderKL = pipeline.vae
    pixels = (vae.decode(clean / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    shown = torch.stack([pixels_of(picture) for picture in drawn.pictures])
    assert float((shown - pixels.detach()).abs().max()) < 0.6 / 255  # it is the picture that people see
    reward = linear(pixels, Samples(pixels, {"prompt": texts}))
    wanted = torch.autograd.grad(-0.7 * reward.mean(), list(policy.parameters()))
    flat = torch.cat([gradient.flatten() for gradient in wanted])
    assert float(flat.norm()) > 1e-4
    for gradient in (found, split):
        assert float((gradient - flat).norm() / flat.norm()) < 1e-4
    assert metrics["update/outcome_reward"] == pytest.approx(float(reward.mean().detach()), rel=1e-4)
    assert metrics["update/loss"] == pytest.approx(-0.7 * float(reward.mean().detach()), rel=1e-4)
    assert all(parameter.grad is None for parameter in pipeline.vae.parameters())


def test_only_the_last_step_has_an_outcome(folders):
    policy = consistent(folders)
    drawn = sampled(policy, "sd", guidance=1.0)
    with torch.no_grad():
        found = policy(drawn.transitions, STEPS.expand(4, -1)).outcome_rewards
        early = policy(drawn.transitions, STEPS[:2].expand(4, -1)).outcome_rewards
    assert found.shape == (4, 4)
    assert bool((found[:, :3] == 0).all())
    assert bool((found[:, 3] != 0).all())
    assert early.tolist() == [[0.0, 0.0]] * 4
    reference = policy.reference()
    assert reference(drawn.transitions, STEPS.expand(4, -1)).outcome_rewards is None
    assert policy.report_outcome


def test_a_flow_has_an_outcome_too(folders):
    policy = load(folders, "sd3")
    policy.report_outcome, policy.differentiable_reward = True, linear
    drawn = sampled(policy, "sd3")
    assert drawn.mask.tolist() == [[False, False, False, True]] * 4
    evaluation = policy(drawn.transitions, torch.full((4, 1), 3))
    shown = torch.stack([pixels_of(picture) for picture in drawn.pictures])
    texts = [one.prompt for one in drawn.transitions.asked for _ in range(2)]
    seen = linear(shown, Samples(shown, {"prompt": texts}))
    assert torch.allclose(evaluation.outcome_rewards[:, 0], seen, atol=0.6 / 255 * 2 * float(WEIGHT.abs().sum()))
    evaluation.outcome_rewards.sum().backward()
    assert max(float(p.grad.abs().max()) for p in policy.parameters() if p.grad is not None) > 0


def test_what_cannot_be_differentiated_is_one_sentence(folders):
    with pytest.raises(ValueError, match=r"^rewards.small cannot be differentiated, which .*Pathwise needs: give a"):
        differentiable({"small": Part(Compressibility())})
    noisy = consistent(folders, scheduler="DDIMScheduler")
    noisy.pipeline.scheduler = DDIMScheduler.from_config(noisy.pipeline.scheduler.config, set_alpha_to_one=False)
    with pytest.raises(ValueError, match="Pathwise differentiates a last step without noise, and this sampler's has"):
        sampled(noisy, "sd")
    packed = load(folders, "flux")
    packed.report_outcome = True
    with pytest.raises(CannotReplay, match="does more to its last latents than the autoencoder's scale and shift"):
        sampled(packed, "flux")
    shifted = consistent(folders)
    shifted.pipeline.vae.register_to_config(shift_factor=0.1)
    with pytest.raises(CannotReplay, match="does more to its last latents"):
        sampled(shifted, "sd", guidance=1.0)
    policy = consistent(folders)
    drawn = sampled(policy, "sd", guidance=1.0)
    policy.differentiable_reward = None
    with pytest.raises(ValueError, match="DiffusionPolicy.differentiable_reward is not set"):
        policy(drawn.transitions, torch.full((4, 1), 3))


# ---- portions ---------------------------------------------------------------------------------------------


class Brightness(RewardFunction):
    """The mean of a picture, and who asked when."""

    def __init__(self) -> None:
        self.asked: list[list[object]] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, samples: Samples) -> Scores:
        self.asked.append(list(samples.columns["prompt"]))
        self.threads.append(threading.current_thread())
        values = torch.stack([pixels_of(picture).mean() for picture in samples.outputs])  # type: ignore[arg-type]
        return Scores(values, torch.ones(len(values), dtype=torch.bool))


def collecting_with(reward: RewardFunction, kind: str, portion: int | None, prompts: int = 3) -> PictureCollector:
    known = [*asked("a red cat", "a blue dog", "a dog"), Asked("x", "a cat", {"style": "ink"})]
    config = RolloutConfig(prompts, 2, portion)
    whole = WeightedSum({"bright": Part(reward, weight=2.0)})
    return PictureCollector(known, whole, config, sampling(kind), RUNTIME)


@pytest.mark.parametrize("kind", KINDS)
def test_portions_are_the_rollout(folders, kind):
    """Of 4 prompts in portions of 1 and 3 the same as in one go, but for the noise."""
    more = {"guidance": 1.0} if kind == "sd" else {"extra": {"max_sequence_length": 9}} if kind == "flux" else {}
    policy = load(folders, kind)
    found = {}
    for portion in (None, 1, 3):
        reward = Brightness()
        collector = collecting_with(reward, kind, portion, prompts=4)
        collector.sampling = sampling(kind, **more)
        with acting(policy):
            rollout = collector.collect(policy, torch.Generator().manual_seed(0))
        found[portion] = rollout
        size = portion or 4
        assert [len(prompts) for prompts in reward.asked] == [2 * min(size, 4 - s) for s in range(0, 4, size)]
        transitions = rollout.transitions
        assert isinstance(transitions, DenoiseTransitions)
        rewarded = [prompt for prompts in reward.asked for prompt in prompts]
        assert [transitions.asked[n].prompt for n in transitions.prompt_index.tolist()] == rewarded
        assert torch.allclose(score(policy, rollout, 3), rollout.logprobs, atol=1e-5)
        assert float(rollout.logprobs[rollout.mask].abs().min()) > 0
        last = transitions.latents[:, -1]
        if kind != "flux":  # whose latents are packed
            shift = policy.pipeline.vae.config.shift_factor if kind == "sd3" else 0.0
            with torch.no_grad():
                decoded = policy.pipeline.vae.decode(last / policy.pipeline.vae.config.scaling_factor + shift).sample
            bright = (decoded / 2 + 0.5).clamp(0, 1).mean((1, 2, 3))
            assert torch.allclose(rollout.rewards[:, -1], 2 * bright, atol=2e-3)
            assert float(bright.std()) > 0
        assert rollout.reward_parts["bright"].shape == (8,)
    whole = found[None]
    for portion in (1, 3):
        one = found[portion]
        assert one.group_ids.tolist() == whole.group_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert one.transitions.prompt_index.tolist() == whole.transitions.prompt_index.tolist()
        assert one.transitions.asked == whole.transitions.asked
        assert torch.equal(one.mask, whole.mask)
        assert torch.equal(one.transitions.noisy, whole.transitions.noisy)
        for path, told in whole.transitions.call.prompts.items():
            assert torch.allclose(one.transitions.call.prompts[path], told, atol=1e-6), path
        assert one.transitions.call.prompts.keys() == whole.transitions.call.prompts.keys()
        assert bool((one.rewards[:, :-1] == 0).all())


def test_as_many_rows_as_tokens_are_replayed(folders):
    """FLUX gives the positions of its 8 tokens, (8, 3), which a batch of 8 rows must not take for its own."""
    policy = load(folders, "flux")
    drawn = sampled(policy, "flux", group=4)
    assert len(drawn.transitions) == SHORT["max_sequence_length"]
    assert torch.allclose(score(policy, rollout_of(drawn), 3), drawn.logprobs, atol=1e-5)


def test_as_many_rows_as_patches_are_replayed(folders):
    """Likewise of the 64 patches of a picture of 16 x 16 that is upscaled 2 x 2 by its autoencoder."""
    policy = load(folders, "flux")
    drawn = sampled(policy, "flux", group=1)
    patches = drawn.transitions.latents.shape[2]
    drawn = sampled(policy, "flux", group=patches // 2)
    assert len(drawn.transitions) == patches
    assert torch.allclose(score(policy, rollout_of(drawn), 5), drawn.logprobs, atol=1e-5)


def test_a_portion_has_the_window_of_the_rollout(folders):
    policy = load(folders, "sd3")
    collector = collecting_with(Brightness(), "sd3", 1)
    collector.sampling = sampling("sd3", train_steps=1)
    places = set()
    for seed in range(4):
        with acting(policy):
            rollout = collector.collect(policy, torch.Generator().manual_seed(seed))
        assert rollout.mask.sum(-1).tolist() == [1] * 6
        assert bool((rollout.mask == rollout.mask[:1]).all())
        places.add(int(rollout.mask[0].nonzero()))
    assert len(places) > 1


def test_a_portion_is_rewarded_while_the_next_is_drawn(folders, monkeypatch):
    second, drawing, plain = threading.Event(), [], draw

    class Waiting(Brightness):
        def __call__(self, samples: Samples) -> Scores:
            assert second.wait(30), "the second portion was not drawn until the first had its reward"
            return super().__call__(samples)

    def watched(*words, **named):
        drawing.append(threading.current_thread())
        if len(drawing) == 2:
            second.set()
        return plain(*words, **named)

    monkeypatch.setattr(collecting, "draw", watched)
    reward, policy = Waiting(), load(folders, "sd")
    with acting(policy):
        collecting_with(reward, "sd", 1).collect(policy, torch.Generator().manual_seed(0))
    assert drawing == [threading.main_thread()] * 3
    assert len(reward.threads) == 3
    assert threading.main_thread() not in reward.threads


@pytest.mark.parametrize("portion", [None, 1])
def test_a_reward_that_fails_says_so_itself(folders, portion):
    class Failing(RewardFunction):
        def __call__(self, samples: Samples) -> Scores:
            raise LookupError("the judge has gone home")

    policy = load(folders, "sd")
    with acting(policy), pytest.raises(RewardError, match="LookupError on .* the judge has gone home"):
        collecting_with(Failing(), "sd", portion).collect(policy, torch.Generator().manual_seed(0))


def test_prompts_of_another_length_cannot_be_joined(folders):
    one = sampled(load(folders, "sd"), "sd", guidance=1.0).transitions
    longer = {path: torch.cat([told, told], 2) for path, told in one.call.prompts.items()}
    other = replace(one, call=replace(one.call, prompts=longer))
    with pytest.raises(ValueError, match="differ in the length of .*: set rollout.portion to null"):
        DenoiseTransitions.joined([one, other])
    with pytest.raises(ValueError, match="rollout.portion is 0: give 1 or more"):
        RolloutConfig(portion=0)


# ---- prompts are encoded once ------------------------------------------------------------------------------


class NoCache(PromptCache):
    def around(self, pipeline):  # type: ignore[override]
        return nullcontext()


def encoders(policy: DiffusionPolicy) -> list[nn.Module]:
    named = (f"text_encoder{end}" for end in ("", "_2", "_3"))
    return [part for name in named if isinstance(part := policy.pipeline.components.get(name), nn.Module)]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_prompt_is_encoded_once(folders, kind, guidance):
    policy = load(folders, kind)
    policy.encoded = NoCache()
    with counted(*encoders(policy)) as plain:
        wanted = sampled(policy, kind, guidance=guidance)
    policy.encoded = PromptCache()
    with counted(*encoders(policy)) as first:
        drawn = sampled(policy, kind, guidance=guidance)
    assert sum(first) == len(plain) * 2  # two prompts, each alone, in as many calls as the plain pipeline makes
    assert sum(plain) == len(plain) * 4
    with counted(*encoders(policy)) as again:
        other = sampled(policy, kind, guidance=guidance, group=3, prompts=PROMPTS[::-1])
        longer = sampled(policy, kind, guidance=guidance, prompts=[*PROMPTS, "a dog"])
    assert again == [1] * len(plain)  # the third prompt
    assert drawn.transitions.call.prompts.keys() == wanted.transitions.call.prompts.keys()
    for path, told in wanted.transitions.call.prompts.items():
        assert float((told[0] - told[1]).abs().max()) > 1e-3 or "time_ids" in path or path == "guidance"
        for found in (drawn, longer):
            assert torch.allclose(found.transitions.call.prompts[path][:2], told, atol=1e-6, rtol=0), path
        assert torch.allclose(other.transitions.call.prompts[path], told.flip(0), atol=1e-6, rtol=0), path
    for path, value in wanted.transitions.call.shared.items():
        found = drawn.transitions.call.shared[path]
        assert torch.equal(found, value) if isinstance(value, Tensor) else found == value, path
    assert torch.allclose(drawn.transitions.latents, wanted.transitions.latents, atol=1e-4, rtol=1e-4)
    assert "encode_prompt" not in vars(policy.pipeline)


def test_a_prompt_of_one_token_has_the_positions_of_one(folders):
    """FLUX gives the positions of its tokens, (tokens, 3), which belong to no prompt."""
    policy = load(folders, "flux")
    short = {"extra": {"max_sequence_length": 1}, "guidance": 3.0}
    policy.encoded = NoCache()
    wanted = sampled(policy, "flux", **short).transitions.latents
    policy.encoded = PromptCache()
    assert torch.allclose(sampled(policy, "flux", **short).transitions.latents, wanted, atol=1e-5)


def test_the_cache_tells_calls_apart(folders):
    policy, cache = load(folders, "sdxl"), PromptCache()
    pipeline = policy.pipeline
    calls = [
        {"do_classifier_free_guidance": False}, {"do_classifier_free_guidance": True},
        {"do_classifier_free_guidance": True, "negative_prompt": "a dog"},
        {"do_classifier_free_guidance": False, "clip_skip": 1},
    ]  # fmt: skip
    with torch.no_grad():
        for _ in range(2):
            for options in calls:
                given = {"device": "cpu", "num_images_per_prompt": 1, **options}
                wanted = pipeline.encode_prompt(PROMPTS, **given)
                with cache.around(pipeline):
                    found = pipeline.encode_prompt(PROMPTS, **given)
                for one, other in zip(found, wanted, strict=True):
                    assert (one is None) == (other is None)
                    assert one is None or torch.allclose(one, other, atol=1e-6)
    assert len(cache._known) == 8


def test_the_cache_leaves_unusual_calls_to_the_pipeline(folders):
    policy, cache = load(folders, "sd"), PromptCache()
    pipeline = policy.pipeline
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
        unusual = [
            ("a red cat", "cpu", 1, True),
            (PROMPTS, "cpu", 2, True),
            (PROMPTS, "cpu", 1, True, ["a dog", "a cat"]),
            (None, "cpu", 1, True, None, embeds),
        ]
        for words in unusual:
            wanted = pipeline.encode_prompt(*words)
            with cache.around(pipeline):
                found = pipeline.encode_prompt(*words)
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert not cache._known
    with pytest.raises(RuntimeError, match="inside"), cache.around(pipeline):
        raise RuntimeError("inside")
    assert "encode_prompt" not in vars(pipeline)
    with cache.around(DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler())):  # it encodes nothing
        pass


def test_the_cache_forgets_the_prompt_that_was_not_asked_for_longest(folders):
    policy, cache = load(folders, "sd"), PromptCache(limit=2)

    def encoded(*prompts: str) -> int:
        with counted(*encoders(policy)) as calls, cache.around(policy.pipeline), torch.no_grad():
            policy.pipeline.encode_prompt(list(prompts), "cpu", 1, False)
        assert len(cache._known) <= 2
        return len(calls)

    assert [encoded("a"), encoded("b"), encoded("a"), encoded("c"), encoded("a"), encoded("b")] == [1, 1, 0, 1, 0, 1]
    assert encoded("a", "b", "c", "a") == 2  # a batch larger than the cache: b is still known, a stays for its twin
    assert all(isinstance(part, Tensor) or part is None for parts in cache._known.values() for part in parts)


# ---- evaluation -------------------------------------------------------------------------------------------


def evaluator(reward: RewardFunction, kind: str = "sd", prompts=PROMPTS, **more) -> PictureEvaluator:
    whole = WeightedSum({"bright": Part(reward)})
    return PictureEvaluator(asked(*prompts), sampling(kind, guidance=1.0), whole, {}, **more)


def figures(one: PictureEvaluator, policy: DiffusionPolicy) -> dict[str, float]:
    with acting(policy):
        found = one.evaluate(policy, torch.Generator().manual_seed(0))
    return {name: estimate.value for name, estimate in found.items()}


def test_so_many_pictures_of_each_prompt_are_evaluated(folders):
    policy = load(folders, "sd", adapter=LoRA(rank=4, alpha=8))
    reward = Brightness()
    three = evaluator(reward, per_prompt=3, watch=WATCHED, reference=policy.reference())
    found = figures(three, policy)
    assert reward.asked == [[PROMPTS[0]] * 3 + [PROMPTS[1]] * 3]
    assert set(found) == {"reward", "dark_share", "colour_entropy", "diversity", "kl"}
    assert found["kl"] == 0.0
    assert found["diversity"] > 0
    assert figures(three, policy) == found  # the same noise every time
    moved(policy)
    assert figures(three, policy)["kl"] > 0
    assert set(figures(evaluator(reward), policy)) == {"reward"}
    assert "diversity" not in figures(evaluator(reward, watch=WATCHED), policy)  # of one picture alone
    assert set(figures(evaluator(reward, watch=["dark_share"]), policy)) == {"reward", "dark_share"}


CONFIG = """\
experiment: diffusion
policy: {{model: {model}, scheduler: LCMScheduler}}
data: {{train: train.txt, eval: held_out.txt, eval_pictures: 3}}
rewards: {{small: {{use: rewards.pictures.Compressibility}}}}
algorithm:
  advantage: mmrl.advantages.GroupRelative
  surrogate: mmrl.surrogates.PPOClip
  aggregate: mmrl.aggregates.TokenMean
  regularisers: [{{class_path: mmrl.regularisers.ExactKL, init_args: {{coef: 0.01}}}}]
sampling: {{steps: 3, guidance: 1.0, size: [16, 16]}}
rollout: {{prompts: 2, group: 2, portion: 1}}
train: {{steps: 2, lr: 1.0e-3, ema: 0.5}}
evaluate: {{every: null, samples: 1}}
sheet: {{scheduler: DPMSolverMultistepScheduler, steps: 4}}
logging: {{progress: false}}
"""


@pytest.fixture
def project(tmp_path, folders, monkeypatch) -> str:
    (tmp_path / "train.txt").write_text("a red cat\na blue dog\n")
    (tmp_path / "held_out.txt").write_text("a blue cat\na cat\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=folders["sd"]))
    monkeypatch.setattr(commands, "write_report", lambda runs: "not drawn")
    monkeypatch.chdir(tmp_path)
    return "run.yaml"


def test_a_run_watches_by_itself_and_shows_both_samplers(project):
    assert main(["train", project, "--run", "run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    for when in ("eval_before", "eval_after"):
        assert set(summary[when]) == {"reward", "dark_share", "colour_entropy", "diversity", "kl"}
    assert summary["eval_before"]["kl"]["value"] == 0.0 < summary["eval_after"]["kl"]["value"]
    assert summary["parity"]["logprob_diff_max"] < 1e-5
    trained = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    divergence = [line["update/kl"] for line in trained if "update/kl" in line]
    assert divergence[0] == pytest.approx(0.0, abs=1e-9)
    assert divergence[1] > 0
    (row,) = json.loads(Path("run/samples/step_000002/samples.json").read_text())
    assert row["images"] == ["000.png", "000_sheet1.png"]
    assert all((Path("run/samples/step_000002") / name).is_file() for name in row["images"])
    assert "3 steps; then: DPMSolverMultistepScheduler, 4 steps" in row["output"]


def test_what_is_watched_can_be_turned_off(project):
    built = load_config(project, []).experiment.build(RUNTIME)
    assert isinstance(built.evaluator, PictureEvaluator)
    assert tuple(built.evaluator.watch) == WATCHED
    assert built.evaluator.per_prompt == 3
    assert built.reference is not None
    quiet = load_config(project, ["watch=[]", "algorithm.regularisers=[]"]).experiment.build(RUNTIME)
    assert isinstance(quiet.evaluator, PictureEvaluator)
    assert tuple(quiet.evaluator.watch) == ()
    assert quiet.reference is None  # no second denoiser is kept for nothing
    found = figures(quiet.evaluator, quiet.policy)  # type: ignore[arg-type]
    assert set(found) == {"reward"}


def test_a_sheet_shows_the_sampler_the_pictures_are_for(folders, tmp_path):
    policy = load(folders, "sd")
    own = policy.pipeline.scheduler
    sheet = SheetConfig("DPMSolverMultistepScheduler", steps=3, guidance=2.0, seeds=(1, 2))
    for name, prompts in (("both", PROMPTS), ("second", PROMPTS[1:])):
        with acting(policy):
            one = evaluator(Brightness(), prompts=prompts, sheet=sheet)
            one.samples(policy, torch.Generator().manual_seed(0), tmp_path / name, 2)
        assert policy.pipeline.scheduler is own
    rows = json.loads((tmp_path / "both" / "samples.json").read_text())
    assert [row["images"] for row in rows] == [
        [f"{n:03d}.png", f"{n:03d}_sheet1.png", f"{n:03d}_sheet2.png"] for n in range(2)
    ]
    assert [row["prompt"] for row in rows] == PROMPTS
    pictures = {p.name: p.read_bytes() for p in (tmp_path / "both").glob("*.png")}
    alone = {p.name: p.read_bytes() for p in (tmp_path / "second").glob("*.png")}
    assert pictures["001_sheet1.png"] == alone["000_sheet1.png"]  # whatever else is drawn
    assert pictures["001_sheet2.png"] == alone["000_sheet2.png"]
    assert len(set(pictures.values())) == 6
    plain = DiffusionPipeline.from_pretrained(folders["sd"])
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    wanted = plain(
        PROMPTS[1], num_inference_steps=3, guidance_scale=2.0, height=16, width=16,
        generator=torch.Generator().manual_seed(2),
    ).images[0]  # fmt: skip
    wanted.save(tmp_path / "plain.png")
    assert (tmp_path / "plain.png").read_bytes() == pictures["001_sheet2.png"]
    policy.pipeline.vae.decode = None
    with acting(policy), pytest.raises(TypeError):
        one._produced(policy, asked(*PROMPTS), 1)
    assert policy.pipeline.scheduler is own  # after an error, too


def test_a_sheet_without_a_scheduler_has_that_of_training(folders, tmp_path):
    policy = load(folders, "sd")
    own = policy.pipeline.scheduler
    with acting(policy):
        one = evaluator(Brightness(), sheet=SheetConfig(steps=2))
        one.samples(policy, torch.Generator().manual_seed(0), tmp_path, 1)
        evaluator(Brightness()).samples(policy, torch.Generator().manual_seed(0), tmp_path / "none", 1)
    assert policy.pipeline.scheduler is own
    (row,) = json.loads((tmp_path / "samples.json").read_text())
    assert row["output"] == "first: as in training, 4 steps; then: the same scheduler, 2 steps"
    (row,) = json.loads((tmp_path / "none" / "samples.json").read_text())
    assert (row["images"], row["output"]) == (["000.png"], "")


# ---- adapters ---------------------------------------------------------------------------------------------


def filled(policy: DiffusionPolicy) -> DiffusionPolicy:
    for key, parameter in policy.denoiser.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(2))
    return policy


def kohya(folder: Path, file: Path, alpha: float, sgm: bool) -> list[str]:
    """The LoRA of `folder` with the names that kohya's sd-scripts give; with `sgm` those of SDXL's original blocks."""
    state: dict[str, Tensor] = {}
    for key, value in load_file(folder / "pytorch_lora_weights.safetensors").items():
        module, _, half = key.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        parts = module.split(".")
        if sgm:  # one resnet and one attention in each block of a way down, two on the way up
            place = {"down_blocks": "input_blocks", "mid_block": "middle_block", "up_blocks": "output_blocks"}[parts[0]]
            if parts[0] == "mid_block":
                parts = [place, "1", *parts[3:]]
            else:
                block, layer = int(parts[1]), int(parts[3])
                number = 1 + 2 * block + layer if parts[0] == "down_blocks" else 2 * block + layer
                parts = [place, str(number), "1", *parts[4:]]
        name = "lora_unet_" + "_".join(parts).replace(".", "_")
        state[f"{name}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = value
        state[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(state, file)
    return list(state)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_lora_in_kohyas_form_is_the_one_in_diffusers_form(folders, kind, tmp_path):
    alpha = 6.0  # over a rank of 4
    trained = filled(load(folders, kind, adapter=LoRA(rank=4, alpha=6)))
    trained.save_pretrained(tmp_path / "diffusers")
    names = kohya(tmp_path / "diffusers", tmp_path / "kohya.safetensors", alpha, sgm=kind == "sdxl")
    assert any("input_blocks" in name for name in names) == (kind == "sdxl")
    wanted = sampled(load(folders, kind, adapter=str(tmp_path / "diffusers")), kind).transitions.latents
    policy = load(folders, kind, adapter=str(tmp_path / "kohya.safetensors"))
    found = sampled(policy, kind).transitions.latents
    assert torch.allclose(found, wanted, atol=1e-5)
    assert float((sampled(load(folders, kind), kind).transitions.latents - wanted).abs().max()) > 1e-2
    assert all(parameter.requires_grad == (".default." in key) for key, parameter in policy.denoiser.named_parameters())
    policy.save_pretrained(tmp_path / "again")
    again = load(folders, kind, adapter=str(tmp_path / "again"))
    assert torch.allclose(sampled(again, kind).transitions.latents, wanted, atol=1e-5)


def test_an_adapter_of_the_text_encoder_is_exported_with_the_rest(folders, tmp_path):
    """kohya trains the text encoder by default, so files with one are common: without it the result draws otherwise."""
    trained = filled(load(folders, "sd", adapter=LoRA(rank=4, alpha=4)))
    trained.save_pretrained(tmp_path / "unet")
    kohya(tmp_path / "unet", tmp_path / "kohya.safetensors", 4.0, sgm=False)
    state, chance = load_file(tmp_path / "kohya.safetensors"), torch.Generator().manual_seed(1)
    for layer, part in ((layer, part) for layer in range(2) for part in ("q", "k", "v", "out")):
        name = f"lora_te_text_model_encoder_layers_{layer}_self_attn_{part}_proj"
        state[f"{name}.lora_down.weight"] = torch.randn(4, 16, generator=chance)
        state[f"{name}.lora_up.weight"] = torch.randn(16, 4, generator=chance)
        state[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(state, tmp_path / "kohya.safetensors")
    policy = load(folders, "sd", adapter=str(tmp_path / "kohya.safetensors"))
    wanted = sampled(policy, "sd").transitions.latents
    assert not torch.allclose(wanted, sampled(trained, "sd").transitions.latents, atol=1e-3)
    policy.save_pretrained(tmp_path / "out")
    found = sampled(load(folders, "sd", adapter=str(tmp_path / "out")), "sd").transitions.latents
    assert torch.allclose(found, wanted, atol=1e-5)
    resumed = load(folders, "sd", adapter=str(tmp_path / "kohya.safetensors"))
    moved(resumed)
    resumed.load_weights(tmp_path / "out")
    assert torch.allclose(sampled(resumed, "sd").transitions.latents, wanted, atol=1e-5)


@pytest.mark.parametrize("adapter", ["null", "{rank: 2, alpha: 2}"])
def test_the_model_card_of_a_pipeline_that_lacks_a_part_says_how_it_loads(project, folders, adapter, tmp_path):
    """Stable Diffusion 3 without its T5, as assets/diffusion/flow is: diffusers asks for what is not there."""
    words = [f"policy={{model: {folders['sd3']}, adapter: {adapter}}}"]
    experiment = load_config(project, words).experiment
    policy = load(folders, "sd3", adapter=LoRA(2, 2) if adapter != "null" else None)
    written = experiment.export(policy, tmp_path / "out", False, None)
    there: dict[str, object] = {}
    exec(written.usage.replace("PATH", str(tmp_path / "out")), there)
    assert isinstance(there["pipeline"], DiffusionPipeline)


# ---- one sentence each ------------------------------------------------------------------------------------


TINY = {
    "sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["policy.adapter={rank: 0}"], "policy.adapter.rank is 0: give 1 or more"),
        (
            ["policy.scheduler=PNDMScheduler"],
            "the pipeline's scheduler is PNDMScheduler, for which there is no stepper",
        ),
        (["policy.scheduler=Nonsense"], "policy.scheduler 'Nonsense' is not a scheduler of diffusers"),
        (["sheet.scheduler=Nonsense"], "sheet.scheduler 'Nonsense' is not a scheduler of diffusers"),
        (["policy.attention=xformers"], "policy.attention is 'xformers', which cannot be used here"),
        (["policy.model=none/here"], "policy.model 'none/here' could not be loaded as a diffusers pipeline"),
        (["data.train=empty.txt"], "data.train 'empty.txt' is empty: write one prompt a line"),
        (["data.train=held_out.txt"], "2 prompts stand both in data.train and in data.eval"),
        (["data.eval_pictures=0"], "data.eval_pictures is 0: give 1 or more"),
        (["algorithm.regularisers=[mmrl.regularisers.Pathwise]"], "rewards.small cannot be differentiated"),
        (["watch=[dark]"], "watch"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_sentence_before_anything_is_drawn(project, words, said, capsys, monkeypatch):
    monkeypatch.setattr("diffusion.evaluation.draw", lambda *_: pytest.fail("something was drawn"))
    assert main(["train", project, "--run", "run", *words]) in (1, 2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert not Path("run", "checkpoints", "latest").exists()


@pytest.mark.parametrize("kind", ["stable diffusion", "ddpm"])
def test_a_pipeline_without_a_text_encoder_is_one_sentence(kind, tmp_path):
    """It could not draw prompts."""
    if kind == "ddpm":
        DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()).save_pretrained(tmp_path)
        scheduler = "DDIMScheduler"
    else:
        StableDiffusionPipeline(
            vae(), None, None, unet(), DDIMScheduler(clip_sample=False, steps_offset=1),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(tmp_path)  # fmt: skip
        scheduler = None
    with pytest.raises(ValueError, match="text encoder") as found:
        DiffusionPolicy.load(PolicyConfig(str(tmp_path), scheduler=scheduler))
    assert "\n" not in str(found.value)


def test_offload_has_no_effect_on_a_cpu(folders):
    wanted, policy = sampled(load(folders, "sd"), "sd"), load(folders, "sd", offload=True)
    found = sampled(policy, "sd")
    assert torch.equal(found.transitions.latents, wanted.transitions.latents)
    assert not hasattr(policy.denoiser, "_hf_hook")
    assert all(not hasattr(encoder, "_hf_hook") for encoder in encoders(policy))
