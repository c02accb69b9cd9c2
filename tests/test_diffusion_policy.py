"""Any pipeline of diffusers, captured and replayed: log-probs, gradients, adapters, windows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusion.adapters import LoRA
from diffusion.capture import CannotReplay, with_guidance
from diffusion.policy import DiffusionPolicy, PolicyConfig
from diffusion.prompts import Asked
from diffusion.sampling import Drawn, SamplingConfig, draw
from diffusion.steppers import FewStepFlow, UnknownScheduler
from mmrl.runtime import acting
from mmrl.scoring import score
from mmrl.testing import check_policy
from mmrl.types import Rollout
from tests.tiny_pipelines import KINDS, make

PROMPTS = ["a red cat", "a blue dog"]
EXTRA = {"flux": {"max_sequence_length": 8}, "sd3": {"max_sequence_length": 8}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        make(kind, found[kind])
    return found


def load(folders, kind: str, **more) -> DiffusionPolicy:
    return DiffusionPolicy.load(PolicyConfig(str(folders[kind]), **more)).eval()


def sampled(policy, kind: str, group: int = 2, **more) -> Drawn:
    config = SamplingConfig(**{"steps": 4, "guidance": 3.0, "size": (16, 16), "extra": EXTRA.get(kind, {}), **more})
    return draw(policy, [Asked(text, text) for text in PROMPTS], group, config, torch.Generator().manual_seed(3))


def rollout_of(drawn: Drawn, reduction: str = "mean") -> Rollout:
    alive = torch.ones_like(drawn.mask)
    rewards = torch.randn(alive.shape, generator=torch.Generator().manual_seed(1))
    size = 1 if reduction == "mean" else drawn.transitions.dimensions
    groups = torch.arange(2).repeat_interleave(len(alive) // 2)
    return Rollout(
        drawn.transitions,
        drawn.logprobs,
        drawn.mask,
        alive,
        rewards,
        torch.ones_like(rewards),
        groups,
        decision_size=size,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_was_drawn_is_scored_again_as_recorded(folders, kind, reduction):
    policy = load(folders, kind, logprob_reduction=reduction, adapter=LoRA(rank=4, alpha=8))
    check_policy(policy, rollout_of(sampled(policy, kind), reduction))


@pytest.mark.parametrize("kind", KINDS)
def test_replay_is_exact_and_the_last_step_is_no_decision(folders, kind):
    """The same rows in the same batch give the recorded output of the denoiser bit for bit."""
    policy = load(folders, kind)
    drawn = sampled(policy, kind)
    assert [picture.size for picture in drawn.pictures] == [(16, 16)] * 4
    assert drawn.mask.tolist() == [[True, True, True, False]] * 4
    rows = torch.arange(4)
    with acting(policy):
        for step in range(4):
            steps = torch.full((4,), step)
            output = with_guidance(policy._denoise(drawn.transitions, rows, steps), drawn.transitions.call)
            row = {name: values[steps] for name, values in drawn.transitions.table.items()}
            x = drawn.transitions.latents[:, step]
            mean, std = policy.stepper.distribution(output, x, row, drawn.transitions.noisy[:, step])
            if step == 3:
                assert torch.equal(mean, drawn.transitions.latents[:, 4])
            else:
                assert float(std.min()) > 0
        whole = policy(drawn.transitions, torch.arange(4).expand(4, -1)).logprobs
    assert torch.allclose(whole, drawn.logprobs, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_kept_once(folders, kind):
    policy = load(folders, kind)
    drawn = sampled(policy, kind, group=3)
    assert all(len(tensor) == 2 for tensor in drawn.transitions.call.prompts.values())
    few = drawn.transitions.rows(torch.tensor([4]))
    assert all(len(tensor) == 1 for tensor in few.call.prompts.values())


def test_the_scheduler_without_noise_is_diffusers_own(folders):
    """With noise 0 a flow's SDE and DDIM draw what the plain pipeline draws from the same first latent."""
    from diffusion.steppers import DDIM, FlowSDE

    for kind, stepper in (("sd", DDIM(noise=0.0)), ("sd3", FlowSDE(noise=0.0)), ("flux", FlowSDE(noise=0.0))):
        policy = load(folders, kind, stepper=stepper)
        drawn = sampled(policy, kind, group=1)
        options = {"guidance_scale": 3.0, "height": 16, "width": 16, "num_inference_steps": 4, **EXTRA.get(kind, {})}
        first = drawn.transitions.latents[:, 0]
        with torch.no_grad():
            plain = policy.pipeline(PROMPTS, latents=first, output_type="latent", **options).images
        assert torch.allclose(plain, drawn.transitions.latents[:, -1], atol=1e-4), kind
        assert not drawn.mask.any()


def test_drawing_leaves_the_global_generator_alone_and_is_repeatable(folders):
    policy = load(folders, "sd")
    before = torch.get_rng_state()
    one, two = sampled(policy, "sd"), sampled(policy, "sd")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.transitions.latents, two.transitions.latents)
    assert "forward" not in vars(policy.denoiser)
    assert "step" not in vars(policy.pipeline.scheduler)


def test_guidance_that_cannot_be_done_again_is_refused(folders):
    with pytest.raises(CannotReplay, match="guidance_rescale"):
        sampled(load(folders, "sd"), "sd", extra={"guidance_rescale": 0.5})
    with pytest.raises(ValueError, match="does not take"):
        sampled(load(folders, "sd"), "sd", extra={"guidance_rescael": 0.5})


def test_an_unknown_scheduler_and_a_missing_pipeline_are_one_sentence(folders, tmp_path):
    with pytest.raises(UnknownScheduler, match="PNDMScheduler, for which there is no stepper"):
        load(folders, "sd", scheduler="PNDMScheduler")
    with pytest.raises(ValueError, match="is not a scheduler of diffusers"):
        load(folders, "sd", scheduler="UNet2DModel")
    with pytest.raises(ValueError, match="could not be loaded as a diffusers pipeline"):
        DiffusionPolicy.load(PolicyConfig(str(tmp_path)))
    with pytest.raises(ValueError, match="rank is 0"):
        LoRA(rank=0)
    with pytest.raises(ValueError, match="could not be loaded as a LoRA"):
        load(folders, "sd", adapter=str(tmp_path))


def test_one_model_is_a_diffusion_and_a_consistency_policy(folders):
    policy = load(folders, "sd", scheduler="LCMScheduler")
    drawn = sampled(policy, "sd", guidance=1.0)
    assert type(policy.stepper).__name__ == "LCM"
    check_policy(policy, rollout_of(drawn))


def test_few_step_flow_is_a_policy(folders):
    policy = load(folders, "sd3", stepper=FewStepFlow())
    check_policy(policy, rollout_of(sampled(policy, "sd3")))


def test_a_window_of_steps_has_noise_and_the_rest_none(folders):
    policy = load(folders, "sd3")
    drawn = sampled(policy, "sd3", train_steps=1)
    assert drawn.mask.sum(-1).tolist() == [1] * 4
    assert torch.equal(drawn.mask, drawn.transitions.noisy)
    check_policy(policy, rollout_of(drawn))


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_a_trained_lora_changes_the_pictures_of_a_plain_pipeline(folders, kind, tmp_path):
    policy = load(folders, kind, adapter=LoRA(rank=4, alpha=32))
    for key, parameter in policy.denoiser.named_parameters():
        assert parameter.requires_grad == (".default." in key)
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(2))
    policy.save_pretrained(tmp_path / "lora")
    parts = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3" else {}
    plain = DiffusionPipeline.from_pretrained(folders[kind], **parts)
    options = {
        "guidance_scale": 3.0,
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "output_type": "latent",
        **EXTRA.get(kind, {}),
    }

    def drawn(pipeline) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(PROMPTS, generator=torch.Generator().manual_seed(0), **options).images

    before = drawn(plain)
    plain.load_lora_weights(str(tmp_path / "lora"))
    after = drawn(plain)
    assert float((after - before).abs().max()) > 1e-3
    assert torch.allclose(after, drawn(policy.pipeline), atol=1e-5)  # alpha included
    again = load(folders, kind, adapter=str(tmp_path / "lora"))
    one, two = sampled(again, kind), sampled(policy, kind)
    assert torch.allclose(one.transitions.latents, two.transitions.latents, atol=1e-5)
    fresh = load(folders, kind, adapter=LoRA(rank=4, alpha=32))
    fresh.load_weights(tmp_path / "lora")
    state = {k: v for k, v in policy.denoiser.state_dict().items() if "lora" in k}
    assert all(torch.equal(fresh.denoiser.state_dict()[k], v) for k, v in state.items())


def test_kl_to_a_start_that_is_not_zero_is_exactly_zero(folders, tmp_path):
    first = load(folders, "sd", adapter=LoRA(rank=4, alpha=8))
    for key, parameter in first.denoiser.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    first.save_pretrained(tmp_path / "lora")
    policy = load(folders, "sd", adapter=str(tmp_path / "lora"))
    rollout = rollout_of(sampled(policy, "sd"))
    reference = policy.reference()
    trained = {key for key, parameter in policy.denoiser.named_parameters() if parameter.requires_grad}
    assert torch.equal(score(reference, rollout, 2), score(policy, rollout, 2))
    assert {key for key, parameter in policy.denoiser.named_parameters() if parameter.requires_grad} == trained
    assert all(".default." in key for key in trained)
    with torch.no_grad():
        for key, parameter in policy.denoiser.named_parameters():
            if key in trained:
                parameter += 0.05
    assert torch.equal(score(reference, rollout, 2), torch.where(rollout.mask, score(reference, rollout, 2), 0.0))
    assert not torch.equal(score(reference, rollout, 2), score(policy, rollout, 2))
    moved = load(folders, "sd", adapter=LoRA(rank=4, alpha=8))  # a fork of a run whose adapter was new
    moved.load_weights(tmp_path / "lora")
    assert torch.equal(score(moved.reference(moved=True), rollout, 2), score(moved, rollout, 2))
    assert not torch.equal(score(moved.reference(), rollout, 2), score(moved, rollout, 2))
    base = load(folders, "sd", adapter=str(tmp_path / "lora"), reference="base")
    none, plain = score(base.reference(), rollout, 2), score(load(folders, "sd"), rollout, 2)
    assert torch.allclose(none, plain, atol=1e-6)


def test_a_whole_denoiser_is_saved_and_read_back(folders, tmp_path):
    policy = load(folders, "sd")
    reference = policy.reference()
    rollout = rollout_of(sampled(policy, "sd"))
    assert torch.equal(score(reference, rollout, 4), score(policy, rollout, 4))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.01
    policy.save_pretrained(tmp_path / "unet")
    again = load(folders, "sd")
    again.load_weights(tmp_path / "unet")
    assert torch.equal(score(again, rollout, 4), score(policy, rollout, 4))
    assert not torch.equal(score(reference, rollout, 4), score(policy, rollout, 4))
