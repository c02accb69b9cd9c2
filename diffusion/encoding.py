"""Encodes each prompt once, whatever the pipeline: a rollout asks for the same prompts in every group and every
epoch."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

Encoded = tuple[Tensor | None, ...]


@dataclass
class PromptCache:
    """What `encode_prompt` of a pipeline gave for the last `limit` prompts, kept off the GPU. Its text encoders must
    not change."""

    limit: int = 2048
    _known: OrderedDict[tuple[str, ...], Encoded] = field(default_factory=OrderedDict)

    @contextmanager
    def around(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """Inside, `pipeline` encodes only prompts that it did not encode before."""
        if not hasattr(pipeline, "encode_prompt"):
            yield
            return
        encode, signature = pipeline.encode_prompt, inspect.signature(pipeline.encode_prompt)

        def cached(*args: object, **kwargs: object) -> object:
            given = signature.bind(*args, **kwargs).arguments
            prompts = given.pop("prompt", None)
            if not _is_plain(prompts, given):
                return encode(*args, **kwargs)
            found = [self._one(prompt, given, encode) for prompt in prompts]
            joined = _joined(found, pipeline)
            return encode(*args, **kwargs) if joined is None else joined

        pipeline.encode_prompt = cached
        try:
            yield
        finally:
            del pipeline.encode_prompt

    def _one(self, prompt: str, others: dict[str, object], encode) -> Encoded:  # type: ignore[no-untyped-def]
        key = (prompt, *(f"{name}={value!r}" for name, value in sorted(others.items())))
        if key not in self._known:
            found = encode(prompt=[prompt], **others)
            self._known[key] = tuple(part.cpu() if isinstance(part, Tensor) else part for part in found)
            if len(self._known) > self.limit:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def _is_plain(prompts: object, others: dict[str, object]) -> bool:
    """Whether the call is about a list of texts and nothing else that belongs to single rows."""
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        return False
    return not any(isinstance(value, (list, Tensor)) for value in others.values()) and (
        others.get("num_images_per_prompt", 1) == 1
    )


def _joined(found: Sequence[Encoded], pipeline: DiffusionPipeline) -> Encoded | None:
    """One batch of what single prompts gave; None if that cannot be done (their lengths differ)."""
    device, parts = pipeline._execution_device, []
    for several in zip(*found, strict=True):
        first = several[0]
        if not isinstance(first, Tensor):
            parts.append(first)
        elif any(one.shape != first.shape for one in several):
            return None
        elif len(first) == 1:
            parts.append(torch.cat(several).to(device))
        elif all(torch.equal(one, first) for one in several):  # positions, the same for all
            parts.append(first.to(device))
        else:
            return None
    return tuple(parts)
