"""`make demo`: one small real model learns, beside its controls, on a laptop CPU.

Trains No-Thinking-CLS-RL on handwritten digits from the shipped 4-shot start, then supervised learning with
the same CPU seconds, then prints the table and writes the HTML report. The folder of the last demo is replaced.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from mmrl.cli import main

RUN = Path("runs/demo/digits")

if __name__ == "__main__":
    if RUN.exists():  # the demo's own folder, made by this command
        shutil.rmtree(RUN)
    sys.exit(main(["train", "vision/cls_rl_nothink", "controls=all", "--run", str(RUN)]))
