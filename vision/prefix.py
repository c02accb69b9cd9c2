"""Two ways to the same logits and hidden states: one that shares the prompt, and the naive one.

Shared: a picture is encoded once, a prompt prefilled once, and its keys and values, with their gradient,
are handed to every completion of it. G (P + C) tokens become P + G C. Naive: every row runs prompt and
completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.utils import ModelOutput

from vision.transitions import Prompt, TokenTransitions, collate


class NoPlainCache(TypeError):
    """This architecture keeps something else than keys and values, so prompts cannot be shared."""


class Read(NamedTuple):
    """What a model says of the next token, after each of W tokens of n rows."""

    logits: Tensor  # (n, W, V)
    states: Tensor  # (n, W, D), without gradient: the hidden states that the logits are a linear map of


@dataclass
class Prefilled:
    """P prompts that have been run, with the gradient of that run if there was one."""

    cache: DynamicCache  # P rows
    last: Read  # (P, 1, ...): of the token after each prompt
    attention_mask: Tensor  # (P, L)
    offsets: Tensor  # (P, 1): position of a token minus its rank among attended tokens

    def for_rows(self, rows: Tensor) -> Prefix:
        """A copy for each of `rows` (B,), an index into the prompts, ready to be continued."""
        copies = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            copies.update(layer.keys[rows], layer.values[rows], number)
        last = Read(*(part[rows] for part in self.last))
        return Prefix(copies, last, self.attention_mask[rows], self.offsets[rows])


@dataclass
class Prefix:
    """A prefilled prompt per row, ready to be continued."""

    cache: Cache  # B rows
    last: Read  # (B, 1, ...): of the first token of each completion
    attention_mask: Tensor  # (B, L)
    offsets: Tensor  # (B, 1)

    def positions(self, length: int, width: int) -> Tensor:
        """Positions (B, width) of the last `width` of `length` tokens after the prompt. Explicit, since a
        model that counts for itself is wrong on rows padded on the left."""
        behind = self.attention_mask.sum(-1, keepdim=True)
        return behind + torch.arange(length - width, length, device=behind.device) + self.offsets

    def reserve(self, tokens: int) -> None:
        """Make room for so many more tokens, so that each of them is written in place, without gradient."""
        if all(type(layer) is DynamicLayer for layer in self.cache.layers):
            self.cache.layers = [Reserved(layer, tokens) for layer in self.cache.layers]


class Reserved(DynamicLayer):
    """Keys and values in one buffer. A plain layer copies all it holds for every token that comes."""

    def __init__(self, layer: DynamicLayer, tokens: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._length = layer.keys.shape[-2]
        self._buffers = [pad(t, (0, 0, 0, tokens)) for t in (layer.keys, layer.values)]
        self.keys, self.values = (b[..., : self._length, :] for b in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., self._length : end, :] = new
        self._length = end
        self.keys, self.values = (b[..., :end, :] for b in self._buffers)
        return self.keys, self.values


def prefill(model: nn.Module, prompts: Sequence[Prompt], pad_id: int, mrope: bool) -> Prefilled:
    """Run each of P prompts once; what comes out can be handed to any rows.

    Raises:
        NoPlainCache: the model's cache has layers other than plain keys and values.
    """
    prefix = run_prompts(model, prompts, pad_id, mrope)
    kept = prefix.cache
    if not isinstance(kept, DynamicCache) or any(type(layer) is not DynamicLayer for layer in kept.layers):
        raise NoPlainCache(f"{type(model).__name__} does not keep a plain key-value cache")
    return Prefilled(kept, prefix.last, prefix.attention_mask, prefix.offsets)


def read(model: nn.Module, inputs: dict[str, object]) -> tuple[ModelOutput, Read]:
    """Run a model. States are what goes into the layer that makes its logits: asked for by `output_hidden_states` they
    would be kept of every layer and token. They have no numbers (D = 0) where a model does not say which layer it is.
    """
    seen: list[Tensor] = []
    head = model.get_output_embeddings()  # type: ignore[operator]
    hook = None if head is None else head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        output = model(**inputs)
    finally:
        if hook is not None:
            hook.remove()
    logits: Tensor = output.logits
    return output, Read(logits, seen[-1] if seen else logits.detach()[..., :0])


def run_prompts(model: nn.Module, prompts: Sequence[Prompt], pad_id: int, mrope: bool) -> Prefix:
    """Run prompts as rows of their own, ready to be continued, whatever kind of cache the model keeps."""
    inputs = collate(prompts, pad_id)
    if not mrope:
        inputs["position_ids"] = ranks(inputs["attention_mask"])
    output, last = read(model, {**inputs, "use_cache": True, "logits_to_keep": 1})
    if output.past_key_values is None or output.past_key_values.get_seq_length() == 0:
        raise NoPlainCache(f"{type(model).__name__} returned an empty cache: is its own gradient checkpointing on?")
    deltas = output.get("rope_deltas")
    offsets = inputs["input_ids"].new_zeros(len(prompts), 1) if deltas is None else deltas.view(len(prompts), 1)
    return Prefix(output.past_key_values, last, inputs["attention_mask"], offsets.long())


def ranks(attention_mask: Tensor) -> Tensor:
    """Position (B, L) of each token among the attended ones: models without multimodal positions count from
    the left edge otherwise, padding included. (Those with them compute their own from the mask.)"""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def extend(model: nn.Module, prefix: Prefix, tokens: Tensor, done: int, mrope: bool) -> Read:
    """What is said after each of `tokens` (B, W), which follow `done` earlier ones; grows the cache."""
    total = done + tokens.shape[1]
    ones = prefix.attention_mask.new_ones(len(tokens), total)
    positions = prefix.positions(total, tokens.shape[1])
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.cat([prefix.attention_mask, ones], dim=1),
        "position_ids": positions.expand(3, -1, -1) if mrope else positions,
        "past_key_values": prefix.cache,
        "use_cache": True,
    }
    return read(model, inputs)[1]


def read_shared(model: nn.Module, prefix: Prefix, completions: Tensor, mrope: bool) -> Read:
    """What (B, T, ...) each of `completions` (B, T) was drawn from."""
    if completions.shape[1] == 1:
        return prefix.last
    rest = extend(model, prefix, completions[:, :-1], 0, mrope)
    return Read(*(torch.cat(parts, dim=1) for parts in zip(prefix.last, rest, strict=True)))


def read_naive(model: nn.Module, transitions: TokenTransitions, length: int, pad_id: int, mrope: bool) -> Read:
    """The same, with prompt and pictures repeated for every row and no cache."""
    repeated = [transitions.prompts[int(i)] for i in transitions.prompt_index]
    inputs = collate(repeated, pad_id)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], transitions.completions[:, : length - 1]], dim=1)
    added = inputs["input_ids"].shape[1] - inputs["attention_mask"].shape[1]
    for name in ("attention_mask", *repeated[0].per_token):
        fill = 1 if name == "attention_mask" else 0
        tail = inputs[name].new_full((len(repeated), added), fill)
        inputs[name] = torch.cat([inputs[name], tail], dim=1)
    if not mrope:
        inputs["position_ids"] = ranks(inputs["attention_mask"])
    return read(model, {**inputs, "use_cache": False, "logits_to_keep": length})[1]
