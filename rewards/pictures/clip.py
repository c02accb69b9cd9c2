"""How well a picture fits its prompt, by a contrastive model (CLIPScore, arXiv 2104.08718)."""

from __future__ import annotations

import difflib
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import RewardError
from rewards.pictures.base import (
    PictureReward,
    ResizeMode,
    batched,
    check_device,
    find_path,
    fit,
    need_package,
    prompts_of,
    said,
)

SIZES = "open_clip_config.json"


@dataclass(frozen=True)
class Tower:
    """A frozen contrastive model on one device: unit vectors of pictures, with gradient, and of texts."""

    embed_picture: Callable[[Tensor], Tensor]  # pixels (N, 3, Y, X) in 0..1 -> (N, D)
    embed_text: Callable[[list[str]], Tensor]  # N -> (N, D)
    device: str
    embed_parts: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None  # the same -> (N, D), patches (N, W, Y', X')

    def pictures(self, pixels: Tensor) -> Tensor:
        """Unit vectors (N, D) of pixels (N, 3, Y, X) in 0..1."""
        return normalize(self.embed_picture(pixels.to(self.device)).float(), dim=-1)

    def parts(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors as those of `pictures`, and mean and deviation (N, 2 W) over the patches of what the last layer
        knows of each: what a picture has somewhere, and how unlike its parts are. The vector alone forgets what no
        caption told.

        Raises:
            RewardError: this tower gives no patches.
        """
        if self.embed_parts is None:
            raise RewardError("this model gives no vectors of patches: turn patches off, or take one of open_clip")
        whole, patches = self.embed_parts(pixels.to(self.device))
        patches = patches.float().flatten(2)
        return normalize(whole.float(), dim=-1), torch.cat([patches.mean(2), patches.std(2)], dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, D); equal texts are read once."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        found = normalize(self.embed_text(list(place)).float(), dim=-1)
        return found[[place[text] for text in texts]]

    def cosine(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine (N,) of each picture with its text, on the device of the pixels."""
        return (self.pictures(pixels) * self.texts(texts)).sum(-1).to(pixels.device)


def check_model(reward: str, model: str, pretrained: str) -> None:
    """That there is such a model, without loading it.

    Raises:
        ValueError: open_clip is missing, or the fields name nothing that could be loaded.
    """
    need_package(reward, "open_clip", "open_clip_torch")
    path = find_path(model)
    if path.is_dir():
        if not (path / SIZES).is_file():
            raise ValueError(f"{reward}.model {model!r} is a folder without {SIZES}: give one of a CLIP model")
        return
    if model.startswith("hf-hub:"):
        return
    known = architectures()
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.4) or ["ViT-B-32", "ViT-L-14", "ViT-H-14"]
        raise ValueError(
            f"{reward}.model {model!r} is neither a folder with {SIZES} nor an architecture of open_clip: "
            f"give a folder, or one such as {', '.join(near)}"
        )
    if not pretrained:
        raise ValueError(f"{reward}.pretrained is missing: {model} needs a tag of open_clip or a file of weights")
    if len(Path(pretrained).parts) > 1 and not Path(pretrained).expanduser().is_file():
        raise ValueError(f"{reward}.pretrained {pretrained!r} is not there: give a file of weights, or a tag")


@functools.cache
def architectures() -> tuple[str, ...]:
    """The names open_clip knows, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("open_clip")
    folder = Path(spec.origin).parent / "model_configs" if spec is not None and spec.origin else Path()
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


@functools.cache
def load_tower(model: str, pretrained: str, device: str) -> Tower:
    """The model on `device`, once per process.

    Raises:
        RewardError: its weights cannot be had.
    """
    path = find_path(model)
    try:
        return open_clip_tower(f"local-dir:{path}" if path.is_dir() else model, pretrained, device)
    except Exception as error:  # of any kind: network, hub, disk, another architecture's weights
        raise RewardError(
            f"the CLIP model {model!r} (pretrained {pretrained!r}) cannot be loaded ({said(error)}): download it "
            "where there is a network, or give a local folder or file of its weights"
        ) from error


def open_clip_tower(model: str, pretrained: str, device: str, mode: ResizeMode | None = None) -> Tower:
    """A model of open_clip, with the preprocessing of its weights, or another resize mode."""
    import open_clip

    file = Path(pretrained).expanduser()
    tag = open_clip.pretrained.get_pretrained_cfg(model, pretrained) if pretrained else {}
    clip: Any = open_clip.create_model(
        model,
        pretrained=str(file) if file.is_file() else pretrained or None,
        force_quick_gelu=bool(tag.get("quick_gelu", False)),  # else a tag could meet another activation
        require_pretrained=True,
    )
    clip = clip.to(device).eval().requires_grad_(False)
    tokenize = open_clip.get_tokenizer(model)
    settings = clip.visual.preprocess_cfg
    way: ResizeMode = mode or settings.get("resize_mode", "shortest")

    def parts(pixels: Tensor) -> tuple[Tensor, Tensor]:
        known = clip.visual.forward_intermediates(pixels, indices=1)
        return known["image_features"], known["image_intermediates"][0]

    size, mean, std = settings["size"], settings["mean"], settings["std"]
    whole, in_parts = fitted(clip.encode_image, size, mean, std, device), fitted(parts, size, mean, std, device)
    return Tower(
        lambda pixels: whole(pixels, way), lambda texts: clip.encode_text(tokenize(texts).to(device)), device,
        lambda pixels: in_parts(pixels, way),
    )  # fmt: skip


def fitted[T](
    encode: Callable[[Tensor], T],
    size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    device: str,
) -> Callable[[Tensor, ResizeMode], T]:
    """`encode` after resizing to `size` (Y, X) and subtracting the mean and dividing by the std of each colour."""
    target = (size, size) if isinstance(size, int) else (size[0], size[1])
    shift, width = (torch.tensor(list(numbers), device=device).view(3, 1, 1) for numbers in (mean, std))
    return lambda pixels, mode: encode((fit(pixels, target, mode) - shift) / width)


@dataclass(frozen=True)
class ClipScore(PictureReward):
    """The cosine of picture and prompt, or CLIPScore's 2.5 max(cosine, 0) ("hessel").

    `model` is a folder with an open_clip_config.json, such as assets/rewards/clip_a, or an architecture of
    open_clip with a `pretrained` tag or file of weights, or hf-hub:owner/name. A file says nothing of preprocessing:
    its pictures are normalised as OpenAI's models want it.
    """

    model: str
    pretrained: str = ""
    scale: Literal["cosine", "hessel"] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model("ClipScore", self.model, self.pretrained)

    def on_pixels(self, pixels: Tensor, samples: Samples) -> Tensor:
        tower = load_tower(self.model, self.pretrained, self.device)
        cosine = tower.cosine(pixels, prompts_of(samples, "ClipScore"))
        return cosine if self.scale == "cosine" else 2.5 * cosine.clamp(min=0.0)


@dataclass(frozen=True)
class ClipAccuracy(RewardFunction):
    """1 where the right prompt is the nearest to the picture among `prompts` (a list, or a text file with one a line),
    else 0; its mean is an accuracy. Not applicable where the right prompt is not among them. `model` and
    `pretrained` as for ClipScore."""

    model: str
    prompts: str | tuple[str, ...]
    pretrained: str = ""
    device: str = "cpu"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_device("ClipAccuracy", self.device, self.batch_size)
        check_model("ClipAccuracy", self.model, self.pretrained)
        if isinstance(self.prompts, str) and not find_path(self.prompts).is_file():
            raise ValueError(f"ClipAccuracy.prompts {self.prompts!r} is not there: give a text file, or a list")
        if len(self.choices()) < 2:
            raise ValueError(f"ClipAccuracy.prompts has {len(self.choices())} different prompts: give 2 or more")

    def choices(self) -> list[str]:
        """The different prompts to choose from."""
        if isinstance(self.prompts, str):
            lines = find_path(self.prompts).read_text(encoding="utf-8").splitlines()
            return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        return list(dict.fromkeys(self.prompts))

    def __call__(self, samples: Samples) -> Scores:
        choices = self.choices()
        prompts = prompts_of(samples, "ClipAccuracy")
        tower = load_tower(self.model, self.pretrained, self.device)
        texts = tower.texts(choices)

        def right(pixels: Tensor, some: Samples) -> Tensor:
            nearest = (tower.pictures(pixels) @ texts.T).argmax(-1).tolist()
            wanted = prompts_of(some, "ClipAccuracy")
            return torch.tensor([float(choices[i] == prompt) for i, prompt in zip(nearest, wanted, strict=True)])

        return batched(samples, right, self.batch_size, [prompt in choices for prompt in prompts])
