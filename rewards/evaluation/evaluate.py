"""The whole evaluation, as a config asks for it: figures, curves, sentences, one page and an exit status."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mmrl.types import Estimate, RewardFunction
from rewards.compose import Compares, Part
from rewards.evaluation import page
from rewards.evaluation.accuracy import accuracy
from rewards.evaluation.agreement import agreements
from rewards.evaluation.bars import Bar
from rewards.evaluation.bias import damages, interventions, leanings
from rewards.evaluation.calibration import calibration
from rewards.evaluation.costs import costs
from rewards.evaluation.edits import HARMLESS, NEUTRAL, SPOILT, Edit
from rewards.evaluation.findings import Found, sentences
from rewards.evaluation.judges import places
from rewards.evaluation.overoptimisation import Candidates, Curve, best_of_n, of_run
from rewards.evaluation.pairs import Pair, Source
from rewards.evaluation.robustness import paraphrased, robustness
from rewards.evaluation.scoring import numbers, score


@dataclass(frozen=True)
class Probes:
    """What is asked beside accuracy. `without` names edits that are not neutral for this task. A judge, which costs a
    call a picture, is asked about `judged` pairs, each `times` times in one order and once in the other."""

    bias: bool = True
    robustness: bool = True
    without: tuple[str, ...] = ()
    judged: int = 50
    times: int = 2

    def __post_init__(self) -> None:
        known = sorted(edit.name for edit in (*NEUTRAL, *HARMLESS, *SPOILT))
        for name in self.without:
            if name not in known:
                raise ValueError(f"probes.without names {name!r}: there are {', '.join(known)}")
        if self.judged < 1 or self.times < 1:
            raise ValueError(f"probes.judged is {self.judged} and times {self.times}: give 1 or more")

    def left(self, edits: Sequence[Edit]) -> list[Edit]:
        """Those of `edits` that are not left out."""
        return [edit for edit in edits if edit.name not in self.without]


@dataclass(frozen=True)
class Push:
    """A short training run against a reward: a recipe whose reward it is, with `overrides`. `gold` is one of its
    evaluate.metrics, which it is not trained on."""

    recipe: str
    gold: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluate:
    """`mmrl rewards evaluate`: each of `rewards` on `pairs`. With `candidates` also the best of n by each reward,
    judged by `gold`, a reward that none of them is; `push` has training runs by the name of the reward."""

    rewards: dict[str, RewardFunction | str]
    pairs: Source
    probes: Probes = Probes()
    candidates: Candidates | None = None
    gold: RewardFunction | str | None = None
    push: dict[str, Push] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()
    seed: int = 0
    verb = "rewards evaluate"

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("rewards is empty: give at least one, such as `mine: reward.score`")
        if self.candidates is not None and self.gold is None:
            raise ValueError("candidates are given and gold is not: give a reward that is independent of the others")
        for name, reward in self.rewards.items():
            if self.candidates is not None and reward == self.gold:
                raise ValueError(f"gold is the same as rewards.{name}: no reward can be judged by itself")
        for name in [*self.push, *(bar.reward for bar in self.bars)]:
            if name not in self.rewards:
                raise ValueError(f"{name!r} is named by push or bars: rewards has {', '.join(sorted(self.rewards))}")

    def runs(self) -> dict[str, tuple[str, list[str]]]:
        """The training runs that have to be there first: recipe and overrides by the name of the reward. Pairs that
        cannot be read are found out before any of them."""
        if self.push:
            self.pairs.pairs()
        return {name: (push.recipe, list(push.overrides)) for name, push in self.push.items()}

    def run(self, folder: Path) -> int:
        """Write evaluation.json and report.html into `folder`; 0 if all bars hold, else 1. Training runs are expected
        in `folder`/runs."""
        functions = {name: Part(use).function for name, use in self.rewards.items()}
        pairs = self.pairs.pairs()
        found = self.measured(functions, pairs)
        found = self._pushed(found, functions, folder)
        said = sentences(found)
        barred = [(bar.holds(found.figures), bar.said(found.figures)) for bar in self.bars]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(_json(found, said, barred), indent=1), encoding="utf-8")
        target = page.write(folder / "report.html", found, said, barred)
        for sentence in [*said, *(told for _, told in barred)]:
            print(f"- {sentence}")
        print(f"report: {target}")
        return 0 if all(holds for holds, _ in barred) else 1

    def measured(self, functions: Mapping[str, RewardFunction], pairs: Sequence[Pair]) -> Found:
        """All that pairs alone can tell."""
        figures: dict[str, dict[str, Estimate]] = {}
        reliability, scored, spent = {}, {}, {}
        for name, reward in functions.items():
            judge = isinstance(reward, Compares)
            some = pairs[:: max(1, -(-len(pairs) // self.probes.judged))] if judge else pairs
            scored[name] = score(name, reward, some)
            spent[name] = costs(reward, scored[name])
            calibrated, reliability[name] = calibration(scored[name], self.seed)
            figures[name] = accuracy(scored[name], self.seed) | calibrated | leanings(scored[name], self.seed)
            asked = (name, reward, scored[name])
            if self.probes.bias and not judge:
                figures[name] |= interventions(*asked, self.probes.left(NEUTRAL), self.seed)
                figures[name] |= damages(*asked, self.probes.left(SPOILT), self.seed)
            if self.probes.robustness and not judge:
                figures[name] |= robustness(*asked, self.probes.left(HARMLESS), self.seed)
                figures[name] |= paraphrased(*asked, seed=self.seed)
            if isinstance(reward, Compares):
                figures[name] |= places(reward, some, self.probes.times, self.seed)
        same = {name: one for name, one in scored.items() if len(one.pairs) == len(pairs)}
        return Found(len(pairs), figures, reliability, spent, agreements(same, self.seed), {}, {})

    def _pushed(self, found: Found, functions: Mapping[str, RewardFunction], folder: Path) -> Found:
        best: dict[str, Curve] = {}
        if self.candidates is not None and self.gold is not None:
            began = time.perf_counter()
            samples = self.candidates.draw()
            print(f"{len(samples)} candidates drawn in {time.perf_counter() - began:.0f} s")
            gold = numbers("gold", Part(self.gold).function, samples)
            pushed = {name: reward for name, reward in functions.items() if not isinstance(reward, Compares)}
            best = {name: best_of_n(samples, numbers(name, reward, samples), gold) for name, reward in pushed.items()}
        trained = {name: of_run(folder / "runs" / name, push.gold) for name, push in self.push.items()}
        return Found(found.pairs, found.figures, found.reliability, found.costs, found.agreements, best, trained)


def _json(found: Found, said: Sequence[str], barred: Sequence[tuple[bool, str]]) -> dict[str, object]:
    curves = {
        kind: {
            name: {"turns_at": None if curve.turn is None else curve.points[curve.turn].label,
                   "points": [asdict(point) for point in curve.points]}
            for name, curve in known.items()
        }
        for kind, known in (("best_of_n", found.best_of_n), ("trained", found.trained))
    }  # fmt: skip
    return {
        "pairs": found.pairs,
        "figures": {name: {key: plain(value) for key, value in of.items()} for name, of in found.figures.items()},
        "reliability": {name: r.bins() for name, r in found.reliability.items() if r is not None},
        "costs": dict(found.costs),
        "agreement": [one.as_json() for one in found.agreements],
        "overoptimisation": curves,
        "findings": list(said),
        "bars": [{"holds": holds, "said": told} for holds, told in barred],
    }


def plain(estimate: Estimate) -> dict[str, float | None]:
    """Value, interval and number of cases; null where there is no number."""
    return {key: value if np.isfinite(value) else None for key, value in asdict(estimate).items()}
