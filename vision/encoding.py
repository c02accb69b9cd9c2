"""Examples to prompts: the processor's own chat template, checked before anything starts.

"Image features and image tokens do not match" is what a bad sample costs hours into a run; here it is
refused by its id, and nothing is truncated or dropped silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import batched

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import ProcessorMixin

from vision.data.base import Example
from vision.prompts import Prompt as PromptStyle
from vision.transitions import Prompt

OTHER_PICTURE = "|picture of "
"""Stands in the id of an example with another one's picture; what is asked stays that of the first."""

BATCH = 32
"""Examples that go through a processor together."""


class RefusedExample(ValueError):
    """An example that cannot be trained or evaluated on, with its id and the reason."""


@dataclass
class Encoder:
    """Encodes examples, and remembers as many as `limit_mb` of memory holds."""

    processor: ProcessorMixin
    style: PromptStyle
    labels: tuple[str, ...]
    max_prompt_tokens: int = 4096
    limit_mb: float = 2048.0

    def __post_init__(self) -> None:
        self._encoded: dict[str, Prompt] = {}
        self.lengths: dict[str, int] = {}
        """Tokens of every prompt that was ever encoded, by id."""
        self._bytes = 0.0
        self._batches, self._verified = True, False

    def __call__(self, example: Example) -> Prompt:
        """The prompt of an example.

        Raises:
            RefusedExample: its pictures cannot be read, or the prompt is longer than `max_prompt_tokens`.
        """
        if example.id in self._encoded:
            return self._encoded[example.id]
        return self._remember(self._prompt(example, self._process([example])))

    def _remember(self, prompt: Prompt) -> Prompt:
        self._bytes += prompt.size()
        self._encoded[prompt.id] = prompt
        self.lengths[prompt.id] = len(prompt.tokens)
        while self._bytes > self.limit_mb * 2**20 and len(self._encoded) > BATCH:
            self._bytes -= self._encoded.pop(next(iter(self._encoded))).size()
        return prompt

    def many(self, examples: Sequence[Example]) -> list[Prompt]:
        """The prompts of several examples. A call of a processor costs far more than an example in it, so
        new ones go through it together where its output can be divided again."""
        missing = {e.id: e for e in examples if e.id not in self._encoded}
        for chunk in batched(missing.values(), BATCH):
            if self._batches and len(chunk) > 1:
                self._encode_together(chunk)
        return [self(example) for example in examples]

    def check(self, examples: Sequence[Example]) -> None:
        """Encode all of `examples` now, so that none can fail later.

        Raises:
            RefusedExample: names every bad example with its reason.
        """
        refused = []
        for chunk in batched(examples, BATCH):
            try:
                self.many(chunk)
            except RefusedExample:
                refused += self._refusals(chunk)
        if refused:
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise RefusedExample(
                f"{len(refused)} of {len(examples)} examples are refused: {'; '.join(refused[:5])}{more}"
            )

    def _refusals(self, examples: Sequence[Example]) -> list[str]:
        """What is wrong with each of these, one by one."""
        said = []
        for example in examples:
            try:
                self(example)
            except RefusedExample as error:
                said.append(str(error))
        return said

    def said(self, example: Example) -> tuple[tuple[Image, ...], str]:
        """The pictures and the text of what the user says, in this order.

        Raises:
            RefusedExample: its pictures cannot be read.
        """
        try:
            pictures = tuple(example.pictures())
        except ValueError as error:
            raise RefusedExample(f"{example.id}: {error}") from error
        return pictures, self.style.text(asked(example), self.labels)

    def _process(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        conversations = []
        for example in examples:
            if not example.answer:
                raise RefusedExample(f"{example.id}: the answer is empty")
            pictures, text = self.said(example)
            content: list[dict[str, object]] = [{"type": "image", "image": picture} for picture in pictures]
            content.append({"type": "text", "text": text})
            conversations.append([{"role": "user", "content": content}])
        try:
            encoded = self.processor.apply_chat_template(
                conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                processor_kwargs={"padding": len(conversations) > 1},
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise RefusedExample(f"{examples[0].id}: its pictures or text cannot be encoded ({error})") from error
        return dict(encoded)

    def _encode_together(self, examples: Sequence[Example]) -> None:
        """Encode a batch and divide it, if the first example comes out as it does alone."""
        parts = divide(self._process(examples), [len(e.images) for e in examples])
        if parts is None:
            self._batches = False
            return
        if not self._verified:
            self._verified = self._batches = _same(self(examples[0]), self._prompt(examples[0], parts[0]))
            if not self._batches:
                return
        for example, part in zip(examples, parts, strict=True):
            with suppress(RefusedExample):  # said when it is asked for by itself
                self._remember(self._prompt(example, part))

    def _prompt(self, example: Example, encoded: Mapping[str, Tensor]) -> Prompt:
        rest = {name: tensor for name, tensor in encoded.items() if name not in ("input_ids", "attention_mask")}
        tokens = encoded["input_ids"][0]
        if len(tokens) > self.max_prompt_tokens:
            raise RefusedExample(
                f"{example.id}: the prompt has {len(tokens)} tokens and rollout.max_prompt_tokens is "
                f"{self.max_prompt_tokens}: raise it, or lower policy.max_pixels (prompts are never cut)"
            )
        per_token = {name: t[0] for name, t in rest.items() if t.shape == (1, len(tokens))}
        vision = {name: tensor for name, tensor in rest.items() if name not in per_token}
        check_pictures(example.id, tokens, self.processor, len(example.images))
        return Prompt(example.id, tokens, per_token, vision, picture_key(vision))


def check_pictures(name: str, tokens: Tensor, processor: ProcessorMixin, pictures: int) -> None:
    """Refuse `tokens` (L,) in which the pictures that were given have no place, or the other way round.

    Raises:
        RefusedExample: names the example.
    """
    token: int | None = getattr(processor, "image_token_id", None)
    placeholders = int((tokens == token).sum()) if token is not None else pictures
    if bool(pictures) != bool(placeholders):
        raise RefusedExample(f"{name}: {pictures} pictures and {placeholders} picture tokens in the prompt")


def divide(encoded: Mapping[str, Tensor], pictures: Sequence[int]) -> list[dict[str, Tensor]] | None:
    """A processor's output for N conversations, one by one; None where it is not plain how. Rows go by
    conversation, by picture, or by patch (Qwen's `image_grid_thw` says how many a picture has)."""
    rows, kept = len(pictures), encoded["attention_mask"].bool()
    grid = encoded.get("image_grid_thw")
    by_picture = [int(p) for p in pictures]
    by_patch = [int(g.prod(-1).sum()) for g in grid.split(by_picture)] if grid is not None else []
    parts: list[dict[str, Tensor]] = [{} for _ in pictures]
    for name, tensor in encoded.items():
        if tensor.shape[:2] == kept.shape:
            pieces = [row[mask][None] for row, mask in zip(tensor, kept, strict=True)]
        elif len(tensor) == sum(by_picture):
            pieces = list(tensor.split(by_picture))
        elif len(tensor) == sum(by_patch):
            pieces = list(tensor.split(by_patch))
        elif len(tensor) == rows:
            pieces = list(tensor.split(1))
        else:
            return None
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()  # a view would keep the whole batch in memory
    return parts


def asked(example: Example) -> Example:
    """The example whose question it is."""
    return replace(example, id=example.id.split(OTHER_PICTURE)[0])


def _same(one: Prompt, other: Prompt) -> bool:
    if not torch.equal(one.tokens, other.tokens) or one.vision.keys() != other.vision.keys():
        return False
    vision = all(torch.equal(one.vision[name], other.vision[name]) for name in one.vision)
    return vision and all(torch.equal(one.per_token[name], other.per_token[name]) for name in one.per_token)


def picture_key(vision: Mapping[str, Tensor]) -> str:
    """The same for the same pixels."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name in sorted(vision):
        digest.update(name.encode() + str(tuple(vision[name].shape)).encode())
        digest.update(vision[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
