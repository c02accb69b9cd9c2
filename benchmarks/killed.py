"""Kills at random moments, and what they cost: see benchmarks/reliability.py."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.small_runs import CASES, ROOT, Case, JudgeProcess, below, ended, left_behind, start, wait, warm

UNLIKE = ("time/", "synthetic/restarts", "synthetic/queue")
"""Metrics that say how long something took, or how often a worker was started again."""
SEED = 0


@dataclass
class Found:
    """What the kills of one recipe did."""

    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    runs: int = 0
    failed: list[str] = field(default_factory=list)
    metrics: int = 0
    differing: set[str] = field(default_factory=set)
    largest: float = 0.0
    tensors: int = 0
    tensors_differing: int = 0
    checked: int = 0
    unreadable: list[str] = field(default_factory=list)
    left: int = 0
    slowest_end_s: float = 0.0

    def told(self) -> dict[str, object]:
        """As JSON."""
        return {
            "kills": dict(self.kills), "resumes": self.resumes, "runs": self.runs, "failed": self.failed,
            "metrics_compared": self.metrics, "metrics_that_differ": sorted(self.differing),
            "largest_difference": self.largest, "tensors_compared": self.tensors,
            "tensors_that_differ": self.tensors_differing, "checkpoints_read": self.checked,
            "unreadable": self.unreadable, "processes_left": self.left,
            "slowest_end_s": round(self.slowest_end_s, 2),
        }  # fmt: skip


class Campaign:
    """All kills of one recipe."""

    def __init__(self, case: Case, kinds: list[str], chance: random.Random, judge: JudgeProcess | None) -> None:
        self.case, self.kinds, self.chance, self.judge = case, kinds, chance, judge
        self.found, self.folder, self.process = Found(), ROOT / case.name, 0
        self.asked = case.arguments
        self.known = {judge.process} if judge else set()

    def run(self) -> Iterator[Found]:
        """Runs until every kill has happened, each compared with the one that was left alone."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        began = time.monotonic()
        whole = self.folder / "whole"
        status = wait(start(self.asked(whole, self.case.steps, 1), self.folder / "whole.txt"))
        if status != 0:
            raise SystemExit(f"{self.case.name} ended with {status}: see {self.folder}/whole.txt")
        self.seconds = time.monotonic() - began
        print(f"{self.case.name}: left alone {self.seconds:.1f} s", flush=True)
        while self.kinds and len(self.found.failed) < 3:
            self.found.runs += 1
            self.one(self.folder / f"run_{self.found.runs:02d}", whole)
            yield self.found

    def one(self, run: Path, whole: Path) -> None:
        """A run that is killed until it has finished."""
        status: int | None = -signal.SIGKILL
        began, before = time.monotonic(), self.found.kills.total()
        while status == -signal.SIGKILL:
            resume = (run / "config.yaml").exists()
            arguments = ["train", "--run", str(run), "--resume"] if resume else self.asked(run, self.case.steps, 1)
            self.found.resumes += resume
            self.process = start(arguments, run.with_suffix(".txt"))
            status = None
            while status is None:
                status = self.strike(run) if self.kinds else wait(self.process)
            self.tidy(run)
        if self.found.kills.total() == before:  # the machine is less busy than it was: kills must come sooner
            self.seconds = min(self.seconds, time.monotonic() - began)
        if status != 0:
            said = run.with_suffix(".txt").read_text().splitlines()
            self.found.failed.append(f"{run.name}: status {status}: {said[-1] if said else ''}")
        else:
            self.compare(run, whole)
        print(f"{run.name}: status {status}, so far {self.found.told()}", flush=True)

    def strike(self, run: Path) -> int | None:
        """The next kill, unless the run ends before it. Its status if it has ended."""
        kind = self.kinds[0]
        if kind == "writing":
            return self.strike_writing(run)
        until = time.monotonic() + self.chance.uniform(0.2, 0.5 * self.seconds)
        while time.monotonic() < until or (kind == "worker" and self.judge is None and not below(self.process)):
            if (status := ended(self.process)) is not None:
                return status
            time.sleep(0.01)
        self.kinds.pop(0)
        if kind == "worker":
            return self.strike_worker()
        os.kill(self.process, signal.SIGKILL)
        status = wait(self.process)
        self.found.kills["writing" if list(run.glob("checkpoints/.writing_*")) else "trainer"] += status != 0
        return status

    def strike_writing(self, run: Path) -> int | None:
        """A kill inside the writing of a checkpoint; one that came too late is a kill of the trainer like others."""
        for _ in range(self.chance.randint(1, 3)):
            for wanted in (False, True):
                while bool(list(run.glob("checkpoints/.writing_*"))) != wanted:
                    if (status := ended(self.process)) is not None:
                        return status
                    time.sleep(0.001)
        time.sleep(self.chance.uniform(0.0, 0.02))
        os.kill(self.process, signal.SIGKILL)
        status = wait(self.process)
        if list(run.glob("checkpoints/.writing_*")):
            self.kinds.pop(0)
            self.found.kills["writing"] += 1
        else:
            self.found.kills["trainer"] += status != 0
        return status

    def strike_worker(self) -> int | None:
        """Kill a worker, or the judge for a while; the trainer is left to itself."""
        if self.judge is not None:
            self.judge.kill()
            time.sleep(self.chance.uniform(0.2, 2.0))
            self.judge.start()
            self.known = {self.judge.process}
            self.found.kills["worker"] += 1
        elif workers := below(self.process):
            self.chance.choice(workers).kill()
            self.found.kills["worker"] += 1
        else:
            self.kinds.append("worker")  # it ended just now
        return ended(self.process)

    def tidy(self, run: Path) -> None:
        """After the end of a process: what is left of it, and whether every checkpoint can be read."""
        from mmrl import checkpoint

        left, seconds = left_behind(self.known)
        self.found.left += left
        self.found.slowest_end_s = max(self.found.slowest_end_s, seconds)
        folder = run / "checkpoints"
        try:
            checkpoint.latest(folder)
        except checkpoint.CheckpointError as error:
            self.found.unreadable.append(f"{run.name}: {error}")
        for each in folder.glob("step_*"):
            self.found.checked += 1
            try:
                read(checkpoint.verified(each))
            except Exception as error:  # whatever it is, it is counted
                self.found.unreadable.append(f"{run.name}: {type(error).__name__}: {error}")

    def compare(self, run: Path, whole: Path) -> None:
        """Every metric but times, and every weight and moment at the end."""
        ours, theirs = lines(run), lines(whole)
        if len(ours) != len(theirs):
            self.found.differing.add(f"lines: {len(ours)} instead of {len(theirs)}")
        for one, other in zip(ours, theirs, strict=False):
            self.found.metrics += len(other)
            for name in one.keys() | other.keys():
                if one.get(name) != other.get(name):
                    self.found.differing.add(name)
                    self.found.largest = max(self.found.largest, abs(one.get(name, 1e9) - other.get(name, 1e9)))
        last = f"checkpoints/step_{self.case.steps:06d}"
        found, wanted = dict(read(run / last)), dict(read(whole / last))
        self.found.tensors += len(wanted)
        self.found.tensors_differing += sum(name not in found or not found[name].equal(t) for name, t in wanted.items())
        self.found.tensors_differing += len(found.keys() - wanted.keys())


def lines(run: Path) -> list[dict[str, float]]:
    """Metrics but for those of UNLIKE."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(UNLIKE)} for line in found]


def read(checkpoint: Path) -> Iterator[tuple[str, object]]:
    """Name and tensor of everything in a checkpoint."""
    import torch
    from safetensors.torch import load_file

    for file in sorted(checkpoint.rglob("*.safetensors")):
        yield from ((f"{file.name}/{name}", tensor) for name, tensor in load_file(file).items())
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    yield from ((f"{i}/{name}", torch.as_tensor(t)) for i, state in moments.items() for name, t in state.items())
    yield from torch.load(checkpoint / "generators.pt", weights_only=True).items()


def kills(domain: str, count: int, keep: Callable[[dict[str, object]], None]) -> None:
    """Kill the recipes of a domain `count` times or a few more; what is found is kept after each run."""
    ROOT.mkdir(parents=True, exist_ok=True)
    judge = JudgeProcess() if any(case.workers == "judge" for case in CASES[domain]) else None
    warm(domain)
    chance, cases = random.Random(SEED), CASES[domain]
    own, of_workers = -(-count // 3), [case for case in cases if case.workers]
    shares: dict[str, list[str]] = {case.name: [] for case in cases}
    for number in range(count):
        kind = "writing" if number < own else "worker" if number < 2 * own else "trainer"
        these = of_workers if kind == "worker" else cases
        shares[these[number % len(these)].name].append(kind)
    found = {}
    try:
        for case in cases:
            kinds = shares[case.name]
            chance.shuffle(kinds)
            words = tuple(word.replace("RUBRIC", str(ROOT / "rubric.md")) for word in case.words)
            case = Case(case.name, case.recipe, words, case.steps, case.workers)
            serving = judge if case.workers == "judge" else None
            campaign = Campaign(case, kinds, chance, serving)
            campaign.known |= {judge.process} if judge else set()
            for each in campaign.run():
                found[case.name] = {"steps": case.steps, "workers": case.workers, **each.told()}
                keep({"seed": SEED, "asked": count, "recipes": found})
    finally:
        if judge is not None:
            judge.kill()
