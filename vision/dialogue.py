"""A prompt that goes on: what was asked, what the policy wrote, token by token, and what it was shown then.

The policy's own tokens are kept as they were drawn. Decoding and encoding them again, as a chat template of the whole
conversation does, gives other tokens now and then, so that a later turn would follow something that was never said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import ProcessorMixin

from vision.encoding import check_pictures, picture_key
from vision.tools import Reply
from vision.transitions import Prompt

MARK = "WHAT-WAS-WRITTEN"
"""Stands for an answer in a rendered chat template, to find what the template puts after it."""


class ContextFull(ValueError):
    """The next turn would be longer than `max_prompt_tokens`."""


@dataclass
class Dialogue:
    """Continues prompts of one processor."""

    processor: ProcessorMixin
    max_prompt_tokens: int
    _along: dict[str, int] = field(default_factory=dict)

    def follow(self, prompt: Prompt, written: Sequence[int], reply: Reply, id: str) -> Prompt:
        """The prompt of the next turn, called `id`: `prompt`, the tokens `written`, less an end token, and
        `reply`, as the chat template shows a user's message.

        Raises:
            ContextFull: it is too long.
            ValueError: the processor's tensors of pictures cannot be joined over turns.
        """
        said = torch.tensor(written, dtype=torch.long)
        shown = self._encode(self._between(reply), reply)
        check_pictures(id, shown["input_ids"][0], self.processor, len(reply.pictures))
        tokens = torch.cat([prompt.tokens.cpu(), said, shown["input_ids"][0]])
        if len(tokens) > self.max_prompt_tokens:
            raise ContextFull(
                f"{id}: so far {len(tokens)} tokens were said, rollout.max_prompt_tokens is {self.max_prompt_tokens}"
            )
        per_token = {
            name: torch.cat([known.cpu(), torch.zeros_like(said), shown[name][0]]) if name in shown else known
            for name, known in prompt.per_token.items()
        }
        if missing := [name for name in per_token if name not in shown]:
            raise ValueError(
                f"{type(self.processor).__name__} gives {missing} for a whole chat and not for a part of one: "
                "this model cannot be trained in several turns; set rollout.turns to 1"
            )
        vision = {name: known.cpu() for name, known in prompt.vision.items()}
        if reply.pictures:
            vision = self._joined(vision, _of_pictures(shown), reply)
        return Prompt(id, tokens, per_token, vision, picture_key(vision))

    def _between(self, reply: Reply) -> str:
        """What the chat template puts after an answer that is followed by `reply`."""
        messages = [
            _message("user", "?"),
            _message("assistant", MARK),
            _message("user", reply.text, len(reply.pictures)),
        ]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return str(text).split(MARK, 1)[1]

    def _encode(self, text: str, reply: Reply) -> Mapping[str, Tensor]:
        wanted = {"add_special_tokens": False, "return_mm_token_type_ids": True, "return_tensors": "pt"}
        pictures = {"images": list(reply.pictures)} if reply.pictures else {}
        found: Mapping[str, Tensor] = self.processor(text=[text], **pictures, **wanted)
        return found

    def _joined(self, known: Mapping[str, Tensor], new: Mapping[str, Tensor], reply: Reply) -> dict[str, Tensor]:
        if not self._along:
            self._along = self._dimensions(reply)
        return {name: torch.cat([known[name], t], self._along[name]) if name in known else t for name, t in new.items()}

    def _dimensions(self, reply: Reply) -> dict[str, int]:
        """Along which dimension each tensor of pictures grows with their number: that of two pictures encoded together
        is the two encoded apart, joined there."""
        several = [replace(reply, pictures=reply.pictures[:1] * number) for number in (1, 2)]
        alone, both = (_of_pictures(self._encode(self._between(each), each)) for each in several)
        found = {}
        for name, tensor in alone.items():
            along = [d for d in (0, 1) if d < tensor.ndim and _equal(torch.cat([tensor, tensor], d), both[name])]
            if not along:
                raise ValueError(
                    f"{type(self.processor).__name__} gives {name} of two pictures in another form than of one: this "
                    "model cannot be trained in several turns with pictures; set rollout.turns to 1"
                )
            found[name] = along[0]
        return found


def _of_pictures(encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what stands for each token."""
    return {name: tensor for name, tensor in encoded.items() if tensor.shape != encoded["input_ids"].shape}


def _message(role: str, text: str, pictures: int = 0) -> dict[str, object]:
    return {"role": role, "content": [*({"type": "image"},) * pictures, {"type": "text", "text": text}]}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
