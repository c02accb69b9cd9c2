"""Each stepper against diffusers' own scheduler, and the closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from diffusion.steppers import DDIM, LCM, EulerAncestral, FewStepFlow, FlowSDE, UnknownScheduler
from mmrl.flow_sde import flow_grpo_diffusion, flow_sde_step

ALPHAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (3, 4, 5, 5)


def tensors(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def one(stepper, scheduler, number: int, output, x, noisy: bool = True):
    row = {name: values[number].expand(len(x)) for name, values in stepper.table(scheduler).items()}
    return stepper.distribution(output, x, row, torch.full((len(x),), noisy))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers_own(kind, spacing, eta):
    output, x, noise = tensors(3)
    scheduler = DDIMScheduler(**ALPHAS, prediction_type=kind, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(5)
    for number, t in enumerate(scheduler.timesteps):
        mean, std = one(DDIM(noise=eta), scheduler, number, output, x)
        wanted = scheduler.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(mean + std * noise, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_lcm_is_diffusers_own(kind):
    output, x = tensors(2)
    scheduler = LCMScheduler(**ALPHAS, prediction_type=kind)
    scheduler.set_timesteps(4)
    for number, t in enumerate(scheduler.timesteps):
        generator = torch.Generator().manual_seed(7)
        wanted = scheduler.step(output, t, x, generator=generator).prev_sample
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        mean, std = one(LCM(), scheduler, number, output, x)
        torch.testing.assert_close(mean + std * noise, wanted, atol=2e-5, rtol=1e-5)
    assert float(std.max()) == 0.0


def test_euler_ancestral_is_diffusers_own():
    output, x = tensors(2)
    scheduler = EulerAncestralDiscreteScheduler(**ALPHAS)
    scheduler.set_timesteps(5)
    for number, t in enumerate(scheduler.timesteps):
        scheduler.is_scale_input_called = True
        generator = torch.Generator().manual_seed(7)
        wanted = scheduler.step(output, t, x, generator=generator).prev_sample
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        mean, std = one(EulerAncestral(), scheduler, number, output, x)
        torch.testing.assert_close(mean + std * noise, wanted, atol=2e-4, rtol=1e-4)


def test_a_flow_without_noise_is_diffusers_own():
    output, x = (tensor.float() for tensor in tensors(2))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    for number, t in enumerate(scheduler.timesteps):
        wanted = scheduler.step(output, t, x).prev_sample
        mean, std = one(FlowSDE(), scheduler, number, output, x, noisy=False)
        torch.testing.assert_close(mean, wanted, atol=1e-5, rtol=1e-5)
        assert float(std.max()) == 0.0


def test_few_step_flow_is_diffusers_stochastic_sampling():
    output, x = (tensor.float() for tensor in tensors(2))
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(4)
    for number, t in enumerate(scheduler.timesteps):
        torch.manual_seed(7)
        wanted = scheduler.step(output, t, x).prev_sample
        torch.manual_seed(7)
        mean, std = one(FewStepFlow(), scheduler, number, output, x)
        torch.testing.assert_close(mean + std * torch.randn_like(x), wanted, atol=1e-5, rtol=1e-5)


def test_the_sde_keeps_the_marginals_of_the_flow():
    """Of data N(m, c^2) the flow is known exactly: x_t is N((1-t) m, (1-t)^2 c^2 + t^2). Many small noisy steps end with
    the mean and spread of the noiseless ones."""
    generator, m, c = torch.Generator().manual_seed(0), 1.5, 0.3
    x = torch.randn(200_000, generator=generator, dtype=torch.float64)
    times = torch.linspace(1.0, 0.05, 400, dtype=torch.float64)
    x = x * times[0] + (1 - times[0]) * m
    for t, following in pairwise(times):
        variance = ((1 - t) * c) ** 2 + t**2
        centred = x - (1 - t) * m
        velocity = -m + centred * (t - (1 - t) * c**2) / variance  # E[noise - data | x_t]
        s = flow_grpo_diffusion(t, times[1], 0.7)
        mean, std = flow_sde_step(x, velocity, t, following, s)
        x = mean + std * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    end = times[-1]
    assert float(x.mean()) == pytest.approx(float((1 - end) * m), abs=0.01)
    assert float(x.std()) == pytest.approx(float(((1 - end) ** 2 * c**2 + end**2).sqrt()), rel=0.03)


def test_flow_grpo_diffusion_at_one_takes_the_next_time():
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = flow_grpo_diffusion(t, torch.tensor(0.8, dtype=torch.float64), 0.7)
    assert found.tolist() == pytest.approx([0.7 * (0.8 / 0.2) ** 0.5, 0.7])


def test_what_a_stepper_does_not_do_is_refused():
    scheduler = DDIMScheduler(**ALPHAS, clip_sample=True)
    scheduler.set_timesteps(3)
    with pytest.raises(UnknownScheduler, match="clip_sample=True"):
        DDIM().table(scheduler)
    for wrong in (lambda: LCM(noise=0.5), lambda: DDIM(noise=-1.0)):
        with pytest.raises(ValueError, match="noise is"):
            wrong()
