"""Held-out evaluation of answers, with the cheap controls beside every figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mmrl.coverage import answer_entropy, pass_at_k, powers_of_two
from mmrl.masked import masked_mean
from mmrl.metrics import mean_of, wilson
from mmrl.types import Estimate, Evaluator, Policy, RewardFunction, Scores
from rewards.compose import WeightedSum, checked
from rewards.text import AnswerMatch, TagFormat
from vision.conversation import Conversation, Limits, as_samples, converse
from vision.data.base import Example, Source
from vision.encoding import OTHER_PICTURE, Encoder
from vision.policy import VisionPolicy
from vision.tools import Reply, Tool

ROWS = 64
"""Prompts answered at once."""

MOST_VALUES = 50
"""Of a column that accuracy is given by: more would not be read."""


@dataclass(frozen=True)
class AnswerEvaluator(Evaluator):
    """Accuracy of greedy answers, and controls:

    - `accuracy_sampled`: at temperature 1, which is what RL sees;
    - `accuracy_image_shuffled`: each question with the picture of an example of another answer: what is known
      without looking (one that looks is wrong almost every time);
    - `format`: share of greedy answers in the asked form;
    - `thought_agrees`: share of thoughts that can be parsed and fit the answer given, right or wrong;
    - `accuracy_<set>`: on transfer sets; `accuracy[<value>]`: of the rows with this value of the column `by`;
    - with `attempts`: `pass@k` of so many answers at temperature 1, and `answer_entropy` and `token_entropy` of them;
    - everything in `metrics`, of the greedy answers. One that is called `accuracy` takes the place of the built-in.
      With a `tool` also as `<name>_image_shuffled`: what is written about another picture, beside the example's own.
    """

    examples: Sequence[Example]
    encode: Encoder
    source: Source
    limits: Limits
    reward: WeightedSum
    transfer: Mapping[str, tuple[Sequence[Example], Encoder]] = field(default_factory=dict)
    metrics: Mapping[str, RewardFunction] = field(default_factory=dict)
    by: str | None = None
    tool: Tool | None = None
    attempts: int | None = None
    made: Callable[[], Sequence[Example]] | None = None
    """The newest examples that were made while training, with the column `provenance`, for people to look at."""

    def __post_init__(self) -> None:
        values = self._values()
        if self.by is not None and None in values:
            known = sorted({name for example in self.examples for name in example.columns})
            raise ValueError(f"evaluate.by is {self.by!r}, which not every held-out row has: there are {known}")
        if len(values) > MOST_VALUES:
            raise ValueError(
                f"evaluate.by is {self.by!r}, which has {len(values)} values: name a column of at most {MOST_VALUES}"
            )

    def _values(self) -> list[object]:
        values = {example.columns.get(self.by) for example in self.examples} if self.by is not None else set()
        return sorted(values, key=str)

    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, VisionPolicy)
        greedy = self.answers(policy, self.examples, self.encode, None)
        unseeing = self.answers(policy, with_other_pictures(self.examples), self.encode, None)
        found = {"accuracy": self._accuracy(self.examples, greedy)}
        found["accuracy_sampled"] = self._accuracy(
            self.examples, self.answers(policy, self.examples, self.encode, generator)
        )
        found["accuracy_image_shuffled"] = self._accuracy(self.examples, unseeing)
        for value in self._values():
            pairs = [(e, a) for e, a in zip(self.examples, greedy, strict=True) if e.columns[str(self.by)] == value]
            found[f"accuracy[{value}]"] = self._accuracy([e for e, _ in pairs], [a for _, a in pairs])
        for name in self.others:
            found[name] = self._other(name, self.examples, greedy)
            if self.tool is not None:
                found[f"{name}_image_shuffled"] = self._other(name, self.examples, unseeing)
        agreement = self._agreement(greedy)
        if agreement is not None:
            found["thought_agrees"] = agreement
        for name, (examples, encode) in self.transfer.items():
            found[f"accuracy_{name}"] = self._accuracy(examples, self.answers(policy, examples, encode, None))
        return found | (self._coverage(policy, self.attempts, generator) if self.attempts is not None else {})

    def between(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        return replace(self, attempts=None).evaluate(policy, generator)

    def _coverage(self, policy: VisionPolicy, attempts: int, generator: torch.Generator) -> dict[str, Estimate]:
        """What `attempts` answers to each question come to, over questions."""
        right, of_answers, of_tokens = [], [], []
        portion = max(1, ROWS // attempts)
        for start in range(0, len(self.examples), portion):
            chosen = self.examples[start : start + portion]
            held = converse(policy, self.encode, chosen, attempts, self.limits, self.tool, generator)
            scores = self.right([example for example in chosen for _ in range(attempts)], held.conversations)
            right.append((scores.values >= 1).view(-1, attempts))
            answers = [conversation.answer for conversation in held.conversations]
            groups = [answers[row : row + attempts] for row in range(0, len(answers), attempts)]
            of_answers += [answer_entropy(group) for group in groups]
            of_tokens.append(masked_mean(held.stats["entropy"], held.alive, dim=-1).view(-1, attempts).mean(-1).cpu())
        figures = {f"pass@{k}": pass_at_k(torch.cat(right), k) for k in powers_of_two(attempts)}
        figures |= {"answer_entropy": torch.tensor(of_answers), "token_entropy": torch.cat(of_tokens)}
        every = torch.ones(len(self.examples), dtype=torch.bool)
        return {name: mean_of(values, every, cases=False) for name, values in figures.items()}

    @property
    def judge(self) -> RewardFunction:
        """What says whether an answer is right."""
        return self.metrics.get("accuracy", AnswerMatch())

    @property
    def others(self) -> dict[str, RewardFunction]:
        """The metrics beside accuracy; `format` is the reward's own form unless it is given."""
        forms = (part.function for part in self.reward.parts.values() if isinstance(part.use, TagFormat))
        form = next(forms, None)
        given = {name: metric for name, metric in self.metrics.items() if name != "accuracy"}
        return given if form is None or "format" in given else {"format": form, **given}

    def answers(
        self, policy: VisionPolicy, examples: Sequence[Example], encode: Encoder, generator: torch.Generator | None
    ) -> list[Conversation]:
        """One conversation about each example, greedy without a generator."""
        found: list[Conversation] = []
        for start in range(0, len(examples), ROWS):
            chosen = examples[start : start + ROWS]
            found += converse(policy, encode, chosen, 1, self.limits, self.tool, generator).conversations
        return found

    def right(self, examples: Sequence[Example], answers: Sequence[Conversation]) -> Scores:
        """Whether each answer is right."""
        return checked("accuracy", self.judge, as_samples(examples, answers), "evaluate.metrics")

    def _accuracy(self, examples: Sequence[Example], answers: Sequence[Conversation]) -> Estimate:
        scores = self.right(examples, answers)
        return mean_of(scores.values, scores.applicable)

    def _other(self, name: str, examples: Sequence[Example], answers: Sequence[Conversation]) -> Estimate:
        scores = checked(name, self.others[name], as_samples(examples, answers), "evaluate.metrics")
        return mean_of(scores.values, scores.applicable)

    def _agreement(self, answers: Sequence[Conversation]) -> Estimate | None:
        judged = [self.source.thought_agrees(*self.encode.style.parse(held.answer)) for held in answers]
        known = [verdict for verdict in judged if verdict is not None]
        return wilson(sum(known), len(known)) if known else None

    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        assert isinstance(policy, VisionPolicy)
        chosen = list(self.examples[:count])
        if not chosen:
            return
        greedy = self.answers(policy, chosen, self.encode, None)
        drawn = self.answers(policy, chosen, self.encode, generator)
        right, rewards = self.right(chosen, greedy).values, self.reward(as_samples(chosen, greedy))
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, example in enumerate(chosen):
            names = [f"{number:03d}_{i}.png" for i in range(len(example.images))]
            for name, picture in zip(names, example.pictures(), strict=True):
                picture.save(folder / name)
            replies = greedy[number].replies
            said = greedy[number].turns[: len(replies)]
            turns = [
                _shown(folder / f"{number:03d}_turn{i}", text, reply)
                for i, (text, reply) in enumerate(zip(said, replies, strict=True))
            ]
            rows.append({
                "id": example.id, "images": names, "prompt": self.encode.style.text(example, self.encode.labels),
                "expected": example.answer, "output": greedy[number].answer, "sampled": drawn[number].answer,
                "right": bool(right[number] >= 1), "reward": float(rewards.values[number]),
                "parts": {n: float(p.values[number]) for n, p in rewards.parts.items() if p.applicable[number]},
                **({"turns": turns} if turns else {}),
            })  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
        self._hang(folder)

    def _hang(self, folder: Path) -> None:
        """The wall of made pictures, for the report."""
        shown = []
        for number, example in enumerate(self.made() if self.made is not None else ()):
            name, told = f"made_{number:03d}.png", example.columns["provenance"]
            example.pictures()[0].save(folder / name)
            shown.append({"image": name, "text": told["description"], "provenance": told})  # type: ignore[index]
        if shown:
            title = "The newest pictures that the data server made, and what the policy had asked for"
            (folder / "wall.json").write_text(json.dumps({"title": title, "shown": shown}, ensure_ascii=False))


def _shown(stem: Path, text: str, reply: Reply) -> dict[str, object]:
    """One turn for people to look at, with the pictures of its reply as files that begin with `stem`."""
    names = [f"{stem.name}_{i}.png" for i in range(len(reply.pictures))]
    for name, picture in zip(names, reply.pictures, strict=True):
        picture.save(stem.with_name(name))
    return {"text": text, "reply": reply.text, "images": names}


def with_other_pictures(examples: Sequence[Example]) -> list[Example]:
    """Each example with the pictures of the next one that has another answer (the next one, if none has)."""
    found = []
    for number, example in enumerate(examples):
        following = (examples[(number + step) % len(examples)] for step in range(1, len(examples)))
        next_one = examples[(number + 1) % len(examples)]
        other = next((o for o in following if o.answer != example.answer), next_one)
        found.append(replace(example, id=f"{example.id}{OTHER_PICTURE}{other.id}", images=other.images))
    return found
