"""Recorded answers: prompts are kept once each, completions point at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.types import Transitions
from vision.allowed import joined as joined_sets


@dataclass(frozen=True)
class Prompt:
    """One encoded prompt: pictures and question, up to where the answer begins."""

    id: str
    tokens: Tensor  # (L,) long
    per_token: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (L,), e.g. mm_token_type_ids
    vision: Mapping[str, Tensor] = field(default_factory=dict)  # pixel_values, image_grid_thw, ...
    image_key: str = ""  # the same for the same pixels

    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(t.numel() * t.element_size() for t in (self.tokens, *self.per_token.values(), *self.vision.values()))

    def to(self, device: torch.device) -> Prompt:
        """The same prompt on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            per_token={name: tensor.to(device) for name, tensor in self.per_token.items()},
            vision={name: tensor.to(device) for name, tensor in self.vision.items()},
        )


@dataclass(frozen=True)
class TokenTransitions(Transitions):
    """B completions of at most C tokens over P distinct prompts."""

    prompts: tuple[Prompt, ...]  # P
    prompt_index: Tensor  # (B,) long
    completions: Tensor  # (B, C) long, padded on the right
    allowed: Tensor | None = None  # (B, C, K) int32: the tokens that each was drawn from (`vision.allowed`); None: all

    def rows(self, index: Tensor) -> Self:
        used, renumbered = torch.unique(self.prompt_index[index], return_inverse=True)
        chosen = tuple(self.prompts[int(i)] for i in used)
        allowed = None if self.allowed is None else self.allowed[index]
        completions = self.completions[index]
        return replace(self, prompts=chosen, prompt_index=renumbered, completions=completions, allowed=allowed)

    def to(self, device: torch.device) -> Self:
        return replace(
            self,
            prompts=tuple(prompt.to(device) for prompt in self.prompts),
            prompt_index=self.prompt_index.to(device),
            completions=self.completions.to(device),
            allowed=None if self.allowed is None else self.allowed.to(device),
        )

    def __len__(self) -> int:
        return len(self.completions)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        starts = [sum(len(part.prompts) for part in parts[:number]) for number in range(len(parts))]
        longest = max(part.completions.shape[1] for part in parts)
        return cls(
            tuple(prompt for part in parts for prompt in part.prompts),
            torch.cat([part.prompt_index + start for part, start in zip(parts, starts, strict=True)]),
            torch.cat([pad(part.completions, (0, longest - part.completions.shape[1])) for part in parts]),
            joined_sets([part.allowed for part in parts], [len(part) for part in parts], longest),
        )

    def written(self, row: int) -> list[int]:
        """The tokens of one completion, with its padding."""
        return [int(token) for token in self.completions[row]]


@dataclass(frozen=True)
class Conversations(Transitions):
    """B conversations of up to K turns. `turns[k]` are the answers of those n rows that reached turn k; a prompt of a
    later turn holds all that was said and shown before, word for word. The decisions of a row are the tokens of its
    turns, one turn after the other; what it was shown in between is no decision, so that no mask has to leave it out.
    """

    size: int  # B
    turns: tuple[TokenTransitions, ...]  # K of n rows, each with a prompt
    row: tuple[Tensor, ...]  # K of (n,) long: which conversation
    start: tuple[Tensor, ...]  # K of (n,) long: the decision that a turn begins with
    length: tuple[Tensor, ...]  # K of (n,) long: tokens of a turn

    def rows(self, index: Tensor) -> Self:
        """The conversations `index` (LongTensor, b), none of them twice."""
        place = torch.full((self.size,), -1, device=index.device)
        place[index] = torch.arange(len(index), device=index.device)
        chosen = [(place[row] >= 0).nonzero().squeeze(-1) for row in self.row]
        # in the order of `index`, as the rows of every other field of a batch are
        chosen = [kept[place[row[kept]].argsort()] for kept, row in zip(chosen, self.row, strict=True)]
        used = [k for k, kept in enumerate(chosen) if len(kept)]
        return replace(
            self,
            size=len(index),
            turns=tuple(self.turns[k].rows(chosen[k]) for k in used),
            row=tuple(place[self.row[k][chosen[k]]] for k in used),
            start=tuple(self.start[k][chosen[k]] for k in used),
            length=tuple(self.length[k][chosen[k]] for k in used),
        )

    def to(self, device: torch.device) -> Self:
        parts = {name: tuple(part.to(device) for part in vars(self)[name]) for name in ("row", "start", "length")}
        return replace(self, turns=tuple(turn.to(device) for turn in self.turns), **parts)

    def __len__(self) -> int:
        return self.size

    def written(self, row: int) -> list[int]:
        """The tokens of one conversation, one turn after the other."""
        found: list[int] = []
        for turn, rows, lengths in zip(self.turns, self.row, self.length, strict=True):
            for place in (rows == row).nonzero().flatten().tolist():
                found += turn.written(place)[: int(lengths[place])]
        return found

    def spread(self, found: Sequence[Tensor], width: int) -> Tensor:
        """What was found for the tokens of each turn (K of (n, C, ...)), where its decisions stand: (B, width, ...),
        else 0."""
        joined = found[0].new_zeros(self.size, width, *found[0].shape[2:])
        for row, start, length, numbers in zip(self.row, self.start, self.length, found, strict=True):
            token = torch.arange(numbers.shape[1], device=numbers.device)
            column = start[:, None] + token
            kept = (token < length[:, None]) & (column < width)
            joined = joined.index_put((row[:, None].expand_as(column)[kept], column[kept]), numbers[kept])
        return joined


def collate(prompts: Sequence[Prompt], pad_id: int) -> dict[str, Tensor]:
    """Model inputs of P prompts, padded on the left: input_ids, attention_mask, ... (P, L), and pixels."""
    longest = max(len(prompt.tokens) for prompt in prompts)

    def left(tensor: Tensor, value: int) -> Tensor:
        return pad(tensor, (longest - len(tensor), 0), value=value)

    inputs = {
        "input_ids": torch.stack([left(p.tokens, pad_id) for p in prompts]),
        "attention_mask": torch.stack([left(torch.ones_like(p.tokens), 0) for p in prompts]),
    }
    for name in prompts[0].per_token:
        inputs[name] = torch.stack([left(p.per_token[name], 0) for p in prompts])
    for name in {name: None for p in prompts for name in p.vision}:
        inputs[name] = _join([p.vision[name] for p in prompts if name in p.vision])
    return inputs


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """Rows under each other; dimensions that differ (tiles of pictures) are padded with zeros, which is
    how the processors of such models pad them."""
    if all(t.shape[1:] == tensors[0].shape[1:] for t in tensors):
        return torch.cat(list(tensors))
    target = [max(t.shape[d] for t in tensors) for d in range(1, tensors[0].ndim)]
    padded = []
    for t in tensors:
        widths = [w for d in range(t.ndim - 1, 0, -1) for w in (0, target[d - 1] - t.shape[d])]
        padded.append(pad(t, widths))
    return torch.cat(padded)
