"""What people and files see of a run while it goes on: the progress bar, metrics.jsonl, TensorBoard, the parity
warning."""

from __future__ import annotations

from collections.abc import Mapping

from tqdm import tqdm

from mmrl.metrics import PARITY_LIMIT, MetricWriter
from mmrl.run import RunFolder
from mmrl.runtime import Runtime
from mmrl.settings import LoggingConfig
from mmrl.state import State

SHOWN = {
    "reward": "rollout/reward_mean", "kl": "update/kl", "moved": "update/approx_kl", "entropy": "rollout/entropy",
    "zero": "rollout/zero_spread_groups",
}  # fmt: skip
"""Short name in the bar -> metric, in order of what matters: what a narrow terminal has no place for is cut off."""
BAR = "{percentage:3.0f}% {n_fmt}/{total_fmt} {remaining} left{postfix}{bar:0}"
"""`{bar:0}` draws nothing; with it tqdm cuts the line at the width of the terminal."""


class Journal:
    """Open from step `state.step` of `steps`; the files are those of `folder`, if there is one, on the main process."""

    def __init__(
        self, folder: RunFolder | None, config: LoggingConfig, runtime: Runtime, state: State, steps: int
    ) -> None:
        self.runtime = runtime
        on_disk = folder is not None and runtime.is_main
        self.writer = MetricWriter(folder.path, config.wandb_project, state.step) if on_disk and folder else None
        off = not (config.progress and runtime.is_main)
        self.bar = tqdm(total=steps, initial=state.step, disable=off, unit="step", bar_format=BAR)
        self.shown = ""

    def step(self, state: State, metrics: Mapping[str, float]) -> None:
        """One step of training. The largest parity difference is remembered in `state`."""
        found = {name: value for name, value in metrics.items() if name.startswith("parity/")}
        for name, value in found.items():
            short = name.removeprefix("parity/")
            state.parity[short] = max(state.parity.get(short, 0.0), value)
        difference = found.get("parity/logprob_diff_max", 0.0)
        if difference > PARITY_LIMIT and not self.runtime.reduced_precision and self.runtime.is_main:
            tqdm.write(
                f"warning: step {state.step}: re-scored log-probs differ from the recorded ones by "
                f"{difference:.1e} (limit {PARITY_LIMIT:.0e}): sampling and training do not compute the same policy"
            )
        self.write(state.step, metrics)
        there = {short: metrics[name] for short, name in SHOWN.items() if abs(metrics.get(name, 0.0)) > 1e-9}
        self.shown = ", ".join(f"{short}={value:.2g}" for short, value in there.items())
        self.bar.set_postfix_str(self.shown, refresh=False)
        self.bar.update()

    def evaluating(self) -> None:
        """An evaluation begins, which may take longer than a step."""
        self.bar.set_postfix_str("evaluating")

    def evaluated(self, step: int, figures: Mapping[str, Mapping[str, float]], primary: str | None) -> None:
        """What an evaluation after `step` found: all of it to the files, the `primary` figure to the terminal."""
        values = {f"eval/{name}": figure["value"] for name, figure in figures.items()}
        ends = {f"eval/{name}/{end}": figure[end] for name, figure in figures.items() for end in ("low", "high")}
        self.write(step, values | ends)
        self.bar.set_postfix_str(self.shown, refresh=False)
        name = primary or next(iter(figures), "")
        if name in figures and not self.bar.disable:
            figure = figures[name]
            self.bar.write(
                f"step {step}, held out: {name} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line for `step`, on the main process."""
        if self.writer is not None:
            self.writer.write(step, metrics)

    def close(self) -> None:
        """Flush and close."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()
