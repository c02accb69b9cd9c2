"""Pass@k, support, diversity and best-of-N: the numbers of the papers, and closed forms against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mmrl.coverage import (
    Support,
    answer_entropy,
    best_of_n,
    best_of_n_kl,
    detectable,
    expected_best_of,
    kl_divergence,
    pass_at_k,
    powers_of_two,
    support,
    tilted,
)

D = torch.float64
P, R = torch.tensor([0.5, 0.3, 0.2], dtype=D), torch.tensor([0.0, 1.0, 2.0], dtype=D)


def attempts(n: int, c: int) -> torch.Tensor:
    return (torch.arange(n) < c)[None]


@pytest.mark.parametrize(
    ("n", "c", "k", "wanted"), [(4, 1, 2, 0.5), (4, 0, 2, 0.0), (4, 3, 2, 1.0), (4, 4, 4, 1.0), (5, 2, 1, 0.4)]
)
def test_pass_at_k_of_the_card(n: int, c: int, k: int, wanted: float) -> None:
    assert float(pass_at_k(attempts(n, c), k)) == pytest.approx(wanted, abs=1e-12)


def test_pass_at_k_is_the_binomial_one() -> None:
    for n, c, k in itertools.product((6,), range(7), range(1, 7)):
        assert float(pass_at_k(attempts(n, c), k)) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))


def test_pass_at_k_of_thousands() -> None:
    exact = 1 - math.comb(4096 - 3, 1024) / math.comb(4096, 1024)
    assert float(pass_at_k(attempts(4096, 3), 1024)) == pytest.approx(exact, rel=1e-10)
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert powers_of_two(8) == [1, 2, 4, 8]
    with pytest.raises(ValueError, match="give k from 1 to 4"):
        pass_at_k(attempts(4, 1), 5)


def test_support_of_the_paper() -> None:
    """ProRL-1.5B-v2: P 2388, E 48, S 175; and the small one of the card."""
    paper = Support(2388, 48, 175, 0)
    assert [round(x, 4) for x in (paper.retention, paper.discovery, paper.change)] == [0.9317, 0.0197, -0.0486]
    small = Support(8, 1, 3, 0)
    found = [round(x, 4) for x in (small.retention, small.discovery, small.dynamic, small.change)]
    assert found == [0.7273, 0.1111, 0.1928, -0.1667]
    assert math.isnan(Support(0, 0, 0, 5).retention)


def test_support_counts_problems() -> None:
    before = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]]).bool()
    after = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()
    assert support(before, after) == Support(retained=1, expanded=1, shrunk=1, neither=1)
    assert support(before, after, hits=2) == Support(retained=1, expanded=0, shrunk=0, neither=3)
    with pytest.raises(ValueError, match="as many each"):
        support(before, after[:, :2])
    assert detectable(8192) == pytest.approx(3.66e-4, abs=1e-6)


def test_entropy_of_answers() -> None:
    assert answer_entropy(["a", "a", "b", "b"]) == pytest.approx(math.log(2))
    assert answer_entropy(["a", "a", "b", "b"], corrected=True) == pytest.approx(math.log(2) + 1 / 8)
    assert answer_entropy([None, None]) == 0.0


def test_expected_best_is_the_mean_over_all_choices() -> None:
    rewards = torch.tensor([[0.3, -1.0, 2.0, 0.7, 0.7]])
    for count in range(1, 6):
        chosen = [max(c) for c in itertools.combinations(rewards[0].tolist(), count)]
        assert float(expected_best_of(rewards, count)) == pytest.approx(sum(chosen) / len(chosen))


def test_best_of_n_of_the_card() -> None:
    best = best_of_n(P, R, 2)
    torch.testing.assert_close(best, torch.tensor([0.25, 0.39, 0.36], dtype=D))
    assert kl_divergence(best, P) == pytest.approx(0.140638, abs=1e-6)
    assert kl_divergence(best, P) <= best_of_n_kl(2) == pytest.approx(0.193147, abs=1e-6)
    assert float((best * R).sum()) == pytest.approx(1.11)
    equal = best_of_n(P, torch.tensor([0.0, 1.0, 1.0], dtype=D), 3)
    assert float(equal.sum()) == pytest.approx(1.0)
    assert float(equal[1] / equal[2]) == pytest.approx(1.5)


def test_the_tilted_policy_is_the_frontier() -> None:
    """pi = (.5, .5), r = (1, 0), coef .5: (.8808, .1192) and J = .716890; and Pythagoras holds for best-of-N."""
    half, reward = torch.tensor([0.5, 0.5], dtype=D), torch.tensor([1.0, 0.0], dtype=D)
    best = tilted(half, reward, 0.5)
    torch.testing.assert_close(best, torch.tensor([0.880797, 0.119203], dtype=D), atol=1e-6, rtol=0)
    assert float((best * reward).sum()) - 0.5 * kl_divergence(best, half) == pytest.approx(0.716890, abs=1e-6)
    other, phi, coef = best_of_n(P, R, 2), tilted(P, R, 0.8), 0.8
    gap = float(((other - phi) * R).sum())
    assert kl_divergence(other, P) == pytest.approx(kl_divergence(other, phi) + kl_divergence(phi, P) + gap / coef)
