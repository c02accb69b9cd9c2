"""A model of binary principles beside Bradley-Terry on the same rows, and a policy trained by one principle or another.

    python -m benchmarks.principles [heads] [rl]

`heads`: the recipe rewards/principles with three seeds, on combinations of object and principle that it never saw,
beside Bradley-Terry heads on the same rows as pairs, one trained without negated forms, and one with shuffled answers.
`rl`: RLCM paid by that model (seed 0) for "dark" and for "vivid"; what the pixels say is the gold."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import spread, write_section
from benchmarks.rewards import cpu_s
from mmrl.config import build, find_class
from mmrl.recipes import find_config
from mmrl.types import Samples
from mmrl.yaml_files import read_yaml
from rewards.evaluation.calibration import ece
from rewards.principles import Principle, Principles
from rewards.training import EmojiPrinciples, PrinciplePairs, TrainBradleyTerry, TrainedYesNo, TrainPrinciples
from rewards.training.bradley_terry import preference_loss, wanted_of
from rewards.training.emoji_rows import CATEGORIES
from rewards.training.entailment import EntailmentHead
from rewards.training.fitting import split
from rewards.training.principles import holds_of
from rewards.training.rows import PrincipleRow, paired
from rewards.training.trained import write_head

ROOT = Path("runs/benchmark_principles")
SEEDS = (0, 1, 2)
HELD_OUT = 1000
Arm = dict[str, torch.Tensor]
"""Margins of the held-out rows (N, 2), of each principle and its negation, and of validation rows `known` (M,)."""


def recipe(seed: int) -> TrainPrinciples:
    """As the YAML says, with pictures and head of this seed."""
    path = find_config("rewards/principles")
    raw = read_yaml(path)
    task, _ = build(find_class(raw.pop("task"), path, "task"), raw, path)
    assert isinstance(task, TrainPrinciples) and isinstance(task.rows, EmojiPrinciples)
    return replace(task, rows=replace(task.rows, seed=seed), seed=seed)


# ---- heads ------------------------------------------------------------------------------------------------


def heads() -> dict[str, object]:
    began, found = cpu_s(), dict[str, list[dict[str, float]]]()
    order = []
    for seed in SEEDS:
        task = recipe(seed)
        rows, held = task.rows.rows(), EmojiPrinciples(HELD_OUT, 100 + seed, "held_out").rows()
        assert not {row.cluster for row in rows} & {row.cluster for row in held}
        arms, validation = fitted(task, rows, held)
        for name, arm in arms.items():
            found.setdefault(name, []).append(figures(arm, held, validation))
        order.append(reordered(seed, held))
    return {
        "rows": task.rows.count, "held_out": HELD_OUT, "seeds": list(SEEDS),
        "arms": {name: {key: spread([run[key] for run in runs]) for key in runs[0]} for name, runs in found.items()},
        "largest_change_by_the_order_of_principles": max(order), "cpu_s": round(cpu_s() - began, 1),
    }  # fmt: skip


def fitted(
    task: TrainPrinciples, rows: list[PrincipleRow], held: list[PrincipleRow]
) -> tuple[dict[str, Arm], list[PrincipleRow]]:
    """Every arm's margins, and the validation rows."""
    premises, hypotheses, _ = task.vectors(rows)
    new, texts, _ = task.vectors(held)
    parts, holds = split([row.cluster for row in rows]), holds_of(rows)
    known = parts["validation"]

    def margins(head: EntailmentHead) -> Arm:
        with torch.no_grad():
            return {"held": head(new[:, None], texts), "known": head(premises[known], hypotheses[known, 0])}

    ours, _ = task.fitted(premises, hypotheses, holds, parts)
    folder = ROOT / f"head_{task.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_head(folder, ours.state_dict(), task.backbone, ours.sizes | {"prompts": int(task.prompts)})
    alone, _ = task.fitted(premises, hypotheses[:, :1], holds, parts)
    shuffled = holds[torch.randperm(len(rows), generator=torch.Generator().manual_seed(task.seed))]
    chance, _ = task.fitted(premises, hypotheses, shuffled, parts)
    arms = {"principles": margins(ours), "no negated forms": margins(alone), "shuffled answers": margins(chance)}

    pairs = paired([replace(row, output=i) for i, row in enumerate(rows)])
    two = torch.tensor([pair.outputs for pair in pairs])  # which rows each pair is of
    of_pairs = split([pair.cluster for pair in pairs])
    longer = replace(task, epochs=2 * task.epochs)  # half as many pairs as rows: as many updates
    told = preferred(longer, premises[two], hypotheses[two[:, 0]], wanted_of(pairs), of_pairs)
    arms["Bradley-Terry, told the principle"] = margins(told)
    plain, _ = TrainBradleyTerry(
        task.backbone, PrinciplePairs(task.rows), hidden=task.hidden, epochs=longer.epochs, lr=task.lr,
        weight_decay=task.weight_decay, batch=task.batch, seed=task.seed,
    ).fitted(premises[two], pairs, of_pairs)  # fmt: skip
    with torch.no_grad():
        arms["Bradley-Terry"] = {"held": plain(new)[:, None].expand(-1, 2), "known": plain(premises[known])}
    return arms, [rows[i] for i in known]


def preferred(
    task: TrainPrinciples, outputs: torch.Tensor, hypotheses: torch.Tensor, wanted: torch.Tensor,
    parts: dict[str, list[int]],
) -> EntailmentHead:  # fmt: skip
    """The same head by Bradley-Terry's loss: outputs (N, 2, P) of pairs, their principle and its negation (N, 2, H), by
    which the other output is better."""
    generator = torch.Generator().manual_seed(task.seed)
    train = parts["train"]
    head = EntailmentHead.new(
        outputs[train].flatten(0, 1), hypotheses[train].flatten(0, 1), task.hidden, task.rank, generator
    )

    def loss(scores: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return (preference_loss(scores[:, :, 0], first) + preference_loss(scores[:, :, 1], 1 - first)) / 2

    task.fit(head, lambda ids: head(outputs[ids, :, None], hypotheses[ids, None]), wanted, parts, loss, generator)
    return head


def figures(arm: Arm, held: list[PrincipleRow], validation: list[PrincipleRow]) -> dict[str, float]:
    """What the margins of one arm say of the held-out rows."""
    margins, holds = arm["held"].double().numpy(), holds_of(held).numpy() > 0
    known, wanted = arm["known"].double().numpy(), holds_of(validation).numpy() > 0
    cut = max(sorted(known), key=lambda at: float(np.mean((known > at) == wanted)))  # where a margin has no zero
    right, signs = (margins[:, 0] > 0) == holds, np.where(holds, 1.0, -1.0)
    chance = 1 / (1 + np.exp(-margins[:, 0]))
    draw = np.random.default_rng(0)
    ideal = [ece(chance, (draw.random(len(held)) < chance).astype(float)) for _ in range(100)]
    pairs = paired([replace(row, output=i) for i, row in enumerate(held)])
    better = [(pair.outputs[pair.better], pair.outputs[1 - pair.better]) for pair in pairs if pair.better is not None]
    gaps = np.array([margins[one] - margins[other] for one, other in better])  # of the principle, of its negation
    return {
        "accuracy": float(right.mean()), "accuracy_of_best_threshold": float(np.mean((margins[:, 0] > cut) == holds)),
        "pairs": float(((np.sign(gaps[:, 0]) + 1) / 2).mean()),
        "pairs_negated": float(((1 - np.sign(gaps[:, 1])) / 2).mean()),
        "ece": ece(chance, holds.astype(float)),
        "ece_if_perfect": float(np.mean(ideal)),
        "margin_where_it_holds": float((margins[:, 0] * signs).mean()),
        "margin_of_negation": float((margins[:, 1] * signs).mean()),
        "sign_flips": float((margins[:, 0] * margins[:, 1] < 0).mean()),
        **{f"accuracy/{kind}": float(right[[row.category == kind for row in held]].mean()) for kind in CATEGORIES},
    }  # fmt: skip


def reordered(seed: int, held: list[PrincipleRow]) -> float:
    """The largest change of the reward when its principles are given in another order."""
    principles = {word: Principle(word, weight) for word, weight in (("dark", 1.0), ("vivid", 0.7), ("a panda", -0.4))}
    samples = Samples([row.output for row in held[:200]], {"prompt": [row.prompt for row in held[:200]]})
    model = TrainedYesNo(str(ROOT / f"head_{seed}"))
    one, other = (
        Principles(model, known)(samples).values for known in (principles, dict(reversed(principles.items())))
    )
    return float((one - other).abs().max())


# ---- a policy ---------------------------------------------------------------------------------------------

ARMS = ("dark", "vivid")
STEPS = 20
GOLD = ("brightness", "saturation", "gold_accuracy")


def rl() -> dict[str, object]:
    """RLCM, three seeds an arm; the reward model is the one of seed 0 in all of them."""
    if not (ROOT / "head_0" / "head.json").is_file():
        recipe(0).run(ROOT / "head_0")
    found: dict[str, object] = {}
    used = 0.0
    for arm in ARMS:
        runs = [trained(arm, seed) for seed in SEEDS]
        used += sum(run["cpu_s"]["all"] for run in runs)
        found[arm] = {
            name: {when: spread([run[when][name] for run in runs]) for when in ("before", "after")}
            for name in ("reward", *GOLD)
        }
    return {"seeds": list(SEEDS), "steps": STEPS, "arms": found, "cpu_s": round(used, 1)}


def trained(arm: str, seed: int) -> dict[str, dict[str, float]]:
    folder = ROOT / f"{arm}_{seed}"
    if not (folder / "summary.json").is_file():
        model = f"{{class_path: rewards.training.TrainedYesNo, init_args: {{folder: {ROOT / 'head_0'}}}}}"
        init = f"{{model: {model}, principles: {{asked: {{text: {arm}}}}}}}"
        golds = [
            f"evaluate.metrics.{name}={{class_path: rewards.evaluation.Feature, init_args: {{name: {name}}}}}"
            for name in ("brightness", "saturation")
        ]
        overrides = [
            f"rewards={{principle: {{use: {{class_path: rewards.principles.Principles, init_args: {init}}}}}}}",
            *golds, f"seed={seed}", f"train.steps={STEPS}", "train.lr=1e-4", f"evaluate.every={STEPS}",
            "data.eval_pictures=2", "save={every: null}", "logging.progress=false",
        ]  # fmt: skip
        command = [sys.executable, "-m", "mmrl", "train", "diffusion/rlcm_align", *overrides, "--run", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((folder / "summary.json").read_text())
    read = {
        when: {name: summary[f"eval_{when}"][name]["value"] for name in ("reward", *GOLD)}
        for when in ("before", "after")
    }
    return read | {"cpu_s": {"all": summary["cpu_s"] + summary["eval_cpu_s"]}}


def main() -> None:
    for name in sys.argv[1:] or ["heads", "rl"]:
        write_section("principles", name, {"heads": heads, "rl": rl}[name]())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
