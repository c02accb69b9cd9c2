"""Gaussian maths against torch.distributions and finite differences in float64 (invariant I9)."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from mmrl import gaussian

SHAPE = (3, 4, 2, 5)


def numbers(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, mean = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, mean, torch.rand(SHAPE, generator=generator, dtype=torch.float64) + 0.1


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 10)])
def test_equals_torch_distributions(reduction, divisor):
    x, mean, std = numbers(0)
    _, other_mean, other_std = numbers(1)
    one, two = (Independent(Normal(m, s), 2) for m, s in ((mean, std), (other_mean, other_std)))
    close = torch.testing.assert_close
    close(gaussian.log_density(x, mean, std, reduction), one.log_prob(x) / divisor)
    close(gaussian.entropy(std, reduction), one.entropy() / divisor)
    close(gaussian.kl(mean, std, other_mean, other_std, reduction), kl_divergence(one, two) / divisor)


def test_gradients_equal_finite_differences():
    x, mean, std = (tensor.requires_grad_() for tensor in numbers(2))
    _, other_mean, other_std = numbers(3)
    assert torch.autograd.gradcheck(lambda *a: gaussian.log_density(*a, "sum"), (x, mean, std))
    assert torch.autograd.gradcheck(lambda s: gaussian.entropy(s, "mean"), (std,))
    assert torch.autograd.gradcheck(lambda m, s: gaussian.kl(m, s, other_mean, other_std, "sum"), (mean, std))


def test_a_scalar_std_counts_for_every_dimension():
    x, mean, _ = numbers(4)
    std = torch.tensor(0.7, dtype=torch.float64)
    whole = gaussian.log_density(x, mean, std.expand(SHAPE), "sum")
    torch.testing.assert_close(gaussian.log_density(x, mean, std, "sum"), whole)
    assert float(gaussian.kl(mean, std.expand(SHAPE), mean, std.expand(SHAPE), "sum").abs().max()) == 0.0
