"""From an installed wheel, in an empty folder, as somebody with a checkpoint and a task of their own would: YAML and
commands alone, on a tiny SmolVLA that looks through a camera."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import tiny_vlas
from tests.installed import ENVIRONMENT, ROOT, call
from vla.sim import rendering
from vla.sim.base import SimulationError

TASKS = '''\
"""A hand that is to be lowered: a scene, a camera, and when it is done."""
import sapien
import torch
from mani_skill.agents.robots import Panda
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.building.ground import build_ground
from mani_skill.utils.registration import register_env


@register_env("LowerHand-v1", max_episode_steps=50)
class LowerHand(BaseEnv):
    SUPPORTED_REWARD_MODES = ("sparse", "none")
    SUPPORTED_ROBOTS = ("panda",)
    agent: Panda

    def __init__(self, *args, robot_uids="panda", **kwargs):
        super().__init__(*args, robot_uids=robot_uids, **kwargs)

    @property
    def _default_sensor_configs(self):
        pose = sapien_utils.look_at([0.6, 0.7, 0.6], [0.0, 0.0, 0.35])
        return [CameraConfig("eye", pose, 40, 32, 1, 0.01, 100)]

    def _load_agent(self, options):
        super()._load_agent(options, sapien.Pose(p=[-0.615, 0, 0]))

    def _load_scene(self, options):
        build_ground(self.scene)

    def _initialize_episode(self, env_idx, options):
        noise = torch.rand(len(env_idx), 9) * 0.02
        self.agent.robot.set_qpos(torch.from_numpy(self.agent.keyframes["rest"].qpos).float() + noise)

    def evaluate(self):
        return {"success": self.agent.tcp.pose.p[:, 2] < 0.1}
'''
CONFIG = """\
experiment: vla
imports: [my_lab.tasks]
policy: {path: policy, execute: 3, denoise_steps: 2}
env: {id: LowerHand-v1, instruction: lower the hand, control: pd_joint_delta_pos, max_steps: 6}
simulation: {observe: images, workers: 1}
observe:
  observation.images.top: {camera: eye}
  observation.state: {part: qpos, stop: 8}
algorithm:
  advantage: mmrl.advantages.GAE
  surrogate: mmrl.surrogates.PPOClip
  aggregate: mmrl.aggregates.TokenMean
  value_loss: {class_path: mmrl.value_loss.ValueRegression, init_args: {coef: 1.0}}
rollout: {episodes: 2}
train: {steps: 2, lr: 1.0e-3}
evaluate: {every: null, samples: 1}
held_out: {episodes: 1, between: 1, rebuild: false}
logging: {progress: false}
seed: 0
"""
LOADS = """\
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

config = PreTrainedConfig.from_pretrained("{to}")
policy = get_policy_class(config.type).from_pretrained("{to}")
before, after = make_pre_post_processors(config, "{to}")
seen = before({{"observation.state": torch.zeros(1, 8), "observation.images.top": torch.zeros(1, 3, 32, 40), "task": "lower"}})
assert after(policy.select_action(seen)).shape == (1, 8)
assert config.n_action_steps == 3 and config.num_steps == 2
first = get_policy_class(config.type).from_pretrained("policy")
changed = [name for (name, a), b in zip(policy.named_parameters(), first.parameters(), strict=True) if not torch.equal(a, b)]
print(sorted({{"expert" if ".lm_expert." in name else "vlm" if ".vlm." in name else name.split(".")[1] for name in changed}}))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "my_lab").mkdir(parents=True)
    (folder / "my_lab" / "tasks.py").write_text(TASKS)
    (folder / "config.yaml").write_text(CONFIG)
    tiny_vlas.make("smolvla", folder / "policy", state=8, actions=8, cameras=("top",))
    return folder


def drawing() -> dict[str, str]:
    """Variables for pictures: the driver is in the environment of this test, not in the installed one's."""
    try:
        return rendering.settings()
    except SimulationError as error:
        pytest.skip(str(error))


def loaded_by_lerobot(mmrl: Path, project: Path, to: str) -> str:
    """What of the policy at `to` differs from what the run started from, by lerobot without mmrl."""
    code = [str(mmrl.parent / "python"), "-c", LOADS.format(to=to)]
    done = subprocess.run(code, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.timeout(900)
def test_a_checkpoint_and_a_task_of_ones_own_with_a_camera(mmrl: Path, project: Path) -> None:
    driver = drawing()
    assert str(ROOT) not in str(project)
    # NOTE: `mmrl check config.yaml` belongs here once the domain has it.
    call(mmrl, project, "train", "config.yaml", "--run", "first", **driver)
    summary = json.loads((project / "first" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["eval_after"]["success_rate"]["n"] == 1
    assert summary["parity"]["logprob_diff_max"] <= 1e-5
    assert (project / "first" / "report.html").is_file()
    call(mmrl, project, "export", "first", "--to", "out", **driver)
    told = loaded_by_lerobot(mmrl, project, "out")
    assert "expert" in told
    assert "action_out_proj" in told
    assert "vlm" not in told
    assert "state_proj" not in told

    lora = ["policy.adapter={rank: 4, alpha: 8}"]
    call(mmrl, project, "train", "config.yaml", *lora, "--run", "second", **driver)
    assert not (project / "second" / "checkpoints" / "step_000002" / "policy" / "model.safetensors").exists()
    call(mmrl, project, "export", "second", "--to", "merged", **driver)
    assert loaded_by_lerobot(mmrl, project, "merged") == "['expert']"


def test_what_does_not_fit_is_said_before_anything_is_trained(mmrl: Path, project: Path) -> None:
    """States need no driver."""
    said = call(mmrl, project, "train", "config.yaml", "simulation.observe=state", status=2)
    assert "the policy reads the camera observation.images.top and LowerHand-v1 shows none" in said
    assert "set simulation.observe to images" in said
    assert not (project / "runs").exists()
