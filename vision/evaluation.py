"""Held-out evaluation of answers, with the cheap controls beside every figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmrl.metrics import wilson
from mmrl.types import Estimate, Evaluator, Policy, RewardFunction, Samples
from rewards.text import AnswerMatch
from vision.collector import as_samples
from vision.data.base import Example, Source
from vision.encoding import OTHER_PICTURE, Encoder
from vision.policy import VisionPolicy
from vision.sampling import draw, texts

ROWS = 64
"""Prompts answered at once."""


@dataclass(frozen=True)
class AnswerEvaluator(Evaluator):
    """Accuracy of greedy answers, and controls:

    - `accuracy_sampled`: at temperature 1, which is what RL sees;
    - `accuracy_image_shuffled`: each question with the picture of an example of another answer: what is known
      without looking (one that looks is wrong almost every time);
    - `format`: share of greedy answers in the asked form;
    - `thought_agrees`: share of thoughts that can be parsed and fit the answer given, right or wrong;
    - `accuracy_<set>`: on transfer sets.
    """

    examples: Sequence[Example]
    encode: Encoder
    source: Source
    max_new_tokens: int
    form: RewardFunction | None
    transfer: dict[str, tuple[Sequence[Example], Encoder]]

    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, VisionPolicy)
        greedy = self.answers(policy, self.examples, self.encode, None)
        found = {"accuracy": self._accuracy(self.examples, greedy)}
        found["accuracy_sampled"] = self._accuracy(
            self.examples, self.answers(policy, self.examples, self.encode, generator)
        )
        blind = with_other_pictures(self.examples)
        found["accuracy_image_shuffled"] = self._accuracy(blind, self.answers(policy, blind, self.encode, None))
        if self.form is not None:
            scores = self.form(as_samples(self.examples, greedy))
            found["format"] = wilson(float(scores.values.sum()), len(greedy))
        agreement = self._agreement(greedy)
        if agreement is not None:
            found["thought_agrees"] = agreement
        for name, (examples, encode) in self.transfer.items():
            found[f"accuracy_{name}"] = self._accuracy(examples, self.answers(policy, examples, encode, None))
        return found

    def answers(
        self, policy: VisionPolicy, examples: Sequence[Example], encode: Encoder, generator: torch.Generator | None
    ) -> list[str]:
        """One completion per example, greedy without a generator."""
        found: list[str] = []
        for start in range(0, len(examples), ROWS):
            prompts = encode.many(examples[start : start + ROWS])
            found += texts(policy, draw(policy, prompts, 1, self.max_new_tokens, generator))
        return found

    def _accuracy(self, examples: Sequence[Example], answers: Sequence[str]) -> Estimate:
        scores = AnswerMatch()(as_samples(examples, answers))
        return wilson(float(scores.values.sum()), len(answers))

    def _agreement(self, answers: Sequence[str]) -> Estimate | None:
        judged = [self.source.thought_agrees(*self.encode.style.parse(text)) for text in answers]
        known = [verdict for verdict in judged if verdict is not None]
        return wilson(sum(known), len(known)) if known else None

    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        assert isinstance(policy, VisionPolicy)
        chosen = list(self.examples[:count])
        if not chosen:
            return
        greedy = self.answers(policy, chosen, self.encode, None)
        drawn = self.answers(policy, chosen, self.encode, generator)
        right = AnswerMatch()(Samples(greedy, {"answer": [e.answer for e in chosen]})).values
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, example in enumerate(chosen):
            names = [f"{number:03d}_{i}.png" for i in range(len(example.images))]
            for name, picture in zip(names, example.pictures(), strict=True):
                picture.save(folder / name)
            rows.append({
                "id": example.id, "images": names, "prompt": self.encode.style.text(example, self.encode.labels),
                "expected": example.answer, "output": greedy[number], "sampled": drawn[number],
                "right": bool(right[number]),
            })  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))


def with_other_pictures(examples: Sequence[Example]) -> list[Example]:
    """Each example with the pictures of the next one that has another answer (the next one, if none has)."""
    found = []
    for number, example in enumerate(examples):
        following = (examples[(number + step) % len(examples)] for step in range(1, len(examples)))
        next_one = examples[(number + 1) % len(examples)]
        other = next((o for o in following if o.answer != example.answer), next_one)
        found.append(replace(example, id=f"{example.id}{OTHER_PICTURE}{other.id}", images=other.images))
    return found
