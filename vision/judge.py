"""A trained judge as a reward, and what it is measured on: `mmrl rewards evaluate rewards/judge`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmrl.recipes import existing_asset
from mmrl.types import Samples
from rewards.evaluation.pairs import Pair
from rewards.evaluation.pairs import Source as PairSource
from rewards.pairwise import Meeting, PairJudge
from rewards.swapped import preferred
from vision.conversation import Limits, converse
from vision.data import Example, Protocol, Source
from vision.data.judged import ASKED, question
from vision.encoding import Encoder
from vision.policy import PolicyConfig, VisionPolicy
from vision.prompts import Prompt, Think

PROMPT_TOKENS = 4096


@dataclass(frozen=True)
class TrainedJudge(PairJudge):
    """A judge by the most likely verdicts of a vision-language model: q is 1 or 0, and half counts for a verdict that
    cannot be read. Outputs are texts; the column `column` has the picture that they are about, `prompt` what is asked.
    """

    policy: PolicyConfig
    prompt: Prompt = Think()
    column: str = "picture"
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ValueError(f"TrainedJudge.max_new_tokens is {self.max_new_tokens}: give 1 or more")
        existing_asset(self.policy.model)

    @functools.cached_property
    def model(self) -> VisionPolicy:
        """The judge, read when it is first asked."""
        return VisionPolicy.load(replace(self.policy, model=existing_asset(self.policy.model))).eval()

    def first_better(self, samples: Samples, asked: Sequence[Meeting]) -> list[float | None]:
        if self.column not in samples.columns:
            raise ValueError(
                f"TrainedJudge looks at the column {self.column!r}, and there are {sorted(samples.columns)}"
            )
        return [None if liked is None else 1.0 - liked for liked in self._liked(samples, asked)]

    def _liked(self, samples: Samples, asked: Sequence[tuple[int, int]]) -> list[int | None]:
        """Of each two outputs which one is preferred: 0 the first, 1 the second, None neither."""
        prompts = samples.columns.get("prompt", [ASKED] * len(samples))
        shown = [(str(samples.outputs[i]), str(samples.outputs[j])) for i, j in asked]
        examples = [
            Example(f"{i} or {j}", (samples.columns[self.column][i],), question(str(prompts[i]), both), ASKED)  # type: ignore[arg-type]
            for (i, j), both in zip(asked, shown, strict=True)
        ]
        encode = Encoder(self.model.processor, self.prompt, (), PROMPT_TOKENS)
        limits = Limits(1, self.max_new_tokens, PROMPT_TOKENS)
        with torch.no_grad():
            held = [
                one
                for start in range(0, len(examples), 64)
                for one in converse(
                    self.model, encode, examples[start : start + 64], 1, limits, None, None
                ).conversations
            ]
        return [preferred(one.answer, both) for one, both in zip(held, shown, strict=True)]


@dataclass(frozen=True)
class HeldOutPairs(PairSource):
    """The pairs that `protocol` holds out of `source`, which asks each in both orders, such as
    `vision.data.JudgedDigits`; each once, by the label and no judge. The column `picture` has what they are about."""

    source: Source
    protocol: Protocol

    def pairs(self) -> list[Pair]:
        found: dict[str, Pair] = {}
        for example in self.protocol.split(self.source).evaluation:
            name, shown = str(example.columns["pair"]), example.columns["shown"]
            assert isinstance(shown, tuple)
            better = preferred(example.answer, shown)
            columns = {"picture": example.pictures()[0]}
            kinds, cluster = (str(example.columns["kind"]),), str(example.columns["cluster"])
            found.setdefault(name, Pair(name, ASKED, (shown[0], shown[1]), better, kinds, cluster, columns))
        return list(found.values())
