"""Prompts to rewarded rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrl.order import Order, Shuffled, Weighted, check_shared_out
from mmrl.runtime import Runtime
from mmrl.types import Collector, Policy, RewardFunction, Rollout, Scores, Transitions
from vision.conversation import Conversation, Held, Limits, as_samples, converse, in_one_turn
from vision.data.base import Example
from vision.encoding import Encoder
from vision.plans.base import Plan, Wanted
from vision.policy import VisionPolicy
from vision.serving.base import Server
from vision.serving.session import Session
from vision.tools import Tool


@dataclass(frozen=True)
class RolloutConfig:
    """`prompts` a step over all processes, `group` answers of each, and their limits: `max_new_tokens` of a turn,
    `max_prompt_tokens` of all that a turn follows, and `turns` where there is a `tool` to answer them. Answers are
    drawn in the process, as a `plan` says if there is one, or by a `server` that weights are pushed to."""

    prompts: int = 16
    group: int = 8
    max_new_tokens: int = 64
    max_prompt_tokens: int = 4096
    turns: int = 1
    plan: Plan | None = None
    server: Server | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "group", "max_new_tokens", "max_prompt_tokens", "turns"):
            if vars(self)[name] < 1:
                raise ValueError(f"rollout.{name} is {vars(self)[name]}: give 1 or more")
        if self.server is not None and (self.turns > 1 or self.plan is not None):
            given = f"turns is {self.turns}" if self.turns > 1 else f"plan is {type(self.plan).__name__}"
            raise ValueError(
                f"rollout.server is set and rollout.{given}: a server begins answers and does not go on with tokens "
                "that were drawn before; set turns to 1 and plan to null, or server to null"
            )
        if self.plan is not None:
            if self.turns > 1:
                raise ValueError(
                    f"rollout.turns is {self.turns} and rollout.plan is {type(self.plan).__name__}, which is of "
                    "answers in one turn: set turns to 1, or plan to null"
                )
            self.plan.check(self.group, self.max_new_tokens)

    @property
    def limits(self) -> Limits:
        """Of one conversation."""
        return Limits(self.turns, self.max_new_tokens, self.max_prompt_tokens)


class AnswerCollector(Collector):
    """Draws a group of answers to each prompt and rewards them."""

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Encoder,
        reward: RewardFunction,
        config: RolloutConfig,
        runtime: Runtime,
        tool: Tool | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """`weights` say how often examples of each task, their column `task`, are asked."""
        check_shared_out(config.prompts, runtime)
        if not examples:
            raise ValueError("the training pool is empty: change data.protocol so that examples are left for RL")
        self.examples, self.encode, self.reward = examples, encode, reward
        self.config, self.runtime, self.tool = config, runtime, tool
        if config.plan is not None:
            config.plan.check_pool(examples, config.prompts, weights is not None, runtime)
        if config.server is not None and runtime.world > 1:
            raise ValueError(
                f"rollout.server is set on {runtime.world} processes, which would all push weights to it: train on "
                "one, or set server to null"
            )
        self.session = None if config.server is None else Session(config.server)
        """With the server that draws."""
        self.plan = None if config.plan is None else replace(config.plan)
        """The config's, with a memory of its own."""
        self.bunch = 1 if config.plan is None else config.plan.together
        self.order: Order = Shuffled(len(examples) // self.bunch, runtime, "prompts")
        if weights is not None:
            self.order = Weighted([str(example.columns["task"]) for example in examples], weights, runtime, "prompts")
        self.asked: list[Example] = []
        """The example of each row of the last rollout."""
        self.conversations: Sequence[Conversation] = ()
        """What was said in each row of the last rollout."""

    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        assert isinstance(policy, VisionPolicy)
        places, mine = self.turn()
        return self.answer(policy, [self.examples[number] for number in mine], mine, places, generator)

    def turn(self) -> tuple[list[int], list[int]]:
        """Which examples are asked next here, and the places of their groups among those of all processes."""
        places, mine = self.order.share(self.config.prompts // self.bunch)
        inside = range(self.bunch)
        numbers = [bunch * self.bunch + place for bunch in mine for place in inside]
        taken = numbers if self.plan is None else self.plan.take(numbers, len(self.examples))
        return [bunch * self.bunch + place for bunch in places for place in inside], taken

    def answer(
        self,
        policy: VisionPolicy,
        chosen: Sequence[Example],
        numbers: Sequence[int],
        places: Sequence[int],
        generator: torch.Generator,
    ) -> Rollout:
        """Groups of answers to the examples `chosen`, rewarded. `numbers` are theirs in `examples`, `places` those of
        their groups among the groups of all processes."""
        self.asked = [example for example in chosen for _ in range(self.config.group)]
        held, own, behaviour = self._held(policy, chosen, generator)
        self.conversations = held.conversations
        scores = self.reward(as_samples(self.asked, held.conversations))
        groups = torch.tensor(list(places)).repeat_interleave(self.config.group)
        device = held.logprobs.device
        turns = torch.tensor([float(len(c.turns)) for c in held.conversations], device=device)
        several = {} if self.config.turns == 1 else {"turns": turns[:, None].expand_as(held.alive)}
        rollout = answered(held.transitions, held.logprobs, held.alive, scores, groups)
        rollout = rollout.with_(
            mask=rollout.mask & own,
            behaviour_logprobs=behaviour,
            prompt_ids=torch.tensor(list(numbers), device=device).repeat_interleave(self.config.group),
            stats={**held.stats, "truncated": held.truncated[:, None].expand_as(held.alive), **several},
            values=held.values,
            last_value=None if held.values is None else held.values.new_zeros(len(held.values)),  # rewarded as it is
        )
        return rollout if self.plan is None else self.plan.then(policy, rollout, self, generator)

    def _held(
        self, policy: VisionPolicy, chosen: Sequence[Example], generator: torch.Generator
    ) -> tuple[Held, Tensor, Tensor | None]:
        """Groups of answers to `chosen`, the tokens (B, T) that each of them drew itself, and log-probs (B, T) of then
        where a plan has scored them again."""
        group, limits, keep = self.config.group, self.config.limits, policy.config.reuse_prefill
        if self.plan is None:
            first = None
            if self.session is not None:
                first = self.session.draw(policy, self.encode, chosen, group, limits.max_new_tokens, generator)
            held = converse(policy, self.encode, chosen, group, limits, self.tool, generator, keep, first)
            return held, held.alive, None
        wanted = Wanted(self.encode.many(chosen), group, limits.max_new_tokens, generator, keep)
        rows = self.plan.draw(policy, wanted)
        return in_one_turn(policy, rows.drawn), rows.own(), rows.behaviour

    def state_dict(self) -> dict[str, object]:
        return {**self.order.state_dict(), **({} if self.plan is None else {"plan": self.plan.state_dict()})}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.order.load_state_dict(state)
        planned = state.get("plan")
        if self.plan is not None and isinstance(planned, Mapping):
            self.plan.load_state_dict(planned)

    def measured(self) -> Mapping[str, float]:
        planned = {} if self.plan is None else self.plan.measured()
        return planned if self.session is None else self.session.figures

    def cpu_s(self) -> float:
        return 0.0 if self.tool is None else self.tool.cpu_s()


def answered(transitions: Transitions, logprobs: Tensor, alive: Tensor, scores: Scores, groups: Tensor) -> Rollout:
    """A rollout whose reward falls on the last token of each answer. An answer to which no reward applies
    leaves the statistics of its group."""
    device = logprobs.device
    alive = alive & scores.applicable.to(device)[:, None]
    last = alive & ~torch.nn.functional.pad(alive[:, 1:], (0, 1))
    return Rollout(
        transitions=transitions,
        logprobs=logprobs,
        mask=alive,
        alive=alive,
        rewards=torch.where(last, scores.values.to(device)[:, None], 0.0),
        discounts=torch.ones_like(logprobs),
        group_ids=groups.to(device),
        reward_parts={name: part.values.to(device) for name, part in scores.parts.items()},
        applicable={name: part.applicable.to(device) for name, part in scores.parts.items()},
    )
