"""What happens when one pushes on a reward: the proxy goes up, and the gold, which nobody optimises, turns at some
point (Gao et al., arXiv 2210.10760; the diagnostics of arXiv 2311.00168).

Best of n costs KL = log n - (n - 1) / n to the policy that drew the candidates, in closed form where no two have the
same score. The gold of the best of n is estimated without bias from N >= n candidates of a prompt: the candidate with
the i-th lowest proxy is the best of a random n of them with probability C(i - 1, n - 1) / C(N, n); equal proxies share.
"""

from __future__ import annotations

import abc
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import t as student

from mmrl.types import Estimate, Samples
from rewards.evaluation.intervals import Numbers
from rewards.pictures.base import groups_of


class Candidates(abc.ABC):
    """Draws many outputs of each prompt."""

    @abc.abstractmethod
    def draw(self) -> Samples:
        """All outputs, with the column "prompt" and, where prompts may be equal, "group"."""


@dataclass(frozen=True)
class Point:
    """Proxy and gold at one distance from the start."""

    kl: float
    proxy: Estimate
    gold: Estimate
    label: str  # n, or the training step


@dataclass(frozen=True)
class Curve:
    """Points in the order they were reached, and where the gold turns: the index of its peak if it falls from there
    beyond doubt while the proxy rises; None if it does not."""

    points: Sequence[Point]
    turn: int | None

    @property
    def peak(self) -> int:
        """The index of the highest gold."""
        return int(np.argmax([point.gold.value for point in self.points]))


def kl_of_best(n: int) -> float:
    """KL in nats between the best of n and one draw: log n - (n - 1) / n."""
    if n < 1:
        raise ValueError(f"best of {n}: give 1 or more")
    return math.log(n) - (n - 1) / n


def best_of(n: int, proxy: Numbers, gold: Numbers) -> tuple[float, float]:
    """The expected proxy and gold of the candidate with the highest proxy among n drawn from these N without
    replacement.

    Raises:
        ValueError: there are fewer than n.
    """
    total = len(proxy)
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} from {total} candidates: give 1 to {total}")
    order = np.argsort(proxy, kind="stable")
    rank: NDArray[np.int64] = np.arange(1, total + 1)
    weights = np.zeros(total)
    possible = rank >= n
    weights[possible] = np.exp(_log_choose(rank[possible] - 1, n - 1) - _log_choose(total, n))
    sorted_proxy, sorted_gold = proxy[order], gold[order]
    _, group = np.unique(sorted_proxy, return_inverse=True)
    shared = np.bincount(group, sorted_gold) / np.bincount(group)
    return float(weights @ sorted_proxy), float(weights @ shared[group])


def _log_choose(n: NDArray[np.int64] | int, k: int) -> Numbers:
    return np.asarray(gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0))


def best_of_n(samples: Samples, proxy: Numbers, gold: Numbers) -> Curve:
    """The curve over n = 1, 2, 4, ... up to the candidates that the poorest prompt has; a mean over prompts with
    Student's interval. It turns where the fall from the peak to the end is beyond doubt: paired by prompt, at 95 % for
    all n together.

    Raises:
        ValueError: fewer than 2 prompts have 2 candidates with both scores.
    """
    usable = np.isfinite(proxy) & np.isfinite(gold)
    groups = [[i for i in ids if usable[i]] for ids in groups_of(samples, "candidates").values()]
    groups = [ids for ids in groups if len(ids) > 1]
    if len(groups) < 2:
        raise ValueError(
            f"candidates: {len(groups)} prompts have 2 or more outputs that both rewards apply to: give 2 prompts"
        )
    most = min(len(ids) for ids in groups)
    sizes = [2**power for power in range(most.bit_length()) if 2**power <= most]
    found = np.array([[best_of(n, proxy[ids], gold[ids]) for ids in groups] for n in sizes])  # (n, prompts, 2)
    points = [
        Point(kl_of_best(n), _mean(row[:, 0]), _mean(row[:, 1]), str(n)) for n, row in zip(sizes, found, strict=True)
    ]
    peak = int(np.argmax([point.gold.value for point in points]))
    fall = _mean(found[peak, :, 1] - found[-1, :, 1], tests=len(sizes))
    rise = _mean(found[-1, :, 0] - found[peak, :, 0])
    return Curve(points, peak if peak < len(sizes) - 1 and fall.low > 0 and rise.low > 0 else None)


def _mean(values: Numbers, tests: int = 1) -> Estimate:
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    half = float(student.ppf(1 - 0.025 / tests, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def of_run(folder: Path, gold: str) -> Curve:
    """The curve of a finished training run: held-out reward and the metric `gold`, against the KL to the start. It
    turns where the interval of the last evaluation is below that of the peak, and the proxy is not below what it was
    there.

    Raises:
        ValueError: the run did not measure these.
    """
    points, known = [], set[str]()
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        known |= {name.removeprefix("eval/") for name in found if name.startswith("eval/") and name.count("/") == 1}
        if f"eval/{gold}" in found and "eval/reward" in found and "eval/kl" in found:
            read = [_estimate(found, name) for name in ("reward", gold)]
            points.append(Point(float(found["eval/kl"]), read[0], read[1], str(found["step"])))
    if len(points) < 2:
        raise ValueError(
            f"{folder} has {len(points)} evaluations with reward, kl and {gold!r}, which this needs 2 of: it measured "
            f"{', '.join(sorted(known)) or 'nothing'}"
        )
    peak = int(np.argmax([point.gold.value for point in points]))
    at, last = points[peak], points[-1]
    turned = last.gold.high < at.gold.low and last.proxy.value >= at.proxy.value
    return Curve(points, peak if peak < len(points) - 1 and turned else None)


def _estimate(line: dict[str, float], name: str) -> Estimate:
    value = float(line[f"eval/{name}"])
    ends = [float(line.get(f"eval/{name}/{end}", value)) for end in ("low", "high")]
    return Estimate(value, ends[0], ends[1], int(line.get(f"eval/{name}/n", 0)))


def fitted(curve: Curve, logarithm: bool) -> tuple[float, float]:
    """a and b of Gao et al.'s forms for the gold since the start, with x = sqrt(KL): x (a - b x) for best of n, and
    with `logarithm` x (a - b log x) for reinforcement; by least squares over the points with x > 0, of which two are
    needed."""
    start = curve.points[0].gold.value
    kept = [point for point in curve.points if point.kl > 1e-12]
    x = np.sqrt([point.kl for point in kept])
    design = np.stack([x, -x * (np.log(x) if logarithm else x)], axis=1)
    solved, *_ = np.linalg.lstsq(design, np.array([point.gold.value - start for point in kept]), rcond=None)
    return float(solved[0]), float(solved[1])
