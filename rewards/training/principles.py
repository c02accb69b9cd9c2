"""A model of binary principles on a frozen backbone (RLBFF, arXiv 2509.21319, the scalar form): cross-entropy on Yes
and No of r = logit(Yes) - logit(No), which is a head with one output."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mmrl.types import Samples, Scores
from rewards.evaluation.calibration import ece
from rewards.evaluation.intervals import bootstrap, mean_of
from rewards.pictures.base import find_path
from rewards.principles import YesNo, fill
from rewards.training.backbones import Backbone
from rewards.training.entailment import EntailmentHead
from rewards.training.fitting import Fitting, split
from rewards.training.rows import PrincipleRow, RowSource
from rewards.training.trained import check_folder, filled, read_head, write_head


@dataclass(frozen=True)
class TrainPrinciples(Fitting):
    """`mmrl rewards train`: fits a head of this `rank` on `rows`; `hidden` is the width of the layer that reads a
    principle. Writes head.safetensors and head.json, which `rewards.training.TrainedYesNo` reads.

    With `prompts` the backbone sees the prompt beside the output. With `negation`, such as "not {principle}", each row
    is trained on in that form too, where the other answer is right: nothing else makes a model read a "not"."""

    backbone: Backbone
    rows: RowSource
    prompts: bool = True
    negation: str = ""
    rank: int = field(default=16, kw_only=True)
    verb = "rewards train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negation and "{principle}" not in self.negation:
            raise ValueError(f"negation is {self.negation!r}: write {{principle}} where the principle goes")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}: give 1 or more")

    def runs(self) -> dict[str, tuple[str, list[str]]]:
        """No other training is needed."""
        return {}

    def run(self, folder: Path) -> int:
        """Train, and write the head and what it reached into `folder`."""
        began = time.process_time()
        rows = self.rows.rows()
        premises, hypotheses, usable = self.vectors(rows)
        kept = usable.nonzero().flatten().tolist()
        if len(kept) < 30:
            raise ValueError(f"{len(kept)} of {len(rows)} rows can be read by the backbone: 30 are needed")
        rows, premises, hypotheses = [rows[i] for i in kept], premises[kept], hypotheses[kept]
        parts = split([row.cluster for row in rows])
        head, losses = self.fitted(premises, hypotheses, holds_of(rows), parts)
        folder.mkdir(parents=True, exist_ok=True)
        write_head(folder, head.state_dict(), self.backbone, head.sizes | {"prompts": int(self.prompts)})
        reached = {}
        for part, ids in parts.items():
            with torch.no_grad():
                margins = head(premises[ids], hypotheses[ids, 0])
            reached[part] = measured(margins, [rows[i] for i in ids])
        about = {
            "rows": {part: len(ids) for part, ids in parts.items()}, **reached, "validation_loss": losses,
            "cpu_s": round(time.process_time() - began, 2),
        }  # fmt: skip
        (folder / "training.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        test = reached["test"]["accuracy"]
        print(
            f"held-out accuracy {test['value']:.3f} [{test['low']:.3f}, {test['high']:.3f}], {test['n']} rows, "
            f"calibration error {reached['test']['ece']['value']:.3f}: {folder}"
        )
        return 0

    def vectors(self, rows: Sequence[PrincipleRow]) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (N, P) of outputs, (N, forms, H) of each row's principle, and with `negation` of its opposite; and
        whether the backbone can read the row (N,)."""
        forms = ["{principle}", *([self.negation] if self.negation else [])]
        asked = [fill(form, {"principle": row.principle}) for row in rows for form in forms]
        prompts = [row.prompt if self.prompts else "" for row in rows]
        premises, usable = self.backbone.features(Samples([row.output for row in rows], {"prompt": prompts}))
        return premises, self.backbone.hypotheses(asked).view(len(rows), len(forms), -1), usable

    def fitted(
        self, premises: Tensor, hypotheses: Tensor, holds: Tensor, parts: dict[str, list[int]]
    ) -> tuple[EntailmentHead, list[float]]:
        """The head with the least validation loss on such vectors, and that loss by epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        train = parts["train"]
        head = EntailmentHead.new(premises[train], hypotheses[train].flatten(0, 1), self.hidden, self.rank, generator)
        losses = self.fit(
            head, lambda ids: head(premises[ids, None], hypotheses[ids]), holds, parts, principle_loss, generator
        )
        return head, losses


def holds_of(rows: Sequence[PrincipleRow]) -> Tensor:
    """1 where the principle holds, else 0 (N,)."""
    return torch.tensor([float(row.holds) for row in rows])


def principle_loss(margins: Tensor, holds: Tensor) -> Tensor:
    """Mean cross-entropy of margins (N, forms) with whether the principle holds (N,), 1 or 0; of a second form, the
    negation, with 1 less that: -h log sigmoid(r) - (1 - h) log sigmoid(-r)."""
    wanted = torch.stack([holds, 1 - holds], dim=1)[:, : margins.shape[1]]
    return binary_cross_entropy_with_logits(margins, wanted)


def measured(margins: Tensor, rows: Sequence[PrincipleRow]) -> dict[str, dict[str, float]]:
    """Accuracy at r = 0 and calibration error of margins (N,), with their intervals over clusters."""
    holds, clusters = holds_of(rows).double().numpy(), [row.cluster for row in rows]
    chance = np.asarray(torch.sigmoid(margins.double()).numpy())
    right = mean_of(((chance > 0.5) == (holds > 0)).astype(float), clusters)
    return {"accuracy": asdict(right), "ece": asdict(bootstrap(lambda i: ece(chance[i], holds[i]), clusters))}


@dataclass(frozen=True)
class TrainedYesNo(YesNo):
    """The head of principles in `folder`."""

    folder: str

    def __post_init__(self) -> None:
        check_folder("TrainedYesNo", self.folder)

    def margins(self, samples: Samples, principles: Sequence[str]) -> Scores:
        folder = find_path(self.folder).resolve()
        weights, backbone, sizes = read_head(folder)
        head = EntailmentHead(*(sizes.get(name, 1) for name in ("premise", "hypothesis", "hidden", "rank")))
        filled(head, weights, folder)
        if not sizes["prompts"]:
            samples = Samples(samples.outputs, {"prompt": [""] * len(samples)})
        premises, usable = backbone.features(samples)
        if not bool(usable.any()):
            return Scores(torch.zeros(len(samples)), usable)
        with torch.no_grad():
            return Scores(torch.where(usable, head(premises, backbone.hypotheses(principles)), 0.0), usable)
