"""The real recipes at the smallest honest size, as processes that can be killed and watched.

They are forked from this process once it has imported what they need, which is most of the time of a short run; it
never touches autograd itself. Whatever a killed run leaves is handed to this process (PR_SET_CHILD_SUBREAPER), so that
none escapes the count. Reports are not drawn.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path("runs/benchmark_reliability")
SUBREAPER = 36
RUBRIC = "Bright pictures are good."
QUIET = ["logging.progress=false", "evaluate.samples=2"]
SMALL_VISION = ["data.protocol.evaluation=10", "data.protocol.dev=10", "rollout.prompts=2", "rollout.group=4"]
SMALL_DIFFUSION = (
    "rollout.prompts=2", "rollout.group=4", "data.eval_pictures=1", "stop=[]", "evaluate.every=5",
    "evaluate.metrics={}",
)  # fmt: skip
SMALL_VLA = (
    "rollout.episodes=4", "held_out.episodes=2", "held_out.between=2", "evaluate.every=4", "simulation.rebuild=true",
    "simulation.copies=2", "simulation.workers=1", "simulation.restarts=1000",
)  # fmt: skip
JUDGE = (
    "rewards.style={use: {class_path: rewards.pictures.Judge, init_args: {url_env: MMRL_RELIABILITY_JUDGE, model: m, "
    "rubric: RUBRIC, pause_s: 0.2, retries: 30, concurrency: 2}}}"
)


@dataclass(frozen=True)
class Case:
    """A recipe with the words that make it small. `workers` says what processes it has besides its own; "judge" is a
    server that it does not start."""

    name: str
    recipe: str
    words: tuple[str, ...]
    steps: int
    workers: str = ""

    def arguments(self, folder: Path, steps: int, every: int) -> list[str]:
        """Of `mmrl`, for a run of `steps` steps into `folder`, saved `every` so many steps."""
        length = [f"train.steps={steps}", f"save.every={every}"]
        return ["train", self.recipe, *QUIET, *self.words, *length, "--run", str(folder)]


CASES = {
    "vision": (
        Case("cls_rl", "vision/cls_rl", (*SMALL_VISION, "evaluate.every=8"), 12),
        Case("rrvf_charts", "vision/rrvf_charts", (*SMALL_VISION, "evaluate.every=3"), 5, "render pool"),
        Case("syn_grpo", "vision/syn_grpo", (*SMALL_VISION, "evaluate.every=6", "synthetic.wait_s=600"), 10, "server"),
    ),
    "diffusion": (
        Case("rlcm_compress", "diffusion/rlcm_compress", SMALL_DIFFUSION, 8),
        Case("rlcm_judged", "diffusion/rlcm_compress", (*SMALL_DIFFUSION, JUDGE), 8, "judge"),
    ),
    "vla": (Case("pirl_pushcube", "vla/pirl_pushcube", SMALL_VLA, 6, "simulation"),),
}
IMPORTS = {
    "vision": ("vision.experiments", "transformers.models.auto.modeling_auto"),
    "diffusion": ("diffusion.experiments", "diffusers.pipelines.auto_pipeline"),
    "vla": ("vla.experiments", "vla.sim.workers"),
}


def warm(domain: str) -> None:
    """Import what the runs of a domain need, and become the one that orphans are handed to."""
    import torch._dynamo  # noqa: F401  # seconds, at the first optimiser of a process

    import mmrl.commands

    for name in IMPORTS[domain]:
        importlib.import_module(name)
    vars(mmrl.commands)["write_report"] = lambda runs: "not drawn"
    ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0)


def start(arguments: list[str], log: Path) -> int:
    """`mmrl` with these arguments; returns its process id."""
    child = os.fork()
    if child:
        return child
    from mmrl.cli import main

    status = 99
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = main(arguments)
    except BaseException as error:
        os.write(2, f"traceback: {type(error).__name__}: {error}\n".encode())
    os._exit(status)


def ended(process: int) -> int | None:
    """Its exit status, minus the signal where one ended it; None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(process: int) -> int:
    """The same, once it has ended."""
    while (status := ended(process)) is None:
        time.sleep(0.02)
    return status


def below(process: int) -> list[psutil.Process]:
    """The processes below it that run, but for Python's own book-keeper of resources."""
    found = []
    with suppress(psutil.Error):
        for each in psutil.Process(process).children(recursive=True):
            with suppress(psutil.Error):
                if each.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(each.cmdline()):
                    found.append(each)
    return found


def left_behind(known: set[int], patience_s: float = 30.0) -> tuple[int, float]:
    """How many processes of a killed run are still there after `patience_s`, which are then killed; and the seconds
    until the last of them had ended. `known` are those that are no part of it."""
    began = time.monotonic()
    while True:
        with suppress(ChildProcessError):
            for child in psutil.Process().children():
                if child.pid not in known and child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)
        there = [each for each in psutil.Process().children(recursive=True) if not {each.pid, _parent(each)} & known]
        if not there or time.monotonic() - began > patience_s:
            break
        time.sleep(0.02)
    for each in there:
        with suppress(psutil.Error):
            each.kill()
    return len(there), time.monotonic() - began


def _parent(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.ppid())
    return -1


class JudgeProcess:
    """A judge of our own in a process, who likes brightness, at one address however often it is killed."""

    def __init__(self) -> None:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        (ROOT / "rubric.md").write_text(RUBRIC)
        os.environ["MMRL_RELIABILITY_JUDGE"] = f"http://127.0.0.1:{self.port}"
        os.environ["NO_PROXY"] = "127.0.0.1"
        self.start()

    def start(self) -> None:
        """Answer from now on."""
        self.process = os.fork()
        if self.process == 0:
            from tests.fake_judge import FakeJudge, serving

            with serving(FakeJudge(), self.port):
                while os.getppid() != 1:
                    time.sleep(0.5)
            os._exit(0)

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
