"""How often a reward prefers what is better, and what it makes of ties."""

from __future__ import annotations

import numpy as np

from mmrl.types import Estimate
from rewards.evaluation.intervals import Numbers, mean_of
from rewards.evaluation.scoring import Scored


def credits_of(margins: Numbers) -> Numbers:
    """1 where the better output scores higher, 1/2 where both score the same, else 0."""
    return np.asarray((np.sign(margins) + 1) / 2)


def accuracy(scored: Scored, seed: int = 0) -> dict[str, Estimate]:
    """`accuracy` over the pairs with a better output, and by category; `applies`: the share of pairs with two scores;
    `tied`: the share of those with two equal scores; `ties_seen`: of the pairs that are as good as each other, the
    share with equal scores."""
    margins, gaps = scored.margins, scored.gaps
    decided = np.flatnonzero(np.isfinite(margins))
    known = np.flatnonzero(np.isfinite(gaps))
    found = {"accuracy": mean_of(credits_of(margins[decided]), scored.clusters(decided), seed)}
    names = sorted({name for pair in scored.pairs for name in pair.categories})
    for name in names:
        inside = [i for i in decided if name in scored.pairs[i].categories]
        if inside:
            found[f"accuracy/{name}"] = mean_of(credits_of(margins[inside]), scored.clusters(inside), seed)
    everything = range(len(scored.pairs))
    found["applies"] = mean_of(np.isfinite(gaps).astype(float), scored.clusters(everything), seed)
    found["tied"] = mean_of((gaps[known] == 0).astype(float), scored.clusters(known), seed)
    ties = [i for i in known if scored.pairs[i].better is None]
    if ties:
        found["ties_seen"] = mean_of((gaps[ties] == 0).astype(float), scored.clusters(ties), seed)
    return found
