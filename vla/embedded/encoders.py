"""What the small policy makes of a sentence and of pictures, once a chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

NOTHING, UNKNOWN, BEGIN = 0, 1, 2
"""Tokens that are no word: after the end of a sentence, for a word that is not in the vocabulary, before the first."""
WORDS_FROM = 3
CHANNELS = (16, 32, 32)


class SentenceEncoder(nn.Module):
    """Words and their places, pooled by the attention of one learned query."""

    def __init__(self, words: int, length: int, size: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS_FROM + words, size), nn.Embedding(length, size)
        self.score, self.out = nn.Linear(size, 1), nn.Linear(size, size)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, size) of tokens (n, L)."""
        found = self.words(tokens) + self.places.weight
        scores = self.score(found.tanh())[..., 0].masked_fill(tokens == NOTHING, -torch.inf)
        pooled: Tensor = self.out((scores.softmax(-1)[..., None] * found).sum(1))
        return pooled.tanh()


class PictureEncoder(nn.Module):
    """Three convolutions that halve a picture, and a linear layer over what is left, so that places are kept."""

    def __init__(self, shape: Sequence[int], size: int) -> None:
        super().__init__()
        channels, y, x = shape
        steps = zip((channels, *CHANNELS), CHANNELS, strict=False)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in steps)
        scale = 2 ** len(CHANNELS)
        self.out = nn.Linear(CHANNELS[-1] * (y // scale) * (x // scale), size)

    def forward(self, picture: Tensor) -> Tensor:
        """(n, size) of a picture (n, C, Y, X) from 0 to 1."""
        found = 2 * picture - 1
        for layer in self.layers:
            found = silu(layer(found))
        numbers: Tensor = self.out(found.flatten(1))
        return numbers.tanh()
