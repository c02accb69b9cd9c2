"""Checkpoints and resuming: killed, interrupted or out of disk, a run continues to the metrics of one that was
left alone (invariants I12, I13).

Runs are forked from a process that has imported the command line once, since the import is most of their time;
one test goes through `python -m mmrl` itself. They draw no report.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mmrl import checkpoint
from mmrl.checkpoint import CheckpointError
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.seals import seal
from mmrl.state import State
from tests.toy import ToyPolicy, ToyPolicyConfig, toy_config

ROOT = Path(__file__).resolve().parent.parent
STEPS = 8
PAUSE = "policy: {save_pause_s: 0.05}"


class Runs:
    """`mmrl` processes that can be killed."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._nursery = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def _ask(self, **request: object) -> int:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(request) + "\n")
        self._nursery.stdin.flush()
        return int(self._nursery.stdout.readline())

    def start(self, folder: Path, *arguments: str, largest_file: int | None = None) -> int:
        return self._ask(folder=str(folder), arguments=arguments, largest_file=largest_file)

    def wait(self, process: int) -> int:
        """Exit status; minus the signal for one that was killed."""
        return self._ask(wait=process)

    def train(self, folder: Path, *arguments: str, largest_file: int | None = None) -> int:
        return self.wait(self.start(folder, "train", *arguments, largest_file=largest_file))

    def kill_when(self, process: int, happened: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < give_up, "what was waited for did not happen"
            time.sleep(0.0005)
        os.kill(process, signal.SIGKILL)
        assert self.wait(process) in (-signal.SIGKILL, 0)

    def close(self) -> None:
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        self._nursery.wait(20)


def nursery() -> None:
    """Forks one run a line of its input; never touches autograd itself."""

    import torch._dynamo  # noqa: F401  # seconds, at the first optimiser of a process

    import mmrl.commands
    from mmrl.cli import main
    from tests import toy  # noqa: F401

    vars(mmrl.commands)["write_report"] = lambda runs: "not drawn"  # seconds of matplotlib that nothing here reads
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.chdir(request["folder"])
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if request["largest_file"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
            status = 99
            try:
                status = main(request["arguments"])
            except BaseException as error:
                os.write(2, f"traceback: {type(error).__name__}: {error}\n".encode())
            sys.stdout.flush()
            os._exit(status)
        print(child, flush=True)


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    found = Runs()
    yield found
    found.close()


def lines(run: Path) -> list[dict[str, float]]:
    """Metrics without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def tensors(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Weights, optimiser moments and generators at the end."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    policy = ToyPolicyConfig().make()
    policy.load_weights(folder / "policy")
    found = {f"policy/{name}": tensor for name, tensor in policy.state_dict().items()}
    moments = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    found |= {f"optimizer/{i}/{name}": torch.as_tensor(t) for i, s in moments.items() for name, t in s.items()}
    return found | torch.load(folder / "generators.pt", weights_only=True)


def assert_same_run(run: Path, undisturbed: Path) -> None:
    assert lines(run) == lines(undisturbed)
    found, wanted = tensors(run), tensors(undisturbed)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    summaries = [json.loads((r / "summary.json").read_text()) for r in (run, undisturbed)]
    for name in ("eval_before", "eval_after", "parity", "steps"):
        assert summaries[0][name] == summaries[1][name]


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    toy_config(folder, STEPS, [PAUSE])
    assert runs.train(folder, "toy.yaml", "--run", "run") == 0, log(folder)
    return folder / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_config(tmp_path, STEPS, [PAUSE])
    return tmp_path


def resumed(runs: Runs, folder: Path) -> Path:
    assert runs.train(folder, "--run", "run", "--resume") == 0, log(folder)
    return folder / "run"


def has_lines(run: Path, count: int) -> Callable[[], bool]:
    path = run / "metrics.jsonl"
    return lambda: path.exists() and path.read_text().count("\n") >= count


# ---- I13, I12 ---------------------------------------------------------------------------------------------


def test_same_seed_same_run_and_another_seed_another(runs: Runs, folder: Path, undisturbed: Path) -> None:
    assert runs.train(folder, "toy.yaml", "--run", "run") == 0, log(folder)
    assert_same_run(folder / "run", undisturbed)
    assert runs.train(folder, "toy.yaml", "seed=1", "--run", "other") == 0, log(folder)
    assert lines(folder / "other")[1] != lines(undisturbed)[1]
    assert [line["step"] for line in lines(undisturbed)] == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 8]


def test_resumed_run_is_the_uninterrupted_run(runs: Runs, folder: Path, undisturbed: Path) -> None:
    """Killed while the checkpoint of step 6 is being written: it continues from step 4."""
    run = folder / "run"
    process = runs.start(folder, "train", "toy.yaml", "--run", "run")
    runs.kill_when(process, (run / "checkpoints" / ".writing_000006").exists)
    assert checkpoint.latest(run / "checkpoints") == run / "checkpoints" / "step_000004"
    assert lines(run)[-1]["step"] == 6
    before = json.loads((run / "checkpoints" / "step_000004" / "state.json").read_text())
    assert_same_run(resumed(runs, folder), undisturbed)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["cpu_s"] > before["cpu_s"] > 0  # what was spent before the kill counts


def test_killed_before_the_first_checkpoint(runs: Runs, folder: Path, undisturbed: Path) -> None:
    process = runs.start(folder, "train", "toy.yaml", "--run", "run")
    runs.kill_when(process, has_lines(folder / "run", 1))
    assert_same_run(resumed(runs, folder), undisturbed)


def test_killed_inside_the_first_checkpoint(runs: Runs, folder: Path, undisturbed: Path) -> None:
    process = runs.start(folder, "train", "toy.yaml", "--run", "run")
    runs.kill_when(process, (folder / "run" / "checkpoints" / ".writing_000002").exists)
    assert checkpoint.latest(folder / "run" / "checkpoints") is None
    assert_same_run(resumed(runs, folder), undisturbed)


def test_killed_again_and_again_at_random_moments(runs: Runs, folder: Path, undisturbed: Path) -> None:
    chance, run = random.Random(time.time_ns()), folder / "run"
    arguments = ["train", "toy.yaml", "--run", "run"]
    reached, delays = [], []
    for _ in range(6):
        process = runs.start(folder, *arguments)
        delays.append(chance.uniform(0.05, 0.6))
        time.sleep(delays[-1])
        os.kill(process, signal.SIGKILL)
        status = runs.wait(process)
        if not (run / "config.yaml").exists():
            continue  # killed before there was a run: it is started again
        arguments = ["train", "--run", "run", "--resume"]
        found = checkpoint.latest(run / "checkpoints")
        reached.append(found.name if found else "")
        if status == 0 or lines_at_the_end(run):
            break
    if not lines_at_the_end(run):
        assert runs.train(folder, *arguments[1:]) == 0, log(folder)
        assert_same_run(run, undisturbed)
    assert reached == sorted(reached), (reached, delays)


def lines_at_the_end(run: Path) -> bool:
    """Whether the evaluation after training is written: what a kill from there on does has a test of its own."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return text.count(f'"step": {STEPS}, "eval/') > 0


def test_killed_after_the_last_evaluation(runs: Runs, folder: Path, undisturbed: Path) -> None:
    process = runs.start(folder, "train", "toy.yaml", "--run", "run")
    runs.kill_when(process, lambda: lines_at_the_end(folder / "run") if (folder / "run").exists() else False)
    (folder / "run" / "summary.json").unlink(missing_ok=True)
    assert_same_run(resumed(runs, folder), undisturbed)


def test_through_the_command_itself(runs: Runs, folder: Path, undisturbed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmrl", "train", "toy.yaml", "--run", "run"]
    process = subprocess.Popen(command, cwd=folder, env=environment)
    while not (folder / "run" / "checkpoints" / ".writing_000004").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert_same_run(resumed(runs, folder), undisturbed)


# ---- Ctrl-C -----------------------------------------------------------------------------------------------


def interrupted(runs: Runs, folder: Path, every: str) -> Path:
    process = runs.start(folder, "train", "toy.yaml", f"evaluate.every={every}", "--run", "run")
    path = folder / "run" / "metrics.jsonl"
    while not (path.exists() and '"step": 3' in path.read_text()):
        time.sleep(0.001)
    os.kill(process, signal.SIGINT)
    assert runs.wait(process) == 130, log(folder)
    assert "continue with: mmrl train --run run --resume" in log(folder)
    stopped_at = json.loads(path.read_text().splitlines()[-1])["step"]
    assert (folder / "run" / "checkpoints" / "latest").read_text() == f"step_{stopped_at:06d}"
    return resumed(runs, folder)


def test_interrupted_run_continues(runs: Runs, folder: Path, undisturbed: Path) -> None:
    run = interrupted(runs, folder, "null")
    steps = [line for line in lines(undisturbed) if "update/loss" in line]
    assert [line for line in lines(run) if "update/loss" in line] == steps
    assert tensors(run).keys() == tensors(undisturbed).keys()
    assert all(torch.equal(found, tensors(undisturbed)[name]) for name, found in tensors(run).items())


def test_interrupted_where_an_evaluation_is_due(runs: Runs, folder: Path) -> None:
    run = interrupted(runs, folder, "1")
    assert [line["step"] for line in lines(run) if "eval/accuracy" in line] == list(range(STEPS + 1))


# ---- full disk --------------------------------------------------------------------------------------------


def full(*arguments: object, **keywords: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def saved(folder: Path, step: int, policy: ToyPolicy, keep: int = 2) -> Path:
    optimizer = torch.optim.AdamW(policy.parameters())
    state = State(step=step, cpu_s=1.0)
    return checkpoint.save(folder, policy, optimizer, {"0/torch": torch.get_rng_state()}, state, keep)


@pytest.mark.parametrize("where", ["torch.save", "os.replace", "os.fsync", "pathlib.Path.mkdir", "json.dumps"])
def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    policy = ToyPolicyConfig().make()
    saved(tmp_path, 2, policy)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    monkeypatch.setattr(where, full)
    with pytest.raises(CheckpointError) as caught:
        saved(tmp_path, 4, policy)
    monkeypatch.undo()
    message = str(caught.value)
    assert "the checkpoint of step 4 could not be written" in message
    assert "No space left on device" in message
    assert "step_000002 is complete: free some disk, then --resume" in message
    assert "\n" not in message
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000002"
    left = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.suffix != ".tmp"}
    assert left == before
    saved(tmp_path, 4, policy)
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000004"


def test_full_disk_between_the_move_and_the_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ToyPolicyConfig().make()
    saved(tmp_path, 2, policy)
    move, moved = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        moved.append(target)
        if Path(target).name == "latest":
            full()
        move(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(CheckpointError, match="step_000002 is complete"):
        saved(tmp_path, 4, policy)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000002"
    saved(tmp_path, 4, policy)
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000004"


def test_saving_a_step_again_never_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run does that fails while it collects for the step after a checkpoint: nothing is written at all."""
    policy = ToyPolicyConfig().make()
    first = saved(tmp_path, 2, policy)
    monkeypatch.setattr(os, "replace", lambda source, target: full())
    assert saved(tmp_path, 2, policy) == first == checkpoint.latest(tmp_path)
    assert (first / "optimizer.pt").exists()


def too_large(runs: Runs, folder: Path, limit: int) -> None:
    """A run whose files may have at most `limit` bytes: hidden 4096 makes 148 kB of weights, 300 kB of moments."""
    wide = ["policy.hidden=4096", "save.every=2"]
    assert runs.train(folder, "toy.yaml", *wide, "--run", "run", largest_file=limit) == 1, log(folder)
    said = [line for line in log(folder).splitlines() if "checkpoint of step 2 could not be written" in line]
    assert len(said) == 1, log(folder)
    assert "traceback" not in log(folder)
    assert runs.train(folder, "--run", "run", "--resume") == 0, log(folder)


def test_a_real_write_error_is_one_sentence_and_the_run_resumes(runs: Runs, folder: Path) -> None:
    too_large(runs, folder, 200_000)


def test_a_real_write_error_in_the_weights(runs: Runs, folder: Path) -> None:
    too_large(runs, folder, 100_000)


# ---- what stays, what is read -----------------------------------------------------------------------------


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        saved(tmp_path, step, ToyPolicyConfig().make(), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000004", "step_000005"]


def test_the_newest_checkpoint_is_never_removed(tmp_path: Path) -> None:
    policy = ToyPolicyConfig().make()
    saved(tmp_path, 4, policy, keep=1)
    shutil.copytree(
        tmp_path / "step_000004", tmp_path / "step_000008"
    )  # killed before `latest`; then save.every changed
    saved(tmp_path, 6, policy, keep=1)
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000006"


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    policy = ToyPolicyConfig().make()
    found = saved(tmp_path / "checkpoints", 1, policy)
    for name in ("generators.pt", "optimizer.pt"):
        torch.save({"x": Harm()}, found / name)
        seal(found)  # as one who means harm would
        checkpoint.verified(found)
        with pytest.raises(Exception, match=r"[Ww]eights.only"):
            checkpoint.load(found, policy, torch.optim.AdamW(policy.parameters()))
    assert not (tmp_path / "harm").exists()


def test_generators_go_back_to_their_rank() -> None:
    first, second = (Runtime(RuntimeConfig(device="cpu"), seed) for seed in (0, 1))
    wanted, shared = first.generator("collect"), first.generator("shared_plan", shared=True)
    torch.randn(3, generator=wanted), torch.randn(5, generator=shared), torch.randn(7)
    states = first.generator_states()
    others = {key.replace("0/", "1/", 1): state.flip(0) for key, state in states.items()}
    expected = [torch.randn(2, generator=wanted), torch.randn(2, generator=shared), torch.randn(2)]
    second.load_generator_states({**states, **others})
    found = [torch.randn(2, generator=second.generator(n)) for n in ("collect", "shared_plan")] + [torch.randn(2)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# ---- what is refused --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    toy_config(folder, 2)
    assert runs.train(folder, "toy.yaml", "--run", "run") == 0, log(folder)
    return folder


def everything(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refusal(runs: Runs, folder: Path, *arguments: str) -> str:
    """The last line that a refused run says."""
    before = everything(folder / "run")
    assert runs.train(folder, *arguments) in (1, 2), log(folder)
    assert everything(folder / "run") == before
    said = log(folder).splitlines()[-1]
    assert said.startswith("error: ")
    return said


def test_an_existing_run_folder_is_refused(runs: Runs, finished: Path) -> None:
    said = refusal(runs, finished, "toy.yaml", "--run", "run")
    assert said == "error: run already holds a run: continue it with --resume, or name another folder with --run"


def test_resuming_with_another_config_is_refused(runs: Runs, finished: Path) -> None:
    said = refusal(runs, finished, "toy.yaml", "seed=5", "train.lr=0.5", "--run", "run", "--resume")
    assert "started with another config" in said
    assert "seed: 0 -> 5" in said
    assert "train.lr: 0.01 -> 0.5" in said
    said = refusal(runs, finished, "toy.yaml", "algorithm.surrogate.clip_low=0.1", "--run", "run", "--resume")
    assert "algorithm.surrogate.init_args.clip_low: 0.2 -> 0.1" in said


def test_resuming_nothing_is_refused(runs: Runs, finished: Path) -> None:
    assert "none/config.yaml does not exist" in refusal(runs, finished, "--run", "none", "--resume")
    said = refusal(runs, finished, "toy.yaml", "--run", "none", "--resume")
    assert "none holds no run to resume" in said
    assert "no run in runs/" in refusal(runs, finished, "--resume")
    assert not (finished / "none").exists()


def test_steps_saving_evaluation_and_logging_may_change(runs: Runs, finished: Path) -> None:
    folder = finished.parent / "longer"
    shutil.copytree(finished, folder)
    changes = ["train.steps=4", "save.keep=1", "save.every=1", "evaluate.every=1", "logging.progress=false"]
    assert runs.train(folder, "toy.yaml", *changes, "--run", "run", "--resume") == 0, log(folder)
    assert [line["step"] for line in lines(folder / "run") if "update/loss" in line] == [1, 2, 3, 4]
    assert [p.name for p in (folder / "run" / "checkpoints").glob("step_*")] == ["step_000004"]


if __name__ == "__main__":
    nursery()
