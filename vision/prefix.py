"""Two ways to the same logits: one that shares the prompt, and the naive one.

Shared: a picture is encoded once, a prompt prefilled once, and its keys and values, with their gradient,
are handed to every completion of it. G (P + C) tokens become P + G C. Naive: every row runs prompt and
completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from vision.transitions import Prompt, TokenTransitions, collate


class NoPlainCache(TypeError):
    """This architecture keeps something else than keys and values, so prompts cannot be shared."""


@dataclass
class Prefix:
    """A prefilled prompt per row, ready to be continued."""

    cache: DynamicCache  # B rows
    next_logits: Tensor  # (B, V): of the first token of each completion
    attention_mask: Tensor  # (B, L)
    offsets: Tensor  # (B, 1): position of a token minus its rank among attended tokens

    def positions(self, length: int, width: int) -> Tensor:
        """Positions (B, width) of the last `width` of `length` tokens after the prompt. Explicit, since a
        model that counts for itself is wrong on rows padded on the left."""
        behind = self.attention_mask.sum(-1, keepdim=True)
        return behind + torch.arange(length - width, length, device=behind.device) + self.offsets

    def select(self, rows: Tensor) -> Prefix:
        """Only these rows."""
        self.cache.batch_select_indices(rows)
        return Prefix(self.cache, self.next_logits[rows], self.attention_mask[rows], self.offsets[rows])


def prefill(model: nn.Module, prompts: Sequence[Prompt], rows: Tensor, pad_id: int) -> Prefix:
    """Run each of P prompts once and repeat the result for `rows` (B,), an index into them.

    Raises:
        NoPlainCache: the model's cache has layers other than plain keys and values.
    """
    inputs = collate(prompts, pad_id)
    cache = DynamicCache()
    output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    kept = output.past_key_values
    if not isinstance(kept, DynamicCache) or any(type(layer) is not DynamicLayer for layer in kept.layers):
        raise NoPlainCache(f"{type(model).__name__} does not keep a plain key-value cache")
    if kept.get_seq_length() == 0:
        raise NoPlainCache(f"{type(model).__name__} returned an empty cache: is its own gradient checkpointing on?")
    deltas = output.get("rope_deltas")
    offsets = inputs["input_ids"].new_zeros(len(prompts), 1) if deltas is None else deltas.view(len(prompts), 1)
    kept.batch_select_indices(rows)
    return Prefix(kept, output.logits[rows, -1], inputs["attention_mask"][rows], offsets[rows].long())


def extend(model: nn.Module, prefix: Prefix, tokens: Tensor, done: int, mrope: bool) -> Tensor:
    """Logits (B, W, V) after each of `tokens` (B, W), which follow `done` earlier ones; grows the cache."""
    total = done + tokens.shape[1]
    ones = prefix.attention_mask.new_ones(len(tokens), total)
    positions = prefix.positions(total, tokens.shape[1])
    output = model(
        input_ids=tokens,
        attention_mask=torch.cat([prefix.attention_mask, ones], dim=1),
        position_ids=positions.expand(3, -1, -1) if mrope else positions,
        past_key_values=prefix.cache,
        use_cache=True,
    )
    logits: Tensor = output.logits
    return logits


def shared_logits(model: nn.Module, transitions: TokenTransitions, length: int, pad_id: int, mrope: bool) -> Tensor:
    """Logits (B, length, V) that each of the first `length` tokens of every completion was drawn from."""
    prefix = prefill(model, transitions.prompts, transitions.prompt_index, pad_id)
    first = prefix.next_logits[:, None]
    if length == 1:
        return first
    rest = extend(model, prefix, transitions.completions[:, : length - 1], 0, mrope)
    return torch.cat([first, rest], dim=1)


def naive_logits(model: nn.Module, transitions: TokenTransitions, length: int, pad_id: int) -> Tensor:
    """The same logits, with prompt and pictures repeated for every row and no cache."""
    repeated = [transitions.prompts[int(i)] for i in transitions.prompt_index]
    inputs = collate(repeated, pad_id)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], transitions.completions[:, : length - 1]], dim=1)
    added = inputs["input_ids"].shape[1] - inputs["attention_mask"].shape[1]
    for name in ("attention_mask", *repeated[0].per_token):
        fill = 1 if name == "attention_mask" else 0
        tail = inputs[name].new_full((len(repeated), added), fill)
        inputs[name] = torch.cat([inputs[name], tail], dim=1)
    logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=length).logits
    return logits
