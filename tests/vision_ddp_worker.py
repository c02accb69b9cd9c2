"""Run by test_vision_ddp.py in one or two processes: gradients of one update on a fixed rollout."""

from __future__ import annotations

import os
import sys

import torch

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.surrogates import PPOClip
from mmrl.types import Rollout
from mmrl.update import update
from vision.adapters import LoRA
from vision.policy import PolicyConfig, VisionPolicy

SHARES = {1: [range(12)], 2: [range(7), range(7, 12)]}  # a group of 3 is cut by the border at 7


def main(model: str, rollout_file: str, output: str, lora: bool) -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"), seed=0)
    adapter = LoRA(rank=4, alpha=8) if lora else None
    policy = VisionPolicy.load(PolicyConfig(model, adapter=adapter, freeze_vision=False))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    trainable = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1.0)
    before = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    wrapped, prepared = runtime.prepare(policy, optimizer)
    saved = torch.load(rollout_file, weights_only=False)  # written by the test itself
    rows = torch.tensor(list(SHARES[runtime.world][runtime.rank]))
    tensors = {name: value[rows] for name, value in saved.items() if isinstance(value, torch.Tensor)}
    rollout = Rollout(transitions=saved["transitions"].rows(rows), **tensors)
    algorithm = Algorithm(GroupRelative(), PPOClip(), TokenMean())
    update(wrapped, rollout, algorithm, prepared, runtime, UpdateConfig(micro_rows=4, max_grad_norm=1e9))
    if runtime.is_main:
        moved = {n: before[n] - p.detach() for n, p in policy.named_parameters() if p.requires_grad}
        torch.save({"gradients": moved, "world": runtime.world}, f"{output}.part")
        os.replace(f"{output}.part", output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "lora")
