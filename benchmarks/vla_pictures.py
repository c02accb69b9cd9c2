"""pi_RL on PushCube from 64x64 pictures and a sentence: one run, its curve as it is.

Beside it, from the same demonstrations, cloning that goes on for longer. Before and after: 40 held-out episodes by
the fast path, the flow's ODE, from seeds that no setting of the recipe was looked at with. Run folders are under
runs/benchmark_vla_pictures; finished ones are not run again, and a run that was stopped goes on. Needs `make vulkan`.

    python -m benchmarks.vla_pictures
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import write
from benchmarks.vla_words import cloned, control, figures, trained

ROOT = Path("runs/benchmark_vla_pictures")
CLONING_STEPS = 30_000
"""Of the control: as many CPU seconds of cloning as the run takes."""


def main() -> None:
    """Run what is missing, and write the figures after each run."""
    folder = ROOT / "rl_0"
    summary = trained(folder, "vla/pirl_pictures", ["seed=0"])
    found = {"what": (__doc__ or "").split("\n")[0], **figures([folder], [summary])}
    write("vla_pictures", found)
    longer = cloned(ROOT / "cloning", "vla/warmup_pictures", [f"warmup.cloning.steps={CLONING_STEPS}"])
    write("vla_pictures", {**found, "longer_cloning": control(longer)})


if __name__ == "__main__":
    main()
