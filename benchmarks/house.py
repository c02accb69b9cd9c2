"""What it costs to live in this house: start-up, memory and time of each demo, what is slow in the tests.

Every part measures this checkout in processes of its own; figures are kept by commit, so that before and after stand
beside each other in benchmarks/results/house.json.

    python -m benchmarks.house [start] [demo] [suite]
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, write
from benchmarks.demo import RUNS

PACKAGES = ("mmrl.trainer", "rewards", "vision.experiments", "diffusion.experiments", "vla.experiments")
REPEATS = 3


def spent(words: list[str]) -> dict[str, float]:
    """CPU and wall seconds of a command, and its peak memory in MB."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = subprocess.run(["/usr/bin/env", *words], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = re.search(r"peak_kb=(\d+)", told.stdout)
    return {
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": time.perf_counter() - began,
        "peak_mb": int(peak[1]) / 1024 if peak else 0.0,
    }


def start() -> dict[str, object]:
    """Seconds until `mmrl --help` has answered, and to import each package."""
    peak = "import resource; print(f'peak_kb={resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}')"
    commands = {"mmrl --help": [str(Path(sys.executable).with_name("mmrl")), "--help"]}
    commands |= {f"import {name}": [sys.executable, "-c", f"import {name}; {peak}"] for name in PACKAGES}
    found: dict[str, object] = {}
    for name, words in commands.items():
        runs = [spent(words) for _ in range(REPEATS)]
        found[name] = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    return found


def demo() -> dict[str, object]:
    """Memory and seconds of the runs of `make demo`, from their own summaries, and where a step's time goes."""
    found: dict[str, object] = {}
    for folder in RUNS:
        if not (folder / "summary.json").exists():
            raise SystemExit(f"there is no {folder}/summary.json: run `make demo` first")
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "time/update" in line]
        collect, update = (sum(line[f"time/{name}"] for line in steps) for name in ("collect", "update"))
        found[folder.name] = {
            **{name: summary[name] for name in ("peak_rss_mb", "cpu_s", "wall_s", "steps")},
            "collect_share": round(collect / (collect + update), 3),
        }
    return found


def suite() -> dict[str, object]:
    """Wall seconds of the whole suite on two processes, and its slowest tests."""
    began = time.perf_counter()
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--durations=25",
        "-p",
        "no:cacheprovider",
    ]
    with tempfile.TemporaryFile("w+") as told:
        status = subprocess.run(words, stdout=told, check=False).returncode
        told.seek(0)
        slow = re.findall(r"^([\d.]+)s (call|setup)\s+(\S+)$", told.read(), re.MULTILINE)
    return {
        "exit_status": status,
        "wall_s": round(time.perf_counter() - began),
        "slowest": [{"test": name, "part": part, "s": float(seconds)} for seconds, part, name in slow],
    }


PARTS = {"start": start, "demo": demo, "suite": suite}


def main(names: list[str]) -> None:
    """Measure, and write the figures under this commit beside those of others."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    path = RESULTS / "house.json"
    commits = json.loads(path.read_text())["commits"] if path.exists() else {}
    mine = commits.setdefault(commit.stdout.strip(), {})
    for name in names:
        mine[name] = PARTS[name]()
    write("house", {"what": (__doc__ or "").split("\n")[0], "commits": commits})


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
