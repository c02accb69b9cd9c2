"""Judges that are shown two outputs at once: whether they go by the place, and whether they say the same twice.

Each pair is asked in both orders (arXiv 2306.05685). `first`: how often the output shown first wins, which is
1/2 for a judge that does not look at places; `consistent`: how often both orders have the same winner; `accuracy_both`:
how often the better one wins in both, which a guess in each order reaches in a quarter of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrl.types import Estimate
from rewards.compose import Compares, checked
from rewards.evaluation.intervals import Numbers, mean_of
from rewards.evaluation.pairs import Pair, as_samples


def places(judge: Compares, pairs: Sequence[Pair], times: int = 2, seed: int = 0) -> dict[str, Estimate]:
    """`judge/first`, `judge/consistent`, `judge/accuracy_both`, and `judge/repeats`: how often an equal question, asked
    `times` times, has the same winner each time."""
    rounds = [preferences(judge, pairs, swapped=False, number=number) for number in range(times)]
    forward, back = rounds[0], preferences(judge, pairs, swapped=True, number=0)
    both = np.flatnonzero(np.isfinite(forward) & np.isfinite(back))
    if len(both) == 0:
        return {}
    clusters = [pairs[i].cluster or pairs[i].id for i in both]
    shown_first = (forward[both] + (1 - back[both])) / 2  # in the first order 0 is shown first, in the other 1
    found = {
        "judge/first": mean_of(shown_first, clusters, seed),
        "judge/consistent": mean_of((forward[both] == back[both]).astype(float), clusters, seed),
    }
    decided = [i for i in both if pairs[i].better is not None]
    right = [float(1 - forward[i] == pairs[i].better == 1 - back[i]) for i in decided]
    found["judge/accuracy_both"] = mean_of(right, [pairs[i].cluster or pairs[i].id for i in decided], seed)
    if times > 1:
        asked = np.stack(rounds)
        known = np.flatnonzero(np.isfinite(asked).all(0))
        same = (asked[:, known] == asked[0, known]).all(0)
        names = [pairs[i].cluster or pairs[i].id for i in known]
        found["judge/repeats"] = mean_of(same.astype(float), names, seed)
    return found


def preferences(judge: Compares, pairs: Sequence[Pair], swapped: bool, number: int) -> Numbers:
    """1 where output 0 wins, 0 where output 1 does, 1/2 for a draw, NaN where nothing can be read (N,). Shown in the
    order of the pair, or `swapped`; round `number` of equal questions."""
    samples = as_samples(pairs, swapped)
    scores = checked("judge", judge.in_order(number), samples)
    values = np.where(scores.applicable.numpy(), scores.values.double().numpy(), np.nan).reshape(-1, 2)
    first, second = (values[:, 1], values[:, 0]) if swapped else (values[:, 0], values[:, 1])
    return np.asarray((np.sign(first - second) + 1) / 2)
