"""`mmrl mixture`: pilot runs on mixtures of tasks, what they predict of others, and the mixture to train on (MoDoMoDo,
arXiv 2505.24871).

task: mmrl.pilots.FindMixture
recipe: vision/mixture
key: data.source.weights                                # of the recipe: task -> weight
tasks: [name, count, box]
figures: ["accuracy[name]", "accuracy[count]", "accuracy[box]"]   # held out; the score of a run is their mean
held_out: [[5, 3, 2], [1, 1, 3]]                        # in units of their sum; trained, not fitted: how far to believe
final: {overrides: [train.steps=300]}                   # the chosen mixture and the uniform one
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from mmrl.checkpoint import write_atomically
from mmrl.mixtures import Mixture, Numbers, design, fit_mixture
from mmrl.tasks import train_missing

Runs = dict[str, tuple[str, list[str]]]
Figures = list[dict[str, float]]
"""Of the runs of one mixture, a seed each: figure -> value, and `score`, their mean."""


@dataclass(frozen=True)
class Final:
    """The chosen mixture and the uniform one are trained with these seeds and with `overrides` after the pilots'."""

    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_seeds("final.seeds", self.seeds)


@dataclass(frozen=True)
class FindMixture:
    """Runs of `recipe` at each mixture of `pilots` (none given: `mmrl.mixtures.design`) and of `held_out`, a weight for
    each of `tasks` in order, in units of their sum, once a seed. The score of a mixture is the mean over seeds and
    `figures` after training. The pilots are fitted, the held-out mixtures say how far off the fit is on what it has not
    seen; `final` null trains nothing more."""

    recipe: str
    key: str
    tasks: tuple[str, ...]
    figures: tuple[str, ...]
    pilots: tuple[tuple[float, ...], ...] = ()
    held_out: tuple[tuple[float, ...], ...] = ()
    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    ridge: float = 1e-3
    final: Final | None = None
    verb = "mixture"

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < max(2, len(self.tasks)) or not self.figures:
            raise ValueError(
                f"tasks is {list(self.tasks)} and figures {list(self.figures)}: give two or more names, and one or more"
            )
        for name in ("pilots", "held_out"):
            for weights in vars(self)[name]:
                if len(weights) != len(self.tasks) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
                    raise ValueError(
                        f"{name} has {list(weights)}: give {len(self.tasks)} weights of 0 or more, not all 0"
                    )
        _check_seeds("seeds", self.seeds)
        fitted = self.fitted
        for weights, told in zip(self.unseen, self.held_out, strict=True):
            if np.isclose(fitted, weights, atol=1e-3).all(1).any():
                raise ValueError(f"held_out has {list(told)}, which is a pilot too: hold out what is not fitted")
        fit_mixture(fitted, [0.0] * len(fitted), self.ridge)  # too few are refused before any is run

    @property
    def fitted(self) -> Numbers:
        """The pilots (N, m), each of sum 1."""
        return _of_sum_1(self.pilots) if self.pilots else design(len(self.tasks))

    @property
    def unseen(self) -> Numbers:
        """The held-out mixtures (n, m), each of sum 1."""
        return _of_sum_1(self.held_out) if self.held_out else np.zeros((0, len(self.tasks)))

    def runs(self) -> Runs:
        """The pilots and the held-out mixtures, once a seed."""
        found: Runs = {}
        for seed in self.seeds:  # outermost, so that what was stopped can go on with fewer
            for weights in (*self.fitted, *self.unseen):
                found |= self._of(weights, [seed])
        return found

    def _of(self, weights: Numbers, seeds: Sequence[int], more: Sequence[str] = ()) -> Runs:
        """Runs at one mixture, called after it: what is wanted twice is run once."""
        mapping = json.dumps({task: round(float(w), 6) for task, w in zip(self.tasks, weights, strict=True)})
        words = [*self.overrides, *more, f"{self.key}={mapping}", "logging.progress=false"]
        name = "_".join([*(["final"] if more else []), *(f"{weight:.4f}" for weight in weights)])
        return {f"{name}_seed{seed}": (self.recipe, [*words, f"seed={seed}"]) for seed in seeds}

    def run(self, folder: Path) -> int:
        """Fit, say what the fit is worth, train `final`; writes mixture.json into `folder`."""
        pilots = [self._read(folder, self._of(weights, self.seeds)) for weights in self.fitted]
        held_out = [self._read(folder, self._of(weights, self.seeds)) for weights in self.unseen]
        scores, seen = [_score(runs) for runs in pilots], [_score(runs) for runs in held_out]
        fit = fit_mixture(self.fitted, scores, self.ridge)
        left_out = [score + float(error) for score, error in zip(scores, fit.left_out, strict=True)]
        best, uniform = fit.best(), np.full(len(self.tasks), 1 / len(self.tasks))
        found: dict[str, object] = {
            "tasks": list(self.tasks), "seeds": list(self.seeds), "ridge": self.ridge,
            "coefficients": fit.coefficients.tolist(), "noise": _noise([*pilots, *held_out]),
            "pilots": [_told(fit, *one) for one in zip(self.fitted, pilots, strict=True)],
            "held_out": [_told(fit, *one) for one in zip(self.unseen, held_out, strict=True)],
            "worth": {
                "left_out": worth(left_out, scores, _mean_of_others(scores)),
                **({"held_out": worth([fit.predicted(w) for w in self.unseen], seen, statistics.fmean(scores))}
                   if seen else {}),
            },
            "chosen": {"weights": best.tolist(), "predicted": fit.predicted(best)},
            "uniform": {"weights": uniform.tolist(), "predicted": fit.predicted(uniform)},
        }  # fmt: skip
        if self.final is not None:
            arms = {
                name: self._of(weights, self.final.seeds, self.final.overrides)
                for name, weights in (("chosen", best), ("uniform", uniform))
            }
            for runs in arms.values():
                if status := train_missing(runs, folder):
                    return status
            found["final"] = {name: self._read(folder, runs) for name, runs in arms.items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "mixture.json", json.dumps(found, indent=1))
        for sentence in sentences(found):
            print(f"- {sentence}")
        print(f"figures: {folder / 'mixture.json'}")
        return 0

    def _read(self, folder: Path, runs: Runs) -> Figures:
        found = []
        for name in runs:
            file = folder / "runs" / name / "summary.json"
            after = json.loads(file.read_text())["eval_after"]
            if missing := [figure for figure in self.figures if figure not in after]:
                raise ValueError(f"figures has {missing[0]!r}, which {file} has not; it has {', '.join(after)}")
            values = {figure: float(after[figure]["value"]) for figure in self.figures}
            found.append({**values, "score": statistics.fmean(values.values())})
        return found


def _mean_of_others(scores: Sequence[float]) -> list[float]:
    """Of each score the mean of all others: what is left out is not known."""
    return [(sum(scores) - score) / (len(scores) - 1) for score in scores]


def worth(
    predicted: Sequence[float], measured: Sequence[float], mean: float | Sequence[float]
) -> dict[str, float | None]:
    """How far off N predictions are on average, beside those of who always says `mean`, or one of N of them; and their
    rank correlation (null where one side has no order)."""
    known = len(set(predicted)) > 1 and len(set(measured)) > 1
    return {
        "error": float(np.abs(np.subtract(predicted, measured)).mean()),
        "error_of_the_mean": float(np.abs(np.subtract(mean, measured)).mean()),
        "rank_correlation": float(spearmanr(predicted, measured).statistic) if known else None,
    }


def sentences(found: Mapping[str, object]) -> list[str]:
    """What a mixture.json says, in words."""
    document = json.loads(json.dumps(found))
    said = []
    for kind, name in (("left_out", "pilots that were left out of the fit"), ("held_out", "held-out mixtures")):
        if kind in document["worth"]:
            own, count = document["worth"][kind], len(document["pilots" if kind == "left_out" else kind])
            verdict = "closer" if own["error"] < own["error_of_the_mean"] else "no closer"
            rank = own["rank_correlation"]
            said.append(
                f"On {count} {name} the prediction is off by {own['error']:.3f}, {verdict} than the mean of the pilots "
                f"({own['error_of_the_mean']:.3f}); rank correlation {'unknown' if rank is None else f'{rank:.2f}'}."
            )
    if document["noise"] is not None:
        said.append(f"Two runs of one mixture differ in score by a deviation of {document['noise']:.3f} over seeds.")
    chosen, uniform = document["chosen"], document["uniform"]
    weights = ", ".join(f"{t} {w:.2f}" for t, w in zip(document["tasks"], chosen["weights"], strict=True))
    said.append(
        f"Most is expected of {weights}: {chosen['predicted']:.3f}, and {uniform['predicted']:.3f} of all alike."
    )
    if "final" in document:
        scores = {name: [run["score"] for run in runs] for name, runs in document["final"].items()}
        apart = [a - b for a, b in zip(scores["chosen"], scores["uniform"], strict=True)]
        spread = f" ± {statistics.stdev(apart):.3f}" if len(apart) > 1 else ""
        said.append(
            f"Trained, the chosen mixture reaches {statistics.fmean(scores['chosen']):.3f} and the uniform one "
            f"{statistics.fmean(scores['uniform']):.3f}: a difference of {statistics.fmean(apart):+.3f}{spread} over "
            f"{len(apart)} seeds."
        )
    return said


def _told(fit: Mixture, weights: Numbers, runs: Figures) -> dict[str, object]:
    return {"weights": weights.tolist(), "runs": runs, "measured": _score(runs), "predicted": fit.predicted(weights)}


def _score(runs: Figures) -> float:
    return statistics.fmean(run["score"] for run in runs)


def _noise(mixtures: Sequence[Figures]) -> float | None:
    """The deviation of a score over seeds, pooled over mixtures; None with one seed."""
    variances = [statistics.variance([run["score"] for run in runs]) for runs in mixtures if len(runs) > 1]
    return statistics.fmean(variances) ** 0.5 if variances else None


def _of_sum_1(mixtures: Sequence[Sequence[float]]) -> Numbers:
    found = np.array(mixtures, dtype=np.float64)
    return np.asarray(found / found.sum(1, keepdims=True))


def _check_seeds(name: str, seeds: Sequence[int]) -> None:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"{name} is {list(seeds)}: give one or more, each once")
