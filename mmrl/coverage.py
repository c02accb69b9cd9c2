"""What a policy can do at all, beside what it does most: pass@k, support, diversity, best-of-N and its price in KL.

pass@k           arXiv 2107.03374, eq. 1, as used in "Does RL Really Incentivize Reasoning Capacity", arXiv 2504.13837
support metrics  The Invisible Leash, arXiv 2507.14843: counted over problems; its names are kept
best-of-N        arXiv 2404.01730 (with KL-regularised RL) and 2401.01879 (its KL)

Letters: M problems, n attempts at each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def pass_at_k(right: Tensor, k: int) -> Tensor:
    """Unbiased chance (M,) that one of k attempts is right, from `right` (M, n) bool with n >= k.

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1..n} (1 - k / i), as a sum of logarithms: exact for thousands of
    attempts, where binomials overflow and 1 - (1 - c/n)^k is biased.

    Raises:
        ValueError: k is not from 1 to n.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be told from {n} attempts: give k from 1 to {n}")
    missed = torch.zeros(n + 1, dtype=torch.float64)
    for i in range(n, 0, -1):
        missed[n - i + 1] = missed[n - i] + (math.log1p(-k / i) if i > k else -math.inf)
    return 1.0 - missed.to(right.device)[right.sum(-1)].exp()


def powers_of_two(n: int) -> list[int]:
    """The k that a curve of pass@k is told at: 1, 2, 4, ... and n."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


@dataclass(frozen=True)
class Support:
    """How a policy's solvable problems compare with those of the one it started from; NaN where nothing is divided."""

    retained: int
    expanded: int
    shrunk: int
    neither: int

    @property
    def retention(self) -> float:
        """SRR = P / (P + S): of what was solved before, the share that still is."""
        return _ratio(self.retained, self.retained + self.shrunk)

    @property
    def discovery(self) -> float:
        """NDR = E / (P + E): of what is solved now, the share that is new."""
        return _ratio(self.expanded, self.retained + self.expanded)

    @property
    def dynamic(self) -> float:
        """SDS, the harmonic mean of both."""
        return _ratio(2 * self.retention * self.discovery, self.retention + self.discovery)

    @property
    def change(self) -> float:
        """NSCR = (E - S) / (P + E + S): negative where support shrinks."""
        return _ratio(self.expanded - self.shrunk, self.retained + self.expanded + self.shrunk)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def support(before: Tensor, after: Tensor, hits: int = 1) -> Support:
    """From right attempts (M, n) bool of both policies at the same problems, as many each. A problem is in the support
    with `hits` of them at least: with one, those with a single hit come and go by chance.

    Raises:
        ValueError: the shapes differ, so that one policy was asked more often.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"support is compared from attempts of shapes {tuple(before.shape)} and {tuple(after.shape)}: as many each"
        )
    was, now = before.sum(-1) >= hits, after.sum(-1) >= hits
    kept, new, lost = (int(found.sum()) for found in (was & now, ~was & now, was & ~now))
    return Support(kept, new, lost, len(was) - kept - new - lost)


def detectable(attempts: int, error: float = 0.05) -> float:
    """The probability of success that `attempts` would miss with a chance of `error`: -ln error / attempts."""
    return -math.log(error) / attempts


def answer_entropy(answers: Sequence[Hashable], corrected: bool = False) -> float:
    """Entropy in nats of the answers to one problem, those that cannot be parsed being one (None, say). Biased low by
    about (K - 1) / (2 n), which `corrected` adds (Miller and Madow 1955)."""
    counts, n = Counter(answers), len(answers)
    plain = -sum(count / n * math.log(count / n) for count in counts.values()) if n else 0.0
    return plain + ((len(counts) - 1) / (2 * n) if corrected and n else 0.0)


def expected_best_of(rewards: Tensor, count: int) -> Tensor:
    """Unbiased expected largest of `count` rewards (M,), from n >= count of them (M, n): sum_j r_(j) C(j-1, N-1) /
    C(n, N) over rewards in order."""
    n = rewards.shape[1]
    if not 1 <= count <= n:
        raise ValueError(f"best of {count} cannot be told from {n} rewards: give 1 to {n}")
    log_chances = [
        _log_choose(j - 1, count - 1) - _log_choose(n, count) if j >= count else -math.inf for j in range(1, n + 1)
    ]
    chances = torch.tensor(log_chances, dtype=torch.float64, device=rewards.device).exp()
    return (rewards.double().sort(-1).values * chances).sum(-1)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def best_of_n(probabilities: Tensor, rewards: Tensor, count: int) -> Tensor:
    """Distribution (V,) of the best of `count` draws from probabilities (V,): F(y)^N - F^-(y)^N, equal rewards sharing
    by probability."""
    at_most = (probabilities[None] * (rewards[None] <= rewards[:, None])).sum(-1)
    below = (probabilities[None] * (rewards[None] < rewards[:, None])).sum(-1)
    level = at_most - below
    return (at_most**count - below**count) * probabilities / level.clamp(min=1e-300)


def best_of_n_kl(count: int) -> float:
    """ln N - (N - 1) / N: the KL of best-of-N to the policy it draws from, an upper bound where rewards are few."""
    return math.log(count) - (count - 1) / count


def tilted(probabilities: Tensor, rewards: Tensor, coef: float) -> Tensor:
    """p exp(r / coef) / Z (V,), what RL with a KL of this coefficient converges to: at its KL no policy has a higher
    reward, which is the frontier that best-of-N and trained policies are held against."""
    return (probabilities.log() + rewards / coef).softmax(-1)


def kl_divergence(one: Tensor, other: Tensor) -> float:
    """KL(one || other) in nats of two distributions (V,)."""
    there = one > 0
    return float((one[there] * (one[there] / other[there]).log()).sum())
