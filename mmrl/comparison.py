"""What several arms over the same seeds say about each other: paired differences, their intervals, and a ranking that
puts one above another only where the interval says so."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats

from mmrl.types import Estimate

FEWEST = 3
"""Seeds below which nothing is ranked."""


@dataclass(frozen=True)
class Arm:
    """One setting over seeds: the metric after training, before it, and CPU seconds, by seed."""

    name: str
    after: Mapping[int, float]
    before: Mapping[int, float]
    cpu_s: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.after.values()) / len(self.after)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; 0 of a single one."""
        n = len(self.after)
        return math.sqrt(sum((v - self.mean) ** 2 for v in self.after.values()) / (n - 1)) if n > 1 else 0.0


@dataclass(frozen=True)
class Comparison:
    """Arms with a result, the metric, and how sure the ranking is."""

    arms: Sequence[Arm]
    metric: str
    higher_is_better: bool = True

    def difference(self, a: Arm, b: Arm, tests: int = 1) -> Estimate:
        """Mean of a - b over the seeds that both have, with Student's paired 95 % interval, each of `tests` at
        95 % together (Bonferroni). With one seed in common the interval is the whole line."""
        seeds = sorted(a.after.keys() & b.after.keys())
        differences = [a.after[seed] - b.after[seed] for seed in seeds]
        n = len(differences)
        if n == 0:
            return Estimate(math.nan, -math.inf, math.inf, 0)
        mean = sum(differences) / n
        if n == 1:
            return Estimate(mean, -math.inf, math.inf, 1)
        deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
        half = float(stats.t.ppf(1 - 0.025 / tests, n - 1)) * deviation / math.sqrt(n)
        return Estimate(mean, mean - half, mean + half, n)

    def beats(self, a: Arm, b: Arm) -> bool:
        """Whether a is better than b beyond doubt, all pairs taken together."""
        found = self.difference(a, b, tests=math.comb(len(self.arms), 2))
        if found.n < FEWEST or found.low == found.high:  # the same difference in every seed shows no spread to judge by
            return False
        return found.low > 0 if self.higher_is_better else found.high < 0

    def rank(self, arm: Arm) -> int:
        """1 + the number of arms that beat it; arms that cannot be told apart may share one."""
        return 1 + sum(self.beats(other, arm) for other in self.arms if other is not arm)

    def sentences(self) -> list[str]:
        """What may be said, and what may not."""
        fewest = min((len(arm.after) for arm in self.arms), default=0)
        if fewest < FEWEST:
            return [f"Nothing is ranked: an arm has {fewest} seed(s), and {FEWEST} are needed to tell arms apart."]
        said, open_pairs = [], []
        for a, b in combinations(self.arms, 2):
            winner, loser = (a, b) if self.beats(a, b) else (b, a)
            if not self.beats(winner, loser):
                open_pairs.append(f"{a.name} and {b.name}")
                continue
            found = self.difference(winner, loser, tests=math.comb(len(self.arms), 2))
            said.append(
                f"{winner.name} is better than {loser.name}: {self.metric} differs by {found.value:+.3f} "
                f"[{found.low:+.3f}, {found.high:+.3f}] over {found.n} paired seeds."
            )
        if open_pairs:
            said.append(
                f"Not told apart by {self.metric}, so not ranked: {'; '.join(open_pairs)}. More seeds would be needed."
            )
        return said

    def rows(self) -> list[dict[str, object]]:
        """The table: one row an arm, in the order of the file; differences are to the first, each at 95 %."""
        first = self.arms[0]
        found = []
        for arm in self.arms:
            difference = self.difference(arm, first)
            found.append({
                "arm": arm.name, "seeds": len(arm.after), "mean": arm.mean, "sd": arm.deviation,
                "difference": difference.value, "low": difference.low, "high": difference.high,
                "rank": self.rank(arm), "start": sum(arm.before.values()) / len(arm.before),
                "cpu_s": sum(arm.cpu_s.values()) / len(arm.cpu_s),
            })  # fmt: skip
        return found

    def to_csv(self) -> str:
        """The table with a header line."""
        out, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def to_latex(self) -> str:
        """A booktabs table. The rank stands only where arms could be told apart."""
        ranked = any(row["rank"] != 1 for row in self.rows())
        lines = [
            r"\begin{tabular}{lrrr" + ("r}" if ranked else "}"), r"\toprule",
            rf"arm & {_tex(self.metric)} & $\Delta$ to {_tex(self.arms[0].name)} & CPU s"
            + (r" & rank \\" if ranked else r" \\"),
            r"\midrule",
        ]  # fmt: skip
        for row in self.rows():
            own = row["arm"] == self.arms[0].name
            change = "--" if own else f"${row['difference']:+.3f}$ {_interval(row['low'], row['high'])}"
            cells = [_tex(str(row["arm"])), rf"${row['mean']:.3f} \pm {row['sd']:.3f}$", change, f"{row['cpu_s']:.0f}"]
            lines.append(" & ".join([*cells, *([str(row["rank"])] if ranked else [])]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _interval(low: object, high: object) -> str:
    return f"[{low:+.3f}, {high:+.3f}]" if math.isfinite(float(str(low))) else "[one seed]"


def _tex(text: str) -> str:
    for letter in r"\&%$#_{}~^":
        text = text.replace(letter, r"\textbackslash{}" if letter == "\\" else "\0" + letter)
    return text.replace("\0~", r"\textasciitilde{}").replace("\0^", r"\textasciicircum{}").replace("\0", "\\")
