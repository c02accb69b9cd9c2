"""A domain of a few states, small enough that a run takes seconds: what the tests of the core train.

A question is a state; the answer to state s is the action (s + 1) % actions at each step; action 0 ends a
trajectory. The Gaussian policy draws an action vector instead and is rewarded for being near (s, s, ...).
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrl.keys import TrainingKeys
from mmrl.metrics import wilson
from mmrl.runtime import Runtime
from mmrl.statistics import of_categorical, of_gaussian
from mmrl.trainer import Parts
from mmrl.types import (
    Collector,
    Estimate,
    Evaluation,
    Evaluator,
    Policy,
    RewardFunction,
    Rollout,
    Samples,
    Scores,
    Transitions,
)
from rewards.compose import Part, WeightedSum

STATES, ACTIONS, SIZE = 5, 4, 3


@dataclass(frozen=True)
class ToyTransitions(Transitions):
    states: Tensor  # (B, T) long
    actions: Tensor  # (B, T) long, or (B, T, A)

    def rows(self, index: Tensor) -> Self:
        return replace(self, states=self.states[index], actions=self.actions[index])

    def to(self, device: torch.device) -> Self:
        return replace(self, states=self.states.to(device), actions=self.actions.to(device))

    def __len__(self) -> int:
        return len(self.states)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(torch.cat([part.states for part in parts]), torch.cat([part.actions for part in parts]))

    def at(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """States and actions of the decisions `steps` (b, t)."""
        rows = torch.arange(len(self))[:, None]
        return self.states[rows, steps], self.actions[rows, steps]


class ToyPolicy(Policy):
    """What both toy policies share: a tiny network from the state, and weights on disk."""

    def __init__(self, outputs: int, config: ToyPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(STATES, config.hidden)
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, outputs)
        self.critic = nn.Linear(config.hidden, 1) if config.critic else None
        self.register_buffer("one", torch.ones(()))  # buffers are what DDP exchanges at a forward

    def features(self, states: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.embed(states))) * self.one

    def values(self, features: Tensor) -> Tensor | None:
        return None if self.critic is None else self.critic(features)[..., 0]

    def save_pretrained(self, folder: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "toy.safetensors")
        time.sleep(self.config.save_pause_s)  # in the middle of writing a checkpoint

    def load_weights(self, folder: Path) -> None:
        self.load_state_dict(load_file(folder / "toy.safetensors"))


class CategoricalPolicy(ToyPolicy):
    noise = "categorical"

    def __init__(self, config: ToyPolicyConfig) -> None:
        super().__init__(ACTIONS, config)

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        states, actions = transitions.at(steps)
        features = self.features(states)
        logits = self.head(features).log_softmax(-1)
        entropy = -(logits.exp() * logits).sum(-1) if self.report_entropy else None
        logprobs = logits.gather(-1, actions[..., None])[..., 0]
        stats = of_categorical(self.report, logits, actions)
        return Evaluation(logprobs, entropy, self.values(features), stats=stats)

    def act(self, states: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions (b,) for states (b,), and their log-probs."""
        logits = self.head(self.features(states)).log_softmax(-1)
        actions = torch.multinomial(logits.exp(), 1, generator=generator)
        return actions[:, 0], logits.gather(-1, actions)[:, 0]


class GaussianPolicy(ToyPolicy):
    noise = "learned"

    def __init__(self, config: ToyPolicyConfig) -> None:
        super().__init__(SIZE, config)
        self.log_std = nn.Parameter(torch.full((SIZE,), -0.5))

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        states, actions = transitions.at(steps)
        features = self.features(states)
        means = self.head(features)
        stds = self.log_std.exp().expand_as(means)
        density = torch.distributions.Normal(means, stds)
        entropy = density.entropy().sum(-1) if self.report_entropy else None
        stats = {n: found.sum(-1) for n, found in of_gaussian(self.report, actions, means, stds).items()}
        return Evaluation(density.log_prob(actions).sum(-1), entropy, self.values(features), means, stds, stats=stats)

    def act(self, states: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        means = self.head(self.features(states))
        actions = means + self.log_std.exp() * torch.randn(means.shape, generator=generator)
        return actions, torch.distributions.Normal(means, self.log_std.exp().expand_as(means)).log_prob(actions).sum(-1)


@dataclass(frozen=True)
class ToyPolicyConfig:
    """`save_pause_s` makes the writing of a checkpoint slow enough to be killed in."""

    kind: Literal["categorical", "gaussian"] = "categorical"
    hidden: int = 8
    dropout: float = 0.0
    critic: bool = False
    save_pause_s: float = 0.0
    init_seed: int = 0

    def make(self) -> ToyPolicy:
        """The policy with its initial weights, the same every time."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.init_seed)
            return CategoricalPolicy(self) if self.kind == "categorical" else GaussianPolicy(self)


@dataclass(frozen=True)
class ToyRollout:
    """How many questions a step (over all processes), how many answers to each, how many decisions."""

    prompts: int = 4
    group: int = 4
    steps: int = 5
    gamma: float = 1.0


@dataclass(frozen=True)
class RightActions(RewardFunction):
    """Share of the actions that are right; an output that is no list of numbers gets 0."""

    bonus: float = 0.0

    def __call__(self, samples: Samples) -> Scores:
        values = [self._one(o, s) for o, s in zip(samples.outputs, samples.columns["state"], strict=True)]
        return Scores(torch.tensor(values, dtype=torch.float32), torch.ones(len(values), dtype=torch.bool))

    def _one(self, output: object, state: object) -> float:
        if not isinstance(output, (list, tuple)) or not output or not isinstance(state, int):
            return 0.0
        if isinstance(output[0], (list, tuple)):
            return -sum(abs(x - state / STATES) for action in output for x in action) / len(output)
        return sum(action == (state + 1) % ACTIONS for action in output) / len(output) + self.bonus


class ToyCollector(Collector):
    """Goes round the states in a shuffled order; remembers where it stands."""

    def __init__(self, reward: RewardFunction, config: ToyRollout, rank: int = 0, world: int = 1) -> None:
        self.reward, self.config, self.rank, self.world = reward, config, rank, world
        self.drawn = 0

    def _questions(self) -> Tensor:
        epochs = range(self.drawn // STATES, (self.drawn + self.config.prompts - 1) // STATES + 1)
        orders = [torch.randperm(STATES, generator=torch.Generator().manual_seed(epoch)) for epoch in epochs]
        start = self.drawn - epochs.start * STATES
        self.drawn += self.config.prompts
        return torch.cat(orders)[start : start + self.config.prompts]

    def collect(self, policy: ToyPolicy, generator: torch.Generator) -> Rollout:
        places = torch.arange(self.rank, self.config.prompts, self.world)
        first = self._questions()[places].repeat_interleave(self.config.group)
        alive, ended = [], torch.zeros(len(first), dtype=torch.bool)
        actions, logprobs = [], []
        for _ in range(self.config.steps):
            drawn, scored = policy.act(first, generator)
            alive.append(~ended)
            actions.append(drawn)
            logprobs.append(torch.where(ended, 0.0, scored))
            if drawn.ndim == 1:
                ended = ended | (drawn == 0)
        states = first[:, None].expand(-1, self.config.steps).contiguous()
        transitions = ToyTransitions(states, torch.stack(actions, 1))
        groups = places.repeat_interleave(self.config.group)
        rollout = self._rewarded(policy, transitions, torch.stack(logprobs, 1), torch.stack(alive, 1), groups)
        return rollout.with_(prompt_ids=first)

    def _rewarded(
        self, policy: ToyPolicy, transitions: ToyTransitions, logprobs: Tensor, alive: Tensor, groups: Tensor
    ) -> Rollout:
        outputs = [a[:n].tolist() for a, n in zip(transitions.actions, alive.sum(-1).tolist(), strict=True)]
        columns = {"state": transitions.states[:, 0].tolist(), "answer": ["0"] * len(outputs)}
        scores = self.reward(Samples(outputs, columns, [str(group) for group in groups.tolist()]))
        last = alive & ~torch.nn.functional.pad(alive[:, 1:], (0, 1))
        values = policy.values(policy.features(transitions.states))
        ended = last & (transitions.actions == 0) if transitions.actions.ndim == 2 else last
        return Rollout(
            transitions=transitions,
            logprobs=logprobs,
            mask=alive,
            alive=alive,
            rewards=torch.where(last, scores.values[:, None], 0.0),
            discounts=torch.where(ended, 0.0, self.config.gamma),
            group_ids=groups,
            values=values,
            last_value=None if values is None else values[:, -1],
            reward_parts={name: part.values for name, part in scores.parts.items()},
            applicable={name: part.applicable for name, part in scores.parts.items()},
            stats={"truncated": (~ended.any(-1))[:, None].expand_as(alive)},
            decision_size=1 if transitions.actions.ndim == 2 else SIZE,
        )

    def state_dict(self) -> dict[str, object]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.drawn = int(str(state["drawn"]))


class ToyEvaluator(Evaluator):
    def evaluate(self, policy: ToyPolicy, generator: torch.Generator) -> dict[str, Estimate]:
        states = torch.arange(STATES).repeat(20)
        actions, _ = policy.act(states, generator)
        right = actions == (states + 1) % ACTIONS if actions.ndim == 1 else (actions[:, 0] - states / STATES).abs() < 1
        return {"accuracy": wilson(int(right.sum()), len(states))}

    def samples(self, policy: ToyPolicy, generator: torch.Generator, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        states = torch.arange(count) % STATES
        answers = [str(action) for action in policy.act(states, generator)[0].tolist()]
        rows = [
            {
                "id": str(number), "images": [], "prompt": f"state {state}", "expected": str((state + 1) % ACTIONS),
                "output": answer, "sampled": answer, "right": answer == str((state + 1) % ACTIONS),
            }
            for number, (state, answer) in enumerate(zip(states.tolist(), answers, strict=True))
        ]  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(rows))


@dataclass(frozen=True)
class ToyExperiment(TrainingKeys):
    """`experiment: tests.toy.ToyExperiment`"""

    rewards: dict[str, Part]
    policy: ToyPolicyConfig = ToyPolicyConfig()
    rollout: ToyRollout = ToyRollout()
    domain = "toy"

    @property
    def base_policy(self) -> str:
        return "toy"

    def build(self, runtime: Runtime, start: Path | None = None) -> Parts:
        collector = ToyCollector(WeightedSum(self.rewards), self.rollout, runtime.rank, runtime.world)
        policy = self.policy.make()
        if start is not None:
            policy.load_weights(start)
        reference = copy.deepcopy(policy).requires_grad_(False) if self.algorithm.needs_reference else None
        return Parts(policy, collector, ToyEvaluator(), self.algorithm, reference)

    def run_warmup(self, runtime: Runtime, output: Path) -> dict[str, object]:
        self.policy.make().save_pretrained(output)
        return {}

    def run_controls(self, runtime: Runtime, cpu_s: float) -> Mapping[str, object]:
        return {}

    def run_rollout(self, runtime: Runtime, output: Path) -> dict[str, object]:
        return {}


def toy_config(folder: Path, steps: int = 8, lines: Sequence[str] = ()) -> Path:
    """A config file of this domain."""
    path = folder / "toy.yaml"
    path.write_text(TOY_YAML.format(steps=steps) + "".join(f"{line}\n" for line in lines))
    return path


TOY_YAML = """\
experiment: tests.toy.ToyExperiment
rewards:
  right: {{use: tests.toy.RightActions}}
algorithm:
  advantage: {{class_path: mmrl.advantages.GroupRelative, init_args: {{normalise: true}}}}
  surrogate: {{class_path: mmrl.surrogates.PPOClip, init_args: {{dual_clip: 3.0}}}}
  aggregate: {{class_path: mmrl.aggregates.TokenMean}}
  regularisers:
    - {{class_path: mmrl.regularisers.K3, init_args: {{coef: 0.01}}}}
train: {{steps: {steps}, lr: 0.01, update: {{epochs: 2, minibatches: 2, micro_rows: 8}}}}
evaluate: {{every: 3, samples: 2}}
save: {{every: 2}}
logging: {{progress: false}}
"""


def fixed_rollout(
    policy: ToyPolicy, seed: int = 0, prompts: int = 4, group: int = 4, steps: int = 5, gamma: float = 1.0
) -> Rollout:
    """A rollout of `policy` whose rewards are drawn, so that all groups have spread."""
    collector = ToyCollector(RightActions(), ToyRollout(prompts, group, steps, gamma))
    generator = torch.Generator().manual_seed(seed)
    policy.eval()
    with torch.no_grad():
        rollout = collector.collect(policy, generator)
    noise = torch.randn(rollout.rewards.shape, generator=generator)
    return rollout.with_(rewards=torch.where(rollout.alive, noise, 0.0))
