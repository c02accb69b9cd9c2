"""Statistics of each prompt over past rollouts, DDPO, arXiv 2305.13301, section 5: for a prompt that comes alone.

A_i = (R_i - mean_p R) / (std_p R + eps), over the last `buffer` rewards of prompt p, this rollout's included. A prompt
with fewer than `minimum` of them is compared with the whole rollout. Standard deviations are those of a population, as
in the paper's code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mmrl.algorithm import Advantage, Credit
from mmrl.types import Rollout


@dataclass(frozen=True)
class PromptHistory(Advantage):
    """Rewards centred and scaled by what their prompt has been rewarded with. A checkpoint remembers it."""

    buffer: int = 32
    minimum: int = 16
    eps: float = 1e-6
    _seen: dict[int, deque[float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.buffer:
            raise ValueError(
                f"PromptHistory has buffer {self.buffer} and minimum {self.minimum}: give 1 <= minimum <= buffer"
            )

    def __call__(self, rollout: Rollout) -> Credit:
        if rollout.prompt_ids is None:
            raise ValueError("PromptHistory reads Rollout.prompt_ids, which this collector does not record")
        rewards, valid = rollout.returns().double(), rollout.alive.any(-1)
        prompts, everyone = rollout.prompt_ids.tolist(), rewards[valid]
        for prompt, reward, counts in zip(prompts, rewards.tolist(), valid.tolist(), strict=True):
            if counts:
                self._seen.setdefault(prompt, deque(maxlen=self.buffer)).append(reward)
        enough = {prompt for prompt in prompts if len(self._seen.get(prompt, ())) >= self.minimum}
        compared = [everyone.new_tensor(self._seen[p]) if p in enough else everyone for p in prompts]
        mean = torch.stack([group.mean() for group in compared])
        std = torch.stack([group.std(correction=0) for group in compared])
        advantages = torch.where(valid, (rewards - mean) / (std + self.eps), 0.0).to(rollout.rewards.dtype)
        return Credit(torch.where(rollout.mask, advantages[:, None], 0.0))

    def state_dict(self) -> dict[str, object]:
        return {str(prompt): list(rewards) for prompt, rewards in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._seen.clear()
        for prompt, rewards in state.items():
            assert isinstance(rewards, list)
            self._seen[int(prompt)] = deque(rewards, maxlen=self.buffer)
