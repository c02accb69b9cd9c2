"""Drawing answers from a policy: one prefill a prompt, then token by token for its whole group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrl.statistics import Entropy, asked, of_categorical
from vision.allowed import Nucleus, only, recorded
from vision.policy import VisionPolicy
from vision.prefix import Prefix, Read, extend, run_prompts
from vision.transitions import Prompt, TokenTransitions


@dataclass(frozen=True)
class Drawn:
    """Completions with what was known when they were drawn."""

    transitions: TokenTransitions
    logprobs: Tensor  # (B, C) float32
    stats: Mapping[str, Tensor]  # name -> (B, C): the entropy, and what the policy is to report
    alive: Tensor  # (B, C) bool: up to and with the end-of-sequence token
    truncated: Tensor  # (B,) bool: the length limit came before the end
    values: Tensor | None  # (B, C), 0 where not alive; None without a critic


def draw(
    policy: VisionPolicy,
    prompts: list[Prompt],
    group: int,
    max_new_tokens: int,
    generator: torch.Generator | None,
    keep_prefill: bool = False,
    nucleus: Nucleus | None = None,
) -> Drawn:
    """`group` completions of each prompt, at temperature 1 from the full distribution, or what of it is in `nucleus`;
    the most likely token instead where `generator` is None. `keep_prefill` leaves the run of the prompts to the policy.
    """
    device = policy.banned.device
    rows = torch.arange(len(prompts), device=device).repeat_interleave(group)
    blank = torch.full((len(rows), max_new_tokens), policy.pad_id, device=device)
    transitions = TokenTransitions(tuple(prompt.to(device) for prompt in prompts), rows, blank)
    return go_on(policy, transitions, torch.zeros_like(rows), generator, keep_prefill, nucleus)


@torch.no_grad()
def go_on(
    policy: VisionPolicy,
    transitions: TokenTransitions,
    first: Tensor,
    generator: torch.Generator | None,
    keep_prefill: bool = False,
    nucleus: Nucleus | None = None,
) -> Drawn:
    """The completions (B, C) of `transitions` drawn on from their token `first` (B,), less than C, up to C tokens at
    most. The tokens before it, none of which may end an answer, are alive, and nothing else is known of them: 0."""
    given, most = transitions.completions, transitions.completions.shape[1]
    device, rows = given.device, len(given)
    blank = torch.full_like(given, policy.pad_id)
    stops = torch.tensor(policy.eos_ids, device=device)
    skipped = int(first.min()) if rows else 0
    blank[:, :skipped] = given[:, :skipped]
    known = replace(transitions, completions=blank, allowed=None)
    source = _Source(policy, known, keep_prefill, most, skipped)
    sets = None if nucleus is None else _Sets(nucleus, known, most, skipped)
    alive = torch.zeros(rows, most, dtype=torch.bool, device=device)
    alive[:, :skipped] = True
    logprobs, values = (torch.zeros(alive.shape, device=device) for _ in range(2))
    wanted = asked((Entropy(), *policy.report))
    stats = {statistic.name: torch.zeros(alive.shape, device=device) for statistic in wanted}
    running = torch.ones(rows, dtype=torch.bool, device=device)
    for t in range(skipped, most):
        said = source.next(t)
        log_softmax = policy.log_softmax(only(said.logits[:, -1], None if sets is None else sets.next(t)))
        token = log_softmax.argmax(-1) if generator is None else pick(log_softmax, generator)
        token = torch.where(t < first, given[:, t], token)
        blank[:, t] = torch.where(running, token, policy.pad_id)
        alive[:, t] = running
        logprobs[:, t] = log_softmax.gather(-1, token[:, None]).squeeze(-1)
        for name, found in of_categorical(wanted, log_softmax, token).items():
            stats[name][:, t] = found
        if (worth := policy.worth(said.states[:, -1]).values) is not None:
            values[:, t] = worth
        running = running & ~torch.isin(token, stops)
        if not bool(running.any()):
            break
    length = max(1, int(alive.any(0).sum()))
    drawn = alive & (torch.arange(most, device=device) >= first[:, None])
    return Drawn(
        replace(known, completions=blank[:, :length], allowed=None if sets is None else sets.of(drawn[:, :length])),
        torch.where(drawn, logprobs, 0.0)[:, :length],
        {name: torch.where(drawn, found, 0.0)[:, :length] for name, found in stats.items()},
        alive[:, :length],
        running,
        None if policy.critic is None else torch.where(drawn, values, 0.0)[:, :length],
    )


def pick(log_softmax: Tensor, generator: torch.Generator) -> Tensor:
    """One token (B,) from each distribution (B, V), by the inverse of the cumulative distribution."""
    cumulative = log_softmax.exp().cumsum(-1)
    point = torch.rand(len(cumulative), 1, generator=generator, device=cumulative.device) * cumulative[:, -1:]
    # `right`: the first token whose cumulative sum exceeds the point, so never one of probability 0
    found = torch.searchsorted(cumulative, point, right=True).squeeze(-1)
    last = log_softmax.shape[-1] - 1 - (log_softmax.flip(-1) > float("-inf")).int().argmax(-1)
    return torch.minimum(found, last)


class _Source:
    """What is said of the next token, from a growing cache. Where prompts cannot be shared, each row runs its own."""

    def __init__(
        self, policy: VisionPolicy, transitions: TokenTransitions, keep: bool, tokens: int, known: int
    ) -> None:
        self._policy, self._transitions = policy, transitions
        self._prefix = policy.prefix(transitions, keep) or self._unshared()
        self._prefix.reserve(tokens)
        if known > 1:  # at once, up to the last of them, which `next` reads
            extend(policy.model, self._prefix, transitions.completions[:, : known - 1], 0, policy.mrope)

    def _unshared(self) -> Prefix:
        policy, transitions = self._policy, self._transitions
        repeated = [transitions.prompts[int(i)] for i in transitions.prompt_index]
        with policy.serving(transitions):
            return run_prompts(policy.model, repeated, policy.pad_id, policy.mrope)

    def next(self, t: int) -> Read:
        """Of token t (B, 1, ...), given that the completions hold the tokens before it."""
        if t == 0:
            return self._prefix.last
        last = self._transitions.completions[:, t - 1 : t]
        return extend(self._policy.model, self._prefix, last, t - 1, self._policy.mrope)


class _Sets:
    """Which tokens the next one is drawn from, and a record of that."""

    def __init__(self, nucleus: Nucleus, transitions: TokenTransitions, tokens: int, known: int) -> None:
        self._nucleus, self._found = nucleus, list[Tensor]()
        self._source = _Source(nucleus.policy, transitions, False, tokens, known)

    def next(self, t: int) -> Tensor:
        """For token t (B, K)."""
        said = self._source.next(t).logits[:, -1]
        self._found.append(self._nucleus.of(self._nucleus.policy.log_softmax(said)))
        return self._found[-1]

    def of(self, drawn: Tensor) -> Tensor:
        """For all tokens (B, C, K) up to the last one, of those that were `drawn` (B, C)."""
        return recorded(self._found, drawn)


def written(policy: VisionPolicy, completions: Tensor) -> list[list[int]]:
    """The tokens of each of `completions` (B, C), up to the one that ends it and without that one."""
    ends = set(policy.eos_ids)
    stops = torch.isin(completions, torch.tensor(policy.eos_ids, device=completions.device)).int()
    alive = stops.cumsum(-1) - stops == 0
    rows = [row[kept].tolist() for row, kept in zip(completions, alive, strict=True)]
    return [row[:-1] if row and row[-1] in ends else row for row in rows]


def decoded(policy: VisionPolicy, rows: list[list[int]]) -> list[str]:
    """Tokens as text."""
    return [str(policy.processor.tokenizer.decode(row, skip_special_tokens=False)) for row in rows]
