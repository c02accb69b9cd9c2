"""Right answers as they should have been given, and corrections of nearly right ones: rollouts without a sampler."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mmrl.order import Shuffled
from mmrl.runtime import Runtime
from mmrl.types import Collector, Policy, Rollout
from vision.data.base import Example, Source
from vision.dialogue import Dialogue
from vision.encoding import Encoder
from vision.policy import VisionPolicy
from vision.prompts import Prompt as Style
from vision.tools import Reply, Tool
from vision.transitions import Prompt, TokenTransitions


@dataclass(frozen=True)
class Corrections:
    """Second turns among the demonstrations: a `share` of them follows a draft that is nearly right and what the tool
    says to it. Drafts are the source's (`Source.draft`), so that only the examples of demonstrations are needed."""

    tool: Tool
    share: float

    def reply(self, source: Source, example: Example, style: Style, chance: random.Random) -> tuple[str, Reply]:
        """A draft as it is written, and what the tool says to it."""
        written = style.demonstration(source.draft(example, chance), source.thought(example))
        return written, self.tool.replies([[written]], [example])[0]


class DemonstrationCollector(Collector):
    """Right answers to `examples` of `source`, for supervised warm-up. With several encoders, each batch mixes their
    prompt styles; with `corrections` it mixes first and second turns."""

    def __init__(
        self,
        source: Source,
        examples: Sequence[Example],
        encoders: Sequence[Encoder],
        rows: int,
        runtime: Runtime,
        corrections: Corrections | None = None,
    ) -> None:
        self.source, self.corrections = source, corrections
        self.pairs = [(example, encode) for encode in encoders for example in examples]
        self.rows, self.runtime = rows, runtime
        self._order = Shuffled(len(self.pairs), runtime, "demonstrations")

    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        assert isinstance(policy, VisionPolicy)
        places, mine = self._order.share(self.rows)
        chosen = [self.pairs[number] for number in mine]
        chance = random.Random(self._order.drawn)  # not of the generator: what it draws stays as it was
        ids = [self._written(policy, example, e, chance) for example, e in chosen]
        width = max(len(row) for row in ids)
        completions = torch.tensor([row + [policy.pad_id] * (width - len(row)) for row in ids])
        alive = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])
        prompts = tuple(self._prompt(policy, example, e, generator) for example, e in chosen)
        blank = torch.zeros(completions.shape)
        rollout = Rollout(
            transitions=TokenTransitions(prompts, torch.arange(len(prompts)), completions).to(policy.banned.device),
            logprobs=blank, mask=alive, alive=alive, rewards=blank, discounts=blank + 1,
            group_ids=torch.tensor(list(places), dtype=torch.long), demonstration=True,
        )  # fmt: skip
        on = policy.banned.device
        return rollout.with_(
            **{n: vars(rollout)[n].to(on) for n in ("logprobs", "mask", "alive", "rewards", "discounts", "group_ids")}
        )

    def check_lengths(self, policy: VisionPolicy, most: int) -> None:
        """Raises:
        ValueError: a demonstration has more than `most` tokens, so that an answer like it would be cut off.
        """
        chance = random.Random(0)
        lengths = {len(self._written(policy, example, e, chance)): example.id for example, e in self.pairs}
        if lengths and max(lengths) > most:
            raise ValueError(
                f"rollout.max_new_tokens is {most}, and the demonstration of {lengths[max(lengths)]} has "
                f"{max(lengths)} tokens: an answer like it would be cut off, so give {max(lengths)} or more"
            )

    def _written(self, policy: VisionPolicy, example: Example, encode: Encoder, chance: random.Random) -> list[int]:
        """The tokens of the right answer, as it may be written."""
        tokenizer = policy.processor.tokenizer
        text = encode.style.shown(self.source, example, chance)
        return [*tokenizer.encode(text, add_special_tokens=False), int(tokenizer.eos_token_id)]

    def _prompt(self, policy: VisionPolicy, example: Example, encode: Encoder, generator: torch.Generator) -> Prompt:
        """What the right answer follows: the question, or the question, a draft and what was said to it."""
        first = encode(example)
        if self.corrections is None:
            return first
        on = generator.device
        share = float(torch.rand((), generator=generator, device=on))
        seed = int(torch.randint(2**31, (), generator=generator, device=on))
        if share >= self.corrections.share:
            return first
        draft, reply = self.corrections.reply(self.source, example, encode.style, random.Random(seed))
        tokens = policy.processor.tokenizer.encode(draft, add_special_tokens=False)
        dialogue = Dialogue(policy.processor, encode.max_prompt_tokens)
        return dialogue.follow(first, tokens, reply, f"{first.id}/corrected")

    def state_dict(self) -> dict[str, object]:
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._order.load_state_dict(state)
