"""`mmrl compare`: arms x seeds from one start, each run in a process of its own; called again, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from mmrl import checkpoint
from mmrl.arms import Plan, Run, read_plan
from mmrl.comparison import Arm, Comparison
from mmrl.report import write_report
from mmrl.yaml_files import ConfigError


def compare(file: Path, folder: Path | None) -> int:
    """Run what is missing, then write table.csv, table.tex and report.html. Returns the exit status."""
    folder = folder or Path("runs") / file.stem
    plan = read_plan(file, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.warmup is not None and not (folder / "start" / "warmup.json").exists():
        subprocess.run(
            [sys.executable, "-m", "mmrl", "warmup", plan.warmup, "--output", str(folder / "start")], check=True
        )
    failed = _run_all(plan)
    if failed is None:
        print(f"stopped; go on with: mmrl compare {file} --run {folder}")
        return 130
    for run in failed:
        print(f"failed: {run.arm}, seed {run.seed}: see {run.folder.with_suffix('.log')}")
    done = [run for run in plan.runs if run.finished()]
    if not done:
        return 1
    found = gather(done, plan.metric, plan.higher_is_better)
    checkpoint.write_atomically(folder / "table.csv", found.to_csv())
    checkpoint.write_atomically(folder / "table.tex", found.to_latex())
    _print(found)
    labels = [run.arm for run in done]
    print(f"report: {write_report([run.folder for run in done], folder / 'report.html', found, labels)}")
    return 1 if failed else 0


def _run_all(plan: Plan) -> list[Run] | None:
    """Run what is not finished; the failed ones, or None after Ctrl-C."""
    waiting = [run for run in plan.runs if not run.finished()]
    children: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()

    def one(run: Run) -> bool:
        if stopped.is_set():
            return True
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        with run.folder.with_suffix(".log").open("ab") as log:
            environment = {"OMP_NUM_THREADS": "1", **os.environ}
            child = subprocess.Popen(
                run.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
            children.append(child)
            return child.wait() == 0

    done = len(plan.runs) - len(waiting)
    with ThreadPoolExecutor(plan.workers) as pool, tqdm(total=len(plan.runs), initial=done, unit="run") as bar:
        try:
            failed = []
            for run, fine in zip(waiting, pool.map(one, waiting), strict=True):
                failed += [] if fine else [run]
                bar.set_postfix(failed=len(failed), last=f"{run.arm}/{run.seed}", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            stopped.set()
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGINT)  # a run saves itself
            return None
    return failed


def gather(runs: Sequence[Run], metric: str | None, higher_is_better: bool) -> Comparison:
    """The figures of finished runs.

    Raises:
        ConfigError: `metric` was not measured, or runs have different primary metrics and none is named.
    """
    summaries = {run: json.loads((run.folder / "summary.json").read_text()) for run in runs}
    primary = {str(summary["primary_metric"]) for summary in summaries.values()}
    if metric is None and len(primary) > 1:
        raise ConfigError(
            f"the runs have different primary metrics ({', '.join(sorted(primary))}): name one as `metric`"
        )
    name = metric or primary.pop()
    for run, summary in summaries.items():
        if name not in summary["eval_after"]:
            raise ConfigError(f"{run.folder} did not measure {name!r}; it has {', '.join(summary['eval_after'])}")
    arms = []
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = {run.seed: summary for run, summary in summaries.items() if run.arm == arm}
        after = {seed: summary["eval_after"][name]["value"] for seed, summary in mine.items()}
        before = {seed: summary["eval_before"][name]["value"] for seed, summary in mine.items()}
        arms.append(Arm(arm, after, before, {seed: summary["cpu_s"] for seed, summary in mine.items()}))
    return Comparison(arms, name, higher_is_better)


def _print(found: Comparison) -> None:
    table = Table("arm", "seeds", f"start {found.metric}", f"{found.metric}, mean ± sd", "difference to first", "CPU s")
    for row in found.rows():
        own = row["arm"] == found.arms[0].name
        change = "" if own else f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        table.add_row(
            str(row["arm"]), str(row["seeds"]), f"{row['start']:.3f}", f"{row['mean']:.3f} ± {row['sd']:.3f}", change,
            f"{row['cpu_s']:.0f}",
        )  # fmt: skip
    Console(highlight=False, markup=False).print(table, *[f"- {said}" for said in found.sentences()], sep="\n")
