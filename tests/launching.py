"""Starting a script on two gloo processes, as `accelerate launch` does."""

from __future__ import annotations

import socket
import sys


def on_two_processes(*arguments: str, sharded: bool = False) -> list[str]:
    """The command that runs `arguments` twice, by DDP or by FSDP2. Not by `--cpu`, with which accelerate 1.15 starts a
    single process unless there is an MPI."""
    engine = "--use_fsdp --fsdp_version 2" if sharded else "--multi_gpu"
    options = f"{engine} --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    return [*launcher, "--main_process_port", str(free_port()), *arguments]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
