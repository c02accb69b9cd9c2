"""What the figures of an evaluation say, in sentences, the unwelcome first; only what is beyond doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrl.types import Estimate
from rewards.evaluation.agreement import Agreement
from rewards.evaluation.calibration import Reliability
from rewards.evaluation.overoptimisation import Curve

LEANING, GAP, BOUGHT, FOOLED, KEPT, PLACE, TOGETHER = 0.1, 0.15, 0.1, 0.1, 0.9, 0.05, 0.5
"""From where on a figure is worth a sentence: its whole 95 % interval is beyond."""


@dataclass(frozen=True)
class Found:
    """Everything that was measured, by the name of the reward."""

    pairs: int
    figures: Mapping[str, Mapping[str, Estimate]]
    reliability: Mapping[str, Reliability | None]
    costs: Mapping[str, Mapping[str, float]]
    agreements: Sequence[Agreement]
    best_of_n: Mapping[str, Curve]
    trained: Mapping[str, Curve]


def sentences(found: Found) -> list[str]:
    """About each reward in turn, then about several."""
    said = []
    for name, figures in found.figures.items():
        said += [f"{name} {told}" for told in _of_one(figures)]
        for kind, curves in (("best of n", found.best_of_n), ("training", found.trained)):
            if name in curves:
                said.append(f"{name} {_of_curve(kind, curves[name])}")
    for one in found.agreements:
        if one.errors > TOGETHER:
            said.append(
                f"{one.first} and {one.second} err together (correlation {one.errors:.2f}): they are one opinion, and "
                "one is no check of the other."
            )
    return said


def _of_one(figures: Mapping[str, Estimate]) -> list[str]:
    overall = figures["accuracy"]
    said = []
    if overall.n == 0:
        return ["applies to no pair that has a better output: nothing can be said of its accuracy."]
    if overall.low <= 0.5 <= overall.high:
        said.append(f"cannot be told from a coin: accuracy {shown(overall)}.")
    elif overall.high < 0.5:
        said.append(f"prefers what is worse: accuracy {shown(overall)}.")
    else:
        said.append(f"is right in {shown(overall)} of {overall.n:,} pairs.")
    kinds = {key.partition("/")[2]: value for key, value in figures.items() if key.startswith("accuracy/")}
    blind = [f"{kind} {shown(value)}" for kind, value in kinds.items() if value.low <= 0.5]
    if blind and overall.low > 0.5:
        said.append(f"is no better than a coin on some kinds: {', '.join(blind)}.")
    for key, value in figures.items():
        told = _of_probe(key, value)
        said += [told] if told else []
    error, perfect = figures.get("ece"), figures.get("ece_if_perfect")
    if error is not None and perfect is not None and error.low > perfect.high:
        said.append(f"is not as sure as it is right: calibration error {shown(error)}, {perfect.value:.3f} if it were.")
    return said


def _of_probe(key: str, value: Estimate) -> str:
    kind, _, what = key.partition("/")
    if kind == "lean" and (value.low > LEANING or value.high < -LEANING):
        more = "more" if value.value > 0 else "less"
        often = f"{abs(value.value):.0%} more often than the gold does {ends(value)}"
        return f"goes by {what}: it prefers {more} of it {often}."
    if kind == "gap" and (value.low > GAP or value.high < -GAP):
        where = "more" if value.value > 0 else "less"
        return (
            f"is right more often where {where} {what} is better: accuracy {abs(value.value):.3f} apart {ends(value)}."
        )
    if kind == "bought" and value.low > BOUGHT:
        return f"can be bought: {shown(value)} of its right preferences turn when the worse output is {what}."
    if kind == "fooled" and value.low > FOOLED:
        return f"pays for damage: {shown(value)} of good outputs do not lose when {what}."
    if kind == "kept" and value.high < KEPT:
        return f"is brittle: only {shown(value)} of its preferences stay under {what}."
    if (kind, what) == ("judge", "first") and (value.low > 0.5 + PLACE or value.high < 0.5 - PLACE):
        return f"goes by the place: the output shown first wins {shown(value)} of the time."
    if (kind, what) in (("judge", "consistent"), ("judge", "repeats")) and value.high < KEPT:
        when = "in the other order" if what == "consistent" else "asked again"
        return f"does not say the same {when}: {shown(value)}."
    return ""


def _of_curve(kind: str, curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    moved = (
        f"proxy {first.proxy.value:.3f} to {last.proxy.value:.3f}, gold {first.gold.value:.3f} to {last.gold.value:.3f}"
    )
    if curve.turn is None:
        return f"under {kind}: {moved}; the gold does not turn up to KL {last.kl:.2f}."
    at = curve.points[curve.turn]
    name = "n =" if kind == "best of n" else "step"
    where = f"{name} {at.label} (KL {at.kl:.2f}, gold {at.gold.value:.3f})"
    return f"is over-optimised by {kind}: the gold turns at {where}; {moved}."


def shown(value: Estimate) -> str:
    """0.812 [0.774, 0.846]."""
    return f"{value.value:.3f} {ends(value)}"


def ends(value: Estimate) -> str:
    """[0.774, 0.846]."""
    return f"[{value.low:.3f}, {value.high:.3f}]"
