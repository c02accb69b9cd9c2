"""What every part of an algorithm has in common (`mmrl.algorithm` has the kinds of them)."""

from __future__ import annotations

from collections.abc import Mapping

from mmrl.statistics import EVERY_NOISE, TOLD, Noise, Statistic


class Part:
    """What every part of an algorithm may say of itself: what it needs, where it is defined, what it remembers."""

    needs_reference: bool = False
    needs_entropy: bool = False
    needs_outcome: bool = False
    needs_exact_kl: bool = False
    reads_sampler: bool = False
    """Whether it reads `behaviour_logprobs`, which are those of the policy that drew however long ago."""
    noises: tuple[Noise, ...] = EVERY_NOISE
    """The decisions that it is defined for; the statistics that it names may narrow them."""

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        """Statistics of the acting policy that it reads in `Rollout.stats` and `Batch.stats`, without gradient."""
        return ()

    @property
    def reads(self) -> tuple[Statistic, ...]:
        """Statistics of the policy as it is now that it reads in `Batch.current`, with gradient."""
        return ()

    def objection(self, noise: Noise) -> str:
        """Why it does not serve decisions of this kind, as the end of a sentence; empty where it does."""
        kinds = [self.noises, *(statistic.noises for statistic in (*self.plans_on, *self.reads))]
        fit = [TOLD[known] for known in EVERY_NOISE if all(known in several for several in kinds)]
        if all(noise in several for several in kinds):
            return ""
        return f"is defined for {' and for '.join(fit)}: take another part there (docs/paper-index.md says which fit)"

    def state_dict(self) -> dict[str, object]:
        """What it remembers of past rollouts, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Remember what `state_dict` told."""
