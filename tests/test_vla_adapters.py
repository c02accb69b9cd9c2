"""pi0, pi0.5 and SmolVLA: real policies of lerobot, tiny and random, over a toy robot with two cameras."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file, save_file

from mmrl.runtime import acting
from mmrl.testing import check_policy
from mmrl.types import Rollout
from tests import tiny_vlas
from tests.toy_robot import Plane, collector, load, make_policy
from vla.adapters import Adapter
from vla.adapters.lora import LoRA
from vla.adapters.vlm import VLMAdapter
from vla.exploration import FlowNoise, FlowSDE
from vla.heads import CriticConfig
from vla.mapping import Source, Told, wire
from vla.policy import RobotPolicy
from vla.sim.base import Observations, SimulationConfig, TaskConfig
from vla.sim.start import start

EXPLORATIONS = {"one": FlowSDE(), "all": FlowSDE(steps="all"), "noise": FlowNoise(0.1, 0.4)}
SENTENCES = ("push the cube", "push the red cube to the blue goal")
OF_VLM = {"pi0": ("paligemma.",), "pi05": ("paligemma.",), "smolvla": ("vlm.", "state_proj")}


class Seeing(Plane):
    """The plane with two cameras, on which only noise is to be seen, and two sentences."""

    def __init__(self, copies: int) -> None:
        super().__init__(copies)
        self.tasks = (replace(self.tasks[0], cameras={"top": (32, 40), "wrist": (32, 40)}, parts={"at": (0, 2)}),)

    def seen(self) -> Observations:
        return replace(super().seen(), images=pictures(len(self)), instructions=told(len(self)))


def told(count: int) -> tuple[str, ...]:
    return tuple(SENTENCES[row % 2] for row in range(count))


def pictures(count: int) -> dict[str, torch.Tensor]:
    generator = draws()
    return {
        name: torch.randint(256, (count, 3, 32, 40), generator=generator, dtype=torch.uint8)
        for name in ("top", "wrist")
    }


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def looked(count: int) -> Observations:
    return Observations(torch.randn(count, 3, generator=draws()), pictures(count), told(count))


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with tiny_vlas.small_gemmas():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("vlas")
    return {kind: tiny_vlas.make(kind, base / kind, state=3, actions=2) for kind in tiny_vlas.KINDS}


@pytest.fixture(params=tiny_vlas.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def collected(policy: RobotPolicy, count: int = 3) -> Rollout:
    part = collector(Seeing(count))
    policy.adapter.connect(part.simulator, None)
    with acting(policy):
        return part.collect(policy, draws())


def steps_of(rollout: Rollout) -> torch.Tensor:
    return torch.arange(rollout.logprobs.shape[1]).expand(len(rollout), -1)


def lerobots(folder: Path) -> tuple[Any, Any, Any]:
    """Policy and processors by lerobot alone."""
    config = PreTrainedConfig.from_pretrained(folder)
    return get_policy_class(config.type).from_pretrained(folder), *make_pre_post_processors(config, str(folder))


def predicted(folder: Path, seen: Observations, noise: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` actions of a chunk by lerobot alone."""
    policy, before, after = lerobots(folder)
    images = {f"observation.images.{name}": image.float() / 255 for name, image in seen.images.items()}
    batch = before({OBS_STATE: seen.state, **images, "task": list(seen.instructions)})
    found: torch.Tensor = after(policy.predict_action_chunk(batch, noise=noise))[:, :count]
    return found


def changed(policy: RobotPolicy) -> RobotPolicy:
    """Everything that is trained has moved a little."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


# ---- the same flow, its densities -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 5])
def test_without_noise_it_is_lerobots_own_sampling_to_the_last_bit(
    folders: dict[str, Path], kind: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = load(folders[kind], denoise_steps=steps), looked(4)
    noise = torch.randn(4, *policy.adapter.chunk, generator=draws())
    key = policy.adapter.steps_key  # type: ignore[attr-defined]
    original = PreTrainedConfig.from_pretrained
    monkeypatch.setattr(PreTrainedConfig, "from_pretrained", lambda *a, **k: _with(original(*a, **k), key, steps))
    expected = predicted(folders[kind], seen, noise, policy.adapter.execute)
    with acting(policy):
        assert torch.equal(policy.best(seen, noise), expected)
    assert expected.shape == (4, 4, 2)
    assert float(expected.std()) > 0.05


def _with(config: Any, key: str, steps: int) -> Any:
    vars(config)[key] = steps
    return config


@pytest.mark.parametrize("exploration", EXPLORATIONS, ids=str)
def test_a_rollout_is_scored_again_as_it_was(folders: dict[str, Path], kind: str, exploration: str) -> None:
    policy = load(folders[kind], exploration=EXPLORATIONS[exploration])
    rollout = collected(policy)
    check_policy(policy, rollout)
    with acting(policy):
        again = policy(rollout.transitions, steps_of(rollout))
    worst = float((again.logprobs - rollout.logprobs)[rollout.mask].abs().max()) / policy.decision_size
    assert worst <= 1e-5
    assert again.values is not None
    assert rollout.values is not None
    assert torch.allclose(again.values[rollout.mask], rollout.values[rollout.mask], atol=1e-5)
    assert float(rollout.values[rollout.mask].std()) > 0


def test_only_what_is_executed_and_real_counts(folders: dict[str, Path], kind: str) -> None:
    policy = load(folders[kind], exploration=EXPLORATIONS["noise"])
    assert policy.executed == (4, 2)
    assert policy.adapter.chunk == (6, 6)
    assert policy.decision_size == 5 * 4 * 2
    rollout = collected(policy)
    with acting(policy):
        for rows, columns, counts in (
            (slice(4), slice(2), True),
            (slice(4, 6), slice(2), False),
            (slice(4), slice(2, 6), False),
        ):
            states = rollout.transitions.chains.clone()  # type: ignore[attr-defined]
            states[:, :, -1, rows, columns] += 0.5
            moved = replace(rollout.transitions, chains=states)  # type: ignore[type-var]
            differs = (policy(moved, steps_of(rollout)).logprobs - rollout.logprobs)[rollout.mask].abs()
            assert bool((differs > 0.1).all()) if counts else bool((differs < 1e-3).all())


def test_rows_of_a_prefix_are_the_prefix_of_rows(folders: dict[str, Path], kind: str) -> None:
    adapter, index = load(folders[kind]).adapter, torch.tensor([3, 0])
    inputs = adapter.inputs(looked(4))
    x, time = torch.randn(4, *adapter.chunk, generator=draws()), torch.full((4,), 0.5)
    with torch.no_grad():
        whole = adapter.prefix(inputs)
        assert whole.rows(torch.arange(4)) is whole
        expected, hidden = adapter.velocity(whole, x, time)
        found, some = adapter.velocity(whole.rows(index), x[index], time[index])
        alone, _ = adapter.velocity(adapter.prefix({k: v[index] for k, v in inputs.items()}), x[index], time[index])
        again, _ = adapter.velocity(whole, x, time)
    assert torch.equal(expected, again)  # the expert leaves the cache as it was
    for other in (found, alone):
        assert torch.allclose(other, expected[index], atol=1e-5)
    assert torch.allclose(some, hidden[index], atol=1e-5)
    assert hidden.shape == (4, 6, adapter.hidden_size)


# ---- what is trained --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", ["expert", "full", "lora"])
def test_gradients_reach_what_is_to_be_trained_and_nothing_else(
    folders: dict[str, Path], kind: str, trains: str
) -> None:
    settings = {"adapter": LoRA(2, 4)} if trains == "lora" else {"train": trains}
    policy = changed(load(folders[kind], exploration=EXPLORATIONS["noise"], **settings))
    rollout = collected(policy)
    (policy(rollout.transitions, steps_of(rollout)).logprobs * rollout.mask).sum().backward()
    for name, parameter in policy.adapter.policy.named_parameters():
        of_vlm = any(part in name for part in OF_VLM[kind])
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert "lm_head" not in name or not parameter.requires_grad
        if trains == "lora":
            assert reached == parameter.requires_grad == ("lora_" in name), name
        elif trains == "expert":
            assert not (reached and of_vlm), name
            assert parameter.requires_grad == (not of_vlm and "lm_head" not in name), name
            assert reached == parameter.requires_grad, name
    names = {n for n, p in policy.adapter.policy.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("vision" in name for name in names) == (trains == "full")
    assert any("action_out_proj" in name for name in names) == (trains != "lora")
    assert all(p.grad is not None for p in policy.heads["noise"].parameters())


@pytest.mark.parametrize("reads", ["expert", "vlm", None])
def test_what_a_critic_reads(folders: dict[str, Path], kind: str, reads: Any) -> None:
    policy = load(folders[kind], critic=CriticConfig(reads=reads), train="full")
    adapter = policy.adapter
    assert isinstance(adapter, VLMAdapter)
    assert adapter.reads == (reads or {"pi0": "expert", "pi05": "vlm", "smolvla": "vlm"}[kind])
    inputs = adapter.inputs(looked(3))
    features = adapter.features(inputs, adapter.prefix(inputs))
    assert features.shape == (3, adapter.feature_size)
    assert not features.requires_grad
    if adapter.reads == "expert":  # the mean over the chunk at t = 1, from zeros
        zeros = torch.zeros(3, *adapter.chunk)
        hidden = adapter.velocity(adapter.prefix(inputs), zeros, torch.ones(3))[1]
        assert torch.allclose(features, hidden.mean(1), atol=1e-6)
    rollout = collected(policy)
    values = policy(rollout.transitions, steps_of(rollout)).values
    assert values is not None
    values.sum().backward()
    assert all(p.grad is None for p in adapter.parameters())
    assert all(p.grad is not None for p in policy.heads["critic"].parameters())


def test_padding_of_a_sentence_is_nothing_to_the_critic(folders: dict[str, Path], kind: str) -> None:
    adapter = load(folders[kind], critic=CriticConfig(reads="vlm")).adapter
    seen = replace(looked(2), instructions=(SENTENCES[0],) * 2)
    mixed = replace(seen, instructions=SENTENCES)
    with torch.no_grad():
        found, other = (adapter.prefix(adapter.inputs(s)).pooled for s in (seen, mixed))  # type: ignore[attr-defined]
    assert torch.allclose(found[0], other[0], atol=1e-5)
    assert not torch.allclose(found[1], other[1], atol=1e-3)


# ---- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", ["expert", "lora"])
def test_what_is_exported_acts_the_same_in_lerobot_and_from_another_place(
    folders: dict[str, Path], kind: str, trains: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"adapter": LoRA(2, 4)} if trains == "lora" else {}
    policy = changed(load(folders[kind], denoise_steps=3, execute=2, **settings))
    seen, noise = looked(3), torch.randn(3, *policy.adapter.chunk, generator=draws())
    with acting(policy):
        own = policy.best(seen, noise)
    policy.save_pretrained(tmp_path / "checkpoint")
    other = load(folders[kind], denoise_steps=3, execute=2, **settings)
    with acting(other):
        assert not torch.allclose(other.best(seen, noise), own, atol=1e-4)
        other.load_weights(tmp_path / "checkpoint")
        assert torch.equal(other.best(seen, noise), own)
    assert (tmp_path / "checkpoint" / "model.safetensors").exists() == (trains == "expert")

    policy.adapter.export(tmp_path / "exported")
    theirs = predicted(tmp_path / "exported", seen, noise, 2)
    assert torch.equal(theirs, own) if trains == "expert" else torch.allclose(theirs, own, atol=1e-5)
    assert PreTrainedConfig.from_pretrained(tmp_path / "exported").n_action_steps == 2
    shutil.copytree(tmp_path / "exported", tmp_path / "moved")
    for name in ("vlm_model_name", "tokenizer_name"):  # as if the first folder were on another machine
        _rename(tmp_path / "moved", name)
    moved = load(tmp_path / "moved")
    with acting(moved):
        assert torch.equal(moved.best(seen, noise), theirs)


def _rename(folder: Path, name: str) -> None:
    for path in folder.glob("*.json"):
        lines = [
            f'{line.split(":")[0]}: "/gone/{name}"{"," if line.rstrip().endswith(",") else ""}'
            if f'"{name}"' in line else line
            for line in path.read_text().splitlines()
        ]  # fmt: skip
        path.write_text("\n".join(lines))


def test_weights_that_were_not_read_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """lerobot's pi0 would go on with random ones."""
    shutil.copytree(folders["pi0"], tmp_path / "pi0")
    weights = load_file(tmp_path / "pi0" / "model.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in weights.items()}, tmp_path / "pi0" / "model.safetensors")
    with pytest.raises(ValueError, match="its model.safetensors was not read as the weights of this policy"):
        load(tmp_path / "pi0")


@pytest.mark.parametrize(("name", "size"), [("observation.state", 7), ("action", 1), ("so100.observation.state", 3)])
def test_statistics_of_other_features_are_refused(tmp_path: Path, name: str, size: int) -> None:
    stats = tiny_vlas.statistics(3, 2)
    if name not in stats:
        del stats[OBS_STATE]
    stats[name] = {"mean": torch.zeros(size), "std": torch.ones(size)}
    folder = tiny_vlas.make("smolvla", tmp_path / "policy", state=3, actions=2, stats=stats)
    feature = r"action \(2,\)" if name == ACTION else r"observation.state \(3,\)"
    with pytest.raises(ValueError, match=rf"its {feature} is to be normalised.*{name} \({size},\).*dataset_stats"):
        load(folder)


def test_what_the_adapters_do_not_follow_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["smolvla"], tmp_path / "smolvla")
    config = tmp_path / "smolvla" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "adapt_to_pi_aloha": True}))
    with pytest.raises(ValueError, match="has adapt_to_pi_aloha, Aloha's own units, which is not supported"):
        load(tmp_path / "smolvla")
    with pytest.raises(ValueError, match="policy.execute is 9: this policy's chunks have 6 actions"):
        load(folders["smolvla"], execute=9)
    with pytest.raises(ValueError, match=r"policy.train is full and policy.adapter is a LoRA"):
        load(folders["smolvla"], train="full", adapter=LoRA())
    with pytest.raises(ValueError, match=r"targets is \['c_attn'\], and the expert has no such linear layers"):
        load(folders["smolvla"], adapter=LoRA(targets=("c_attn",)))
    small = make_policy(tmp_path / "small", steps=1)
    for settings in ({"train": "expert"}, {"adapter": LoRA()}, {"critic": CriticConfig(reads="vlm")}):
        with pytest.raises(ValueError, match="a small_flow has no action expert beside a VLM: leave it out"):
            load(small, **settings)


# ---- what is observed -------------------------------------------------------------------------------------

FEATURES = {
    OBS_STATE: PolicyFeature(FeatureType.STATE, (8,)),
    "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 40)),
    "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 32, 40)),
    "observation.images.empty_camera_0": PolicyFeature(FeatureType.VISUAL, (3, 32, 40)),
}
PANDA = Told("PushCube-v1", ("base_camera", "wrist"), 25, {"qpos": (0, 9), "qvel": (9, 18), "tcp_pose": (18, 25)})


def test_features_are_wired_as_said_and_others_by_name() -> None:
    wired = wire(FEATURES, PANDA, {"observation.images.top": Source("base_camera"), OBS_STATE: Source(stop=8)})
    assert wired.cameras == {"observation.images.top": "base_camera", "observation.images.wrist": "wrist"}
    assert wired.numbers == {OBS_STATE: (0, 8)}
    part = {"observation.images.top": None, OBS_STATE: Source(part="qvel", start=1)}
    wired = wire(FEATURES, PANDA, part)  # type: ignore[arg-type]
    assert wired.cameras == {"observation.images.wrist": "wrist"}
    assert wired.numbers == {OBS_STATE: (10, 18)}
    seen = Observations(torch.arange(25.0)[None], {"wrist": torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)}, ("go",))
    given = wired(seen)
    assert given[OBS_STATE].tolist() == [list(range(10, 18))]  # type: ignore[attr-defined]
    assert float(given["observation.images.wrist"].max()) == 1.0  # type: ignore[attr-defined]
    assert given["task"] == ["go"]
    single = {name: FEATURES[name] for name in ("observation.images.top",)}
    assert wire(single, replace(PANDA, cameras=("eye",)), None).cameras == {"observation.images.top": "eye"}


@pytest.mark.parametrize(
    ("observe", "told", "says"),
    [
        ({}, PANDA, "reads the camera observation.images.top and PushCube-v1 has base_camera, wrist: say which"),
        ({"observation.images.top": Source("eye")}, PANDA, "top from 'eye' and PushCube-v1 has base_camera, wrist"),
        ({}, replace(PANDA, cameras=()), "and PushCube-v1 shows none: set simulation.observe to images"),
        ({"observation.images.left": Source("wrist")}, PANDA, "names 'observation.images.left', and the policy reads obs"),
        ({"observation.images.top": None, "observation.images.wrist": None, OBS_STATE: Source(stop=8)}, PANDA,
         "leaves out every camera"),
        ({"observation.images.top": None}, PANDA, r"a state of 8 numbers and the task tells 25 \(qpos 0:9, .*stop: 8"),
        ({"observation.images.top": None, OBS_STATE: Source(part="qpos")}, PANDA, "and observe.observation.state gives 9 of 25"),
        ({"observation.images.top": None, OBS_STATE: Source(part="pose")}, PANDA, "names the part 'pose' of the state, and"),
        ({"observation.images.top": None, OBS_STATE: Source(part="qpos", start=4, stop=12)}, PANDA, "ends at 12, and there are 9"),
        ({"observation.images.top": None, OBS_STATE: Source("wrist")}, PANDA, "is the camera 'wrist', and the policy reads 8"),
        ({"observation.images.top": None, OBS_STATE: None}, PANDA, "only cameras can be left out"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_sides(observe: Any, told: Told, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wire(FEATURES, told, observe)


def test_a_source_is_a_camera_or_numbers() -> None:
    with pytest.raises(ValueError, match="give a camera, or numbers of the state"):
        Source()
    with pytest.raises(ValueError, match="give a camera, or numbers of the state"):
        Source("eye", stop=3)
    with pytest.raises(ValueError, match="give 0 <= start < stop"):
        Source(start=3, stop=3)


def test_a_controller_of_another_size_is_refused_before_it_moves(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter: Adapter = load(tiny_vlas.make("smolvla", tmp_path / "seven", state=3, actions=7)).adapter
    with pytest.raises(ValueError, match=r"gives 7 actions and the controller of Plane-v1 takes 2: set env.control"):
        adapter.connect(Seeing(1), None)
    load(folders["smolvla"]).adapter.connect(Seeing(1), None)


def test_parts_of_a_state_have_the_names_of_the_task() -> None:
    with start([TaskConfig("PickCube-v1")], SimulationConfig(copies=1, workers=1)) as simulator:
        spec = simulator.tasks[0]
        seen = simulator.reset(torch.arange(1), torch.tensor([5])).state[0]
    names = ["qpos", "qvel", "is_grasped", "tcp_pose", "goal_pos", "obj_pose", "tcp_to_obj_pos", "obj_to_goal_pos"]
    assert list(spec.parts) == names
    assert spec.parts["qvel"] == (9, 18)
    tool, to_cube, cube = (seen[slice(*spec.parts[name])] for name in ("tcp_pose", "tcp_to_obj_pos", "obj_pose"))
    assert torch.allclose(cube[:3] - tool[:3], to_cube, atol=1e-6)
