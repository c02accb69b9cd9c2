"""A flow-matching policy of lerobot as a policy over action chunks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from mmrl.gaussian import Reduction
from mmrl.heads import HEADS, Critic, Perceptron, Worth, load_head
from mmrl.statistics import Entropy, Noise, asked
from mmrl.types import Evaluation, Policy, Transitions
from vla import adapters, chains
from vla.adapters import Adapter, Prefix
from vla.adapters.base import Inputs
from vla.adapters.lora import LoRA
from vla.chains import Chain, Counting, Field, Level
from vla.exploration import Exploration, FlowSDE
from vla.heads import CriticConfig
from vla.sim.base import Observations
from vla.transitions import ChunkTransitions

NOISE_WIDTHS = (128, 64)
"""Of the noise head, as RLinf has it."""


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy, a folder of lerobot or a name on its hub, and how its denoise loop explores. `level`, `decisions`
    and `reduction` say what one decision is (`vla.chains.Counting`). `denoise_steps` and `execute` (actions of a chunk
    before the next observation) null: the policy's own. `critic` null: none, for group-relative advantages.

    `train` is `expert` (the VLM is frozen) or `full`; null: the expert where there is one, else all. `adapter` puts a
    LoRA on the expert, {rank: 16, alpha: 32}, and trains it alone."""

    path: str
    exploration: Exploration = FlowSDE()
    level: Level = "chunk"
    decisions: Literal["chain", "step"] = "chain"
    reduction: Reduction = "sum"
    denoise_steps: int | None = None
    execute: int | None = None
    critic: CriticConfig | None = CriticConfig()
    train: Literal["expert", "full"] | None = None
    adapter: LoRA | None = None

    def __post_init__(self) -> None:
        for name in ("denoise_steps", "execute"):
            if vars(self)[name] is not None and vars(self)[name] < 1:
                raise ValueError(f"policy.{name} is {vars(self)[name]}: give 1 or more, or null for the policy's own")


@dataclass(frozen=True)
class Acted:
    """What a policy did in n states."""

    inputs: Inputs
    chain: Chain
    logprobs: Tensor  # (n, D)
    values: Tensor  # (n,)
    actions: Tensor  # (n, h, a), for the controller

    def rows(self, index: slice) -> Acted:
        """Those of `index`."""
        chain = replace(self.chain, **{name: tensor[index] for name, tensor in vars(self.chain).items()})
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return Acted(inputs, chain, self.logprobs[index], self.values[index], self.actions[index])


class RobotPolicy(Policy):
    """The adapter's policy, and the heads that training needs beside it. A decision is a chain of denoise steps, or a
    step, or a part of one (`PolicyConfig`)."""

    windowable = True

    def __init__(self, adapter: Adapter, config: PolicyConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.adapter, self.config = adapter, config
        self.counting = Counting(config.level, config.decisions, config.reduction)
        sizes = (adapter.hidden_size, *NOISE_WIDTHS, adapter.noise_outputs)
        learned = config.exploration.learns_noise
        self.heads = nn.ModuleDict()
        if learned:
            self.heads["noise"] = Perceptron(sizes, generator)
        if config.critic is not None:
            self.heads["critic"] = Critic(adapter.feature_size, config.critic, generator)

    @staticmethod
    def load(config: PolicyConfig, generator: torch.Generator) -> RobotPolicy:
        """The policy at `config.path`, with new heads drawn from `generator`.

        Raises:
            ValueError: it cannot be loaded as one that there is an adapter for, or has not what is to be trained.
        """
        adapter = adapters.load(config.path, "cpu", config.denoise_steps, config.execute)
        reads = None if config.critic is None else config.critic.reads
        adapter.prepare(config.train, config.adapter, reads, generator)
        return RobotPolicy(adapter, config, generator)

    @property
    def noise(self) -> Noise:
        return "learned" if self.config.exploration.learns_noise else "scheduled"

    @property
    def executed(self) -> tuple[int, int]:
        """(h, a): what of a chunk is executed."""
        return self.adapter.execute, self.adapter.action_size

    @property
    def decisions_per_chunk(self) -> int:
        """D."""
        return self.counting.per_chunk(self.adapter.denoise_steps, self.executed)

    @property
    def decision_size(self) -> int:
        """Numbers whose densities one log-prob sums, for parity."""
        explores = self.config.exploration
        noisy = self.adapter.denoise_steps if explores.steps == "all" else 1
        return self.counting.dimensions(noisy + explores.counts_start, self.executed)

    def critic_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.heads["critic"].parameters()) if "critic" in self.heads else []

    def act(self, seen: Observations, noise: Tensor, stochastic: Tensor) -> Acted:
        """Draw a chunk in each of n states, from noise (n, K+1, H, A), with the steps `stochastic` (n, K)."""
        inputs = self.adapter.inputs(seen)
        prefix = self.adapter.prefix(inputs)
        chain = chains.draw(self._field(prefix), noise, stochastic, self.config.exploration)
        logprobs = self._logprobs(chain.densities, chain.states, stochastic)
        actions = self.adapter.actions(chain.states[:, -1])
        return Acted(inputs, chain, logprobs, self._values(inputs, prefix), actions)

    def best(self, seen: Observations, noise: Tensor) -> Tensor:
        """Actions (n, h, a) without exploration: the flow's ODE from noise (n, H, A)."""
        prefix = self.adapter.prefix(self.adapter.inputs(seen))
        return self.adapter.actions(chains.integrate(self._field(prefix), noise, self.adapter.denoise_steps))

    def value(self, seen: Observations) -> Tensor:
        """V (n,) of n states; 0 without a critic."""
        inputs = self.adapter.inputs(seen)
        return self._values(inputs, self.adapter.prefix(inputs))

    def forward(self, transitions: Transitions, steps: Tensor) -> Evaluation:
        """Log-probs (b, t) of the decisions `steps`, and values if there is a critic. Only chunks that were begun are
        computed; elsewhere both are 0."""
        if not isinstance(transitions, ChunkTransitions):
            raise TypeError(f"RobotPolicy scores ChunkTransitions, got {type(transitions).__name__}")
        transitions, steps = transitions.to(self.device), steps.to(self.device)
        size = self.decisions_per_chunk
        first, last = int(steps.min()) // size, int(steps.max()) // size + 1
        rows, columns = transitions.alive[:, first:last].nonzero(as_tuple=True)
        at = (rows, columns + first)
        inputs = {name: tensor[at] for name, tensor in transitions.inputs.items()}
        prefix, stochastic, states = self.adapter.prefix(inputs), transitions.stochastic[at], transitions.chains[at]

        def placed(found: Tensor) -> Tensor:
            """(pairs, D) -> (b, t)."""
            whole = found.new_zeros(len(steps), last - first, size).index_put((rows, columns), found)
            return whole.flatten(1).gather(1, steps - first * size)

        wanted = asked((*self.report, Entropy()) if self.report_entropy else self.report)
        densities, told = chains.density(self._field(prefix), states, stochastic, self.config.exploration, wanted)
        stats = {name: placed(self._logprobs(found, None, stochastic)) for name, found in told.items()}
        worth = self._worth(inputs, prefix)
        values = None if worth.values is None else placed(worth.values[:, None].expand(-1, size))
        logits = [] if worth.logits is None else [placed(bin_[:, None].expand(-1, size)) for bin_ in worth.logits.T]
        return Evaluation(
            placed(self._logprobs(densities, states, stochastic)),
            entropy=stats.get("entropy"),
            values=values,
            stats=stats,
            value_logits=torch.stack(logits, -1) if logits else None,
            bins=worth.bins,
        )

    def _logprobs(self, densities: Tensor, states: Tensor | None, stochastic: Tensor) -> Tensor:
        """(n, D) of densities (n, K, H, A). What is not executed, and padding, is left out."""
        h, a = self.executed
        start = None
        if states is not None and self.config.exploration.counts_start:
            x = states[:, 0, :h, :a]
            start = chains.log_normal(x, torch.zeros_like(x), torch.ones_like(x))
        return self.counting.logprobs(densities[:, :, :h, :a], start, stochastic)

    def _field(self, prefix: Prefix) -> Field:
        """Velocity and noise of the states that `prefix` is of."""
        steps = self.adapter.denoise_steps

        def field(x: Tensor, number: int, rows: Tensor) -> tuple[Tensor, Tensor | None]:
            velocity, hidden = self.adapter.velocity(prefix.rows(rows), x, chains.times(number, steps, x))
            raw = self.heads["noise"](hidden).reshape(x.shape) if "noise" in self.heads else None
            return velocity, raw

        return field

    def _values(self, inputs: Inputs, prefix: Prefix) -> Tensor:
        found = self._worth(inputs, prefix).values
        return torch.zeros(len(next(iter(inputs.values()))), device=self.device) if found is None else found

    def _worth(self, inputs: Inputs, prefix: Prefix) -> Worth:
        if "critic" not in self.heads:
            return Worth()
        critic = self.heads["critic"]
        assert isinstance(critic, Critic)
        return critic.worth(self.adapter.features(inputs, prefix))

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.adapter.parameters()).device

    def save_pretrained(self, folder: Path) -> None:
        """A folder of lerobot, and the heads beside it."""
        self.adapter.save(folder)
        save_model(self.heads, str(folder / HEADS))

    def load_weights(self, folder: Path) -> None:
        self.adapter.load_weights(folder)
        for name, head in self.heads.items():
            if not load_head(head, folder / HEADS, f"{name}.") and name == "noise":
                raise ValueError(
                    f"{folder} has no noise head, and policy.exploration learns one: go on from a run that has one, or "
                    "from its export (`mmrl export`, then policy.path)"
                )

    def reference(self) -> RobotPolicy:
        """A frozen copy: what a KL penalty keeps close to."""
        return copy.deepcopy(self).requires_grad_(False).eval()
