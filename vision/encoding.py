"""Examples to prompts: the processor's own chat template, checked before anything starts.

"Image features and image tokens do not match" is what a bad sample costs hours into a run; here it is
refused by its id, and nothing is truncated or dropped silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import ProcessorMixin

from vision.data.base import Example
from vision.prompts import Prompt as PromptStyle
from vision.transitions import Prompt


class RefusedExample(ValueError):
    """An example that cannot be trained or evaluated on, with its id and the reason."""


@dataclass
class Encoder:
    """Encodes each example once and remembers it."""

    processor: ProcessorMixin
    style: PromptStyle
    labels: tuple[str, ...]
    max_prompt_tokens: int = 4096

    def __post_init__(self) -> None:
        self._encoded: dict[str, Prompt] = {}
        self._image_id: int | None = getattr(self.processor, "image_token_id", None)

    def __call__(self, example: Example) -> Prompt:
        """The prompt of an example.

        Raises:
            RefusedExample: its pictures cannot be read, or the prompt is longer than `max_prompt_tokens`.
        """
        if example.id not in self._encoded:
            self._encoded[example.id] = self._encode(example)
        return self._encoded[example.id]

    def check(self, examples: Sequence[Example]) -> None:
        """Encode all of `examples` now, so that none can fail later.

        Raises:
            RefusedExample: names every bad example with its reason.
        """
        refused = []
        for example in examples:
            try:
                self(example)
            except RefusedExample as error:
                refused.append(str(error))
        if refused:
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise RefusedExample(
                f"{len(refused)} of {len(examples)} examples are refused: {'; '.join(refused[:5])}{more}"
            )

    def _encode(self, example: Example) -> Prompt:
        if not example.answer:
            raise RefusedExample(f"{example.id}: the answer is empty")
        content: list[dict[str, object]] = [{"type": "image", "image": image} for image in example.images]
        content.append({"type": "text", "text": self.style.text(example, self.labels)})
        try:
            encoded = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise RefusedExample(f"{example.id}: its pictures or text cannot be encoded ({error})") from error
        return self._prompt(example, dict(encoded))

    def _prompt(self, example: Example, encoded: dict[str, Tensor]) -> Prompt:
        tokens = encoded.pop("input_ids")[0]
        encoded.pop("attention_mask", None)
        if len(tokens) > self.max_prompt_tokens:
            raise RefusedExample(
                f"{example.id}: the prompt has {len(tokens)} tokens and rollout.max_prompt_tokens is "
                f"{self.max_prompt_tokens}: raise it, or lower policy.max_pixels (prompts are never cut)"
            )
        per_token = {name: t[0] for name, t in encoded.items() if t.shape == (1, len(tokens))}
        vision = {name: tensor for name, tensor in encoded.items() if name not in per_token}
        placeholders = int((tokens == self._image_id).sum()) if self._image_id is not None else len(example.images)
        if bool(example.images) != bool(placeholders):
            raise RefusedExample(
                f"{example.id}: {len(example.images)} pictures and {placeholders} picture tokens in the prompt"
            )
        return Prompt(example.id, tokens, per_token, vision, _key(vision))


def _key(vision: dict[str, Tensor]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for name in sorted(vision):
        digest.update(name.encode() + str(tuple(vision[name].shape)).encode())
        digest.update(vision[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
