"""Makes the small CLIPs of assets/: open_clip's own model and loss, on captioned emoji, in open_clip's own folder form.

A batch holds every caption once, so that no two rows of it are each other's right answer. The head of aesthetic
predictors is LAION's form, a linear layer on the unit vector, here fitted to colourfulness (Hasler and Suesstrunk,
2003).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import CLIPTokenizer

from rewards.pictures import emoji
from rewards.pictures.base import pixels_of

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 12
"""Tokens of a caption, its two ends included."""
MEAN = STD = (0.5, 0.5, 0.5)


def train_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of `texts` is one token, and any other text can still be spelt."""
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    trainer = trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", show_progress=False)
    words.train_from_iterator(texts, trainer)
    merges: Any = [tuple(pair) for pair in json.loads(words.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [START, END, *letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT, pad_token=END)


def settings(tokenizer: CLIPTokenizer) -> dict[str, object]:
    """open_clip's `model_cfg`."""
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": emoji.SIZE, "patch_size": 4, "layers": 3, "width": 96, "head_width": 24,
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": len(tokenizer), "width": 64, "heads": 4, "layers": 2,
            "hf_tokenizer_name": "tokenizer", "pool_type": "eos", "eos_id": tokenizer.eos_token_id,
        },
    }  # fmt: skip


def make(folder: Path, seed: int, steps: int, lr: float, progress: bool = True) -> dict[str, object]:
    """Train a small CLIP by `steps` of AdamW, each on a fresh picture of every caption, and write it to `folder`;
    returns what it reached on pictures that it never saw."""
    tokenizer = train_tokenizer(emoji.captions())
    about = settings(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = open_clip.CLIP(**about)
    tokens = torch.tensor(tokenizer(emoji.captions(), padding="max_length").input_ids)
    _train(model, tokens, seed, steps, lr, progress)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": about, "preprocess_cfg": preprocess}, indent=1)
    )
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    held_out = _pixels(4, seed + 2_000_000)
    with torch.no_grad():
        pictures, texts, _ = model(held_out, tokens)
    right = (pictures @ texts.T).argmax(-1) == torch.arange(len(tokens)).repeat(4)
    weights, correlation = _fit_head(model.encode_image, seed)
    save_file(weights, folder / "aesthetic.safetensors")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "accuracy_96_captions": float(right.float().mean()),
        "held_out_pictures": len(held_out),
        "aesthetic_correlation": correlation,
    }


def _pixels(per_caption: int, seed: int) -> Tensor:
    pictures, _ = emoji.captioned(per_caption, seed)
    return torch.stack([pixels_of(picture) for picture in pictures]) * 2 - 1


def _train(model: torch.nn.Module, tokens: Tensor, seed: int, steps: int, lr: float, progress: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    contrast = ClipLoss()
    for step in tqdm(range(steps), disable=not progress, unit="step"):
        pictures, texts, scale = model(_pixels(1, seed * 100_000 + step), tokens)
        loss = contrast(pictures, texts, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def colourfulness(picture: Image.Image) -> float:
    """Hasler and Suesstrunk's measure on pixels in 0..1."""
    red, green, blue = np.moveaxis(np.asarray(picture, dtype=np.float64) / 255, -1, 0)
    one, two = red - green, (red + green) / 2 - blue
    return float(np.hypot(one.std(), two.std()) + 0.3 * np.hypot(one.mean(), two.mean()))


def _fit_head(encode: Callable[[Tensor], Tensor], seed: int) -> tuple[dict[str, Tensor], float]:
    """A linear head from unit vectors to colourfulness by ridge regression, and its correlation on other pictures."""

    def known(per_caption: int, number: int) -> tuple[Tensor, Tensor]:
        pictures, _ = emoji.captioned(per_caption, number)
        with torch.no_grad():
            vectors = normalize(encode(_pixels(per_caption, number)), dim=-1).double()
        return vectors, torch.tensor([colourfulness(picture) for picture in pictures], dtype=torch.float64)

    vectors, wanted = known(6, seed + 3_000_000)
    design = torch.cat([vectors, torch.ones(len(vectors), 1, dtype=torch.float64)], 1)
    solved = torch.linalg.solve(design.T @ design + 1e-3 * torch.eye(design.shape[1]), design.T @ wanted)
    others, truth = known(2, seed + 4_000_000)
    found = others @ solved[:-1] + solved[-1]
    weights = {"weight": solved[None, :-1].float().contiguous(), "bias": solved[-1:].float()}
    return weights, float(torch.corrcoef(torch.stack([found, truth]))[0, 1])
