"""Policies of all domains, embedded and tiny but real, with a fixed rollout each, updated by one process or by two.

Run as a script by `accelerate launch`, it updates all of them by DDP and by FSDP2, on uneven ranks, and writes down what
came out, for who compares it with one process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffusion.adapters import LoRA as DenoiserLoRA
from diffusion.policy import DiffusionPolicy
from diffusion.policy import PolicyConfig as PicturePolicy
from diffusion.prompts import Asked
from diffusion.sampling import SamplingConfig
from diffusion.sampling import draw as draw_pictures
from mmrl import checkpoint
from mmrl.advantages import GAE, GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.checkpoint import State
from mmrl.ema import Average
from mmrl.heads import CriticConfig
from mmrl.recipes import find_asset
from mmrl.regularisers import ExactKL
from mmrl.resampling import rows
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.sharding import full
from mmrl.surrogates import PPOClip
from mmrl.types import Policy, Rollout
from mmrl.update import make_plan, update
from mmrl.value_loss import ValueRegression
from tests import tiny_pipelines, tiny_vlas, tiny_vlms
from tests.toy_robot import Plane, collector
from vision.adapters import LoRA as LanguageLoRA
from vision.data.digits import Digits
from vision.encoding import Encoder
from vision.policy import PolicyConfig as LanguagePolicy
from vision.policy import VisionPolicy
from vision.prompts import Direct, Think
from vision.sampling import draw as draw_answers
from vla.exploration import FlowNoise, FlowSDE
from vla.heads import CriticConfig as RobotCritic
from vla.policy import PolicyConfig as RobotPolicyConfig
from vla.policy import RobotPolicy
from vla.sim.base import Observations

SHARES = (range(7), range(7, 12))
"""Of the 12 rows in 4 groups of 3; the third group lies on both ranks."""
GROUP = 3
STEPS, SAVED = 3, 2
"""Updates, and after how many of them a checkpoint is written."""
ENGINES = ("ddp", "fsdp2")
GRPO = Algorithm(GroupRelative(), PPOClip(), TokenMean())
PPO = Algorithm(GAE(), PPOClip(), TokenMean(), value_loss=ValueRegression())


@dataclass(frozen=True)
class Case:
    """A policy, how it draws 12 trajectories, and how it learns from them. `setting`: where a process must load it."""

    load: Callable[[Path], Policy]
    draw: Callable[[Policy], Rollout]
    algorithm: Algorithm
    lr: float
    make: Callable[[Path], object] = lambda folder: None


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(policy: Policy) -> Policy:
    """With adapters and heads that say something: new ones are zero at first, and so are most of their gradients."""
    draws = generator(7)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name or "critic" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
    return policy.eval()


def rewarded(rollout: Rollout) -> Rollout:
    """With a reward of its own on the last living decision of each row."""
    rewards = torch.zeros_like(rollout.rewards)
    rewards[torch.arange(12), rollout.alive.sum(-1) - 1] = torch.randn(12, generator=generator(5))
    return rollout.with_(rewards=rewards, group_ids=torch.arange(4).repeat_interleave(GROUP))


def answers(policy: Policy) -> Rollout:
    assert isinstance(policy, VisionPolicy)
    short, long = (Encoder(policy.processor, style, ()) for style in (Direct(suffix=""), Think()))
    examples = Digits().examples()
    drawn = draw_answers(policy, [*short.many(examples[:2]), *long.many(examples[2:4])], GROUP, 8, generator())
    zeros, values = torch.zeros_like(drawn.logprobs), drawn.values
    return Rollout(
        drawn.transitions, drawn.logprobs, drawn.alive, drawn.alive, zeros, torch.ones_like(zeros), zeros[:, 0].long(),
        values=values, last_value=None if values is None else torch.zeros(12),
    )  # fmt: skip


def pictures(policy: Policy, size: int, steps: int, guidance: float, extra: dict[str, object]) -> Rollout:
    assert isinstance(policy, DiffusionPolicy)
    config = SamplingConfig(steps, guidance, (size, size), extra=extra)
    asked = [Asked(text, text) for text in ("a red cat", "a blue dog", "a red dog", "a cat")]
    drawn = draw_pictures(policy, asked, GROUP, config, generator())
    ones = torch.ones_like(drawn.logprobs)
    return Rollout(drawn.transitions, drawn.logprobs, drawn.mask, ones.bool(), 0 * ones, ones, ones[:, 0].long())


class Told(Plane):
    """The plane as a policy of `states` numbers and `actions` sees it: all else is constant. With pictures of noise."""

    def __init__(self, states: int, actions: int, cameras: dict[str, tuple[int, int]]) -> None:
        super().__init__(12)
        edge = (1.0,) * actions
        self.tasks = (
            replace(
                self.tasks[0], state_size=states, cameras=cameras, action_low=tuple(-e for e in edge), action_high=edge
            ),
        )

    def seen(self) -> Observations:
        found, size = super().seen(), self.tasks[0].state_size
        images = {
            name: torch.randint(256, (len(self), 3, *pixels), generator=generator(), dtype=torch.uint8)
            for name, pixels in self.tasks[0].cameras.items()
        }
        state = torch.nn.functional.pad(found.state, (0, size - 3), value=0.5)
        return Observations(state, images, ("push the cube",) * len(self))

    def chunk_step(self, actions: Tensor, then: Tensor | None = None) -> object:  # type: ignore[override]
        task, self.tasks = self.tasks, (replace(self.tasks[0], action_low=(-1.0, -1.0), action_high=(1.0, 1.0)),)
        try:
            return super().chunk_step(actions[..., :2], then)
        finally:
            self.tasks = task


def episodes(policy: Policy, world: Told) -> Rollout:
    assert isinstance(policy, RobotPolicy)
    part = collector(world)
    policy.adapter.connect(part.simulator, None)
    return part.collect(policy, generator())


def robots(path: str, **settings: object) -> RobotPolicy:
    return RobotPolicy.load(RobotPolicyConfig(path, **settings), generator(1))  # type: ignore[arg-type]


CAMERAS = {"top": (32, 40), "wrist": (32, 40)}
CASES = {
    ("vision", "embedded"): Case(
        lambda _: VisionPolicy.load(
            LanguagePolicy(find_asset("assets/vision/digits"), freeze_vision=False, critic=CriticConfig()), generator(1)
        ),
        answers, PPO, 2e-4,
    ),
    ("vision", "tiny real"): Case(
        lambda folder: VisionPolicy.load(LanguagePolicy(str(folder), adapter=LanguageLoRA(rank=4, alpha=8))),
        answers, GRPO, 1e-3, lambda folder: tiny_vlms.make("qwen3_vl", folder),
    ),
    ("diffusion", "embedded"): Case(
        lambda _: DiffusionPolicy.load(PicturePolicy(find_asset("assets/diffusion/unet"), scheduler="LCMScheduler")),
        lambda policy: pictures(policy, 32, 4, 1.0, {}), GRPO, 5e-5,
    ),
    ("diffusion", "tiny real"): Case(
        lambda folder: DiffusionPolicy.load(PicturePolicy(str(folder), adapter=DenoiserLoRA(rank=4, alpha=8))),
        lambda policy: pictures(policy, 16, 4, 3.0, {"max_sequence_length": 8}),
        replace(GRPO, regularisers=(ExactKL(0.1),)), 1e-3, lambda folder: tiny_pipelines.make("sd3", folder),
    ),
    ("vla", "embedded"): Case(
        lambda _: robots(find_asset("assets/vla/pushcube"), exploration=FlowNoise(0.15, 0.35)),
        lambda policy: episodes(policy, Told(35, 4, {})), PPO, 1e-4,
    ),
    ("vla", "tiny real"): Case(
        lambda folder: robots(str(folder), exploration=FlowSDE(), critic=RobotCritic(reads="vlm")),
        lambda policy: episodes(policy, Told(5, 3, CAMERAS)), PPO, 1e-4,
        lambda folder: tiny_vlas.make("smolvla", folder),
    ),
}  # fmt: skip


def one_process(folder: Path) -> None:
    """Write to `folder` what all ranks start from, and what one process makes of it."""
    prepare(folder)
    for key in CASES:
        torch.save(outcome(key, folder, "alone"), folder / f"alone_{named(key)}.pt")


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def named(case: tuple[str, str]) -> str:
    return "_".join(case).replace(" ", "_")


def fresh(case: Case, folder: Path, rank: int = 0) -> Policy:
    """The policy as it starts. Later ranks draw another adapter, which must not matter."""
    torch.manual_seed(rank)
    policy = case.load(folder)
    return moved(policy) if rank == 0 else policy.eval()


def prepare(folder: Path) -> None:
    """Write the tiny models and the rollouts of all cases to `folder`."""
    for key, case in CASES.items():
        model = folder / named(key)
        model.mkdir(parents=True, exist_ok=True)
        case.make(model)
        policy = fresh(case, model)
        with acting(policy):
            torch.save(rewarded(case.draw(policy)), folder / f"{named(key)}.rollout")


def failed(rollout: Rollout) -> Rollout:
    """All rows of the second rank failed: it has nothing to train on."""
    dead = torch.zeros_like(rollout.mask)
    dead[: len(SHARES[0])] = True
    return rollout.with_(mask=rollout.mask & dead, alive=rollout.alive & dead)


class Learner:
    """A policy that is updated as a run would do it: prepared, clipped, AdamW, a moving average."""

    def __init__(self, key: tuple[str, str], folder: Path, reduced: bool = False) -> None:
        precision = "bf16" if reduced else "float32"
        self.case, self.runtime = CASES[key], Runtime(RuntimeConfig("cpu", precision), 0)  # type: ignore[arg-type]
        self.policy = fresh(self.case, folder / named(key), self.runtime.rank)
        self.rollout: Rollout = torch.load(folder / f"{named(key)}.rollout", weights_only=False)
        if self.case.algorithm.needs_exact_kl:
            self.policy.kl_reference = (self.policy.reference(),)  # type: ignore[operator]
        self.trained = {name for name, p in self.policy.named_parameters() if p.requires_grad}
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, self.case.lr, fused=True)
        self.optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self.now(gradient=True)))
        self.optimizer.register_step_post_hook(lambda *_: self.policy.weights_changed())
        self.gradients: list[dict[str, Tensor]] = []
        self.wrapped, self.prepared = self.runtime.prepare(self.policy, self.optimizer)
        self.average = Average([p for p in self.policy.parameters() if p.requires_grad], 0.9)
        self.state = State()

    def now(self, gradient: bool = False) -> dict[str, Tensor]:
        """Weights that are trained, or their gradients, whole."""
        found = {name: p for name, p in self.policy.named_parameters() if name in self.trained}
        return {
            name: full((p.grad if p.grad is not None else torch.zeros_like(p)) if gradient else p.detach()).clone()
            for name, p in found.items()
        }

    def share(self) -> float:
        """How much of the weights, and of what AdamW remembers of them, this rank has in its memory: the larger."""
        weights = list(self.policy.parameters())
        moments = [t for state in self.optimizer.state.values() for t in state.values() if t.ndim]
        return max(
            sum(local(tensor).numel() for tensor in tensors) / sum(tensor.numel() for tensor in tensors)
            for tensors in (weights, moments)
        )

    def step(self, empty: bool = False) -> dict[str, float]:
        """One update on this rank's rows."""
        rollout = failed(self.rollout) if empty else self.rollout
        if self.runtime.world > 1:
            rollout = rows(rollout, torch.tensor(list(SHARES[self.runtime.rank])))
        metrics = update(self.wrapped, rollout, self.case.algorithm, self.prepared, self.runtime, UPDATE)
        self.average.update()
        self.state.step += 1
        self.advantages = make_plan(self.runtime.gather(rollout), self.case.algorithm).credit.advantages
        return metrics

    def save(self, folder: Path) -> None:
        generators, writes = self.runtime.generator_states(), self.runtime.is_main
        checkpoint.save(folder, self.policy, self.optimizer, generators, self.state, 1, self.average, writes=writes)
        self.runtime.wait()

    def resumed(self, folder: Path) -> dict[str, object]:
        """From a checkpoint of `folder` to the last step: weights and their average."""
        found = checkpoint.latest(folder)
        assert found is not None
        self.state, generators = checkpoint.load(found, self.policy, self.optimizer, self.average)
        self.runtime.load_generator_states(generators)
        for _ in range(STEPS - SAVED):
            self.step()
        return {"weights": self.now(), "average": [full(value) for value in self.average.values]}


REDUCED = ("vision", "embedded")
"""The case that is also computed in bf16."""
UPDATE = UpdateConfig(micro_rows=4, minibatches=2)


def outcome(key: tuple[str, str], folder: Path, name: str) -> dict[str, object]:
    """What three updates give, with a checkpoint on the way in `folder`/`name`, and one with an empty rank."""
    learner = Learner(key, folder)
    metrics = []
    for _ in range(SAVED):
        metrics.append(learner.step())
    learner.save(folder / name / named(key))
    for _ in range(STEPS - SAVED):
        metrics.append(learner.step())
    lonely = Learner(key, folder)
    lonely.step(empty=True)
    return {
        "sharded": learner.runtime.accelerator.is_fsdp2,
        "metrics": metrics, "advantages": learner.advantages, "gradients": learner.gradients,
        "weights": learner.now(), "average": [full(value) for value in learner.average.values],
        "empty": lonely.gradients, "share": learner.share(),
    }  # fmt: skip


def forget() -> None:
    """Let accelerate, which remembers precision and engine, be asked for others."""
    if PartialState._shared_state and PartialState().distributed_type == DistributedType.FSDP:
        PartialState().distributed_type = DistributedType.MULTI_CPU
    AcceleratorState._reset_state()


def reduced(key: tuple[str, str], folder: Path) -> dict[str, Tensor]:
    """The gradient of one update where compute is bf16."""
    forget()
    learner = Learner(key, folder, reduced=True)
    learner.step()
    return learner.gradients[0]


def on_ranks(engine: str) -> None:
    """Use this engine from now on, whichever was launched: one launch is enough for both."""
    forget()
    os.environ["ACCELERATE_USE_FSDP"] = str(engine == "fsdp2").lower()


Tensors = dict[str, Tensor] | list[Tensor]


def apart(found: Tensors, wanted: Tensors) -> float:
    """Largest difference of a number, relative to the largest number there is.

    Raises:
        ValueError: they are not of the same things, or there is nothing to compare: all numbers are 0.
    """
    if isinstance(wanted, list):
        wanted, found = dict(enumerate(wanted)), dict(enumerate(found))  # type: ignore[arg-type, assignment]
    if found.keys() != wanted.keys():  # type: ignore[union-attr]
        raise ValueError(f"other tensors: {set(found) ^ set(wanted)}")
    largest = max(float(tensor.abs().max()) for tensor in wanted.values())  # type: ignore[union-attr]
    if largest == 0:
        raise ValueError("all numbers are 0")
    return max(float((found[n] - wanted[n]).abs().max()) for n in wanted) / largest  # type: ignore[index]


def metrics_apart(found: dict[str, float], wanted: dict[str, float]) -> float:
    """Largest difference of a metric, relative to it where it is above 1.

    Raises:
        ValueError: they are not the same metrics.
    """
    if found.keys() != wanted.keys():
        raise ValueError(f"other metrics: {set(found) ^ set(wanted)}")
    return max(abs(found[n] - wanted[n]) / max(1.0, abs(wanted[n])) for n in wanted)


def differences(folder: Path, engine: str, key: tuple[str, str]) -> dict[str, float]:
    """How far two ranks are from one process, the worse rank of both; and what one process makes of the checkpoint of
    two."""
    alone = torch.load(folder / f"alone_{named(key)}.pt", weights_only=False)
    learner = Learner(key, folder)
    start = learner.now()
    back = learner.resumed(folder / engine / named(key))
    change = apart(alone["weights"], start)
    if change == 0:
        raise ValueError(f"three updates of {key} moved no weight")
    worst: dict[str, float] = {"moved": change, "resume_2_1": apart(back["weights"], alone["weights"])}
    for rank in (0, 1):
        two = torch.load(folder / f"{engine}_{named(key)}_{rank}.pt", weights_only=False)
        if two["sharded"] != (engine == "fsdp2"):
            raise ValueError(f"{key} was not run by {engine}")
        worst["share"] = max(worst.get("share", 0.0), two["share"])
        found = {
            "gradients": apart(two["gradients"][0], alone["gradients"][0]),
            "gradients_empty_rank": apart(two["empty"][0], alone["empty"][0]),
            "advantages": apart([two["advantages"]], [alone["advantages"]]),
            "metrics": max(map(metrics_apart, two["metrics"], alone["metrics"])),
            "weights": apart(two["weights"], alone["weights"]),
            "average": apart(two["average"], alone["average"]),
            "resume_1_2": apart(two["resumed"]["weights"], alone["weights"]),
            "resume_average": apart(two["resumed"]["average"], alone["average"]),
        }
        worst = {**worst, **{name: max(value, worst.get(name, 0.0)) for name, value in found.items()}}
    return worst


def main(folder: Path) -> None:
    """On each of two ranks: both engines, and from the checkpoints of one process to the end."""
    rank = int(os.environ["RANK"])
    for engine in ENGINES:
        on_ranks(engine)
        for key in CASES:
            began = time.process_time()
            found = outcome(key, folder, engine)
            found["resumed"] = Learner(key, folder).resumed(folder / "alone" / named(key))
            torch.save(found, folder / f"{engine}_{named(key)}_{rank}.pt")
            print(engine, key, round(time.process_time() - began, 1), "CPU s", flush=True)
    torch.save(reduced(REDUCED, folder), folder / f"reduced_{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
