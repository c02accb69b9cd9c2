"""Frozen models that a head reads: any CLIP of open_clip for pictures and their prompts, any text model of
transformers."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.types import Samples
from rewards.compose import RewardError
from rewards.pictures.base import check_device, find_path, need_package, picture_of, pixels_of, prompts_of, rows, said
from rewards.pictures.clip import check_model, load_tower


@dataclass(frozen=True, kw_only=True)
class Backbone(abc.ABC):
    """Turns outputs and their prompts into vectors, without gradient."""

    device: str = "cpu"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_device(type(self).__name__, self.device, self.batch_size)

    @abc.abstractmethod
    def usable(self, output: object) -> bool:
        """Whether this can be read."""

    @abc.abstractmethod
    def batch(self, samples: Samples) -> Tensor:
        """Vectors (n, D) of at most `batch_size` samples that are all usable."""

    @abc.abstractmethod
    def hypotheses(self, texts: Sequence[str]) -> Tensor:
        """Vectors (n, H) of texts alone, in float32 on the CPU: principles, of which `features` are the premises."""

    def features(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) in float32 on the CPU, 0 where a sample is not usable, and whether it is (N,). One output that
        stands in several pairs of its prompt is read once."""
        usable = torch.tensor([self.usable(output) for output in samples.outputs], dtype=torch.bool)
        places: dict[tuple[int, object], int] = {}
        at, once = list[int](), list[int]()
        prompts = samples.columns.get("prompt", [""] * len(samples))
        for i in usable.nonzero().flatten().tolist():
            at.append(places.setdefault((id(samples.outputs[i]), prompts[i]), len(once)))
            if at[-1] == len(once):
                once.append(i)
        found = []
        for start in range(0, len(once), self.batch_size):
            with torch.no_grad():
                found.append(self.batch(rows(samples, once[start : start + self.batch_size])).float().cpu())
        if not found:
            return torch.zeros(len(samples), 0), usable
        vectors = torch.cat(found)
        whole = torch.zeros(len(samples), vectors.shape[1])
        whole[usable] = vectors[at]
        return whole, usable


@dataclass(frozen=True, kw_only=True)
class OpenClip(Backbone):
    """Unit vectors of picture p and prompt t, and their product: (p, t, p t), so that a linear head knows the cosine;
    with `patches` also mean and deviation over the patches of the picture, for what captions seldom tell, such as size
    and strength of colour. `model` and `pretrained` as for ClipScore."""

    model: str
    pretrained: str = ""
    patches: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model("OpenClip", self.model, self.pretrained)

    def usable(self, output: object) -> bool:
        return picture_of(output) is not None

    def batch(self, samples: Samples) -> Tensor:
        tower = load_tower(self.model, self.pretrained, self.device)
        seen: dict[int, tuple[Tensor, Tensor]] = {}  # one by one, as sizes differ; the same picture once
        for output in samples.outputs:
            if id(output) not in seen and (picture := picture_of(output)) is not None:
                pixels = pixels_of(picture)[None]
                seen[id(output)] = tower.parts(pixels) if self.patches else (tower.pictures(pixels), torch.zeros(1, 0))
        p, rest = (torch.cat([seen[id(output)][i] for output in samples.outputs]) for i in (0, 1))
        t = tower.texts(prompts_of(samples, "OpenClip"))
        return torch.cat([p, t, p * t, rest], dim=1)

    def hypotheses(self, texts: Sequence[str]) -> Tensor:
        return load_tower(self.model, self.pretrained, self.device).texts(texts).float().cpu()


@dataclass(frozen=True, kw_only=True)
class Transformers(Backbone):
    """The last hidden state of any AutoModel on the prompt, a newline and the text: at the last token, as for decoders,
    or averaged over tokens, as for encoders. Longer texts lose their beginning."""

    model: str
    pool: Literal["last", "mean"] = "last"
    max_length: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        need_package("Transformers", "transformers", "transformers")
        if self.max_length < 2:
            raise ValueError(f"Transformers.max_length is {self.max_length}: give 2 tokens or more")

    def usable(self, output: object) -> bool:
        return isinstance(output, str)

    def batch(self, samples: Samples) -> Tensor:
        model, tokenizer = load_transformer(self.model, self.device)
        prompts = prompts_of(samples, "Transformers")
        texts = [f"{prompt}\n{output}" for prompt, output in zip(prompts, samples.outputs, strict=True)]
        return torch.stack([self._one(model, tokenizer, text) for text in texts])

    def hypotheses(self, texts: Sequence[str]) -> Tensor:
        model, tokenizer = load_transformer(self.model, self.device)
        with torch.no_grad():
            known = {text: self._one(model, tokenizer, text) for text in dict.fromkeys(texts)}
        return torch.stack([known[text] for text in texts]).float().cpu()

    # one at a time, without padding: what stands beside a text changes nothing
    def _one(self, model: Any, tokenizer: Any, text: str) -> Tensor:
        ids: Sequence[int] = tokenizer(text)["input_ids"][-self.max_length :]
        hidden: Tensor = model(input_ids=torch.tensor([ids], device=self.device)).last_hidden_state[0]
        return hidden[-1] if self.pool == "last" else hidden.mean(0)


@functools.cache
def load_transformer(name: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer, once per process.

    Raises:
        RewardError: they cannot be had.
    """
    from transformers import AutoModel, AutoTokenizer

    path = find_path(name)
    source = str(path) if path.is_dir() else name
    try:
        model: Any = AutoModel.from_pretrained(source, use_safetensors=True)
        return model.to(device).eval().requires_grad_(False), AutoTokenizer.from_pretrained(source)
    except Exception as error:  # of any kind: network, hub, disk
        raise RewardError(
            f"the model {name!r} cannot be loaded ({said(error)}): give a folder, or download it beforehand"
        ) from error
