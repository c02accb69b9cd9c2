"""ManiSkill's own environments: how one is built, and how its observation is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import gymnasium
import torch
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.multi_agent import MultiAgent
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.utils import assets, common, download_asset
from mani_skill.utils.registration import REGISTERED_ENVS
from torch import Tensor

from vla.sim.base import Observations, SimulationConfig, SimulationError, TaskConfig, TaskSpec
from vla.sim.tasks import how_to_get, steps_of


def build(task: TaskConfig, config: SimulationConfig, count: int = 1) -> BaseEnv:
    """The task's own environment of `count` rows, without wrappers.

    Raises:
        SimulationError: it cannot be built as the config says.
    """
    download_asset.prompt_yes_no = _refuse
    rewards = _rewards(REGISTERED_ENVS[task.id].cls)
    if task.reward not in rewards:
        raise SimulationError(
            f"task {task.id} has no reward {task.reward!r}, only {', '.join(rewards) or 'none at all'}"
        )
    try:
        env = gymnasium.make(
            task.id, num_envs=count, obs_mode="state" if config.observe == "state" else "rgb",
            reward_mode=task.reward, control_mode=task.control, sim_backend=config.backend,
            render_backend=_renderer(config), render_mode=None if config.video_size is None else "rgb_array",
            sensor_configs=_sides(config.image_size), human_render_camera_configs=_sides(config.video_size),
            **task.options,
        )  # fmt: skip
    except SimulationError:
        raise
    except (Exception, SystemExit) as error:
        raise SimulationError(
            f"task {task.id} cannot be built ({type(error).__name__}): {_said(error, config)}"
        ) from error
    return env.unwrapped


def _rewards(cls: type[BaseEnv]) -> list[str]:
    """Those that a class both names and has written down."""
    dense = [f"compute_{name}_reward" for name in ("dense", "normalized_dense")]
    missing = [method for method in dense if getattr(cls, method) is vars(BaseEnv)[method]]
    names = [name for name in ("sparse", "dense", "normalized_dense") if f"compute_{name}_reward" not in missing]
    return [name for name in names if name in cls.SUPPORTED_REWARD_MODES]


def _renderer(config: SimulationConfig) -> str:
    if not config.draws:
        return "none"
    return "cpu" if config.backend == "physx_cpu" else "gpu"


def _sides(pixels: int | None) -> dict[str, object]:
    return {} if pixels is None else {"width": pixels, "height": pixels}


def _refuse(question: str) -> NoReturn:
    """A worker has no keyboard: where ManiSkill would ask whether to download, say what is missing."""
    missing = next(name for name in question.split() if name in assets.DATA_GROUPS)
    raise SimulationError(
        f"{missing} {how_to_get(missing, assets.expand_data_group_into_individual_data_source_ids(missing))}"
    )


def _said(error: BaseException, config: SimulationConfig) -> str:
    """The error in words, and what it comes from where that is known."""
    if isinstance(error, FileNotFoundError):
        for name, source in assets.DATA_SOURCES.items():
            if str(error.filename).startswith(str(source.output_dir / source.target_path)):
                return f"it {how_to_get(name, [name])}"
    if isinstance(error, AttributeError) and not config.draws:
        return f"{error}; a task that reads what its scene looks like needs simulation.video_size"
    return str(error)


def observed(found: Tensor | Mapping[str, object]) -> Observations:
    """ManiSkill's observation of N environments."""
    if isinstance(found, Tensor):
        return Observations(found.float())
    sensors = found.get("sensor_data", {})
    assert isinstance(sensors, Mapping)
    numbers = {key: value for key, value in found.items() if key not in ("sensor_data", "sensor_param")}
    state = common.flatten_state_dict(numbers, use_torch=True).float()
    return Observations(state, pictures(sensors))


def pictures(sensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What cameras saw, each (N, 3, Y, X) uint8."""
    return {name: data["rgb"].movedim(-1, 1) for name, data in sensors.items()}


def spec_of(task: TaskConfig, env: BaseEnv, views: Observations) -> TaskSpec:
    """What the task turned out to be; `views` are its first."""
    boxes = list(_boxes(env).values())
    return TaskSpec(
        id=task.id,
        label=task.label,
        instruction=task.sentence(),
        action_low=tuple(float(x) for box in boxes for x in box.low),
        action_high=tuple(float(x) for box in boxes for x in box.high),
        state_size=views.state.shape[1],
        cameras={name: (image.shape[2], image.shape[3]) for name, image in views.images.items()},
        max_steps=steps_of(task),
        control_hz=env.control_freq,
        fast=False,
        parts=_parts(env, views.state.shape[1]),
        controls=_controls(env),
    )


def _parts(env: BaseEnv, size: int) -> dict[str, tuple[int, int]]:
    """The named parts of a state of `size` numbers, in ManiSkill's order; none where they do not add up to it."""
    told = {"agent": env._get_obs_agent(), "extra": env._get_obs_extra(env.get_info())}
    found: dict[str, tuple[int, int]] = {}
    last = 0
    for path, count in _sizes(told):
        name = path.rsplit("/", 1)[-1]
        found[path if name in found else name] = (last, last + count)
        last += count
    return found if last == size else {}


def _sizes(told: Mapping[str, object], above: str = "") -> Iterator[tuple[str, int]]:
    """Paths of the tensors in nested mappings, and their numbers for one environment."""
    for name, value in told.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", common.flatten_state_dict({name: value}, use_torch=True).shape[-1]


def _controls(env: BaseEnv) -> tuple[str, ...]:
    """Of the robot, if there is one."""
    alone = isinstance(env.agent, BaseAgent) and not isinstance(env.agent, MultiAgent)
    return tuple(env.agent.supported_control_modes) if alone else ()


def _boxes(env: BaseEnv) -> dict[str, gymnasium.spaces.Box]:
    """Bounds of the actions of each robot."""
    space = env.single_action_space
    return dict(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {"": space}


def moves(env: BaseEnv, actions: Tensor) -> Tensor | dict[str, Tensor]:
    """Actions (N, A) as the environment takes them: where there are several robots, theirs stand side by side."""
    boxes = _boxes(env)
    if "" in boxes:
        return actions
    parts = actions.split([box.shape[0] for box in boxes.values()], -1)
    return dict(zip(boxes, parts, strict=True))


@contextmanager
def without_contacts(env: BaseEnv) -> Iterator[None]:
    """While an episode begins. Until its first step the physics still reports the contacts of the episode before, so
    that a first observation would say, after a grasp, that the new cube is grasped."""
    scene = env.scene
    scene.get_pairwise_contact_impulses = lambda *_: torch.zeros(1, 3)
    try:
        yield
    finally:
        del scene.get_pairwise_contact_impulses


def picture(env: BaseEnv) -> Tensor:
    """What the camera for people sees (N, 3, Y, X) uint8; the first of them, where there are several."""
    env.scene.update_render(update_sensors=False, update_human_render_cameras=True)
    camera = next(iter(env.scene.human_render_cameras))
    return env.render_rgb_array(camera).movedim(-1, 1)


def flag(info: Mapping[str, object], name: str, count: int) -> Tensor:
    """What `evaluate()` says under `name` (count,); False where it says nothing."""
    return torch.as_tensor(info.get(name, False)).bool().expand(count)
