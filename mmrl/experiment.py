"""What a domain's top-level config must offer, so that the command line needs to know no domain."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `mmrl --help` must answer without importing torch
    from pathlib import Path

    from mmrl.checkpoint import SaveConfig
    from mmrl.parts import Parts
    from mmrl.runtime import Runtime, RuntimeConfig
    from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
    from mmrl.stopping import StopRule
    from mmrl.types import Collector, Policy, Rollout


@dataclass(frozen=True)
class Tried:
    """One output of the policy on a training example, as `mmrl check` shows it."""

    id: str
    prompt: str
    output: str | None = None
    """None: no text; see `Trial.draw_sheet`."""
    expected: str | None = None
    right: bool | None = None
    """Whether it is as good as it can be: a right answer, a success. None where nothing is right or wrong."""


@dataclass(frozen=True)
class Trial:
    """What a domain tells `mmrl check` about a rollout of its own training data."""

    rollout: Rollout
    tried: Sequence[Tried]  # B, in the order of the rollout's rows
    figures: Mapping[str, float]
    """Shares by name, `accuracy` or `success_rate` first; empty where nothing is right or wrong."""
    data: str
    """How much data there is, in words."""
    largest: Collector
    """Collects the samples that need most memory."""
    largest_name: str
    evaluation_s: float
    """Seconds that one evaluation of the whole held-out set takes, from a part of it."""
    draw_sheet: Callable[[Sequence[int], Path], None] | None = None
    """Writes the outputs of these rows, in this order, as one picture."""
    lines: Callable[[], Mapping[str, str]] = dict
    """What else the domain has to say once all was tried: a word and a sentence."""
    advice: str | None = None
    """Whether to start, where the domain knows better than the core's own verdict."""


@dataclass(frozen=True)
class Exported:
    """What was written, for the model card."""

    library: str
    """Of the hub: transformers, peft, diffusers, lerobot."""
    usage: str
    """Python that loads it without mmrl."""


class Experiment(abc.ABC):
    """A frozen dataclass named `Experiment` in a domain's `experiments` module; its fields are the keys of
    the YAML."""

    domain: str
    seed: int
    runtime: RuntimeConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    save: SaveConfig
    stop: tuple[StopRule, ...]
    logging: LoggingConfig

    @abc.abstractmethod
    def build(self, runtime: Runtime, start: Path | None = None) -> Parts:
        """Policy, collector, evaluator and algorithm. All data is checked here, before anything is spent. The policy,
        and with it the reference, has the weights of the folder `start` (of `Policy.save_pretrained`) if one is given.
        """

    def begin(self, parts: Parts, runtime: Runtime, folder: Path | None) -> None:  # noqa: B027  # most make nothing
        """Make of `parts`, as `build` has them, what the policy makes once, as it starts. It is kept in the run's
        `folder`, where whoever goes on with the run, or looks at it, finds it again; None: there is none."""

    def load_policy(self, runtime: Runtime, start: Path | None = None) -> Policy:
        """The policy alone, as `build` has it: no data and no simulator is needed for it where a domain says how."""
        return self.build(runtime, start).policy

    def build_to_check(self, runtime: Runtime) -> Parts:
        """As `build`, for `mmrl check`, which has the time to say more of what does not fit."""
        return self.build(runtime)

    def run_warmup(self, runtime: Runtime, output: Path) -> dict[str, object]:
        """Make the base policy that RL improves and save it to `output`; returns a summary."""
        raise ValueError(f"experiment {self.domain!r} of this config has no warm-up: start from a model")

    def run_controls(self, runtime: Runtime, cpu_s: float) -> Mapping[str, object] | None:
        """The costly controls of a run that trained for `cpu_s` CPU seconds: name -> figures. None: the domain has
        none."""
        return None

    def remarks(self, summary: Mapping[str, object]) -> list[str]:
        """Sentences for the report on what only the domain knows how to read: its controls, its metrics."""
        return []

    def run_rollout(self, runtime: Runtime, output: Path) -> dict[str, object]:
        """Rollouts without training, written to `output`; returns throughput and rewards."""
        from mmrl.rolling import roll  # which imports torch

        return roll(self, runtime, output)

    def try_out(self, runtime: Runtime, parts: Parts) -> Trial:
        """A rollout for `mmrl check`, with everything about it that the core cannot know."""
        raise ValueError(f"experiment {self.domain!r} has no `try_out`, which `mmrl check` needs")

    def told(self, parts: Parts, rollout: Rollout, row: int) -> Sequence[str]:
        """What each living decision of a trajectory was, for `mmrl inspect`; empty where numbers say it all."""
        return ()

    def export(self, policy: Policy, folder: Path, merge: bool, dtype: str | None) -> Exported:
        """Write `policy` so that other tools load it; `merge` puts an adapter into the weights.

        Raises:
            ValueError: it cannot be written like that.
        """
        raise ValueError(f"experiment {self.domain!r} has no `export`: its checkpoints hold what its policy saves")

    @staticmethod
    def write_example(folder: Path) -> None:
        """Write the data that the config of `mmrl init` reads."""
        raise ValueError(f"there is no example to write into {folder}: copy a recipe of `mmrl list` instead")

    @property
    @abc.abstractmethod
    def base_policy(self) -> str:
        """What training starts from, for the summary."""
