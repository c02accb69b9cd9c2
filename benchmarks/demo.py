"""`make demo`: small real models learn, on a laptop CPU.

No-Thinking-CLS-RL on handwritten digits from the shipped 4-shot start, then supervised learning with the same CPU
seconds; RLCM on the small consistency model, with KL and a stop rule; pi_RL on a robot that pushes a cube, filmed
before and after where there is a Vulkan driver. Each writes its HTML report. The folders of the last demo are replaced.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from mmrl.cli import main

RUNS = {
    Path("runs/demo/digits"): ["vision/cls_rl_nothink", "controls=all"],
    Path("runs/demo/rlcm"): ["diffusion/rlcm_compress"],
    Path("runs/demo/pushcube"): ["vla/pirl_pushcube", "videos={episodes: 3, failures: 2, size: 192}"],
}


def demo() -> int:
    """The exit status of the first run that fails."""
    took: dict[Path, float] = {}
    for folder, words in RUNS.items():
        if folder.exists():  # the demo's own folder, made by this command
            shutil.rmtree(folder)
        print(f"\n{' '.join(words)}")
        began = time.perf_counter()
        if status := main(["train", *words, "--run", str(folder)]):
            return status
        took[folder] = time.perf_counter() - began
    print("\nopen " + " and ".join(f"{folder}/report.html ({seconds:.0f} s)" for folder, seconds in took.items()))
    return 0


if __name__ == "__main__":
    sys.exit(demo())
