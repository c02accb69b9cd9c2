"""The thesis of this house: a method is written once, and tokens, denoise steps and action chunks differ in a config.

Five algorithms (configs/compare/algorithms.yaml, overrides that are the same everywhere) on the recipes of three domains,
by the command line. What each learns: docs/thesis.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from mmrl.advantages import GroupRelative
from mmrl.aggregates import SequenceMean
from mmrl.cli import main as mmrl
from mmrl.config import load
from mmrl.metrics import PARITY_LIMIT
from mmrl.recipes import find_config
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.surrogates import GSPO
from mmrl.types import Batch, Rollout
from mmrl.yaml_files import read_yaml
from vla.sim.base import SimulationConfig, Simulator, TaskConfig
from vla.sim.start import start
from vla.sim.workers import Workers

ALGORITHMS: dict[str, list[str]] = read_yaml(find_config("compare/algorithms"))["arms"]  # type: ignore[assignment]
SHORT = [
    "train.steps=2", "train.update.epochs=1", "train.update.minibatches=1", "evaluate.every=null", "evaluate.samples=1",
    "evaluate.metrics={}", "save.every=null", "save.best=null", "stop=[]", "logging.progress=false",
]  # fmt: skip
DOMAINS = {
    "vision": ("vision/cls_rl_nothink", ["rollout.prompts=6", "rollout.group=4", "data.protocol.evaluation=6"]),
    "diffusion": (
        "diffusion/rlcm_compress",
        ["policy.logprob_reduction=sum", "rollout.prompts=2", "rollout.group=3", "data.eval_pictures=1", "watch=[]",
         "data.eval=few.txt"],
    ),
    "vla": (
        "vla/grpo_pushcube",
        ["rollout.episodes=8", "rollout.group=4", "env.max_steps=12", "held_out.episodes=2", "held_out.between=2",
         "simulation.workers=1", "env.reward=normalized_dense", "reward.relative=1.0"],  # so few steps are no success
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def simulators() -> Iterator[None]:
    """The same ones in every run: to start one takes longer than a run of this size."""
    made: dict[str, Simulator] = {}

    def once(tasks: Sequence[TaskConfig], config: SimulationConfig) -> Simulator:
        return made.setdefault(repr((tasks, config)), made.get(repr((tasks, config))) or start(tasks, config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vla.experiments.simulate", once)
        patch.setattr("vla.evaluation.start", once)
        patch.setattr(Workers, "close", lambda self: None)
        yield
    for simulator in made.values():
        simulator.close()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("a red cat\na blue dog\n")


def words(domain: str, algorithm: str) -> list[str]:
    recipe, small = DOMAINS[domain]
    return [recipe, *SHORT, *small, *ALGORITHMS[algorithm]]


def trained(domain: str, algorithm: str, *more: str) -> list[dict[str, float]]:
    """The lines of metrics of two steps."""
    assert mmrl(["train", *words(domain, algorithm), *more, "--run", "run"]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "update/loss" in line or "update/value_error" in line]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_a_config_in_every_domain(domain: str, algorithm: str) -> None:
    first, second = trained(domain, algorithm)
    for line in (first, second):
        assert line["parity/logprob_diff_max"] <= PARITY_LIMIT
        assert line["parity/first_pass_ratio_max"] == pytest.approx(1.0, abs=1e-3)  # of sums over 256 dimensions, say
        assert line["update/approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert line.get("update/clip_frac_low", 0.0) == line.get("update/clip_frac_high", 0.0) == 0.0
    assert second["update/grad_norm"] > 0
    if algorithm == "kl":
        assert 0.0 <= first["update/kl"] <= 1e-12  # 0, or of the rounding of one prompt run with a gradient and without
        assert second["update/kl"] > 1e-9
    if algorithm == "ppo":
        assert first["update/value_error"] > 0  # it says 0 before it is trained
        assert "update/explained_variance" in second
        assert "update/loss" not in first  # the first step is the critic's alone
        heads = list(Path("run/checkpoints/step_000002/policy").glob("heads.safetensors"))
        assert len(heads) == 1
        assert mmrl(["export", "run", "--to", "exported"]) == 0
        assert not list(Path("exported").glob("heads*"))


def test_kl_in_closed_form_where_a_domain_knows_it() -> None:
    exact = "algorithm.regularisers=[{class_path: mmrl.regularisers.ExactKL, init_args: {coef: 0.04}}]"
    first, second = trained("diffusion", "grpo", exact)
    assert first["update/kl"] == 0.0
    assert second["update/kl"] > 0


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_critic_that_classifies_is_a_config_in_every_domain(domain: str) -> None:
    bins = ["policy.critic.bins={low: -2.0, high: 2.0, count: 21}", "algorithm.value_loss=mmrl.hl_gauss.HLGauss"]
    first, second = trained(domain, "ppo", *bins)
    assert first["update/value_error"] > 0
    assert second["update/grad_norm"] > 0
    assert second["parity/logprob_diff_max"] <= PARITY_LIMIT


@pytest.mark.parametrize("domain", DOMAINS)
def test_decided_groups_give_way_in_every_domain(domain: str) -> None:
    """Rollouts of several rounds are joined, and every decision is scored again as it was recorded."""
    first, second = trained(domain, "grpo", "train.resample=2", "rollout.group=2")
    for line in (first, second):
        assert line["parity/logprob_diff_max"] <= PARITY_LIMIT
        assert line["parity/first_pass_ratio_max"] == pytest.approx(1.0, abs=1e-3)


PARTS = {
    "clip_cov": ["algorithm.selectors=[{class_path: mmrl.selectors.ClipCov, init_args: {within_step: true, low: 0.01, "
                 "high: 1.0e+9, share: 0.1}}]"],
    "kl_cov": ["algorithm.surrogate=mmrl.surrogates.Importance",
               "algorithm.regularisers=[{class_path: mmrl.regularisers.KLCov, init_args: {within_step: true, share: 0.1}}]"],
    "outliers": ["algorithm.selectors=[{class_path: mmrl.selectors.DropOutliers, init_args: {limit: 1.0}}]"],
    "lp_reg": ["algorithm.regularisers=[{class_path: mmrl.regularisers.LpReg, init_args: {share: 0.9, kappa: 1.0e-6}}]"],
    "lite_ppo": ["algorithm.advantage=mmrl.advantages.BatchScaled"],
    "gppo": ["algorithm.surrogate=mmrl.surrogates.GPPO"],
    "pre_clip": ["algorithm.surrogate=mmrl.surrogates.PreClip"],
    "tis": ["train.update.rescore=true", "algorithm.selectors=[mmrl.selectors.TruncatedImportance]"],
    "pacs": ["algorithm.surrogate={class_path: mmrl.surrogates.PACS, init_args: {mean: true, beta: 0.01, right: 0.0}}"],
    "dpo": ["algorithm.surrogate=mmrl.surrogates.DPO"],
}  # fmt: skip
"""Parts that are defined for any decisions (docs/paper-index.md), the same words everywhere."""
BY_ENTROPY = {
    "forking": "algorithm.selectors=[mmrl.selectors.ForkingTokens]",
    "steer": "algorithm.selectors=[mmrl.selectors.Steer]",
    "siren": "algorithm.regularisers=[{class_path: mmrl.regularisers.Siren, init_args: {mass: 1.0}}]",
    "aepo": "algorithm.advantage=mmrl.advantages.EntropyAware",
}


@pytest.mark.parametrize("domain", ["diffusion", "vla"])  # vision: configs/compare/entropy.yaml
@pytest.mark.parametrize("part", PARTS)
def test_parts_run_unchanged_beyond_tokens(domain: str, part: str) -> None:
    first, second = trained(domain, "grpo", *PARTS[part], "rollout.group=4")
    assert first["parity/logprob_diff_max"] <= PARITY_LIMIT
    if part == "pacs":  # of one class, as all of these, there is no gradient until scores differ
        assert 0.0 <= second["update/pacs_accuracy"] <= 1.0
        return
    assert second["update/grad_norm"] > 0
    chosen = {name: value for line in (first, second) for name, value in line.items() if name.startswith("plan/")}
    if part in ("clip_cov", "kl_cov", "lp_reg"):
        assert max(chosen.values()) > 0


@pytest.mark.parametrize("part", BY_ENTROPY)
def test_parts_that_read_entropy_serve_learned_spreads_and_refuse_scheduled_ones(
    part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, second = trained("vla", "grpo", BY_ENTROPY[part])
    assert second["update/grad_norm"] > 0
    assert mmrl(["train", *words("diffusion", "grpo"), BY_ENTROPY[part], "--run", "refused"]) != 0
    said = capsys.readouterr().err
    assert "the decisions of DiffusionPolicy are Gaussians whose spread a schedule sets" in said
    assert "docs/paper-index.md" in said


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_algorithm_is_the_same_to_the_last_key(algorithm: str) -> None:
    found = [yaml.safe_load(load(*_split(words(domain, algorithm))).resolved) for domain in DOMAINS]
    assert found[0]["algorithm"] == found[1]["algorithm"] == found[2]["algorithm"]
    assert found[0]["policy"]["critic"] == found[1]["policy"]["critic"]
    assert (found[0]["policy"]["critic"] is None) == (algorithm != "ppo")


def _split(asked: list[str]) -> tuple[str, list[str]]:
    return asked[0], asked[1:]


# ---- GSPO is defined for tokens ---------------------------------------------------------------------------


@cache
def rollout_of(domain: str) -> Rollout:
    """A rollout of a domain's own recipe."""
    experiment = load(*_split(words(domain, "grpo"))).experiment
    parts = experiment.build(Runtime(RuntimeConfig(device="cpu"), 0))
    with acting(parts.policy):
        return parts.collector.collect(parts.policy, torch.Generator().manual_seed(0))


def sequence_form(logprobs: Tensor, batch: Batch, clip: float) -> Tensor:
    """Equation 5 of arXiv 2507.18071 as it stands there, a trajectory at a time."""
    losses = []
    for row in range(len(logprobs)):
        mask = batch.mask[row]
        if bool(mask.any()):
            ratio = (logprobs[row][mask] - batch.old_logprobs[row][mask]).mean().exp()
            advantage = batch.advantages[row][mask][0]
            losses.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("domain", DOMAINS)
def test_gspo_is_the_geometric_mean_over_the_decisions_of_a_trajectory(domain: str) -> None:
    """Its decisions are those of the mask: tokens up to the end, steps with noise, chunks of the living episode."""
    rollout, clip = rollout_of(domain), 0.05
    credit, scale = GroupRelative()(rollout).advantages, SequenceMean()(rollout.mask)
    credit = torch.where(rollout.mask, torch.randn(len(rollout), 1, generator=torch.Generator().manual_seed(1)), credit)
    steps = torch.arange(rollout.mask.shape[1]).expand(len(rollout), -1)
    batch = Batch(
        rollout.transitions, steps, rollout.logprobs, credit, rollout.mask, scale, torch.ones_like(scale), rollout.group_ids
    )  # fmt: skip
    moved = 0.1 * torch.randn(rollout.logprobs.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = ((rollout.logprobs + moved).requires_grad_() for _ in range(2))
    losses, _ = GSPO(clip, clip)(ours, batch)
    loss = (torch.where(rollout.mask, losses, 0.0) * scale).sum()
    expected = sequence_form(theirs, batch, clip)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    loss.backward()
    expected.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert 0 < int((ours.grad != 0).any(-1).sum()) < len(rollout)  # some trajectories are clipped, as a whole
