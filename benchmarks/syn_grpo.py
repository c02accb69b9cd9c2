"""Syn-GRPO on digits: four arms over 3 seeds, and what the data server costs, survives and keeps valid.

Same number of trained samples in every arm: GRPO, GRPO with clip-higher, GRPO with a data server whose descriptions are
drawn at random, Syn-GRPO. Settings were chosen with seed 100 on the dev split. Runs are folders under
runs/benchmark_syn_grpo; finished ones are not run again, and a run that was stopped goes on.

    python -m benchmarks.syn_grpo [arms | server | kills | valid]       without a word: all of them
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, spread, write
from mmrl.cli import main as mmrl
from vision.backdrops import vocabulary
from vision.data import Placed
from vision.synthetic import Backgrounds, Generator, Legible, NoSecondInstance, Request, ServerConfig
from vision.synthetic.outpainting import Outpainting
from vision.synthetic.probe import edges_told_apart
from vision.synthetic.server import DataServer
from vision.synthetic.validity import made

ROOT, RECIPE = Path("runs/benchmark_syn_grpo"), "vision/syn_grpo"
SEEDS = (0, 1, 2)
ARMS = {
    "grpo": ["synthetic.share=0"],
    "clip_higher": ["synthetic.share=0", "algorithm.surrogate.clip_high=0.28"],
    "random": ["synthetic.descriptions=random", f"synthetic.vocabulary={json.dumps(vocabulary())}"],
    "syn_grpo": [],
}
GENERATORS: dict[str, Generator] = {"backgrounds": Backgrounds(), "outpainting": Outpainting()}
SHOWN = (
    "diversity/spread", "diversity/agreed", "diversity/answer_entropy", "diversity/spread_made", "rollout/entropy",
    "synthetic/share", "synthetic/staleness", "synthetic/description_entropy",
)  # fmt: skip
VALID, KILLS = 10_000, 20


def lines(folder: Path) -> list[dict]:
    """The training steps of a run."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "update/loss" in line]


def trained(name: str, words: list[str]) -> Path:
    """The folder of a run, trained now if it is not there."""
    folder = ROOT / name
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        if status := mmrl(["train", RECIPE, *words, "logging.progress=false", "--run", str(folder), *resume]):
            raise SystemExit(status)
    return folder


def told(folders: list[Path]) -> dict[str, object]:
    """What the runs of one arm say: held out before and after, and diversity over the run and in its last fifth."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    steps = [lines(folder) for folder in folders]
    last = [run[-len(run) // 5 :] for run in steps]

    def mean(runs: list[list[dict]], name: str) -> list[float]:
        return [statistics.fmean(line[name] for line in run if name in line) for run in runs]

    known = [name for name in SHOWN if all(any(name in line for line in run) for run in steps)]
    held = ("accuracy", "accuracy_sampled", "accuracy_elsewhere", "accuracy_image_shuffled")
    return {
        "seeds": [summary["seed"] for summary in summaries],
        "steps": [summary["steps"] for summary in summaries],
        "cpu_s": spread([summary["cpu_s"] for summary in summaries]),
        "before": {name: spread([s["eval_before"][name]["value"] for s in summaries]) for name in held},
        "after": {name: spread([s["eval_after"][name]["value"] for s in summaries]) for name in held},
        "whole_run": {name: spread(mean(steps, name)) for name in known},
        "last_fifth": {name: spread(mean(last, name)) for name in known},
        "counts": {
            name: [run[-1][f"synthetic/{name}"] for run in steps]
            for name in ("posted", "answered", "refused", "dropped", "stale", "agreed")
        },
        "logprob_diff_max": max(s["parity"].get("logprob_diff_max", 0.0) for s in summaries),
    }


def arms() -> dict[str, object]:
    """The four arms; the figures are written after each seed, so that what there is can be read."""
    found: dict[str, object] = {}
    folders: dict[str, list[Path]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        for arm, words in ARMS.items():
            folders[arm].append(trained(f"{arm}_{seed}", [f"seed={seed}", *words]))
        found = {arm: told(runs) for arm, runs in folders.items()}
        keep({"arms": found})
    return found


def requests(count: int, seed: int = 0) -> list[Request]:
    """Random descriptions of the vocabulary for the digits of the recipe."""
    examples, chance, words = Placed(count=1400, scale=(0.85, 0.95)).examples(), random.Random(seed), vocabulary()
    chosen = [examples[number % len(examples)] for number in range(count)]
    return [
        Request(
            number, one.id, one.columns["labels"], np.asarray(one.pictures()[0]), one.columns["mask"],
            chance.choice(words), 0, chance.randrange(2**31),
        )
        for number, one in enumerate(chosen)
    ]  # fmt: skip


def server() -> dict[str, object]:
    """Pictures a CPU second of each generator, through its process; and a step of the trainer with the server on and
    off, in turns, each on its own pictures."""
    found: dict[str, object] = {}
    for name, generator in GENERATORS.items():
        count = 800 if name == "backgrounds" else 160
        running = DataServer(generator, (Legible(), NoSecondInstance()), ServerConfig(queue=count))
        try:
            running.post(requests(8))
            running.take(wait_s=300)
            began, before = time.monotonic(), running.cpu_s()
            running.post(requests(count))
            results = running.take(wait_s=900)
            spent, wall = running.cpu_s() - before, time.monotonic() - began
        finally:
            running.close()
        reasons = Counter(result.reason or "made" for result in results)
        found[name] = {
            "pictures_per_cpu_s": round(count / spent, 1), "pictures_per_s": round(count / wall, 1),
            "cpu_ms_a_picture": round(1000 * spent / count, 2), "became": dict(reasons),
        }  # fmt: skip
    return {**found, "step": {name: overlap(name) for name in GENERATORS}}


def overlap(generator: str) -> dict[str, object]:
    """Wall seconds of a training step with the server on over those with it off, medians of three short runs each, on
    the same pictures: the prompts of both are real ones (a share of nearly nothing takes none)."""
    path = "Backgrounds" if generator == "backgrounds" else "outpainting.Outpainting"
    words = [f"synthetic.generator.class_path=vision.synthetic.{path}", "train.steps=40", "evaluate.every=null"]
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    made_in_all = 0.0
    for repeat in range(3):
        for mode, share in (("off", "0"), ("on", "0.01")):
            folder = trained(
                f"overlap_{generator}_{mode}_{repeat}", [f"seed={repeat}", f"synthetic.share={share}", *words]
            )
            steps = lines(folder)[10:]
            seconds[mode].append(statistics.median(s["time/collect"] + s["time/update"] for s in steps))
            made_in_all += steps[-1]["synthetic/stale"] + steps[-1]["synthetic/refused"]
    ratio = statistics.median(seconds["on"]) / statistics.median(seconds["off"])
    return {"on_over_off": round(ratio, 3), "answered_meanwhile": made_in_all}


def kills() -> dict[str, object]:
    """A run whose data server is killed at random moments: it ends, and every description is accounted for; resumed
    from its checkpoint it has the counts of one that was never stopped."""
    folder = ROOT / "kills"
    words = ["train.steps=400", "evaluate.every=null", "save.every=50", "logging.progress=false"]
    process = subprocess.Popen([sys.executable, "-m", "mmrl", "train", RECIPE, *words, "--run", str(folder)])
    chance, killed = random.Random(0), 0
    while process.poll() is None:
        time.sleep(chance.uniform(0.2, 4.0))
        if killed < KILLS and (folder / "metrics.jsonl").exists() and lines(folder):
            killed += kill_child(process.pid)
    steps = lines(folder)
    last = {name[10:]: int(value) for name, value in steps[-1].items() if name.startswith("synthetic/")}
    sums = [
        int(s["synthetic/posted"]) - sum(int(s[f"synthetic/{n}"]) for n in
            ("answered", "refused", "broken", "dropped", "stale", "waiting")) for s in steps
    ]  # fmt: skip
    return {
        "killed": killed, "exit_status": process.returncode, "steps": len(steps), "counts": last,
        "unaccounted_in_any_step": max(abs(n) for n in sums), "restarts": last["restarts"], "resumed": resumed(),
    }  # fmt: skip


def kill_child(pid: int) -> int:
    """Kill the process that `pid` spawned last, if there is one; returns how many."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")  # the supervisor's thread starts them again
    children = sorted(int(child) for thread in threads for child in thread.read_text().split())
    servers = [
        child for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]  # fmt: skip
    if not servers:
        return 0
    os.kill(servers[-1], signal.SIGKILL)
    return 1


def resumed() -> dict[str, object]:
    """Counts and rewards of a run that was killed at a random step and resumed, and of one that was not. Both wait for
    what they posted (`wait_s`), since what is ready when is otherwise a matter of time."""
    words = ["synthetic.wait_s=60", "train.steps=60", "evaluate.every=null", "save.every=10", "logging.progress=false"]
    whole, cut = ROOT / "whole", ROOT / "cut"
    run = [sys.executable, "-m", "mmrl", "train", RECIPE, *words]
    subprocess.run([*run, "--run", str(whole)], check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen([*run, "--run", str(cut)], stdout=subprocess.DEVNULL)
    while not (cut / "metrics.jsonl").exists() or len(lines(cut)) < 35:
        time.sleep(0.2)
    process.kill()
    process.wait()
    subprocess.run([*run, "--run", str(cut), "--resume"], check=True, stdout=subprocess.DEVNULL)
    one, other = lines(whole), lines(cut)
    own = [name for name in one[-1] if not name.startswith(("time/", "synthetic/restarts", "synthetic/queue"))]
    differing = [name for name in own if [s.get(name) for s in one] != [s.get(name) for s in other]]
    return {"steps": len(other), "metrics_compared": len(own), "metrics_that_differ": differing}


def valid() -> dict[str, object]:
    """Foreground pixels of 10,000 made pictures beside the originals', and whether edges give a made picture away."""
    results = made(Backgrounds(), (Legible(), NoSecondInstance()), requests(VALID * 3 // 2))
    pictures = [result for result in results if result.picture is not None][:VALID]
    equal = sum(
        bool((r.picture[r.request.mask] == r.request.foreground[r.request.mask]).all()) for r in pictures
    )  # fmt: skip
    probes = {}
    for name, generator in GENERATORS.items():
        some = made(generator, (Legible(), NoSecondInstance()), requests(600, seed=1))
        probes[name] = edges_told_apart([r for r in some if r.picture is not None])
    return {
        "pictures": len(pictures), "foreground_equal": equal, "probe": probes,
        "refused": dict(Counter(result.reason for result in results if result.reason)),
    }  # fmt: skip


PARTS = {"valid": valid, "server": server, "kills": kills, "arms": arms}


def keep(found: dict[str, object]) -> None:
    """Write figures beside those that other parts have written."""
    path = RESULTS / "syn_grpo.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    before.pop("provenance", None)
    write("syn_grpo", {**before, **found})


def main() -> None:
    """The parts that are asked for."""
    for name in sys.argv[1:] or list(PARTS):
        keep({name: PARTS[name]()})


if __name__ == "__main__":
    main()
