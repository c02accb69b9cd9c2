"""Tasks by name: ManiSkill's, and those that a module of one's own registers."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Sequence

with warnings.catch_warnings():  # SAPIEN warns that there is no Vulkan, which may not be needed
    warnings.simplefilter("ignore")
    import mani_skill.envs  # noqa: F401  registers ManiSkill's own tasks

from mani_skill.utils import assets
from mani_skill.utils.registration import REGISTERED_ENVS

from vla.sim.base import TaskConfig


def known() -> list[str]:
    """Ids of all tasks that could run here: registered, and nothing of what they declare is still to be downloaded."""
    return sorted(name for name in REGISTERED_ENVS if not missing_assets(name))


def missing_assets(name: str) -> list[str]:
    """What the task `name` declares to need and is not on this machine. Its scene or robot may need more."""
    sources: set[str] = set()
    for asset in REGISTERED_ENVS[name].asset_download_ids:
        group = asset in assets.DATA_GROUPS
        sources.update(assets.expand_data_group_into_individual_data_source_ids(asset) if group else [asset])
    return sorted(source for source in sources if not assets.is_data_source_downloaded(source))


def module_of(task: TaskConfig) -> str:
    """The module whose import registers the task.

    Raises:
        ValueError: there is no such task, it needs what is not on this machine, or nothing says how long it is.
    """
    if task.id not in REGISTERED_ENVS:
        raise ValueError(f"there is no task {task.id!r}: {_near(task.id)}")
    missing = missing_assets(task.id)
    if missing:
        raise ValueError(f"task {task.id} {how_to_get(task.id, missing)}")
    spec = REGISTERED_ENVS[task.id]
    if task.max_steps is None and spec.max_episode_steps is None:
        raise ValueError(f"task {task.id} is registered without max_episode_steps: give max_steps")
    module = str(spec.cls.__module__)
    if module == "__main__" and "__file__" not in vars(sys.modules[module]):
        raise ValueError(f"task {task.id} is registered in a session, where no worker finds it: put it into a module")
    return module


def steps_of(task: TaskConfig) -> int:
    """Environment steps of one episode."""
    return int(task.max_steps or REGISTERED_ENVS[task.id].max_episode_steps)


def _near(name: str) -> str:
    close = difflib.get_close_matches(name, list(REGISTERED_ENVS), 3, 0.4)
    near = f"did you mean {', '.join(close)}? " if close else ""
    return f"{near}A task of your own is registered by a module under `imports:`"


def how_to_get(name: str, missing: Sequence[str]) -> str:
    """Says of the task, robot or scene `name` what it lacks, and where that comes from."""
    shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    source = assets.DATA_SOURCES[missing[0]]
    where = source.url or f"the Hugging Face set {source.hf_repo_id}"
    return (
        f"needs assets that are not on this machine ({shown}, from {where}): "
        f"run `python -m mani_skill.utils.download_asset {name}`"
    )
