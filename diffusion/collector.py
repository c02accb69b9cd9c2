"""Prompts to rewarded denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image

from diffusion.policy import DiffusionPolicy
from diffusion.prompts import Asked, as_samples
from diffusion.sampling import Drawn, SamplingConfig, draw, joined
from mmrl.order import Shuffled, check_shared_out
from mmrl.runtime import Runtime
from mmrl.types import Collector, Policy, RewardFunction, Rollout, Samples, Scores


@dataclass(frozen=True)
class RolloutConfig:
    """`prompts` a step over all processes, and `group` pictures of each. `portion` prompts are drawn at a time (null:
    all of a process), and rewarded while the next ones are drawn: less memory, and no waiting for a judge."""

    prompts: int = 8
    group: int = 8
    portion: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "group", "portion"):
            if vars(self)[name] is not None and vars(self)[name] < 1:
                raise ValueError(f"rollout.{name} is {vars(self)[name]}: give 1 or more")


class PictureCollector(Collector):
    """Draws a group of pictures of each prompt and rewards them. The reward falls on the last step, whether it is a
    decision or not. Steps that are none belong to the decision before them, as those of a chain do (`chain_ends`):
    their values, which are not trained, then cancel in GAE, for any lambda."""

    def __init__(
        self,
        prompts: Sequence[Asked],
        reward: RewardFunction,
        config: RolloutConfig,
        sampling: SamplingConfig,
        runtime: Runtime,
        anchors: dict[str, Sequence[object]] | None = None,
    ) -> None:
        """`anchors` of prompts, which may be filled later, reach the reward as the column `anchor`."""
        check_shared_out(config.prompts, runtime)
        self.prompts, self.reward, self.config = prompts, reward, config
        self.sampling, self.runtime = sampling, runtime
        self.anchors: dict[str, Sequence[object]] = {} if anchors is None else anchors
        self._order = Shuffled(len(prompts), runtime, "prompts")
        self.pictures: list[Image.Image] = []
        """Of the last rollout, row by row."""

    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        assert isinstance(policy, DiffusionPolicy)
        places, mine = self._order.share(self.config.prompts)
        chosen = [self.prompts[number] for number in mine]
        drawn, scores = self._drawn_and_rewarded(policy, chosen, generator)
        self.pictures = drawn.pictures
        device = drawn.logprobs.device
        alive = scores.applicable.to(device)[:, None].expand_as(drawn.mask)
        rewards = torch.zeros_like(drawn.logprobs)
        rewards[:, -1] = scores.values.to(device)
        return Rollout(
            transitions=drawn.transitions,
            logprobs=drawn.logprobs,
            mask=drawn.mask & alive,
            alive=alive,
            rewards=rewards,
            discounts=torch.ones_like(rewards),
            values=drawn.values,
            last_value=None if drawn.values is None else torch.zeros_like(rewards[:, 0]),
            chain_ends=torch.nn.functional.pad(drawn.mask[:, 1:], (0, 1), value=True),
            group_ids=torch.tensor(list(places), device=device).repeat_interleave(self.config.group),
            prompt_ids=torch.tensor(mine, device=device).repeat_interleave(self.config.group),
            reward_parts={name: part.values.to(device) for name, part in scores.parts.items()},
            applicable={name: part.applicable.to(device) for name, part in scores.parts.items()},
            decision_size=1 if policy.config.logprob_reduction == "mean" else drawn.transitions.dimensions,
        )

    def _drawn_and_rewarded(
        self, policy: DiffusionPolicy, asked: Sequence[Asked], generator: torch.Generator
    ) -> tuple[Drawn, Scores]:
        """A group of each prompt, portion by portion: one is rewarded in a thread while the next is drawn."""
        window, size = self.sampling.window(generator), self.config.portion or len(asked)
        parts: list[Drawn] = []
        with ThreadPoolExecutor(1) as background:
            waiting: list[Future[Scores]] = []
            for start in range(0, len(asked), size):
                if any(future.done() and future.exception() for future in waiting):
                    break  # known below, before more is drawn
                portion = asked[start : start + size]
                parts.append(draw(policy, portion, self.config.group, self.sampling, generator, window))
                rows = [one for one in portion for _ in range(self.config.group)]
                samples = as_samples(rows, parts[-1].pictures, self.anchors)
                waiting.append(background.submit(self._rewarded, samples, tuple(waiting)))
            scores = [future.result() for future in waiting]
        return joined(parts), joined_scores(scores)

    def _rewarded(self, samples: Samples, earlier: Sequence[Future[Scores]]) -> Scores:
        """Scores, unless an earlier portion has none: a judge that is lost would be waited for again and again."""
        for future in earlier:
            future.result()
        return self.reward(samples)

    def state_dict(self) -> dict[str, object]:
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._order.load_state_dict(state)


def joined_scores(several: Sequence[Scores]) -> Scores:
    """Scores of portions as those of the whole, part by part."""
    parts = {name: joined_scores([one.parts[name] for one in several]) for name in several[0].parts}
    values, applicable = (torch.cat([vars(one)[name] for one in several]) for name in ("values", "applicable"))
    return Scores(values, applicable, parts)
