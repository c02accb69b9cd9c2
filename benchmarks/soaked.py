"""Whether a long run stays as it is: memory, file descriptors and step time of its first third against its last."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.small_runs import CASES, ROOT, below, ended, left_behind, start, wait, warm

EVERY_S = 30.0
SHOWN = ("rss_mb", "descriptors", "processes", "step_wall_s", "step_cpu_s")


def soak(domain: str, minutes: float) -> dict[str, object]:
    """Train the first small recipe of a domain for so long, and look at it every 30 seconds."""
    ROOT.mkdir(parents=True, exist_ok=True)
    warm(domain)
    case = CASES[domain][0]
    run = ROOT / f"soak_{case.name}"
    shutil.rmtree(run, ignore_errors=True)
    process = start(case.arguments(run, 1_000_000, 50), run.with_suffix(".txt"))
    while not trained(run):
        if ended(process) is not None:
            raise SystemExit(f"the run ended: see {run.with_suffix('.txt')}")
        time.sleep(0.5)
    samples: list[dict[str, float]] = []
    began, seen = time.monotonic(), len(trained(run))
    while (elapsed := time.monotonic() - began) < 60 * minutes:
        time.sleep(min(EVERY_S, 60 * minutes - elapsed) + 0.01)
        if (status := ended(process)) is not None:
            raise SystemExit(f"the run ended with {status}: see {run.with_suffix('.txt')}")
        steps = trained(run)
        if len(steps) > seen:
            samples.append({"s": round(time.monotonic() - began, 1), **look(process), **pace(steps[seen - 1 :])})
            print(samples[-1], flush=True)
            seen = len(steps)
    os.kill(process, signal.SIGINT)
    status = wait(process)
    left, _ = left_behind(set())
    figures = {name: compared(samples, name) for name in SHOWN}
    return {
        "recipe": case.recipe, "minutes": minutes, "steps": len(trained(run)), "status": status,
        "processes_left": left, "figures": figures, "samples": samples,
    }  # fmt: skip


def look(process: int) -> dict[str, float]:
    """Memory, descriptors and processes of a run and all below it. Pages that they share are counted in each."""
    resident, descriptors, count = 0, 0, 0
    for each in (psutil.Process(process), *below(process)):
        with suppress(psutil.Error):
            resident, descriptors, count = resident + each.memory_info().rss, descriptors + each.num_fds(), count + 1
    return {"rss_mb": round(resident / 2**20, 1), "descriptors": descriptors, "processes": count}


def pace(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median wall seconds, and mean CPU seconds, of the steps after the first of `steps`."""
    cpu = (steps[-1]["time/cpu"] - steps[0]["time/cpu"]) / (len(steps) - 1)
    wall = statistics.median(step["time/collect"] + step["time/update"] for step in steps[1:])
    return {"step_wall_s": round(wall, 4), "step_cpu_s": round(cpu, 4)}


def compared(samples: Sequence[dict[str, float]], name: str) -> dict[str, float]:
    """Medians of the first and the last third, their ratio, and the slope an hour of a straight line through all."""
    third = max(1, len(samples) // 3)
    values = [sample[name] for sample in samples]
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    slope = statistics.linear_regression([s["s"] / 3600 for s in samples], values).slope if len(samples) > 1 else 0.0
    return {"first": first, "last": last, "ratio": round(last / first, 4), "slope_per_hour": round(slope, 4)}


def trained(run: Path) -> list[dict[str, float]]:
    """The steps that a run has logged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        with suppress(json.JSONDecodeError):  # the last one may be half written
            found.append(json.loads(line))
    return [line for line in found if "update/loss" in line]
