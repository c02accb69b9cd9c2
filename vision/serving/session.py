"""A run and its server: new weights are pushed before anything is drawn, and what is drawn is looked at."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence

import torch

from vision.data.base import Example
from vision.encoding import Encoder
from vision.policy import VisionPolicy
from vision.sampling import Drawn
from vision.serving.base import Answer, Forgotten, Question, Reply, Sampling, Server
from vision.serving.checks import check_reply, difference
from vision.transitions import Prompt, TokenTransitions

LOGGER = logging.getLogger(__name__)
AGAIN = 3
"""Times that a step's answers are drawn, should the server lose its weights each time."""


class Session:
    """Versions are named after this process too, so that no server takes those of an earlier run for them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.figures: Mapping[str, float] = {}
        """Of the last answers: how far the log-probs are apart, and seconds."""
        self._name, self._number = f"mmrl-{secrets.token_hex(4)}", 0
        self._pushed: int | None = None

    @property
    def version(self) -> str:
        """The name of the weights that were pushed last."""
        return f"{self._name}-{self._number:06d}"

    def draw(
        self, policy: VisionPolicy, encode: Encoder, examples: Sequence[Example], group: int, limit: int,
        generator: torch.Generator,
    ) -> Drawn:  # fmt: skip
        """`group` answers to each of `examples`, drawn by the server with the weights of `policy` as they are now.

        Raises:
            ServerError: it cannot be given them, gives no answers, or says what cannot be.
        """
        began = time.perf_counter()
        self._push_if_new(policy)
        pushed = time.perf_counter()
        prompts = encode.many(examples)
        seeds = torch.randint(2**31, (len(prompts),), generator=generator, device=generator.device).tolist()
        questions = [
            Question(prompt.id, *encode.said(example), tuple(prompt.tokens.tolist()), seed)
            for prompt, example, seed in zip(prompts, examples, seeds, strict=True)
        ]
        banned = tuple(policy.banned.nonzero().squeeze(-1).tolist())
        sampling = Sampling(group, limit, policy.eos_ids, banned)
        replies = self._generate(policy, questions, sampling)
        for question, reply in zip(questions, replies, strict=True):
            check_reply(question, reply, sampling)
        drawn = as_drawn(policy, prompts, [answer for reply in replies for answer in reply.answers], group)
        order = torch.randperm(len(drawn.alive), generator=generator, device=generator.device)
        apart = difference(policy, drawn, order[: self.server.check_rows].to(drawn.alive.device))
        self.figures = {
            "server/logprob_diff_mean": apart.mean, "server/logprob_diff_max": apart.largest,
            "server/push_s": pushed - began, "server/generate_s": time.perf_counter() - pushed,
        }  # fmt: skip
        apart.check(self.server)
        return drawn

    def _push_if_new(self, policy: VisionPolicy) -> None:
        if self._pushed == policy.changes:
            return
        old = None if self._pushed is None else self.version
        self._number, self._pushed = self._number + 1, None  # until it is there, nothing counts as pushed
        self.server.push(policy, self.version, old)
        self._pushed = policy.changes

    def _generate(self, policy: VisionPolicy, questions: Sequence[Question], sampling: Sampling) -> list[Reply]:
        """Replies of which all were drawn with the weights that were pushed."""
        for attempt in range(AGAIN):
            try:
                return self.server.generate(questions, sampling, self.version)
            except Forgotten as lost:
                if attempt + 1 == AGAIN:
                    raise
                LOGGER.warning("%s: pushed again", lost)
                self.server.push(policy, self.version, None)
        raise AssertionError("the last attempt returns or raises")


def as_drawn(policy: VisionPolicy, prompts: Sequence[Prompt], answers: Sequence[Answer], group: int) -> Drawn:
    """`group` answers to each of `prompts`, those of a prompt under each other, as if they were drawn here. No
    statistics are known of them."""
    device = policy.banned.device
    longest = max(len(answer.tokens) for answer in answers)
    completions = torch.full((len(answers), longest), policy.pad_id)
    logprobs, alive = torch.zeros(completions.shape), torch.zeros(completions.shape, dtype=torch.bool)
    for row, answer in enumerate(answers):
        count = len(answer.tokens)
        completions[row, :count] = torch.tensor(answer.tokens)
        logprobs[row, :count] = torch.tensor(answer.logprobs)
        alive[row, :count] = True
    truncated = torch.tensor([answer.tokens[-1] not in policy.eos_ids for answer in answers])
    index = torch.arange(len(prompts)).repeat_interleave(group)
    transitions = TokenTransitions(tuple(prompts), index, completions).to(device)
    return Drawn(transitions, logprobs.to(device), {}, alive.to(device), truncated.to(device), None)
