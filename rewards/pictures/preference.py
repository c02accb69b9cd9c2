"""Models of which picture people prefer: PickScore (arXiv 2305.01569), HPSv2 (2306.09341), ImageReward (2304.05977)."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import RewardError
from rewards.pictures.base import PictureReward, need_package, picture_of, prompts_of, said, scores_of
from rewards.pictures.clip import Tower, fitted, open_clip_tower

PICKSCORE, PICKSCORE_PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HPS_REPO, HPS_FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"


def check_hub(reward: str, field: str, name: str, file: str) -> None:
    """That `name` is a folder with `file`, or can be had from the hub.

    Raises:
        ValueError: it cannot.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / file).is_file():
            raise ValueError(f"{reward}.{field} {name!r} is a folder without {file}: give the folder of such a model")
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{reward}.{field} {name!r} is no folder here: give one, or owner/name of the hub")
    from huggingface_hub import try_to_load_from_cache

    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    if offline and not isinstance(try_to_load_from_cache(name, file), str):
        raise ValueError(
            f"{reward}.{field} {name!r} is not in the hub cache, and HF_HUB_OFFLINE is set: download it first with "
            f"`hf download {name}`, or give a local folder"
        )


def _not_loaded(reward: str, name: str, error: Exception) -> RewardError:
    return RewardError(
        f"{reward}: {name!r} cannot be loaded ({said(error)}): download it with "
        f"`hf download {name}` where there is a network, or give a local copy"
    )


@dataclass(frozen=True)
class PickScore(PictureReward):
    """The logit of PickScore, about 15 to 25; a weight of 1/26 brings it to about 1, as Flow-GRPO has it. `model` and
    `processor` are names of the hub, or folders that transformers can load."""

    model: str = PICKSCORE
    processor: str = PICKSCORE_PROCESSOR

    def __post_init__(self) -> None:
        super().__post_init__()
        need_package("PickScore", "transformers", "transformers")
        check_hub("PickScore", "model", self.model, "config.json")
        check_hub("PickScore", "processor", self.processor, "preprocessor_config.json")

    def on_pixels(self, pixels: Tensor, samples: Samples) -> Tensor:
        tower, scale = load_pickscore(self.model, self.processor, self.device)
        return scale * tower.cosine(pixels, prompts_of(samples, "PickScore"))


@functools.cache
def load_pickscore(model: str, processor: str, device: str) -> tuple[Tower, float]:
    """PickScore, and what it multiplies cosines by.

    Raises:
        RewardError: the weights cannot be had.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    names = [str(Path(name).expanduser()) if name.startswith("~") else name for name in (model, processor)]
    try:
        clip: Any = AutoModel.from_pretrained(names[0]).to(device).eval().requires_grad_(False)
        tokenizer: Any = AutoTokenizer.from_pretrained(names[1])
        processors: Any = AutoImageProcessor  # untyped
        pictures = processors.from_pretrained(names[1])
    except Exception as error:  # of any kind: network, hub, disk
        raise _not_loaded("PickScore", model, error) from error
    size = clip.config.vision_config.image_size

    def embed_picture(pixels: Tensor) -> Tensor:
        found: Tensor = clip.get_image_features(pixel_values=pixels).pooler_output
        return found

    def embed_text(texts: list[str]) -> Tensor:
        length = clip.config.text_config.max_position_embeddings
        read = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(device)
        found: Tensor = clip.get_text_features(**read).pooler_output
        return found

    embed = fitted(embed_picture, size, pictures.image_mean, pictures.image_std, device)
    return Tower(lambda pixels: embed(pixels, "shortest"), embed_text, device), float(clip.logit_scale.exp())


@dataclass(frozen=True)
class HPSv2(PictureReward):
    """100 times the cosine of HPS v2.1, about 20 to 35. `weights` is a file such as HPS_v2.1_compressed.pt; left out,
    it is taken from xswu/HPSv2 on the hub. Needs open_clip, not the package hpsv2."""

    weights: str = ""
    model: str = "ViT-H-14"

    def __post_init__(self) -> None:
        super().__post_init__()
        need_package("HPSv2", "open_clip", "open_clip_torch")
        if not self.weights:
            check_hub("HPSv2", "weights", HPS_REPO, HPS_FILE)
        elif not Path(self.weights).expanduser().is_file():
            raise ValueError(
                f"HPSv2.weights {self.weights!r} is not there: give the file {HPS_FILE} of {HPS_REPO}, or leave it out"
            )

    def on_pixels(self, pixels: Tensor, samples: Samples) -> Tensor:
        tower = load_hpsv2(self.model, self.weights, self.device)
        return 100 * tower.cosine(pixels, prompts_of(samples, "HPSv2"))


@functools.cache
def load_hpsv2(model: str, weights: str, device: str) -> Tower:
    """HPS v2.1. It sees pictures with black borders, not cut to a square.

    Raises:
        RewardError: the weights cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        file = weights or hf_hub_download(HPS_REPO, HPS_FILE)
        return open_clip_tower(model, file, device, "longest")
    except Exception as error:  # of any kind: network, hub, disk, another architecture's weights
        raise _not_loaded("HPSv2", weights or HPS_REPO, error) from error


@dataclass(frozen=True)
class ImageReward(RewardFunction):
    """The score of the package image-reward, about -2 to 2. `model` is one of its names, or a file of weights."""

    model: str = "ImageReward-v1.0"
    device: str = "cpu"

    def __post_init__(self) -> None:
        need_package("ImageReward", "ImageReward", "image-reward")

    def __call__(self, samples: Samples) -> Scores:
        model = load_image_reward(self.model, self.device)
        prompts = prompts_of(samples, "ImageReward")
        pictures = [picture_of(output) for output in samples.outputs]
        with torch.no_grad():
            found = [
                None if picture is None else float(model.score(prompt, [picture]))
                for prompt, picture in zip(prompts, pictures, strict=True)
            ]
        return scores_of(found)


@functools.cache
def load_image_reward(model: str, device: str) -> Any:
    """The model of the package image-reward.

    Raises:
        RewardError: it cannot be imported or loaded.
    """
    try:
        import ImageReward as package

        return package.load(model, device=device)
    except Exception as error:  # of any kind: the package pins old versions of others
        raise RewardError(
            f"ImageReward cannot load {model!r} ({said(error)}): run `import ImageReward` "
            "by hand; if its pins conflict with yours, serve it from another environment"
        ) from error
