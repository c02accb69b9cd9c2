"""What goes wrong around a run: each fault ends in one sentence, or in nothing at all, and what was trained is kept.

| fault | what happens | tested |
|---|---|---|
| killed at any moment | `--resume` goes on from the last checkpoint, to the same metrics | test_checkpoint, benchmarks.reliability |
| disk full | the last checkpoint stays, the run says which it is | test_checkpoint, here |
| run folder that cannot be written | said before a model is loaded | here |
| a reward raises, returns NaN or hangs | the run is saved as it stood before this step, then ends | here |
| a reward's server is gone for a minute, or for good | waited for; saved | test_judge_run |
| the data server dies or hangs | started again, asked again | test_synthetic |
| a renderer dies, also while it starts | started again, its program drawn by another | here, test_render |
| a simulation worker dies | started again; its episodes played again or left out; saved when it dies too often | here, test_sim_workers |
| a checkpoint that is damaged, empty or of another model | refused, with where to go on | test_fuzz, here |
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrl.cli import main
from mmrl.metrics import MetricWriter
from mmrl.run import RunFolder, own_commit, provenance
from mmrl.types import Samples
from rewards.compose import Part, RewardError, WeightedSum
from rewards.patience import LateError, at_most
from rewards.render import Svg
from rewards.render.sandbox import SandboxError
from tests.toy import RightActions, toy_config

STEPS = 4
DROP_CAPABILITIES = 0x20080522


class Odd:
    """A reward that does as the toy's own until call number `since`."""

    calls = 0
    since = 0
    what: Callable[[], object] = staticmethod(lambda: None)


def odd(completions: list[Any], state: list[int], **_: object) -> object:
    Odd.calls += 1
    if Odd.calls >= Odd.since > 0:
        return Odd.what()
    return RightActions()(Samples(completions, {"state": state})).values


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy_config(tmp_path, STEPS, ["save: {every: null}"])
    config = (tmp_path / "toy.yaml").read_text().replace("save: {every: 2}\n", "")
    (tmp_path / "toy.yaml").write_text(config.replace("tests.toy.RightActions", "tests.test_faults.odd"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmrl.commands.write_report", lambda runs: "not drawn")
    Odd.calls = Odd.since = 0
    return tmp_path


@pytest.fixture
def undisturbed(folder: Path) -> list[dict[str, float]]:
    assert main(["train", "toy.yaml", "--run", "whole"]) == 0
    Odd.calls = 0
    return lines(folder / "whole")


def test_a_disk_that_is_full_at_the_last_step_changes_no_result(
    folder: Path, undisturbed: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is done and saved, its evaluation is not: who goes on makes up for it."""
    write = MetricWriter.write

    def full(self: MetricWriter, step: int, metrics: dict[str, float]) -> None:
        if step == STEPS:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, step, metrics)

    with monkeypatch.context() as patched:
        patched.setattr(MetricWriter, "write", full)
        assert main(["train", "toy.yaml", "--run", "run"]) != 0
    assert main(["train", "--run", "run", "--resume"]) == 0
    whole, found = (json.loads((folder / run / "summary.json").read_text()) for run in ("whole", "run"))
    assert found["eval_after"] == whole["eval_after"]


def test_a_run_that_is_cut_short_tells_figures_of_its_last_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = MetricWriter.write

    def interrupted(self: MetricWriter, step: int, metrics: dict[str, float]) -> None:
        write(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(MetricWriter, "write", interrupted)
        assert main(["train", "toy.yaml", "--run", "run"]) == 130
    assert main(["train", "--run", "run", "--resume", "train.steps=2"]) == 0
    assert main(["train", "toy.yaml", "--run", "short", "train.steps=2"]) == 0
    short, found = (json.loads((folder / run / "summary.json").read_text()) for run in ("short", "run"))
    assert found["eval_after"] == short["eval_after"] != found["eval_before"]


def raises() -> object:
    raise KeyError("label")


def hangs() -> object:
    with_lock = threading.Lock()
    with_lock.acquire()
    while True:
        try:
            with_lock.acquire()
        except Exception:
            return [0.0] * 16  # as a reward does that takes every error for a wrong answer


def is_no_number() -> object:
    return [0.5] * 15 + [float("nan")]


@pytest.mark.parametrize(
    ("what", "words"),
    [(raises, f"of {__file__}) raised KeyError on a batch of 16 samples: 'label'"),
     (is_no_number, "rewards.right is nan for sample 15 (example "),
     (lambda: [1.0], "rewards.right gave (1,) scores for 16 samples"),
     (lambda: "no scores", "rewards.right (tests.test_faults.odd) raised ValueError on a batch of 16 samples: it gave str"),
     (hangs, "gave no answer in 0.5 s on a batch of 16 samples: mend it, or raise "
             "rewards.right.timeout_s, then --resume")],
    ids=["raises", "NaN", "too few", "words", "hangs"],
)  # fmt: skip
def test_a_reward_that_fails_loses_nothing(
    folder: Path, undisturbed: list, capfd: pytest.CaptureFixture[str], what: Callable[[], object], words: str
) -> None:
    Odd.since, Odd.what = 3, staticmethod(what)
    timeout = "rewards.right.timeout_s=0.5"
    assert main(["train", "toy.yaml", timeout, "--run", "run"]) == 2
    out, err = capfd.readouterr()
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert words in said[0]
    assert "saved at step 2: mend the cause below, then --resume" in out + err
    assert "Traceback" not in err
    Odd.since = 0
    assert main(["train", "--run", "run", "--resume", "rewards.right.timeout_s=3600"]) == 0
    assert lines(folder / "run") == undisturbed


def test_patience_is_for_what_is_inside_alone() -> None:
    with at_most(0.05):
        pass
    time.sleep(0.1)  # no bell afterwards
    with pytest.raises(LateError, match=r"gave no answer in 0.05 s"), at_most(0.05):
        time.sleep(5)
    with pytest.raises(LateError, match=r"in 0.1 s"), at_most(0.1), at_most(60):  # the nearer alarm is kept
        time.sleep(5)
    elsewhere: list[str] = []
    thread = threading.Thread(target=lambda: elsewhere.append(str(at_most(0.01).__enter__())))
    thread.start()
    thread.join()
    assert elsewhere == ["None"]


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_patience_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="give more than 0 seconds, or null"):
        Part("tests.test_faults.odd", timeout_s=seconds)


def test_an_error_of_a_reward_keeps_its_words() -> None:
    with pytest.raises(
        RewardError, match=r"rewards.right \(tests.test_faults.odd\) raised ValueError .* asks for \['state'\]"
    ):
        WeightedSum({"right": Part("tests.test_faults.odd")})(Samples(["a"]))


@pytest.mark.parametrize(
    ("code", "said"),
    [("def score(completions)\n    return []\n", "mine.py, line 1: expected ':'"),
     ("LIMIT = undefined_name\n", "NameError: name 'undefined_name' is not defined (line 1 of ")],
    ids=["syntax", "name"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["rewards.right.use=mine.score", "imports=[mine]"])
def test_code_of_ones_own_that_does_not_run_is_said_with_its_line(
    folder: Path, capfd: pytest.CaptureFixture[str], code: str, said: str, key: str
) -> None:
    (folder / "mine.py").write_text(code)
    sys.modules.pop("mine", None)
    assert main(["train", "toy.yaml", key, "--run", "run"]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "Traceback" not in err


# ---- disks ------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_for_the_metrics_loses_no_step(
    folder: Path, undisturbed: list, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint was due: the steps are saved all the same."""
    write = MetricWriter.write

    def full(self: MetricWriter, step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, step, metrics)

    monkeypatch.setattr(MetricWriter, "write", full)
    assert main(["train", "toy.yaml", "--run", "run"]) == 1
    out, err = capfd.readouterr()
    assert "error: [Errno 28] No space left on device" in err
    assert "saved at step 3" in out + err
    monkeypatch.setattr(MetricWriter, "write", write)
    assert main(["train", "--run", "run", "--resume"]) == 0
    assert [line for line in undisturbed if line["step"] != 3] == [x for x in lines(folder / "run") if x["step"] != 3]


class Capabilities(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def as_anybody(arguments: list[str], log: Path) -> int:
    """The status of `mmrl` in a process without the rights of root, for whom no folder is read-only."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            header = (ctypes.c_uint32 * 2)(DROP_CAPABILITIES, 0)
            assert ctypes.CDLL(None).capset(header, (Capabilities * 2)()) == 0
            with log.open("w") as file:
                sys.stdout = sys.stderr = file
                status = main(arguments)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_folder_that_cannot_be_written_is_said_at_once(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("locked", "locked/run"):
        (folder / name).mkdir()
        (folder / name).chmod(0o555)
    built: list[object] = []
    monkeypatch.setattr("tests.toy.ToyExperiment.build", lambda *_: built.append(1))
    for number, run in enumerate(("locked/run", "locked/other")):
        assert as_anybody(["train", "toy.yaml", "--run", run], folder / f"{number}.txt") == 1
        said = (folder / f"{number}.txt").read_text()
        assert f"error: the run folder {run} cannot be written: " in said
        assert said.strip().endswith("may not be written; name another one with --run, or see to its permissions")
    assert main(["train", "toy.yaml", "--run", "toy.yaml/run"]) == 1
    assert "toy.yaml is a file; name another one with --run" in capfd.readouterr().err
    assert built == []


def test_a_run_whose_folder_became_read_only_says_so(folder: Path) -> None:
    assert main(["train", "toy.yaml", "train.steps=1", "--run", "run"]) == 0
    for path in (folder / "run", folder / "run/checkpoints"):
        path.chmod(0o555)
    assert as_anybody(["train", "--run", "run", "--resume", "train.steps=2"], folder / "log.txt") == 1
    assert "error: the run folder run cannot be written: run may not be written" in (folder / "log.txt").read_text()


# ---- checkpoints ------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_refused_and_the_one_before_goes_on(
    folder: Path, undisturbed: list, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "toy.yaml", "save.every=1", "--run", "run"]) == 0
    last = Path("run/checkpoints/step_000004")
    (last / "optimizer.pt").write_bytes(b"")
    capfd.readouterr()
    for command in (["train", "--run", "run", "--resume"], ["evaluate", "run"], ["export", "run", "--to", "out"],
                    ["train", "--from", "run", "--run", "fork"]):  # fmt: skip
        assert main(command) == 1
        said = capfd.readouterr().err.splitlines()[-1]
        assert "optimizer.pt has 0 bytes, and was written with" in said
        assert said.endswith("remove that folder, and --resume goes on from step_000003")
    for path in sorted(last.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    last.rmdir()
    assert main(["train", "--run", "run", "--resume"]) == 0
    assert lines(folder / "run") == undisturbed


# ---- workers ----------------------------------------------------------------------------------------------

SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="{n}" height="9" fill="red"/></svg>'


@pytest.fixture
def svg() -> Iterator[Svg]:
    with Svg(workers=1, cache_mb=1) as renderer:
        yield renderer


def test_a_renderer_that_is_killed_while_it_starts_is_started_again(svg: Svg, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel, for want of memory, say; one that never starts is said."""
    from rewards.render.pool import STARTS, Worker

    assert svg.render([SQUARE.format(n=5)])[0].failure is None
    started, killed = Worker.started, []

    def dies(command: list[str]) -> Worker:
        worker = started(command)
        if len(killed) < limit:
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
        return worker

    monkeypatch.setattr(Worker, "started", dies)
    limit = STARTS
    svg._pool.close()
    found = svg.render([SQUARE.format(n=4), SQUARE.format(n=6)])
    assert [each.failure for each in found] == [None, None]
    assert len(killed) == STARTS
    killed, limit = [], STARTS + 1
    svg._pool.close()
    with pytest.raises(SandboxError, match="a renderer did not start"):
        svg.render([SQUARE.format(n=7)])


def test_a_worker_that_dies_too_often_ends_the_run_which_is_saved(
    folder: Path, undisturbed: list, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a simulation does whose process the kernel ends for its memory again and again."""
    from tests.toy import ToyCollector
    from vla.sim.base import SimulationError

    collect, steps = ToyCollector.collect, []

    def lost(self: ToyCollector, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise SimulationError("worker process 7 ended with exit code -9, after 3 restarts: is there enough memory")
        return collect(self, *arguments)

    monkeypatch.setattr(ToyCollector, "collect", lost)
    assert main(["train", "toy.yaml", "--run", "run"]) == 1
    out, err = capfd.readouterr()
    assert "error: worker process 7 ended with exit code -9, after 3 restarts" in err
    assert "saved at step 3" in out + err
    assert main(["train", "--run", "run", "--resume"]) == 0
    assert lines(folder / "run") == undisturbed


def test_a_start_that_failed_is_not_the_newest_run(tmp_path: Path) -> None:
    for age, name in enumerate(("begun", "failed")):
        config = tmp_path / "toy" / name / "config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text("seed: 0\n")
        os.utime(config, (age, age))
    assert RunFolder.newest("toy", tmp_path).name == "failed"  # there is no other
    (tmp_path / "toy" / "begun" / "checkpoints").mkdir()
    (tmp_path / "toy" / "begun" / "checkpoints" / "latest").write_text("step_000001")
    assert RunFolder.newest("toy", tmp_path).name == "begun"


def test_the_commit_on_record_is_of_this_code_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home = own_commit()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.chdir(tmp_path)
    assert own_commit() == provenance()["commit"] == at_home
