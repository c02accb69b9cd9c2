"""What scoring 1,000 outputs costs: seconds, CPU seconds, and of a judge also calls, tokens and money."""

from __future__ import annotations

from mmrl.types import RewardFunction
from rewards.evaluation.scoring import Scored
from rewards.pictures.judge import Judge


def costs(reward: RewardFunction, scored: Scored) -> dict[str, float]:
    """Per 1,000 outputs, from having scored these pairs once; the first call of a model includes loading it."""
    outputs = 2 * len(scored.pairs)
    found = {"wall_s": scored.wall_s, "cpu_s": scored.cpu_s}
    if isinstance(reward, Judge):
        spent = reward.tally.spent()
        found |= {name: float(spent[name]) for name in ("calls", "prompt_tokens", "completion_tokens")}
        found["money"] = reward.tally.money(reward.price)
    return {name: 1000 * value / outputs for name, value in found.items()}
