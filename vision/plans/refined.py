"""RGR-GRPO, arXiv 2511.12344, its guidance half: what the best answer of a group failed is told to the policy, and one
more answer, drawn with that in its prompt, is trained as if it had been drawn without.

told      the best answer y of a group whose rubric is below `enough`, and the criteria that y fails
          (`rewards.rubric.Rubric.failed`, `refinement`); one answer y' to that prompt, of the same policy
accepted  if R(y') > R(y): it joins the group, so that the advantage compares all G + 1
trained   log pi(y' | x) after the question x alone; `mmrl.surrogates.Guided` weighs its tokens by p / (p + gamma)

The statistic `guided` is 1 on its tokens and 0 on all others. The paper's 7 + 1 is `rollout.group: 7`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.resampling import together
from mmrl.types import Rollout, Samples, Scores
from rewards.compose import WeightedSum
from rewards.patience import at_most
from rewards.rubric import Rubric, refinement
from vision.conversation import as_samples, in_one_turn
from vision.encoding import RefusedExample
from vision.plans.base import Plan, Rows, Wanted, whole
from vision.policy import VisionPolicy
from vision.sampling import Drawn, draw
from vision.transitions import Prompt, TokenTransitions

if TYPE_CHECKING:
    from vision.collector import AnswerCollector


@dataclass(frozen=True)
class Refined(Plan):
    """Groups as ever, and one more answer where the best of a group has a rubric below `enough` and is bettered by it.
    The first `Rubric` of `rewards` is the rubric. Needs `algorithm.surrogate` to be `mmrl.surrogates.Guided`, or else
    the further answer is trained as one that was drawn without help."""

    enough: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.enough <= 1:
            raise ValueError(f"rollout.plan has enough {self.enough}: a rubric is between 0 and 1, give more than 0")

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        return whole(policy, wanted)

    def then(
        self, policy: VisionPolicy, rollout: Rollout, answers: AnswerCollector, generator: torch.Generator
    ) -> Rollout:
        rollout = rollout.with_(stats={**rollout.stats, "guided": torch.zeros_like(rollout.logprobs)})
        name, rubric, patience = rubric_of(answers)
        best = self._best(rollout, name)
        prompts, kept = [], []
        with at_most(patience):
            failures = rubric.failed(_of(answers, best)) if best else ()
        for row, failed in zip(best, failures, strict=True):
            prompt = _told(answers, row, failed)
            if prompt is not None:
                prompts.append(prompt)
                kept.append(row)
        if not prompts:
            return rollout
        drawn = draw(policy, prompts, 1, answers.config.max_new_tokens, generator)
        conversations = in_one_turn(policy, drawn).conversations
        scores = answers.reward(as_samples([answers.asked[row] for row in kept], conversations))
        before = rollout.reward_parts[name][kept].to(scores.values.device)
        better = scores.applicable & (scores.parts[name].values > before)
        places = better.nonzero()[:, 0].tolist()
        if not places:
            return rollout
        rows = [kept[place] for place in places]
        found = _joined(policy, answers, rollout, drawn, scores, places, rows)
        answers.asked += [answers.asked[row] for row in rows]
        answers.conversations = [*answers.conversations, *(conversations[place] for place in places)]
        return found

    def _best(self, rollout: Rollout, name: str) -> list[int]:
        """The row of the highest rubric of each group, where that is below `enough`; the first of several."""
        found, values = [], torch.where(rollout.applicable[name], rollout.reward_parts[name], -1.0)
        for group in rollout.group_ids.unique().tolist():
            rows = (rollout.group_ids == group).nonzero()[:, 0]
            best = int(rows[values[rows].argmax()])
            if 0 <= float(values[best]) < self.enough:
                found.append(best)
        return found


def rubric_of(answers: AnswerCollector) -> tuple[str, Rubric, float | None]:
    """The first rubric of the rewards, with its name, and for how many seconds it may be asked.

    Raises:
        ValueError: there is none.
    """
    parts = answers.reward.parts if isinstance(answers.reward, WeightedSum) else {}
    for name, part in parts.items():
        if isinstance(part.use, Rubric):
            return name, part.use, part.timeout_s
    raise ValueError(
        f"rollout.plan is Refined and rewards has {sorted(parts)}: give a rewards.rubric.Rubric, whose failed criteria "
        "are what the policy is told"
    )


def _of(answers: AnswerCollector, rows: list[int]) -> Samples:
    return as_samples([answers.asked[row] for row in rows], [answers.conversations[row] for row in rows])


def _told(answers: AnswerCollector, row: int, failed: list[str]) -> Prompt | None:
    """The question of a row with what its answer failed; None where that is nothing, or does not fit."""
    if not failed:
        return None
    example = answers.asked[row]
    question = refinement(example.question, answers.conversations[row].answer, failed)
    digest = hashlib.sha1(question.encode(), usedforsecurity=False).hexdigest()
    try:
        return answers.encode(replace(example, id=f"{example.id}/refined {digest}", question=question))
    except RefusedExample:
        return None


@torch.no_grad()
def _joined(
    policy: VisionPolicy, answers: AnswerCollector, rollout: Rollout, drawn: Drawn, scores: Scores,
    places: list[int], rows: list[int],
) -> Rollout:  # fmt: skip
    """`rollout` and below it the rows `places` of `drawn` in the groups of its `rows`, scored after the question."""
    from vision.collector import answered  # which imports the plans

    device, grown = rollout.logprobs.device, max(rollout.logprobs.shape[1], drawn.alive.shape[1])

    def wide(tensor: Tensor, fill: int = 0) -> Tensor:
        return pad(tensor, (0, grown - tensor.shape[1]), value=fill)

    prompts = tuple(answers.encode(answers.asked[row]).to(device) for row in rows)
    each = torch.arange(len(rows), device=device)
    old = TokenTransitions(prompts, each, wide(drawn.transitions.completions[places], policy.pad_id))
    alive = wide(drawn.alive[places])
    found = policy(old, torch.arange(grown, device=device).expand(len(rows), -1))
    own = Scores(
        scores.values[places],
        scores.applicable[places],
        {name: Scores(part.values[places], part.applicable[places]) for name, part in scores.parts.items()},
    )
    new = answered(old, torch.where(alive, found.logprobs.float(), 0.0), alive, own, rollout.group_ids[rows].cpu())
    told = {
        "guided": alive.float(), "truncated": drawn.truncated[places, None].expand_as(alive),
        **{name: wide(numbers[places]) for name, numbers in drawn.stats.items()},
    }  # fmt: skip
    assert rollout.prompt_ids is not None
    new = new.with_(prompt_ids=rollout.prompt_ids[rows], stats={name: told[name] for name in rollout.stats})
    if rollout.values is not None and found.values is not None:
        new = new.with_(
            values=torch.where(alive, found.values.float(), 0.0), last_value=found.values.new_zeros(len(rows))
        )
    transitions = rollout.transitions
    assert isinstance(transitions, TokenTransitions)
    first = rollout.with_(transitions=replace(transitions, completions=wide(transitions.completions, policy.pad_id)))
    return together([first, new])
