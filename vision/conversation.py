"""Answers in several turns: what is written, what a tool makes of it, and what is written then.

One turn is the same with a limit of 1; without a tool there is nothing to answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.types import Samples, Transitions
from vision.data.base import Example
from vision.dialogue import ContextFull, Dialogue
from vision.encoding import Encoder, asked
from vision.policy import VisionPolicy
from vision.sampling import Drawn, decoded, draw, written
from vision.tools import Reply, Tool
from vision.transitions import Conversations, Prompt


@dataclass(frozen=True)
class Limits:
    """Of one conversation: turns, and tokens of one turn and of all that a turn follows."""

    turns: int
    max_new_tokens: int
    max_prompt_tokens: int


@dataclass(frozen=True)
class Conversation:
    """One conversation about an example. `replies` are as many as turns, or none without a tool."""

    turns: tuple[str, ...]
    replies: tuple[Reply, ...] = ()

    @property
    def answer(self) -> str:
        """What was written last."""
        return self.turns[-1]


@dataclass(frozen=True)
class Held:
    """B conversations with what was known when they were drawn; a decision is a token of any turn."""

    conversations: tuple[Conversation, ...]  # B
    transitions: Transitions  # B
    logprobs: Tensor  # (B, T) float32
    stats: Mapping[str, Tensor]  # name -> (B, T), as when they were drawn
    alive: Tensor  # (B, T) bool
    truncated: Tensor  # (B,) bool: a turn met its limit before its end, or the next one would not have fitted
    values: Tensor | None  # (B, T); None without a critic


def converse(
    policy: VisionPolicy,
    encode: Encoder,
    examples: Sequence[Example],
    group: int,
    limits: Limits,
    tool: Tool | None,
    generator: torch.Generator | None,
    keep_prefill: bool = False,
    first: Drawn | None = None,
) -> Held:
    """`group` conversations about each example, the most likely ones where `generator` is None. Their `first` turn may
    have been drawn before."""
    prompts = encode.many(examples)
    floor = _Floor([asked(example) for example in examples for _ in range(group)], tool)
    floor.prompts = [prompt for prompt in prompts for _ in range(group)]
    rows = list(range(len(floor.about)))
    drawn = [first or draw(policy, prompts, group, limits.max_new_tokens, generator, keep_prefill)]
    turns = [rows]
    floor.take(policy, rows, drawn[0])
    dialogue = Dialogue(encode.processor, limits.max_prompt_tokens)
    while len(turns) < limits.turns and (rows := floor.following(dialogue, len(turns) + 1)):
        drawn.append(draw(policy, [floor.prompts[row] for row in rows], 1, limits.max_new_tokens, generator))
        turns.append(rows)
        floor.take(policy, rows, drawn[-1])
    conversations = tuple(Conversation(tuple(s), tuple(h)) for s, h in zip(floor.said, floor.heard, strict=True))
    return _joined(conversations, drawn, turns, torch.tensor(floor.truncated))


def in_one_turn(policy: VisionPolicy, drawn: Drawn) -> Held:
    """Answers as conversations of one turn that nobody replies to."""
    said = decoded(policy, written(policy, drawn.transitions.completions))
    conversations = tuple(Conversation((text,)) for text in said)
    return Held(
        conversations, drawn.transitions, drawn.logprobs, drawn.stats, drawn.alive, drawn.truncated, drawn.values
    )


class _Floor:
    """Who has said what so far, and who goes on."""

    def __init__(self, about: Sequence[Example], tool: Tool | None) -> None:
        self.about, self.tool = about, tool
        self.prompts: list[Prompt] = []
        self.said: list[list[str]] = [[] for _ in about]
        self.heard: list[list[Reply]] = [[] for _ in about]
        self.truncated = [False] * len(about)
        self._tokens: dict[int, list[int]] = {}

    def take(self, policy: VisionPolicy, rows: Sequence[int], drawn: Drawn) -> None:
        """What `rows` wrote in this turn, and what the tool says to it."""
        tokens = written(policy, drawn.transitions.completions)
        self._tokens = dict(zip(rows, tokens, strict=True))
        for row, text, cut in zip(rows, decoded(policy, tokens), drawn.truncated.tolist(), strict=True):
            self.said[row].append(text)
            self.truncated[row] = cut
        if self.tool is not None:
            replies = self.tool.replies([self.said[row] for row in rows], [self.about[row] for row in rows])
            for row, reply in zip(rows, replies, strict=True):
                self.heard[row].append(reply)

    def following(self, dialogue: Dialogue, turn: int) -> list[int]:
        """The rows that have a turn `turn`; their prompts go on."""
        rows = []
        for row, tokens in self._tokens.items():
            if not self.heard[row] or self.heard[row][-1].over or self.truncated[row]:
                continue
            prompt = self.prompts[row]
            try:
                name = f"{prompt.id}/{row}/turn {turn}"
                self.prompts[row] = dialogue.follow(prompt, tokens, self.heard[row][-1], name)
                rows.append(row)
            except ContextFull:
                self.truncated[row] = True
        return rows


def _joined(
    conversations: tuple[Conversation, ...], drawn: Sequence[Drawn], turns: Sequence[Sequence[int]], truncated: Tensor
) -> Held:
    """The turns of each conversation, one after the other."""
    first = drawn[0]
    truncated = truncated.to(first.alive.device)
    if len(drawn) == 1:
        return Held(conversations, first.transitions, first.logprobs, first.stats, first.alive, truncated, first.values)
    rows = [torch.tensor(row, device=first.alive.device) for row in turns]
    lengths = [turn.alive.sum(-1) for turn in drawn]
    total = torch.zeros_like(lengths[0])
    starts = []
    for row, length in zip(rows, lengths, strict=True):
        starts.append(total[row])
        total = total.index_add(0, row, length)
    transitions = Conversations(
        len(total), tuple(turn.transitions for turn in drawn), tuple(rows), tuple(starts), tuple(lengths)
    )
    width = int(total.max())
    values = [turn.values for turn in drawn if turn.values is not None]
    return Held(
        conversations,
        transitions,
        transitions.spread([turn.logprobs for turn in drawn], width),
        {name: transitions.spread([turn.stats[name] for turn in drawn], width) for name in first.stats},
        torch.arange(width, device=total.device) < total[:, None],
        truncated,
        transitions.spread(values, width) if values else None,
    )


class Pictures(Sequence[object]):
    """The pictures of examples, read when they are asked for."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int | slice) -> object:
        if isinstance(index, slice):
            return [example.pictures() for example in self._examples[index]]
        return self._examples[index].pictures()


def as_samples(examples: Sequence[Example], conversations: Sequence[Conversation]) -> Samples:
    """What rewards and metrics read: the last turn, with the columns of its example. With a tool also `turns`, all that
    was written, `records`, what the tool made of each, and `pictures`, those of the example."""
    names = {name: None for example in examples for name in example.columns}
    columns: dict[str, Sequence[object]] = {n: [e.columns.get(n) for e in examples] for n in names}
    columns["answer"] = [example.answer for example in examples]
    columns["question"] = [example.question for example in examples]
    if any(conversation.replies for conversation in conversations):
        columns["turns"] = [conversation.turns for conversation in conversations]
        columns["records"] = [[reply.record for reply in conversation.replies] for conversation in conversations]
        columns["pictures"] = Pictures(examples)
    return Samples([conversation.answer for conversation in conversations], columns, [e.id for e in examples])
