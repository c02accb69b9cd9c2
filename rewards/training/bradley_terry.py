"""A reward model from preferences: P(better) = sigmoid(r(better) - r(other)) (Bradley and Terry, 1952; arXiv
2203.02155, eq. 1), on a frozen backbone whose vectors are computed once. A tie counts half for either."""

from __future__ import annotations

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
from rewards.training.fitting import Fitting, split
from rewards.training.trained import Head, write_head


@dataclass(frozen=True)
class TrainBradleyTerry(Fitting):
    """`mmrl rewards train`: fits a head on `pairs`. Writes head.safetensors and head.json, which
    `rewards.training.Trained` reads."""

    backbone: Backbone
    pairs: Source
    verb = "rewards train"
    at_once = 1
    """How many outputs the head reads at once."""

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
        parts = split([pair.cluster or pair.id for pair in pairs])
        head, losses = self.fitted(vectors, pairs, parts)
        folder.mkdir(parents=True, exist_ok=True)
        write_head(folder, head.state_dict(), self.backbone, {"hidden": head.hidden, "at_once": self.at_once})
        found = {part: measured(self, head, vectors, pairs, ids) for part, ids in parts.items()}
        about = {"pairs": {part: len(ids) for part, ids in parts.items()}, "accuracy": found, "validation_loss": losses}
        about["cpu_s"] = round(time.process_time() - began, 2)
        (folder / "training.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        test = found["test"]
        ends = f"[{test['low']:.3f}, {test['high']:.3f}]"
        print(f"held-out accuracy {test['value']:.3f} {ends}, {test['n']} pairs: {folder}")
        return 0

    def fitted(self, vectors: Tensor, pairs: Sequence[Pair], parts: dict[str, list[int]]) -> tuple[Head, list[float]]:
        """The head with the least validation loss on vectors (N, 2, D) of pairs, and that loss by epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        vectors = self.read(vectors)
        flat = vectors[parts["train"]].flatten(0, 1)
        head = Head.new(vectors.shape[2], self.hidden, flat.mean(0), flat.std(0).clamp(min=1e-4), generator)
        losses = self.fit(head, lambda ids: head(vectors[ids]), wanted_of(pairs), parts, self.loss, generator)
        return head, losses


def wanted_of(pairs: Sequence[Pair]) -> Tensor:
    """1 where output 0 is better, 0 where 1 is, 1/2 for a tie (N,)."""
    return torch.tensor([0.5 if pair.better is None else float(pair.better == 0) for pair in pairs])


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
