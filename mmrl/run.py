"""The run folder: one directory that says what was run, how it went and what came out.

config.yaml  provenance.json  metrics.jsonl  events.*  summary.json  report.html  samples/  checkpoints/  and, of a
fork, start/: the policy that it started from.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from mmrl import checkpoint
from mmrl.state import State, read_state
from mmrl.yaml_files import flatten, read_yaml

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "diffusers", "lerobot", "mani-skill", "numpy")
RESUMABLE = ("train.steps", "save", "evaluate", "logging", "stop", "controls")
"""Keys that may differ from the run's own when it is resumed."""
PATIENCE = (".budget_calls", ".concurrency", ".timeout_s", ".retries", ".pause_s", ".wait_s", ".url")
"""Ends of keys that may differ too: where and how a server is asked, not what it answers."""


START = "start"


class RunFolderError(RuntimeError):
    """The run folder does not allow what was asked; nothing in it was changed."""


def _link(source: str, target: str) -> None:
    """The same file under a second name, which costs nothing and outlives the first; a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, which: str | None = None) -> Path:
        """The checkpoint that `which` means: "latest", "best" or a step; None is the one that the run kept as its
        result.

        Raises:
            RunFolderError: there is no such checkpoint.
            CheckpointError: it is damaged.
        """
        if not (self.path / "config.yaml").is_file():
            raise RunFolderError(f"{self.path} is not the folder of a run: there is no config.yaml in it")
        newest = checkpoint.latest(self.checkpoints)
        if newest is None:
            raise RunFolderError(
                f"{self.path} has no checkpoint yet: continue it with `mmrl train --run {self.path} --resume`"
            )
        state = read_state(checkpoint.verified(newest)) if which in (None, "best") else State()
        if which is None:
            which = "best" if state.keep_best else "latest"
        step = str(state.best_step if which == "best" else which)
        found = self.checkpoints / f"step_{int(step):06d}" if step.isdecimal() else None
        if which == "latest":
            found = newest
        if found is None or not (found / "state.json").exists():
            steps = sorted(int(path.parent.name[5:]) for path in self.checkpoints.glob("step_*/state.json"))
            more = "; save.best was not set" if which == "best" and step == "None" else ""
            raise RunFolderError(f"{self.path} has no checkpoint {which!r}{more}: there are latest and {steps}")
        return checkpoint.verified(found)

    @staticmethod
    def default_path(recipe: str, seed: int) -> Path:
        """runs/<recipe>/<time>_seed<k>"""
        return Path("runs") / recipe / f"{time.strftime('%Y%m%d-%H%M%S')}_seed{seed}"

    @staticmethod
    def newest(recipe: str | None = None, root: Path = Path("runs")) -> Path:
        """The run folder that was started last.

        Raises:
            RunFolderError: there is none.
        """
        pattern = f"{recipe or '*'}/*/config.yaml"
        found = sorted(root.glob(pattern), key=lambda file: file.stat().st_mtime)
        begun = [file for file in found if (file.parent / "checkpoints" / "latest").exists()]
        found = begun or found  # a start that failed before anything was saved is nothing to go on from
        if not found:
            raise RunFolderError(f"no run in {root}/{recipe or ''}: start one with `mmrl train CONFIG`")
        return found[-1].parent

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RunFolderError: another process trains in it, or it cannot be written.
        """
        self.check_writable()
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(f"another process trains in {self.path}: wait for it, or stop it first") from error
            yield

    def check_writable(self) -> None:
        """Raises RunFolderError if nothing can be written into the folder, or it cannot be made."""
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
            why = "may not be written" if there.is_dir() else "is a file"
            raise RunFolderError(
                f"the run folder {self.path} cannot be written: {there} {why}; name another one with --run, or see to "
                "its permissions"
            )

    def refuse_existing(self) -> None:
        """Raises RunFolderError if the folder holds a run, or nothing can be written into it."""
        self.check_writable()
        if (self.path / "config.yaml").exists():
            raise RunFolderError(
                f"{self.path} already holds a run: continue it with --resume, or name another folder with --run"
            )

    def create(self, resolved: str, config_folder: Path, forked_from: Path | None = None) -> None:
        """Make the folder and write what reproduces the run, which was asked for by a file in `config_folder` and
        starts from the weights of the checkpoint `forked_from`.

        Raises:
            RunFolderError: it exists and holds a run.
        """
        self.refuse_existing()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        about = {**provenance(), "config_folder": str(config_folder)}
        if forked_from is not None:
            about["forked_from"] = str(forked_from.resolve())
            shutil.copytree(forked_from / "policy", self.path / START, copy_function=_link)
        checkpoint.write_atomically(self.path / "provenance.json", json.dumps(about, indent=1))
        checkpoint.write_atomically(self.path / "config.yaml", resolved)

    def start(self) -> Path | None:
        """The policy that a fork started from, which its reference is too; None where the config says it."""
        folder = self.path / START
        return folder if folder.is_dir() else None

    def changed(self, now: Mapping[str, object], may: tuple[str, ...] = ()) -> list[str]:
        """`key: before -> now` of every dotted key of its config that is another one in `now`, but for those that begin
        as in `may`, and those in PATIENCE."""
        before = flatten(read_yaml(self.path / "config.yaml"))
        return [
            f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and not (may and key.startswith(may)) and not key.endswith(PATIENCE)
        ]

    def check_resumable(self, now: Mapping[str, object]) -> None:
        """Compare the resolved config of the run with `now`, both flattened to dotted keys.

        Raises:
            RunFolderError: there is no run, or other keys than those in RESUMABLE and PATIENCE differ.
        """
        path = self.path / "config.yaml"
        if not path.exists():
            raise RunFolderError(f"{self.path} holds no run to resume (no config.yaml): start it without --resume")
        if changed := self.changed(now, RESUMABLE):
            raise RunFolderError(
                f"{self.path} was started with another config ({'; '.join(changed[:5])}): "
                f"only {', '.join(RESUMABLE)} may change on --resume; for the rest start a new run from its "
                f"weights: `mmrl train --from {self.path} key=value`"
            )

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write summary.json."""
        checkpoint.write_atomically(self.path / "summary.json", json.dumps(summary, indent=1))


def find_run(path: Path) -> Path:
    """`path`, or the newest run beside it where it is called latest: runs/my-project/latest.

    Raises:
        RunFolderError: there is none.
    """
    return RunFolder.newest(path.parent.name, path.parent.parent) if path.name == "latest" else path


def own_commit() -> str | None:
    """The commit of the checkout that this package is in; None where it is installed apart from one."""
    here = Path(__file__).resolve()
    git = partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, check=False)
    if git(["git", "ls-files", "--error-unmatch", here.name]).returncode:
        return None  # not under git, or in an environment inside of somebody else's repository
    return git(["git", "rev-parse", "--verify", "-q", "HEAD"]).stdout.strip() or None


def provenance() -> dict[str, object]:
    """Versions, machine and commit."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = own_commit()
    return {
        "command": sys.orig_argv[1:],
        "commit": commit,
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{platform.machine()}, {platform.system()}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
