"""Syn-GRPO (arXiv 2511.19343): some prompts of a step are pictures that a data server made from descriptions which the
policy wrote earlier, and a description is paid for how much its picture divides the policy's answers.

    d(x)  = spread of the accuracy of the G answers to x                      vision/synthetic/diversity.py
    R_div = weight (d(x') - baseline),  x' the picture made of a description; refused ones have d = 0
    loss on the description's tokens: truncated ratio x R_div x log pi        `algorithm.replayed`

Weights, smoothing and generator of the paper are not public: these are ours. R_div is known steps later, so that the
description comes back as a replayed row with the log-probs of then. A token is trained by the reward that it caused:
answer and form by the group's advantage, the words of a description by R_div alone.
"""

from __future__ import annotations

import random
import re
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl.coverage import answer_entropy
from mmrl.types import Collector, Policy, Rollout
from vision.collector import AnswerCollector
from vision.data.base import Example
from vision.kept import with_replayed
from vision.policy import VisionPolicy
from vision.synthetic.config import SyntheticConfig
from vision.synthetic.described import Ready, Spans, Written, spans_of
from vision.synthetic.diversity import Baseline, group_entropy, spread
from vision.synthetic.records import Request, Result
from vision.synthetic.server import DataServer
from vision.transitions import TokenTransitions


@dataclass
class Counts:
    """What has become of every description so far; those from `answered` to `waiting` add up to `posted`."""

    posted: int = 0
    answered: int = 0
    """Their pictures were shown to the policy."""
    refused: int = 0
    broken: int = 0
    """By the generator's fault no picture was made; their words are not paid for."""
    dropped: int = 0
    stale: int = 0
    waiting: int = 0
    """In the server, or made and not yet shown."""
    agreed: int = 0
    """Of the answered: all G answers were as good as each other, so that nothing was learnt."""
    restarts: int = 0


@dataclass(eq=False)
class EvolvingCollector(Collector):
    """An `AnswerCollector` whose prompts are in part made by a data server."""

    answers: AnswerCollector
    config: SyntheticConfig
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._baseline = Baseline(self.config.smoothing)
        self._waiting: dict[int, Written] = {}
        self._ready: deque[Ready] = deque()
        self._step = self._next = 0
        self._measured: dict[str, float] = {}
        self._warned: set[str] = set()
        self.wall: deque[Example] = deque(maxlen=64)
        """The newest made examples, for people to look at."""
        on = self.config.share > 0
        bare = next((one.id for one in self.answers.examples if "mask" not in one.columns), None) if on else None
        if bare is not None:
            raise ValueError(
                f"{bare} has no column 'mask', the pixels of its object, which a new background must not change: use "
                "vision.data.Placed, or give a source with the columns mask (Y, X, bool) and labels"
            )
        if on:
            self.config.check(self.answers.config, self.answers.runtime.world)
        self.server = DataServer(self.config.generator, self.config.all_checks, self.config.server) if on else None
        if self.server is not None:
            weakref.finalize(self, self.server.close)  # with the run that it belongs to

    # ---- one step -----------------------------------------------------------------------------------------

    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        assert isinstance(policy, VisionPolicy)
        paid = self._received()
        places, mine = self.answers.order.share(self.answers.config.prompts)
        newest = min(len(self._ready), int(self.config.share * len(mine)))
        shown = [self._ready.pop() for _ in range(newest)]
        real = mine[len(shown) :]
        numbers = [*(one.written.number for one in shown), *real]
        chosen = [*(one.example for one in shown), *(self.answers.examples[number] for number in real)]
        rollout = self.answers.answer(policy, chosen, numbers, places, generator)
        spreads = self._spreads(rollout)
        if self._baseline.value is None:
            self._baseline.include(spreads.tolist())
        paid += [(one.written, float(d)) for one, d in zip(shown, spreads, strict=False)]
        self._measure(rollout, spreads, shown)
        spans = spans_of(policy, rollout)
        written = self._described(rollout, spans, real, generator)
        rollout = self._without_descriptions(rollout, spans)
        rollout = self._with_paid(policy, rollout, paid)
        self._post(written)
        self._baseline.include([float(d) for d in spreads[: len(shown)]])
        self._step += 1
        return rollout

    def _received(self) -> list[tuple[Written, float]]:
        """Take what the server has made; returns the refused descriptions, whose pictures divide nobody."""
        refused = []
        for result in self.server.take(self.config.wait_s) if self.server is not None else ():
            written = self._waiting.pop(result.request.number)
            if self._step - written.step > self.config.max_staleness:
                self.counts.stale += 1
            elif result.broken:
                self.counts.broken += 1
                self._warn(result.reason)
            elif result.picture is None:
                self.counts.refused += 1
                refused.append((written, 0.0))
            else:
                self._ready.append(Ready(written, self._child(written, result)))
        while self._ready and self._step - self._ready[0].written.step > self.config.max_staleness:
            self._ready.popleft()
            self.counts.stale += 1
        return refused

    def _warn(self, reason: str) -> None:
        """Of each reason once, without its numbers."""
        kind = re.sub(r"\d+", "#", reason)
        if kind not in self._warned:
            self._warned.add(kind)
            name = type(self.config.generator).__name__
            warnings.warn(f"synthetic.generator {name} made no picture of a description: {reason}", stacklevel=2)

    def _child(self, written: Written, result: Result) -> Example:
        """The parent with another background; question, answer and columns stay valid."""
        assert result.picture is not None
        parent = self.answers.examples[written.number]
        picture = Image.fromarray(result.picture)
        told = {
            "description": written.description, "parent": parent.id, "step": written.step, "seed": written.seed,
            "checks": result.checks,
        }  # fmt: skip
        columns = {**parent.columns, "provenance": told}
        child = replace(parent, id=f"{parent.id}/made {written.request}", images=(picture,), columns=columns)
        self.wall.append(child)
        return child

    def _spreads(self, rollout: Rollout) -> Tensor:
        accuracy = rollout.reward_parts.get(self.config.accuracy)
        if accuracy is None:
            raise ValueError(
                f"synthetic.accuracy is {self.config.accuracy!r}, and rewards has {sorted(rollout.reward_parts)}: name "
                "the reward whose spread over the answers is their diversity"
            )
        return spread(accuracy.cpu(), self.answers.config.group)

    # ---- descriptions -------------------------------------------------------------------------------------

    def _described(
        self,
        rollout: Rollout,
        spans: Spans,
        real: Sequence[int],
        generator: torch.Generator,
    ) -> list[Written]:
        """Up to `per_prompt` descriptions of each real prompt's group, or random ones."""
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        chance, group = random.Random(seed), self.answers.config.group
        first = len(rollout) - len(real) * group
        found = []
        for place, number in enumerate(real):
            rows = range(first + place * group, first + (place + 1) * group)
            for row in chance.sample(rows, min(self.config.per_prompt, group)):
                one = self._written(rollout, spans[row], row, number, chance)
                found += [one] if one is not None else []
        return found

    def _written(
        self, rollout: Rollout, span: tuple[str, range] | None, row: int, number: int, chance: random.Random
    ) -> Written | None:
        seed = chance.randrange(2**31)
        if self.config.descriptions == "random":
            words = chance.choice(self.config.vocabulary)
            return Written(number, words, (), (), 0, 0, self._step, 0, seed)
        if span is None:
            return None
        alive = rollout.alive[row]
        assert isinstance(rollout.transitions, TokenTransitions)
        tokens = rollout.transitions.completions[row][alive].tolist()
        logprobs = tuple(rollout.logprobs[row][alive].tolist())
        words, own = span
        return Written(number, words, tuple(tokens), logprobs, own.start, own.stop, self._step, 0, seed)

    def _without_descriptions(self, rollout: Rollout, spans: Spans) -> Rollout:
        """The words of a whole description are left to its own reward."""
        mask = rollout.mask.clone()
        for row, span in enumerate(spans):
            if span is not None:
                mask[row, span[1].start : span[1].stop] = False
        none = torch.zeros(len(rollout), dtype=torch.bool, device=mask.device)
        parts = {**rollout.reward_parts, "diversity": none.float()}  # on every rank, whether or not any is paid
        return rollout.with_(
            mask=mask, replayed=none, reward_parts=parts, applicable={**rollout.applicable, "diversity": none}
        )

    def _post(self, written: Sequence[Written]) -> None:
        if self.server is None:
            return
        requests = []
        for one in written:
            numbered = replace(one, request=self._next)
            self._next += 1
            self._waiting[numbered.request] = numbered
            requests.append(self._request(numbered))
        self.counts.posted += len(requests)
        for dropped in self.server.post(requests):
            del self._waiting[dropped.number]
            self.counts.dropped += 1

    def _request(self, written: Written) -> Request:
        parent = self.answers.examples[written.number]
        picture = np.asarray(parent.pictures()[0].convert("RGB"))
        labels = tuple(str(label) for label in parent.columns.get("labels", (parent.answer,)))  # type: ignore[attr-defined]
        mask = np.asarray(parent.columns["mask"], bool)
        return Request(
            written.request, parent.id, labels, picture, mask, written.description, written.step, written.seed
        )

    # ---- what descriptions are paid ------------------------------------------------------------------------

    def _with_paid(self, policy: VisionPolicy, rollout: Rollout, paid: Sequence[tuple[Written, float]]) -> Rollout:
        """The rollout with a replayed row for each description whose diversity is known by now."""
        baseline = self._baseline.value
        if baseline is None or self.config.descriptions != "policy" or self.config.weight == 0:
            return rollout
        rows = [(written.kept, self.config.weight * (d - baseline)) for written, d in paid]
        found = with_replayed(policy, rollout, rows, self.answers, [written.words for written, _ in paid])
        assert found.replayed is not None
        rewards = torch.where(found.replayed, found.returns(), 0.0)
        return found.with_(
            reward_parts={**found.reward_parts, "diversity": rewards},
            applicable={**found.applicable, "diversity": found.replayed},
        )

    # ---- figures ------------------------------------------------------------------------------------------

    def _measure(self, rollout: Rollout, spreads: Tensor, shown: Sequence[Ready]) -> None:
        count, group = len(shown), self.answers.config.group
        self.counts.answered += count
        self.counts.agreed += int((spreads[:count] == 0).sum())
        said = [conversation.answer for conversation in self.answers.conversations]
        style = self.answers.encode.style
        answers = [style.parse(text)[1] for text in said]
        ages = [self._step - one.written.step for one in shown]
        server = self.server
        self.counts.restarts = server.tally.restarts if server is not None else 0
        self.counts.waiting = len(self._waiting) + len(self._ready)
        real = spreads[count:]
        self._measured = {
            "diversity/spread": float(spreads.mean()),
            "diversity/agreed": float((spreads == 0).float().mean()),
            "diversity/answer_entropy": group_entropy(answers, group),
            **({"diversity/spread_real": float(real.mean())} if len(real) else {}),
            **({"diversity/spread_made": float(spreads[:count].mean())} if count else {}),
            "synthetic/share": count / len(spreads),
            **({"synthetic/staleness": sum(ages) / count} if count else {}),
            "synthetic/queue": float(server.depth) if server is not None else 0.0,
            "synthetic/description_entropy": answer_entropy([one.written.description for one in shown]),
            **{f"synthetic/{name}": float(number) for name, number in vars(self.counts).items()},
        }

    def measured(self) -> Mapping[str, float]:
        return self._measured

    # ---- the rest of a collector ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, object]:
        """Made pictures are not saved: they are made again, of the same seeds."""
        open_ones = [*(one.written for one in self._ready), *self._waiting.values()]
        return {
            **self.answers.state_dict(),
            "synthetic": {
                "step": self._step, "next": self._next, "baseline": self._baseline.value,
                "counts": vars(self.counts).copy(), "open": [written.as_json() for written in open_ones],
            },
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.answers.load_state_dict(state)
        found: Any = state["synthetic"]
        self._step, self._next, self._baseline.value = found["step"], found["next"], found["baseline"]
        self.counts = Counts(**found["counts"])
        opened = [Written.from_json(one) for one in found["open"]]
        self._waiting = {written.request: written for written in sorted(opened, key=lambda one: one.request)}
        if self.server is not None:
            self.server.post([self._request(written) for written in self._waiting.values()], keep=True)

    def cpu_s(self) -> float:
        return self.answers.cpu_s() + (self.server.cpu_s() if self.server is not None else 0.0)

    def close(self) -> None:
        """End the data server."""
        if self.server is not None:
            self.server.close()
