"""The moving average of the weights: its closed form, where it is used, and that a run with one resumes.

Bugs that were planted in a scratch copy, and the test that fails on each:

| planted bug | caught by |
|---|---|
| no warm-up of the decay; decay and 1 - decay exchanged | test_closed_form |
| the weights are not put back after `applied`, or not when it raises | test_applied_restores_bit_for_bit |
| evaluation with the trained weights | test_evaluation_and_samples_use_the_average |
| a checkpoint of the trained weights; trained.pt of the average | test_a_checkpoint_holds_the_average_and_what_training_goes_on_from |
| resume from the average; resume with `updates` at 0 | test_a_resumed_run_is_the_uninterrupted_run |
| `mmrl evaluate` of the start of the run | test_the_commands_read_the_average |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmrl import checkpoint, commands
from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.checkpoint import SaveConfig
from mmrl.cli import main
from mmrl.ema import Average
from mmrl.experiment import Exported
from mmrl.parts import Parts
from mmrl.run import RunFolder
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
from mmrl.stopping import StopRule, Watch
from mmrl.surrogates import PPOClip
from mmrl.trainer import Trainer
from mmrl.types import Estimate
from tests.toy import (
    RightActions,
    ToyCollector,
    ToyEvaluator,
    ToyExperiment,
    ToyPolicy,
    ToyPolicyConfig,
    ToyRollout,
    toy_config,
)

DECAY = 0.9
Weights = Mapping[str, Tensor]


def copied(policy: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def read(folder: Path) -> dict[str, Tensor]:
    """Weights that ToyPolicy.save_pretrained wrote."""
    policy = ToyPolicyConfig().make()
    policy.load_weights(folder)
    return copied(policy)


class Seeing(ToyEvaluator):
    """Remembers with which weights it was asked."""

    def __init__(self) -> None:
        self.evaluated: list[Weights] = []
        self.sampled: list[Weights] = []

    def evaluate(self, policy: ToyPolicy, generator: torch.Generator) -> dict[str, Estimate]:
        self.evaluated.append(copied(policy))
        return super().evaluate(policy, generator)

    def samples(self, policy: ToyPolicy, generator: torch.Generator, folder: Path, count: int) -> None:
        self.sampled.append(copied(policy))
        super().samples(policy, generator, folder, count)


def trainer(folder: Path | None, steps: int, ema: float | None = DECAY) -> Trainer:
    collector = ToyCollector(RightActions(), ToyRollout())
    grpo = Algorithm(GroupRelative(), PPOClip(), TokenMean())
    parts = Parts(ToyPolicyConfig().make(), collector, Seeing(), grpo)
    run = None
    if folder is not None:
        run = RunFolder(folder)
        run.checkpoints.mkdir(parents=True)
        (folder / "config.yaml").touch()
    train = TrainConfig(steps=steps, lr=0.05, ema=ema)
    quiet = LoggingConfig(progress=False)
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    return Trainer(parts, train, runtime, run, EvaluateConfig(every=None, samples=1), logging=quiet)


# ---- the average itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.15, 0.3, 0.999])
def test_closed_form(decay: float) -> None:
    """sum of the weights so far, each by its share times all later decays, which start small."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    average = Average([parameter], decay)
    seen = [parameter.detach().clone()]
    for number in range(1, 8):
        with torch.no_grad():
            parameter.copy_(torch.arange(3.0) * number**2 + 1)
        average.update()
        seen.append(parameter.detach().clone())
        decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, number + 1)]
        shares = [1.0, *(1 - d for d in decays)]
        wanted = sum(
            share * torch.tensor(decays[place:], dtype=torch.float64).prod() * value
            for place, (share, value) in enumerate(zip(shares, seen, strict=True))
        )
        assert torch.allclose(average.values[0], wanted, rtol=1e-12), number
    assert torch.equal(parameter.detach(), seen[-1])  # the weights themselves are left alone
    assert not average.values[0].requires_grad


def test_applied_restores_bit_for_bit() -> None:
    parameters = [nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(n))) for n in range(2)]
    places = [parameter.data_ptr() for parameter in parameters]
    average = Average(parameters, DECAY)
    with torch.no_grad():
        parameters[0].mul_(1.1), parameters[1].add_(0.3)
    average.update()
    before = [parameter.detach().clone() for parameter in parameters]
    values = [value.clone() for value in average.values]
    for broken in (False, True):
        try:
            with average.applied():
                assert all(torch.equal(p, v) for p, v in zip(parameters, values, strict=True))
                assert not torch.equal(parameters[0], before[0])
                if broken:
                    raise RuntimeError("an evaluation that fails")
        except RuntimeError:
            assert broken
        assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
        assert all(torch.equal(v, w) for v, w in zip(average.values, values, strict=True))
    assert [parameter.data_ptr() for parameter in parameters] == places  # what the optimiser knows
    assert all(parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"train.ema is {decay}: give a decay between 0 and 1"):
        TrainConfig(ema=decay)


# ---- in a run ----------------------------------------------------------------------------------------------


def test_one_update_an_optimiser_step_and_training_is_left_alone() -> None:
    with_it, without = trainer(None, 4), trainer(None, 4, ema=None)
    with_it.fit(), without.fit()
    assert with_it.average is not None
    assert with_it.average.updates == 4
    assert same(copied(with_it.parts.policy), copied(without.parts.policy))


def test_evaluation_and_samples_use_the_average(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", 3)
    run.fit()
    assert run.average is not None
    seen = run.parts.evaluator
    assert isinstance(seen, Seeing)
    names = [name for name, _ in run.parts.policy.named_parameters()]
    averaged = dict(zip(names, run.average.values, strict=True))
    for weights in (seen.evaluated[-1], seen.sampled[-1]):
        assert all(torch.equal(weights[name], value) for name, value in averaged.items())
    trained = copied(run.parts.policy)
    assert not same(seen.evaluated[-1], trained)
    assert same(seen.evaluated[0], copied(ToyPolicyConfig().make()))  # before: the start
    run.evaluate()
    assert same(copied(run.parts.policy), trained)


def test_a_checkpoint_holds_the_average_and_what_training_goes_on_from(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", 3)
    run.fit()
    assert run.average is not None
    found = checkpoint.latest(run.folder.checkpoints) if run.folder else None
    assert found is not None
    saved = read(found / "policy")
    for (name, parameter), value in zip(run.parts.policy.named_parameters(), run.average.values, strict=True):
        assert torch.equal(saved[name], value)
        assert not torch.equal(saved[name], parameter)
    fresh = ToyPolicyConfig().make()
    average = Average(list(fresh.parameters()), DECAY)
    optimizer = torch.optim.AdamW(fresh.parameters())
    checkpoint.load(found, fresh, optimizer, average)
    assert same(copied(fresh), copied(run.parts.policy))
    assert all(torch.equal(one, two) for one, two in zip(average.values, run.average.values, strict=True))
    assert average.updates == run.average.updates == 3
    plain = ToyPolicyConfig().make()
    checkpoint.load(found, plain, torch.optim.AdamW(plain.parameters()))
    assert same(copied(plain), saved)  # without the average of the run, the policy is that average


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in found]


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "write_report", lambda runs: "not drawn")
    config = str(toy_config(tmp_path, steps=6))
    ema = "train.ema=0.8"
    assert main(["train", config, "--run", "whole", ema]) == 0
    assert main(["train", config, "--run", "halves", ema, "train.steps=2"]) == 0
    assert main(["train", "--run", "halves", "--resume", "train.steps=6"]) == 0
    whole, halves = (
        [line for line in lines(Path(name)) if "update/loss" in line or line["step"] == 6]
        for name in ("whole", "halves")
    )
    assert halves == whole
    places = [Path(name, "checkpoints", "step_000006") for name in ("whole", "halves")]
    assert same(read(places[0] / "policy"), read(places[1] / "policy"))
    trained = [torch.load(place / "trained.pt", weights_only=True) for place in places]
    assert same(*trained)
    assert int(trained[0]["updates"]) == 6 * 4  # two epochs of two minibatches
    assert main(["train", config, "--run", "plain"]) == 0
    assert not Path("plain/checkpoints/step_000006/trained.pt").exists()
    one, other = ([line for line in lines(Path(name)) if "update/loss" in line] for name in ("whole", "plain"))
    assert one == other  # what is trained is the same with an average and without


def test_the_commands_read_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mmrl evaluate` gives the figures of the run's own last evaluation; export writes the average."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "write_report", lambda runs: "not drawn")
    seen: list[Weights] = []
    evaluate = ToyEvaluator.evaluate

    def watched(self: ToyEvaluator, policy: ToyPolicy, generator: torch.Generator) -> dict[str, Estimate]:
        seen.append(copied(policy))
        return evaluate(self, policy, generator)

    def export(self: ToyExperiment, policy: ToyPolicy, folder: Path, merge: bool, dtype: str | None) -> Exported:
        policy.save_pretrained(folder)
        return Exported("toy", "")

    monkeypatch.setattr(ToyEvaluator, "evaluate", watched)
    monkeypatch.setattr(ToyExperiment, "export", export)
    config = str(toy_config(tmp_path, steps=6))
    assert main(["train", config, "--run", "run", "train.ema=0.8", "train.lr=0.1"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    averaged = read(Path("run/checkpoints/step_000006/policy"))
    assert main(["export", "run", "--to", "out"]) == 0
    assert same(read(Path("out")), averaged)
    seen.clear()
    found = commands.evaluate("run", ())
    assert len(seen) == 1
    assert same(seen[0], averaged)
    assert found == summary["eval_after"]


def test_a_fork_starts_from_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "write_report", lambda runs: "not drawn")
    config = str(toy_config(tmp_path, steps=2))
    assert main(["train", config, "--run", "run", "train.ema=0.8"]) == 0
    assert main(["train", "--from", "run", "--run", "fork", "train.ema=null", "train.steps=0"]) == 0
    before, after = (json.loads(Path(name, "summary.json").read_text()) for name in ("run", "fork"))
    assert after["eval_before"] == before["eval_after"]


def test_the_best_checkpoint_is_of_the_average(tmp_path: Path) -> None:
    """What keep_best returns to is what was evaluated."""
    run = trainer(tmp_path / "run", 6)
    rule = StopRule("accuracy", above=-1.0, then="keep_best", evaluations=3)
    run.evaluation = replace(run.evaluation, every=1)
    run.saving = SaveConfig(every=1, keep=1, best="accuracy", lowest=True)
    run.watch = Watch((rule,), run.saving)
    summary = run.fit()
    assert summary["kept_step"] == 0  # the rule is violated from the start on
    seen = run.parts.evaluator
    assert isinstance(seen, Seeing)
    assert same(copied(run.parts.policy), seen.evaluated[0])
