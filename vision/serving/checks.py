"""What a server says, looked at before anything is learnt from it. A server that lies is worse than one that fails."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vision.policy import VisionPolicy
from vision.sampling import Drawn
from vision.serving.base import Answer, Question, Reply, Sampling, Server, ServerError

LEAST = -1000.0
"""No token that was drawn has a log-prob below; vLLM writes -9999 for minus infinity, which JSON has not."""


def check_reply(question: Question, reply: Reply, sampling: Sampling) -> None:
    """That `reply` is one to `question` and complete.

    Raises:
        ServerError: it is not; says what is wrong and what to do.
    """
    _check_prompt(question, reply)
    if len(reply.answers) != sampling.group:
        raise ServerError(
            f"{question.id}: the server gave {len(reply.answers)} answers, asked for {sampling.group}: start a server "
            "that knows the parameter `n`"
        )
    for number, answer in enumerate(reply.answers):
        _check_answer(f"{question.id}, answer {number}", answer, sampling)


def _check_prompt(question: Question, reply: Reply) -> None:
    if not reply.prompt:
        raise ServerError(
            f"{question.id}: the server does not say which tokens it read (return_token_ids): start a newer one"
        )
    if reply.prompt != question.tokens:
        ours, theirs = question.tokens, reply.prompt
        pairs = enumerate(zip(ours, theirs, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        raise ServerError(
            f"{question.id}: the server read {len(theirs)} tokens and the policy's processor makes {len(ours)}, other "
            f"ones from token {place} on: start it with policy.model's processor, chat template and size of pictures"
        )


def _check_answer(name: str, answer: Answer, sampling: Sampling) -> None:
    tokens, count = answer.tokens, len(answer.tokens)
    if not tokens:
        raise ServerError(
            f"{name}: the server gave no token ids (return_token_ids): start a newer one, or one that keeps end tokens"
        )
    if len(answer.logprobs) != count:
        raise ServerError(
            f"{name}: the server gave {len(answer.logprobs)} log-probs of {count} tokens: start one that gives all"
        )
    if wrong := [value for value in answer.logprobs if not (math.isfinite(value) and LEAST <= value <= 0)]:
        raise ServerError(f"{name}: the server gave the log-prob {wrong[0]}, and none is above 0 or without end")
    if count > sampling.limit:
        raise ServerError(f"{name}: the server gave {count} tokens, asked for {sampling.limit} at most")
    if banned := set(tokens) & set(sampling.banned):
        raise ServerError(
            f"{name}: the server wrote token {min(banned)}, which stands for a picture: start one that knows logit_bias"
        )
    if early := [place for place, token in enumerate(tokens[:-1]) if token in sampling.stops]:
        raise ServerError(f"{name}: the server wrote on after the end token {tokens[early[0]]} at {early[0]}")
    ended = tokens[-1] in sampling.stops
    if answer.reason not in ("stop", "length"):
        raise ServerError(f"{name}: the server ended it for {answer.reason!r}, neither stop nor length: see its log")
    if answer.reason == "stop" and not ended:
        raise ServerError(
            f"{name}: the server stopped it at token {tokens[-1]}, none of the policy's end tokens {sampling.stops}: "
            "take stop words out of its start"
        )
    if answer.reason == "length" and not ended and count < sampling.limit:
        raise ServerError(
            f"{name}: the server ended it for length after {count} of {sampling.limit} tokens: start it with a larger "
            "--max-model-len, or lower rollout.max_new_tokens"
        )


@dataclass(frozen=True)
class Difference:
    """Between log-probs of a server and those of the policy in the process, over tokens."""

    mean: float
    largest: float

    def check(self, server: Server) -> None:
        """Raises:
        ServerError: it is more than `server` may differ.
        """
        if self.mean <= server.mean_difference and self.largest <= server.largest_difference:
            return
        raise ServerError(
            f"the server's log-probs differ from the policy's by {self.mean:.3g} on average and {self.largest:.3g} at "
            f"most, rollout.server allows {server.mean_difference:g} and {server.largest_difference:g}: it has other "
            "weights, pictures or sampling; raise the limits only if its precision alone is the cause"
        )


@torch.no_grad()
def difference(policy: VisionPolicy, drawn: Drawn, rows: Tensor) -> Difference:
    """On the answers `rows` (LongTensor, n) of `drawn`."""
    steps = torch.arange(drawn.alive.shape[1], device=rows.device).expand(len(rows), -1)
    own = policy(drawn.transitions.rows(rows), steps).logprobs.float()
    apart = (own - drawn.logprobs[rows]).abs()[drawn.alive[rows]]
    return Difference(float(apart.mean()), float(apart.max()))
