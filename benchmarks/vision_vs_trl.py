"""CPU seconds per RL step beside TRL's GRPOTrainer, on the same model and data.

A Qwen2.5-VL of 2.1M parameters, 64-pixel pictures, 8 prompts x 8 answers, 68 prompt tokens and exactly 16
completion tokens, vision tower trained, every group with spread in its rewards, no feature cache and no
skipping of groups, one thread. Median CPU seconds of a step after 2 unmeasured ones, five repeats in turn of
TRL, mmrl, and mmrl's naive path (prompts not shared). Each repeat is a process of its own.

    python -m benchmarks.vision_vs_trl
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS = GROUP = 8
PROMPT_TOKENS, NEW_TOKENS, STEPS, UNMEASURED, REPEATS = 68, 16, 10, 2, 5
ARMS = ("trl", "mmrl", "naive")
PHASES = ("generation", "logprobs", "update")


def picture(number: int):
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_model(folder: Path) -> None:
    """The model, and a question that makes the prompt exactly 68 tokens long."""
    from vision import embedded
    from vision.data.base import Example
    from vision.encoding import Encoder
    from vision.prompts import Direct

    config = embedded.EmbeddedConfig(hidden=128, layers=4, vision_layers=4, patch=8, image_size=64, vocabulary=512)
    embedded.save(config, ["what is it " * 30, *(f"word{i}" for i in range(60))], 0, folder)
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    question = ""
    for _ in range(400):
        example = Example("x", (picture(0),), question, "a")
        length = len(Encoder(processor, Direct(suffix=""), ())(example).tokens)
        if length == PROMPT_TOKENS:
            (folder / "question.txt").write_text(question)
            return
        question += "Z"
    raise RuntimeError("no question makes a prompt of 68 tokens")


def reward(completions, **_: object) -> list[float]:
    """Spread in every group: the rank of an answer within the batch."""
    return [float(i % GROUP) / GROUP for i in range(len(completions))]


def run_mmrl(folder: Path, shared: bool) -> dict[str, object]:
    import torch

    from mmrl.advantages import GroupRelative
    from mmrl.aggregates import TokenMean
    from mmrl.algorithm import Algorithm
    from mmrl.parts import Parts
    from mmrl.runtime import Runtime, RuntimeConfig
    from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
    from mmrl.surrogates import PPOClip
    from mmrl.trainer import Trainer
    from mmrl.types import Evaluator, RewardFunction, Scores
    from vision.collector import AnswerCollector, RolloutConfig
    from vision.data.base import Example
    from vision.encoding import Encoder
    from vision.policy import PolicyConfig, VisionPolicy
    from vision.prompts import Direct

    class Spread(RewardFunction):
        def __call__(self, samples):
            values = torch.tensor(reward(samples.outputs))
            return Scores(values, torch.ones(len(values), dtype=torch.bool))

    class Nothing(Evaluator):
        def evaluate(self, policy, generator):
            return {}

        def samples(self, policy, generator, folder, count):
            return None

    runtime = Runtime(RuntimeConfig(device="cpu", threads=1), 0)
    config = PolicyConfig(
        str(folder),
        freeze_vision=False,
        cache_features=False,
        shared_prefix="auto" if shared else "never",
        reuse_prefill=shared,
    )
    policy = VisionPolicy.load(config)
    policy.eos_ids = ()  # exactly 16 tokens
    question = (folder / "question.txt").read_text()
    examples = [Example(f"e{i}", (picture(i),), question, "a") for i in range(PROMPTS * (STEPS + UNMEASURED))]
    encode = Encoder(policy.processor, Direct(suffix=""), ())
    rollout = RolloutConfig(PROMPTS, GROUP, NEW_TOKENS)
    collector = AnswerCollector(examples, encode, Spread(), rollout, runtime)
    algorithm = Algorithm(GroupRelative(), PPOClip(), TokenMean())
    trainer = Trainer(
        Parts(policy, collector, Nothing(), algorithm), TrainConfig(steps=STEPS + UNMEASURED, lr=1e-6), runtime,
        evaluate=EvaluateConfig(None), logging=LoggingConfig(progress=False),
    )  # fmt: skip
    spent = dict.fromkeys(PHASES, 0.0)
    _timed(collector, "collect", spent, "generation")
    _timed(policy, "forward", spent, "logprobs")  # sampling does not go through forward
    totals, phases = [], []
    for _ in range(STEPS + UNMEASURED):
        spent.update(dict.fromkeys(PHASES, 0.0))
        before = time.process_time()
        trainer.step()
        totals.append(time.process_time() - before)
        spent["update"] = totals[-1] - spent["generation"] - spent["logprobs"]
        phases.append(dict(spent))
    return _result(totals, phases, sum(p.numel() for p in policy.parameters()))


def run_trl(folder: Path) -> dict[str, object]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    question = (folder / "question.txt").read_text()
    rows = [
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            "image": picture(i),
        }
        for i in range(PROMPTS * (STEPS + UNMEASURED))
    ]  # fmt: skip
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP, max_completion_length=NEW_TOKENS, max_steps=STEPS + UNMEASURED, beta=0.0,
        learning_rate=1e-6, logging_steps=10**6, save_strategy="no", report_to=[], bf16=False, temperature=1.0,
        gradient_checkpointing=False, disable_tqdm=True, generation_kwargs={"min_new_tokens": NEW_TOKENS},
    )  # fmt: skip
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows),
                          processing_class=processor)  # fmt: skip
    spent = dict.fromkeys(PHASES, 0.0)
    _timed(trainer, "_generate", spent, "generation")
    _timed(trainer, "_get_per_token_logps_and_entropies", spent, "logprobs")
    totals: list[float] = []
    phases: list[dict[str, float]] = []
    last = [time.process_time()]

    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if not totals and not phases:
                last[0] = time.process_time()
                spent.update(dict.fromkeys(PHASES, 0.0))

        def on_step_end(self, args, state, control, **kwargs):
            now = time.process_time()
            totals.append(now - last[0])
            spent["update"] = totals[-1] - spent["generation"] - spent["logprobs"]
            phases.append(dict(spent))
            spent.update(dict.fromkeys(PHASES, 0.0))
            last[0] = now

    trainer.add_callback(Clock())
    trainer.train()
    return _result(totals, phases, sum(p.numel() for p in model.parameters()))


def _timed(owner: object, name: str, spent: dict[str, float], phase: str) -> None:
    """Add the CPU seconds of every call of owner.name to spent[phase]."""
    inner = getattr(owner, name)

    def timed(*args: object, **kwargs: object) -> object:
        before = time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[phase] += time.process_time() - before

    setattr(owner, name, timed)


def _result(totals: list[float], phases: list[dict[str, float]], parameters: int) -> dict[str, object]:
    kept, parts = totals[UNMEASURED:], phases[UNMEASURED:]
    return {
        "parameters": parameters, "steps": len(kept), "median": statistics.median(kept),
        "phases": {phase: statistics.median(p[phase] for p in parts) for phase in PHASES},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    if options.arm:
        ran = run_trl(options.folder) if options.arm == "trl" else run_mmrl(options.folder, options.arm == "mmrl")
        print("RESULT " + json.dumps(ran))
        return
    from benchmarks.common import spread, write

    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        results: dict[str, list[dict]] = {arm: [] for arm in ARMS}
        for repeat in range(options.repeats):
            for arm in ARMS:
                found = _subprocess(arm, folder)
                results[arm].append(found)
                print(f"repeat {repeat} {arm}: {found['median']:.3f} CPU s a step {found['phases']}", flush=True)
    medians = {arm: [r["median"] for r in results[arm]] for arm in ARMS}
    ratios = [t / m for t, m in zip(medians["trl"], medians["mmrl"], strict=True)]
    write("vision_vs_trl", {
        "what": __doc__.split("\n")[0], "ratio_trl_over_mmrl": round(statistics.median(ratios), 3),
        "ratios": spread(ratios), "ratio_naive_over_mmrl": round(
            statistics.median(n / m for n, m in zip(medians["naive"], medians["mmrl"], strict=True)), 3),
        "cpu_s_per_step": {arm: spread(medians[arm]) for arm in ARMS},
        "phases": {arm: {p: spread([r["phases"][p] for r in results[arm]]) for p in PHASES} for arm in ARMS},
        "setting": {"parameters": results["mmrl"][0]["parameters"], "prompts": PROMPTS, "group": GROUP,
                    "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "image": 64, "threads": 1,
                    "steps": STEPS, "unmeasured": UNMEASURED, "repeats": options.repeats},
    })  # fmt: skip


def _subprocess(arm: str, folder: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.vision_vs_trl", "--arm", arm, "--folder", folder]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{arm} failed:\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


if __name__ == "__main__":
    main()
