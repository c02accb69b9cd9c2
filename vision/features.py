"""Picture features of a frozen vision tower, computed once per picture and run. Where a trained projector
stands between the tower and the features (LLaVA, SmolVLM), they are computed anew each time.

Every vision-language model of transformers asks its own `get_image_features` for them, so the cache
stands there and no model's forward is copied.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from vision.transitions import Prompt

FEATURES = ("pooler_output", "deepstack_features")
"""What a model reads of the output of `get_image_features`."""


class FeatureCache:
    """Stands in for `get_image_features` of a model whose vision tower is frozen.

    Raises:
        ValueError: the model has no `get_image_features` to stand in for.
    """

    def __init__(self, model: nn.Module, limit_mb: float) -> None:
        owners = [m for m in model.modules() if callable(getattr(type(m), "get_image_features", None))]
        if not owners:
            raise ValueError(
                f"policy.cache_features is true and {type(model).__name__} has no get_image_features: set it to false"
            )
        inner = owners[-1]  # the one that `forward` calls; outer ones delegate to it
        self._compute: Callable[..., object] = inner.get_image_features
        self._limit_bytes = limit_mb * 2**20
        self._kept: OrderedDict[str, object] = OrderedDict()
        self._bytes = 0.0
        self._serving: Sequence[Prompt] | None = None
        inner.get_image_features = self._features
        self._frozen: bool | None = None  # not known before the first picture
        self.computed = 0

    def __deepcopy__(self, memo: dict[int, object]) -> FeatureCache:
        """The copy of a model begins with an empty cache."""
        found = memo[id(self)] = copy.copy(self)
        found._kept, found._bytes = OrderedDict(), 0.0
        found._compute = copy.deepcopy(self._compute, memo)
        return found

    @contextmanager
    def serving(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """The pictures of these prompts, in this order, are the ones the model will ask for."""
        self._serving = [p for p in prompts if p.vision]
        try:
            yield
        finally:
            self._serving = None

    def _features(self, *args: object, **kwargs: object) -> object:
        if self._frozen is None and self._serving:
            self._frozen = self._is_frozen(self._serving[0])
        if not self._serving or not self._frozen:
            return self._compute(*args, **kwargs)
        return _joined([self._of(prompt) for prompt in self._serving])

    def _is_frozen(self, prompt: Prompt) -> bool:
        """Whether nothing on the way to the features is trained: some models have their projector there."""
        with torch.enable_grad():
            return not _needs_gradient(self._compute(**prompt.vision, return_dict=True))

    def _of(self, prompt: Prompt) -> object:
        if prompt.image_key in self._kept:
            self._kept.move_to_end(prompt.image_key)
            return self._kept[prompt.image_key]
        with torch.no_grad():
            found = self._compute(**prompt.vision, return_dict=True)
        self.computed += 1
        self._kept[prompt.image_key] = found
        self._bytes += _size(found)
        while self._bytes > self._limit_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found


def _joined(outputs: list[object]) -> object:
    """One output for all pictures: tensors under each other, per-picture tuples one after the other."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat([o for o in outputs if isinstance(o, Tensor)])
    if isinstance(first, ModelOutput) and hasattr(first, "pooler_output"):
        joined = type(first)()
        for name in FEATURES:  # set, not passed: some classes get an attribute that is no field of theirs
            if getattr(first, name, None) is not None:
                setattr(joined, name, _field([getattr(o, name) for o in outputs], name))
        return joined
    raise TypeError(
        f"get_image_features gives {type(first).__name__}, which the feature cache cannot join: "
        "set policy.cache_features to false"
    )


def _field(values: list[object], name: str) -> object:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([v for v in values if isinstance(v, Tensor)])
    if name == "deepstack_features":  # one tensor a layer, over all pictures
        return [torch.cat(list(layer)) for layer in zip(*values, strict=True)]  # type: ignore[call-overload]
    return tuple(picture for value in values for picture in value)  # type: ignore[attr-defined]


def _needs_gradient(output: object) -> bool:
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, ModelOutput):
        return any(_needs_gradient(getattr(output, name, None)) for name in FEATURES)
    return isinstance(output, (list, tuple)) and any(_needs_gradient(part) for part in output)


def _size(output: object) -> float:
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    if isinstance(output, ModelOutput):
        return sum(_size(getattr(output, name, None)) for name in FEATURES)
    if isinstance(output, (list, tuple)):
        return sum(_size(v) for v in output)
    return 0.0
