"""A reward model from preferences: P(better) = sigmoid(r(better) - r(other)) (Bradley and Terry, 1952; arXiv
2203.02155, eq. 1), on a frozen backbone whose vectors are computed once. A tie counts half for either."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rewards.evaluation.accuracy import accuracy
from rewards.evaluation.pairs import Pair, Source, as_samples
from rewards.evaluation.scoring import Scored
from rewards.training.backbones import Backbone
from rewards.training.trained import Head, write_head

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class TrainBradleyTerry:
    """`mmrl rewards train`: fits a head (one layer, or with `hidden` two) on `pairs`. A tenth of the clusters stops it
    at the epoch of their least loss, another tenth is measured once, at the end. Writes head.safetensors and head.json,
    which `rewards.training.Trained` reads."""

    backbone: Backbone
    pairs: Source
    hidden: int = 0
    epochs: int = 200
    lr: float = 3.0e-3
    weight_decay: float = 0.01
    batch: int = 64
    seed: int = 0
    verb = "rewards train"
    at_once = 1
    """How many outputs the head reads at once."""

    def __post_init__(self) -> None:
        least = {"hidden": (self.hidden, 0), "epochs": (self.epochs, 1), "batch": (self.batch, 1)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise ValueError(f"{name} is {value}: give {smallest} or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: give a number above 0")

    def read(self, vectors: Tensor) -> Tensor:
        """What the head reads (n, 2, width) of the vectors (n, 2, D) of pairs."""
        return vectors

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The mean loss of what the head says (n, 2), where `wanted` (n,) is 1 if output 0 is better, 1/2 for a tie."""
        return preference_loss(found, wanted)

    def scores(self, found: Tensor) -> Tensor:
        """Scores (n, 2) of both outputs by what the head says (n, 2)."""
        return found

    def runs(self) -> dict[str, tuple[str, list[str]]]:
        """No other training is needed."""
        return {}

    def run(self, folder: Path) -> int:
        """Train, and write the head and what it reached into `folder`."""
        began = time.process_time()
        pairs = self.pairs.pairs()
        vectors, usable = self.backbone.features(as_samples(pairs))
        kept = usable.view(-1, 2).all(1).nonzero().flatten().tolist()
        if len(kept) < 30:
            raise ValueError(f"{len(kept)} of {len(pairs)} pairs can be read by the backbone: 30 are needed")
        pairs, vectors = [pairs[i] for i in kept], vectors.view(len(usable) // 2, 2, -1)[kept]
        parts = split(pairs)
        head, losses = fit(self, vectors, pairs, parts)
        folder.mkdir(parents=True, exist_ok=True)
        write_head(folder, head, self.backbone, self.at_once)
        found = {part: measured(self, head, vectors, pairs, ids) for part, ids in parts.items()}
        about = {"pairs": {part: len(ids) for part, ids in parts.items()}, "accuracy": found, "validation_loss": losses}
        about["cpu_s"] = round(time.process_time() - began, 2)
        (folder / "training.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        test = found["test"]
        ends = f"[{test['low']:.3f}, {test['high']:.3f}]"
        print(f"held-out accuracy {test['value']:.3f} {ends}, {test['n']} pairs: {folder}")
        return 0


def split(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    """Which pairs are trained on, 8 tenths, and which stop and measure; those of one cluster stay together. It
    depends on nothing but their names."""
    found: dict[str, list[int]] = {part: [] for part in PARTS}
    for index, pair in enumerate(pairs):
        place = hashlib.sha256((pair.cluster or pair.id).encode()).digest()[0] % 10
        found["validation" if place == 0 else "test" if place == 1 else "train"].append(index)
    return found


def fit(
    config: TrainBradleyTerry, vectors: Tensor, pairs: Sequence[Pair], parts: dict[str, list[int]]
) -> tuple[Head, list[float]]:
    """The head with the least validation loss on vectors (N, 2, D) of pairs, and that loss by epoch.

    Raises:
        ValueError: a part is empty.
    """
    for part, ids in parts.items():
        if not ids:
            raise ValueError(f"pairs: none of {len(pairs)} falls into the part {part!r}: give more of them")
    wanted = torch.tensor([0.5 if pair.better is None else float(pair.better == 0) for pair in pairs])
    train = torch.tensor(parts["train"])
    generator = torch.Generator().manual_seed(config.seed)
    vectors = config.read(vectors)
    flat = vectors[train].flatten(0, 1)
    head = Head.new(vectors.shape[2], config.hidden, flat.mean(0), flat.std(0).clamp(min=1e-4), generator)
    optimizer = torch.optim.AdamW(head.parameters(), config.lr, weight_decay=config.weight_decay)
    validation, best, losses = torch.tensor(parts["validation"]), head.state_dict(), list[float]()
    for _ in range(config.epochs):
        for ids in train[torch.randperm(len(train), generator=generator)].split(config.batch):
            loss = config.loss(head(vectors[ids]), wanted[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(float(config.loss(head(vectors[validation]), wanted[validation])))
        if losses[-1] == min(losses):
            best = {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    return head, [round(loss, 5) for loss in losses]


def preference_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Mean of -w log sigmoid(m) - (1 - w) log sigmoid(-m), with m the score of output 0 less that of output 1 of scores
    (N, 2), and w (N,) 1 where 0 is better, 0 where 1 is, 1/2 for a tie."""
    margin = scores[:, 0] - scores[:, 1]
    return -(wanted * logsigmoid(margin) + (1 - wanted) * logsigmoid(-margin)).mean()


def measured(
    config: TrainBradleyTerry, head: nn.Module, vectors: Tensor, pairs: Sequence[Pair], ids: Sequence[int]
) -> dict[str, float]:
    """Accuracy on the pairs `ids`, with its interval."""
    with torch.no_grad():
        scores = config.scores(head(config.read(vectors[list(ids)]))).double().numpy()
    found = accuracy(Scored([pairs[i] for i in ids], np.asarray(scores), 0.0, 0.0))["accuracy"]
    return asdict(found)
