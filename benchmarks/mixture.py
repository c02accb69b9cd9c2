"""MoDoMoDo on three tasks of scanned digits: what pilots predict of mixtures that they have not seen, and what the
mixture that is chosen by them is worth.

The plan is configs/mixture/digits.yaml, run by `mmrl mixture`; its runs are folders under runs/benchmark_mixture, and
finished ones are not run again.

    python -m benchmarks.mixture                     # overrides of the plan may follow, such as final=null
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.common import write
from mmrl.cli import main as mmrl
from mmrl.pilots import sentences

ROOT = Path("runs/benchmark_mixture")


def main() -> None:
    if status := mmrl(["mixture", "mixture/digits", *sys.argv[1:], "--run", str(ROOT)]):
        raise SystemExit(status)
    found = json.loads((ROOT / "mixture.json").read_text())
    summaries = [json.loads(file.read_text()) for file in sorted(ROOT.glob("runs/*/summary.json"))]
    write(
        "mixture",
        {
            "plan": json.loads((ROOT / "task.json").read_text())["config"],
            **found,
            "said": sentences(found),
            "start": {name: summaries[0]["eval_before"][name]["value"] for name in summaries[0]["eval_before"]},
            "steps": summaries[0]["steps"],
            "runs": len(summaries),
            "cpu_s": round(sum(s["cpu_s"] + s["eval_cpu_s"] for s in summaries), 1),
            "logprob_diff_max": max(s["parity"]["logprob_diff_max"] for s in summaries),
        },
    )


if __name__ == "__main__":
    main()
