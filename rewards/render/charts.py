"""Charts that model-written Python draws with matplotlib."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rewards.render.base import Limits, PooledRenderer
from rewards.render.pool import Pool
from rewards.render.sandbox import Sandbox, python_command, python_sandbox, require

GRACE_SECONDS = 10.0
"""How much longer than its child a fork server may be silent before it is given up itself."""


@dataclass(frozen=True, kw_only=True)
class Charts(PooledRenderer):
    """The last figure that a Python program leaves, at its own size and resolution; whether it was shown, saved or
    closed makes no difference, and a file that it saves is empty. Random numbers begin from seed 0. `packages` names
    distributions that it may import beyond matplotlib and numpy, such as pandas.

    Raises:
        SandboxError: bubblewrap or a package is missing.
    """

    packages: tuple[str, ...] = ()

    def make_pool(self) -> Pool:
        sandbox = python_sandbox(("matplotlib", *self.packages), (), self.limits.files_mb)
        return fork_pool("charts", sandbox, self.limits, self.workers, {})


def fork_pool(module: str, sandbox: Sandbox, limits: Limits, workers: int, settings: dict[str, object]) -> Pool:
    """A pool of fork servers that draw with `module` of rewards.render.inside.

    Raises:
        SandboxError: no sandbox can be made here.
    """
    require()
    bounds = {key: value for key, value in asdict(limits).items() if key != "program_bytes"}
    command = sandbox.command(python_command("fork_server", [module, {**bounds, "settings": settings}]))
    return Pool(command, workers, limits.wall_seconds + GRACE_SECONDS, limits.max_pixels)
