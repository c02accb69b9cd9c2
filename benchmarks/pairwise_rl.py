"""Pairwise-RL: a judge of two outputs beside scores, where prompts have constants, where places lean, and in PPO.

Pictures of the small pipeline; the gold is their brightness, by the pixels. Both reward models read the same CLIP
and are trained on the same pairs, of the 72 training prompts; what is measured is of the 24 prompts held out.

    python -m benchmarks.pairwise_rl                  # all, or some of: heads constants lean rl
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.common import spread, write_section
from diffusion.candidates import Pipeline
from diffusion.policy import PolicyConfig
from diffusion.sampling import SamplingConfig
from mmrl.cli import main as mmrl
from mmrl.types import RewardFunction, Samples, Scores
from rewards.evaluation import Feature, Labelled, Pair, Source
from rewards.evaluation.overoptimisation import Candidates
from rewards.pairwise import AgainstAnchor
from rewards.training import OpenClip, TrainBradleyTerry, Trained, TrainedPairwise, TrainPairwise
from rewards.training.fitting import split
from rewards.training.trained import Head, load_head

ROOT = Path("runs/benchmark_pairwise_rl")
SEEDS = (0, 1, 2)
EACH = 12
"""Pictures of a prompt."""
GOLD = Feature("brightness")
BACKBONE = OpenClip(model="assets/rewards/clip_a")
HEAD = {"hidden": 64, "epochs": 20, "weight_decay": 0.05}
CONSTANTS = (0.0, 1.0, 10.0, 100.0)
"""Deviations of the constant of a prompt, in deviations of the gold within a prompt."""
LEANS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
RECIPE = "diffusion/pairwise_ppo"


@cache
def drawn(part: str) -> Samples:
    """EACH pictures of every prompt of `part` by the start."""
    policy = PolicyConfig(model="assets/diffusion/unet", scheduler="LCMScheduler")
    prompts = f"assets/diffusion/prompts/{part}.txt"
    return Pipeline(policy, prompts, SamplingConfig(steps=4, guidance=1.0), EACH).draw()


@dataclass(frozen=True)
class Drawn(Candidates):
    """Those of a part, drawn once."""

    part: str

    def draw(self) -> Samples:
        return drawn(self.part)


@dataclass(frozen=True)
class Given(RewardFunction):
    """Numbers that are known."""

    numbers: tuple[float, ...]

    def __call__(self, samples: Samples) -> Scores:
        return Scores(torch.tensor(self.numbers, dtype=torch.float64), torch.ones(len(samples), dtype=torch.bool))


@dataclass(frozen=True)
class Fixed(Source):
    """Pairs that are known."""

    given: tuple[Pair, ...]

    def pairs(self) -> list[Pair]:
        return list(self.given)


def pairs_of(part: str, gold: RewardFunction = GOLD) -> list[Pair]:
    """Every two pictures of a prompt, the better one by `gold`."""
    return Labelled(Drawn(part), gold).pairs()


def gold_of(part: str) -> np.ndarray:
    """Brightness (prompts, EACH)."""
    return GOLD(drawn(part)).values.double().numpy().reshape(-1, EACH)


def trained(kind: str, seed: int) -> Path:
    """The folder of a head, trained now if it is not there."""
    folder = ROOT / f"{kind}_{seed}"
    if not (folder / "training.json").is_file():
        kinds = {"bt": TrainBradleyTerry, "pairwise": TrainPairwise, "pairwise_free": TrainPairwise}
        more = {"consistency": 0.0} if kind == "pairwise_free" else {}
        kinds[kind](BACKBONE, Fixed(tuple(pairs_of("train"))), seed=seed, **HEAD, **more).run(folder)
    return folder


# ---- the heads ----------------------------------------------------------------------------------------------


def orders(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """On the held-out pairs: the logits of q(u, v) and q(v, u), and whether u is better."""
    head, backbone = load_head(trained(kind, seed).resolve(), 1 if kind == "bt" else 2)
    vectors, _ = backbone.features(drawn("held_out"))
    grouped = vectors.view(-1, EACH, vectors.shape[1])
    u, v = torch.combinations(torch.arange(EACH)).unbind(1)
    one, other = grouped[:, u].flatten(0, 1), grouped[:, v].flatten(0, 1)
    gold = torch.from_numpy(gold_of("held_out"))
    if kind == "bt":
        margin = head(one) - head(other)
        return margin.double(), -margin.double(), (gold[:, u] > gold[:, v]).flatten()
    logits = [head(torch.cat(both, dim=1)).double() for both in ((one, other), (other, one))]
    return *logits, (gold[:, u] > gold[:, v]).flatten()


def heads() -> dict[str, object]:
    """Accuracy on pairs of prompts held out, in one order and both, and how far the two orders are apart."""
    found: dict[str, object] = {"pairs": {part: len(pairs_of(part)) for part in ("train", "held_out")}}
    for kind in ("bt", "pairwise", "pairwise_free"):
        rows = []
        for seed in SEEDS:
            first, second, better = orders(kind, seed)
            q, back = first.sigmoid(), second.sigmoid()
            both = (((q + 1 - back) / 2 > 0.5) == better).double().mean()
            rows.append((both, ((q > 0.5) == better).double().mean(), (q + back - 1).abs().mean()))
        names = ("accuracy", "accuracy_one_order", "inconsistency")
        found[kind] = {name: spread([float(row[i]) for row in rows]) for i, name in enumerate(names)}
    return found


# ---- a constant a prompt --------------------------------------------------------------------------------------


def regression(vectors: Tensor, gold: Tensor, pairs: list[Pair], seed: int) -> Head:
    """A head of the same size by least squares on the gold (N,) of single pictures, in its own deviations; the prompts
    that stop it are those that stop the others."""
    held = {pairs[i].cluster for i in split([pair.cluster or pair.id for pair in pairs])["train"]}
    clusters = [f"prompt-{number}" for number in range(len(gold) // EACH) for _ in range(EACH)]
    train = torch.tensor([i for i, cluster in enumerate(clusters) if cluster in held])
    stops = {pairs[i].cluster for i in split([pair.cluster or pair.id for pair in pairs])["validation"]}
    validation = torch.tensor([i for i, cluster in enumerate(clusters) if cluster in stops])
    wanted = ((gold - gold[train].mean()) / gold[train].std()).float()
    generator = torch.Generator().manual_seed(seed)
    flat = vectors[train]
    head = Head.new(flat.shape[1], HEAD["hidden"], flat.mean(0), flat.std(0).clamp(min=1e-4), generator)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=HEAD["weight_decay"])
    best, least = head.state_dict(), float("inf")
    for _ in range(5 * HEAD["epochs"]):  # there are fewer pictures than pairs
        for ids in train[torch.randperm(len(train), generator=generator)].split(64):
            loss = mse_loss(head(vectors[ids]), wanted[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = float(mse_loss(head(vectors[validation]), wanted[validation]))
        if found < least:
            least, best = found, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    return head.requires_grad_(False)


def told(rewards: np.ndarray, centred: np.ndarray, kept: slice) -> dict[str, float]:
    """Of rewards (prompts, EACH): how often the better of two pictures of a prompt has the higher one; the rank
    correlation, over all prompts together, with how far the gold is above its prompt's mean; the share of the variance
    that is between prompts."""
    rewards, centred = rewards[:, kept], centred[:, kept]
    u, v = np.triu_indices(rewards.shape[1], 1)
    right = np.sign(rewards[:, u] - rewards[:, v]) * np.sign(centred[:, u] - centred[:, v])
    between = rewards.mean(1).var() / rewards.var()
    rank = float(spearmanr(rewards.ravel(), centred.ravel()).statistic)
    return {"accuracy": float((right.mean() + 1) / 2), "rank": rank, "between": float(between)}


def anchored(reward: AgainstAnchor) -> np.ndarray:
    """Rewards of the held-out pictures against the first of their prompt."""
    samples = drawn("held_out")
    anchors = [samples.outputs[i // EACH * EACH] for i in range(len(samples))]
    columns = {"prompt": samples.columns["prompt"], "anchor": anchors}
    return reward(Samples(samples.outputs, columns)).values.double().numpy().reshape(-1, EACH)


def constants() -> dict[str, object]:
    """The gold of a prompt's pictures about its mean, plus a constant of the prompt. Rewards are read on other prompts,
    without the first picture of each, which is the anchor."""
    train, test = gold_of("train"), gold_of("held_out")
    centred, about = train - train.mean(1, keepdims=True), test - test.mean(1, keepdims=True)
    within, seen = float(centred.std()), slice(1, None)
    natural = float(train.mean(1).std() / within)
    vectors, _ = BACKBONE.features(drawn("train"))
    unseen, _ = BACKBONE.features(drawn("held_out"))
    pairs = pairs_of("train")
    found: dict[str, object] = {"natural": round(natural, 2), "within": round(within, 5)}
    drift: dict[str, float] = {}
    arms: dict[str, list[dict[str, float]]] = {}
    first: dict[int, np.ndarray] = {}
    for size in CONSTANTS:
        chance = np.random.default_rng(0)
        moved = centred + size * within * chance.normal(size=(len(centred), 1))
        labels = pairs_of("train", Given(tuple(moved.ravel().tolist())))
        assert [one.better for one in labels] == [one.better for one in pairs]  # none is turned, so no head is
        for seed in SEEDS:
            head = regression(vectors, torch.from_numpy(moved.ravel()), pairs, seed)
            rewards = head(unseen).double().numpy().reshape(-1, EACH)
            arms.setdefault(f"regression, constants of {size:g}", []).append(told(rewards, about, seen))
            scaled = (rewards - rewards.mean()) / rewards.std()
            change = float(np.abs(scaled - first.setdefault(seed, scaled)).max())
            drift[f"regression, constants of {size:g}"] = max(
                change, drift.get(f"regression, constants of {size:g}", 0.0)
            )
    for seed in SEEDS:
        raw = Trained(str(trained("bt", seed)))(drawn("held_out")).values.double().numpy().reshape(-1, EACH)
        arms.setdefault("bt", []).append(told(raw, about, seen))
        arms.setdefault("bt, less the anchor's score", []).append(told(raw - raw[:, :1], about, seen))
        judge = TrainedPairwise(str(trained("pairwise", seed)))
        arms.setdefault("pairwise, against an anchor", []).append(told(anchored(AgainstAnchor(judge)), about, seen))
        samples = drawn("held_out")
        group = judge(samples).values.double().numpy().reshape(-1, EACH)
        arms.setdefault("pairwise, against its group", []).append(told(group, about, seen))
    # the same heads again, from the labels with the largest constants
    parts = split([pair.cluster or pair.id for pair in labels])
    for kind, config in (("bt", TrainBradleyTerry), ("pairwise", TrainPairwise)):
        again, _ = config(BACKBONE, Fixed(()), seed=0, **HEAD).fitted(*paired(vectors, labels), parts)
        known = load_head(trained(kind, 0).resolve(), config.at_once)[0].state_dict()
        drift[kind] = max(float((value - known[name]).abs().max()) for name, value in again.state_dict().items())
    found["arms"] = {name: {key: spread([row[key] for row in rows]) for key in rows[0]} for name, rows in arms.items()}
    found["largest_change"] = {name: round(value, 6) for name, value in drift.items()}
    return found


def paired(vectors: Tensor, pairs: list[Pair]) -> tuple[Tensor, list[Pair]]:
    """Vectors (pairs, 2, D) of pairs as `Labelled` lists them."""
    u, v = torch.combinations(torch.arange(EACH)).unbind(1)
    grouped = vectors.view(-1, EACH, vectors.shape[1])
    return torch.stack([grouped[:, u].flatten(0, 1), grouped[:, v].flatten(0, 1)], dim=1), pairs


# ---- a lean to the first place --------------------------------------------------------------------------------


def lean() -> dict[str, object]:
    """q with b added to its logit in both orders. `ideal`: a judge whose orders agree without it, so that only the
    second order is left, b^2 sigmoid''(d) / 2; the trained judges' orders do not quite agree."""
    found: dict[str, object] = {}
    for kind in ("ideal", "pairwise", "pairwise_free"):
        first, second, better = orders("pairwise" if kind == "ideal" else kind, 0)
        if kind == "ideal":
            first = (first - second) / 2
            second = -first
        straight = (first.sigmoid() + 1 - second.sigmoid()) / 2
        rows = {}
        for b in LEANS:
            q, back = (first + b).sigmoid(), (second + b).sigmoid()
            p, swapped = (q + 1 - back) / 2, (back + 1 - q) / 2
            slope, curve = (
                (first.sigmoid() * (1 - first.sigmoid()), second.sigmoid() * (1 - second.sigmoid())),
                first.sigmoid(),
            )
            one = b * (slope[0] - slope[1]) / 2
            two = b**2 / 4 * (slope[0] * (1 - 2 * curve) - slope[1] * (1 - 2 * second.sigmoid()))
            rows[f"{b:g}"] = {
                "one_order": round(float((q - first.sigmoid()).abs().mean()), 6),
                "both_orders": round(float((p - straight).abs().mean()), 6),
                "first_order_term": round(float(one.abs().mean()), 6),
                "second_order_term": round(float(two.abs().mean()), 6),
                "beyond_both": round(float((p - straight - one - two).abs().max()), 6),
                "sum_off_by": float((p + swapped - 1).abs().max()),
                "accuracy_one_order": round(float(((q > 0.5) == better).double().mean()), 4),
                "accuracy_both_orders": round(float(((p > 0.5) == better).double().mean()), 4),
            }
        found[kind] = rows
    return found


# ---- PPO ------------------------------------------------------------------------------------------------------


def words(arm: str, seed: int) -> list[str]:
    """Overrides of the recipe."""
    kinds = {"pairwise": TrainedPairwise, "bt": Trained}
    trained(arm, seed)
    assert arm in kinds
    if arm == "pairwise":
        return [f"rewards.wins.use.init_args.judge.init_args.folder={ROOT / f'pairwise_{seed}'}"]
    return [
        f"rewards.wins.use={{class_path: rewards.training.Trained, init_args: {{folder: {ROOT / f'bt_{seed}'}}}}}",
        "anchors=false",
    ]


def rl() -> dict[str, object]:
    """PPO of the recipe by either reward: the same steps, rollouts, rates and KL, from one start; head and run have the
    seed."""
    found: dict[str, object] = {}
    for arm in ("pairwise", "bt"):
        summaries, fits, between = [], [], []
        for seed in SEEDS:
            folder = ROOT / f"ppo_{arm}_{seed}"
            if not (folder / "summary.json").is_file():
                resume = ["--resume"] if (folder / "config.yaml").is_file() else []
                told_to = [*words(arm, seed), f"seed={seed}", "logging.progress=false"]
                if status := mmrl(["train", RECIPE, *told_to, "--run", str(folder), *resume]):
                    raise SystemExit(status)
            summaries.append(json.loads((folder / "summary.json").read_text()))
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            steps = [line["update/explained_variance"] for line in lines if "update/explained_variance" in line]
            fits.append(statistics.fmean(steps[len(steps) // 2 :]))
            between.append(next(line for line in lines if line["step"] > 0 and "eval/gold" in line))
        before, after = (
            {name: [s[when][name]["value"] for s in summaries] for name in summaries[0][when]}
            for when in ("eval_before", "eval_after")
        )
        found[arm] = {
            "before": {name: spread(values) for name, values in before.items()},
            "after": {name: spread(values) for name, values in after.items()},
            "half_way": {
                name: spread([line[f"eval/{name}"] for line in between]) for name in ("gold", "gold_accuracy", "kl")
            },
            "gain": spread([b - a for a, b in zip(before["gold"], after["gold"], strict=True)]),
            "explained_variance_second_half": spread(fits),
            "steps": summaries[0]["steps"], "cpu_s": spread([s["cpu_s"] for s in summaries]),
            "logprob_diff_max": max(s["parity"]["logprob_diff_max"] for s in summaries),
        }  # fmt: skip
    found["seconds"] = round(sum(sum(found[arm]["cpu_s"]["values"]) for arm in ("pairwise", "bt")), 1)  # of training
    gains = [found[arm]["gain"]["values"] for arm in ("pairwise", "bt")]
    found["pairwise_less_bt_by_seed"] = spread([a - b for a, b in zip(*gains, strict=True)])
    return found


def main() -> None:
    """Measure what is asked for."""
    torch.set_num_threads(1)
    parts = {"heads": heads, "constants": constants, "lean": lean, "rl": rl}
    for name in sys.argv[1:] or list(parts):
        began = time.process_time()
        figures = parts[name]()
        write_section("pairwise_rl", name, {"seconds": round(time.process_time() - began, 1), **figures})


if __name__ == "__main__":
    main()
