"""Masked reductions: what stands where the mask is False has no say, in value and in gradient."""

from __future__ import annotations

import math

import pytest
import torch

from mmrl.masked import (
    group_mean,
    group_sizes,
    group_spread,
    group_std,
    group_sum,
    group_varies,
    masked_max,
    masked_mean,
    masked_sum,
    masked_var,
    whiten,
)

NAN = float("nan")
X = torch.tensor([[1.0, 2.0, NAN], [3.0, float("inf"), NAN]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_reductions_ignore_garbage() -> None:
    assert float(masked_sum(X, MASK)) == 6.0
    assert masked_sum(X, MASK, -1).tolist() == [3.0, 3.0]
    assert float(masked_mean(X, MASK)) == 2.0
    assert masked_mean(X, MASK, -1).tolist() == [1.5, 3.0]
    assert float(masked_var(X, MASK)) == 1.0  # unbiased, of 1, 2, 3
    assert float(masked_max(X, MASK)) == 3.0


def test_nothing_masked_in() -> None:
    nothing = torch.zeros_like(MASK)
    assert float(masked_mean(X, nothing)) == 0.0
    assert float(masked_var(X, nothing)) == 0.0
    assert float(masked_max(X, nothing)) == -math.inf
    assert float(masked_max(X[:0], nothing[:0])) == -math.inf
    assert whiten(X, nothing).tolist() == [[0.0] * 3] * 2


def test_no_gradient_where_masked_out() -> None:
    x = X.clone().requires_grad_()
    masked_mean(x, MASK).backward()
    third = 1 / 3
    torch.testing.assert_close(x.grad, torch.tensor([[third, third, 0.0], [third, 0.0, 0.0]]))


def test_whiten_has_mean_0_and_unbiased_variance_1() -> None:
    white = whiten(X, MASK)
    torch.testing.assert_close(white[MASK], torch.tensor([-1.0, 0.0, 1.0]))
    assert bool((white[~MASK] == 0).all())


@pytest.mark.parametrize("value", [0.1, 0.3, 100.1, 1e4 + 0.1])
@pytest.mark.parametrize("count", [3, 7, 16])
def test_whiten_does_not_amplify_rounding(value: float, count: int) -> None:
    x = torch.full((count,), value)
    x[0] = torch.nextafter(x[0], torch.tensor(9e9))
    assert float(whiten(x, torch.ones(count, dtype=torch.bool)).abs().max()) == 0.0


def test_whiten_of_one_entry_is_0() -> None:
    assert float(whiten(torch.tensor([5.0]), torch.tensor([True]))) == 0.0


def test_group_statistics_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, generator=generator)
    groups = torch.randint(0, 7, (40,), generator=generator) * 1000 - 3  # ids are labels, not places
    valid = torch.rand(40, generator=generator) > 0.3
    x[~valid] = NAN
    for row in range(40):
        members = x[(groups == groups[row]) & valid].double()
        n = len(members)
        assert int(group_sizes(valid, groups)[row]) == n
        wanted_mean = float(members.mean()) if n else 0.0
        assert float(group_mean(x, valid, groups)[row]) == pytest.approx(wanted_mean, abs=1e-6)
        assert float(group_sum(x, valid, groups)[row]) == pytest.approx(float(members.sum()), abs=1e-6)
        if valid[row]:
            wanted_std = float(members.std()) if n > 1 else 0.0
            assert float(group_std(x, valid, groups)[row]) == pytest.approx(wanted_std, abs=1e-6)
        wanted_spread = float(members.max() - members.min()) if n else 0.0
        assert float(group_spread(x, valid, groups)[row]) == pytest.approx(wanted_spread, abs=1e-6)


def test_mean_of_equal_numbers_is_that_number_exactly() -> None:
    for n in range(1, 17):
        x = torch.full((n,), 0.3)
        ones, same = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
        assert torch.equal(group_mean(x, ones, same), x)


def test_group_varies_knows_noise_from_spread() -> None:
    x = torch.tensor([0.1 + 0.2, 0.3, 1.0, 1.001, 5.0, 2.0, NAN], dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1, 2, 3, 3])
    valid = torch.tensor([True] * 6 + [False])
    assert group_varies(x, valid, groups).tolist() == [False, False, True, True, False, False, False]


def test_no_groups_at_all() -> None:
    none = torch.zeros(0)
    assert group_mean(none, none.bool(), none.long()).shape == (0,)
    assert group_spread(none, none.bool(), none.long()).shape == (0,)


def test_whiten_does_not_hide_nan() -> None:
    assert bool(whiten(torch.tensor([1.0, NAN]), torch.tensor([True, True])).isnan().any())
