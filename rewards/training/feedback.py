"""Principles from what annotators wrote (RLBFF, arXiv 2509.21319): what is kept of the claims that a model read out of
their words. The filters are the paper's as summaries of it tell them: no "partly", a quote that stands in the text,
and more than one annotator behind a principle."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rewards.evaluation.pairs import Row, check_rows, need, read_rows, shown_of
from rewards.pictures.base import find_path
from rewards.training.backbones import Backbone
from rewards.training.rows import PrincipleRow, RowSource

ANSWERS = ("yes", "no", "partly")


@dataclass(frozen=True)
class Claim:
    """That a principle holds of an output, or not, or partly, by the words of one annotator, of which `quote` is the
    evidence."""

    annotator: str
    words: str
    principle: str
    quote: str
    answer: str


def decided(claims: Sequence[Claim]) -> list[Claim]:
    """Without those that hold partly."""
    return [claim for claim in claims if claim.answer != "partly"]


def quoted(claims: Sequence[Claim]) -> list[Claim]:
    """Those whose quote stands in the annotator's words, up to case and space."""
    return [claim for claim in claims if plain(claim.quote) and plain(claim.quote) in plain(claim.words)]


def agreed(
    claims: Sequence[Claim], annotators: int, alike: Callable[[Sequence[str]], Tensor], least: float
) -> list[Claim]:
    """One claim of each principle of an output that so many annotators made and none denied. Principles are the same
    where their likeness, of `alike` texts (n, n), is at least `least` to the first of a kind; that one stands for all.

    Raises:
        ValueError: `annotators` is below 1.
    """
    if annotators < 1:
        raise ValueError(f"annotators is {annotators}: give 1 or more")
    if not claims:
        return []
    close = alike([claim.principle for claim in claims]) >= least
    kinds: dict[int, list[int]] = {}
    for i in range(len(claims)):
        first = next((kind for kind in kinds if bool(close[kind, i])), i)
        kinds.setdefault(first, []).append(i)
    found = []
    for first, members in kinds.items():
        people = {claims[i].annotator for i in members}
        if len(people) >= annotators and len({claims[i].answer for i in members}) == 1:
            found.append(claims[first])
    return found


def same_words(texts: Sequence[str]) -> Tensor:
    """1 where two texts are the same up to case and space (n, n), else 0."""
    known = [plain(text) for text in texts]
    return torch.tensor([[float(one == other) for other in known] for one in known])


def plain(text: str) -> str:
    """In small letters, one space between words."""
    return re.sub(r"\s+", " ", text).strip().casefold()


@dataclass(frozen=True)
class Feedback(RowSource):
    """Rows from a file with one output a line: `{"output", "prompt", "feedback": [{"annotator", "text", "principles":
    [{"principle", "quote", "answer": "yes" | "no" | "partly"}]}]}`. Principles are the same where the cosine of their
    vectors by `alike`, a backbone, is at least `similarity`; without one, where their words are."""

    path: str
    annotators: int = 2
    alike: Backbone | None = None
    similarity: float = 0.8
    images: str = ""

    def __post_init__(self) -> None:
        check_rows(self.path, "rows.path")
        if self.annotators < 1:
            raise ValueError(f"rows.annotators is {self.annotators}: give 1 or more")
        if not 0 < self.similarity <= 1:
            raise ValueError(f"rows.similarity is {self.similarity}: give a cosine above 0, at most 1")

    def rows(self) -> list[PrincipleRow]:
        folder = Path(self.images) if self.images else find_path(self.path).parent
        found: list[PrincipleRow] = []
        for number, row in enumerate(read_rows(self.path, "train", "rows.path"), start=1):
            try:
                output, prompt = shown_of(need(row, "output"), folder), str(row.get("prompt", ""))
                kept = agreed(quoted(decided(claims_of(row))), self.annotators, self._likeness, self.similarity)
            except (ValueError, TypeError, OSError) as error:
                raise ValueError(f"rows.path {self.path}: row {number} cannot be read ({error})") from error
            found += [PrincipleRow(output, prompt, c.principle, c.answer == "yes", f"feedback-{number}") for c in kept]
        if not found:
            raise ValueError(
                f"rows.path {self.path}: no principle passes the filters: lower rows.annotators, or look at its quotes"
            )
        return found

    def _likeness(self, texts: Sequence[str]) -> Tensor:
        if self.alike is None:
            return same_words(texts)
        vectors = normalize(self.alike.hypotheses(texts), dim=1)
        return vectors @ vectors.T


def claims_of(row: Row) -> list[Claim]:
    """All claims of a row of a file.

    Raises:
        ValueError: a field is missing, or an answer is none.
    """
    found = []
    for one in need(row, "feedback"):
        for claim in need(one, "principles"):
            answer = str(need(claim, "answer")).lower()
            if answer not in ANSWERS:
                raise ValueError(f"answer is {answer!r}: give yes, no or partly")
            annotator, words = (str(need(one, key)) for key in ("annotator", "text"))
            principle, quote = (str(need(claim, key)) for key in ("principle", "quote"))
            found.append(Claim(annotator, words, principle, quote, answer))
    return found
