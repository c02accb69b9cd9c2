"""What a run of a real model takes on GPUs, by arithmetic: nothing here has been run.

Models are made on torch's meta device from their published sizes: they have shapes and no numbers. Parameters are
counted, and so are the floating-point operations of a forward (torch's FlopCounterMode) and the bytes that a forward
keeps for its backward (saved_tensors_hooks), in bf16, each storage once. The rest is the formulas of `memory`.

    python -m benchmarks.sizing
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import write

GB = 1e9
PEAK, SHARE = 312e12, 0.35
"""bf16 operations a second of an A100, and the share of them that we assume."""
BANDWIDTH = 2.0e12
"""Bytes a second of an A100's memory."""


@dataclass(frozen=True)
class Measured:
    """Of one forward on the meta device."""

    parameters: int
    flops: float
    kept: float
    """Bytes for the backward, parameters left out."""


def measured(module: nn.Module, run: Callable[[], object]) -> Measured:
    """Count one `run` of `module`, which is on the meta device, in bf16."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its number
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        run()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Measured(parameters, float(counter.get_total_flops()), float(sum(s.nbytes() for s in kept.values())))


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters: `trained`, `frozen` ones inside the policy, and those of parts `beside` it that are only
    used (encoders, an autoencoder, a reference), all float32 in the memory of each GPU."""

    trained: float
    frozen: float = 0.0
    beside: float = 0.0


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    between: float
    """Steps: weights, gradients, moments."""
    peak: float
    """In the update."""
    acting: float
    """While the policy acts; key-value caches and pictures left out."""


def memory(weights: Weights, gpus: int, sharded: bool, activations: float) -> Memory:
    """AdamW keeps 4 + 4 + 8 bytes of a trained parameter (weight, gradient, two moments) and a frozen one 4.

    DDP, or one GPU: all of that on each; in the update also DDP's buckets (4, with other ranks) and autocast's bf16
    copies (2 of each parameter, trained or frozen), and the activations.
    FSDP2: that divided by the number of GPUs, and gathered weights (2 of each parameter, bf16). In the update also
    whole gradients, float32 (4 of a trained one), and the larger of the activations and the buffer in which gradients
    meet (4), which comes after them.
    """
    every = weights.trained + weights.frozen
    held = 16 * weights.trained + 4 * weights.frozen
    if not sharded:
        copies = 2 * every
        buckets = 4 * weights.trained if gpus > 1 else 0.0
        base = held + 4 * weights.beside
        return Memory(base, base + copies + buckets + activations, base + copies)
    base = held / gpus + 4 * weights.beside
    gathered = 2 * every
    update = gathered + 4 * weights.trained + max(activations, 4 * weights.trained)
    return Memory(base, base + update, base + gathered)


def seconds(flops: float) -> float:
    """Of so many operations on one GPU."""
    return flops / (PEAK * SHARE)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A module without numbers, in bf16."""
    with torch.device("meta"):
        return make().to(torch.bfloat16)


def language(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> nn.Module:
    """The language model of Qwen2.5-VL."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip
    return on_meta(lambda: Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa"))


def of_tokens(model: nn.Module, tokens: int) -> Measured:
    """One sequence, with logits of every token."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    seen = whom(tokens)
    return measured(model, lambda: model(input_ids=ids, attention_mask=seen, use_cache=False).logits)


def whom(tokens: int) -> torch.Tensor:
    """Which tokens (1, 1, T, T) a token sees; given, so that transformers does not look at numbers to find out."""
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")


def unet() -> Measured:
    """SD 1.5, and its LCM but for a guidance embedding: one sample of 512 x 512."""
    from diffusers import UNet2DConditionModel

    model = on_meta(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8))
    given = [torch.zeros(shape, dtype=torch.bfloat16, device="meta") for shape in ((1, 4, 64, 64), (1, 77, 768))]
    step = torch.zeros(1, dtype=torch.long, device="meta")
    return measured(model, lambda: model(given[0], step, given[1]).sample)


def mmdit() -> Measured:
    """SD3-medium: one sample of 512 x 512, 77 + 77 tokens of text."""
    from diffusers import SD3Transformer2DModel

    model = on_meta(
        lambda: SD3Transformer2DModel(
            sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
            caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
        )
    )  # fmt: skip
    shapes = ((1, 16, 64, 64), (1, 154, 4096), (1, 2048))
    given = [torch.zeros(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    step = torch.zeros(1, dtype=torch.long, device="meta")
    return measured(
        model,
        lambda: model(given[0], encoder_hidden_states=given[1], pooled_projections=given[2], timestep=step).sample,
    )


def gemma(hidden: int, ffn: int, tokens: int, vocabulary: int) -> Measured:
    """A tower of PaliGemma's or of the action expert's kind: 18 layers, one sequence of hidden vectors."""
    from transformers import GemmaConfig, GemmaModel

    config = GemmaConfig(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1,
        head_dim=256, vocab_size=vocabulary,
    )  # fmt: skip
    model = on_meta(lambda: GemmaModel._from_config(config, attn_implementation="sdpa"))
    given = torch.zeros(1, tokens, hidden, dtype=torch.bfloat16, device="meta", requires_grad=True)
    seen = whom(tokens)
    return measured(model, lambda: model(inputs_embeds=given, attention_mask=seen, use_cache=False).last_hidden_state)


@dataclass(frozen=True)
class Plan:
    """A run to be sized: `rows` of a micro-batch keep `kept` bytes each; a step draws `samples` over all GPUs, each of
    `drawing` + `learning` operations, and `reads` the weights one time after the other while they are drawn."""

    name: str
    settings: str
    weights: Weights
    rows: int
    kept: float
    samples: int
    drawing: float
    learning: float
    reads: int = 0


LORA = {"3B": 0.06e9, "7B": 0.08e9, "sd": 6.4e6, "sd3": 37e6}
"""Rank 32 (SD 1.5: 16) on the linear layers of the attention (and of the language models' perceptrons), rounded."""


def plans() -> list[Plan]:
    """The models that recipes name, with settings that fit their sizes."""
    found = []
    prompt, answer, tower = 400, 256, 0.67e9
    for name, sizes in {
        "3B": (36, 2048, 11008, 16, 2, 151936, True), "7B": (28, 3584, 18944, 28, 4, 152064, False),
    }.items():  # fmt: skip
        one = of_tokens(language(*sizes), answer)
        row = one.kept + 12 * answer * sizes[5] + one.kept * prompt / answer / 4  # a prompt is shared by a group of 8
        forward = one.flops * (1 + prompt / answer / 8)
        for kind in ("LoRA", "full"):
            inside = one.parameters + tower
            weights = Weights(LORA[name], inside) if kind == "LoRA" else Weights(one.parameters, tower)
            passes = 2 + (2 if kind == "LoRA" else 3)  # scored once more under bf16; then forward and backward
            settings = "adapter: {rank: 32, alpha: 64}" if kind == "LoRA" else "freeze_vision: true"
            found.append(Plan(
                f"Qwen2.5-VL-{name}, {kind}", f"{settings}, micro_rows: 4", weights, 4, row, 128,
                2 * forward, passes * forward, answer,
            ))  # fmt: skip
    for name, one, beside, draws, copies in (
        ("SD 1.5 / LCM", unet(), 0.21e9, 8, 1), ("SD3-medium", mmdit(), 0.9e9, 10, 2),
    ):  # fmt: skip
        short = "sd3" if "SD3" in name else "sd"
        for kind in ("LoRA", "full"):
            weights = (
                Weights(LORA[short], one.parameters, beside) if kind == "LoRA" else Weights(one.parameters, 0, beside)
            )
            found.append(Plan(
                f"{name}, 512 x 512, {kind}", f"sampling.steps: {draws}, micro_rows: 4, micro_steps: 1", weights,
                4, one.kept * copies, 64, one.flops * draws * copies, one.flops * draws * copies * (1 + 3),
            ))  # fmt: skip
    seen = 3 * 256 + 48
    vlm, expert = gemma(2048, 16384, seen, 257152), gemma(1024, 4096, 51, 1)
    picture = 0.41e9 * 2 * 3 * 256
    chunk = vlm.flops + picture + 4 * expert.flops
    frozen = vlm.parameters + 0.41e9
    for kind in ("expert", "full"):
        whole = kind == "full"
        weights = Weights(expert.parameters + (frozen if whole else 0.0), 0.0 if whole else frozen)
        kept = 4 * expert.kept + (vlm.kept if whole else 0.0)
        learning = 2 * chunk + (3 * chunk if whole else chunk + 3 * 4 * expert.flops)
        found.append(Plan(
            f"pi0, {kind}", f"train: {kind}, micro_rows: 4 (of 10 chunks)", weights, 40, kept, 64 * 10, chunk, learning
        ))  # fmt: skip
    return found


def sized(plan: Plan) -> dict[str, object]:
    """One plan on 1 and 8 GPUs."""
    activations = plan.rows * plan.kept
    held = {
        "1 GPU": memory(plan.weights, 1, False, activations),
        "8 GPUs, DDP": memory(plan.weights, 8, False, activations),
        "8 GPUs, FSDP2": memory(plan.weights, 8, True, activations),
    }
    every = plan.weights.trained + plan.weights.frozen
    times = {}
    for gpus in (1, 8):
        drawing = max(seconds(plan.samples / gpus * plan.drawing), plan.reads * 8 * every / BANDWIDTH)
        times[f"{gpus}"] = {"draw_s": drawing, "update_s": seconds(plan.samples / gpus * plan.learning)}
    return {
        "settings": plan.settings,
        "trained": plan.weights.trained, "frozen": plan.weights.frozen, "beside": plan.weights.beside,
        "activations_gb": round(activations / GB, 2),
        "memory_gb": {
            where: {name: round(value / GB, 1) for name, value in asdict(each).items()} for where, each in held.items()
        },
        "step_s": {gpus: {name: round(value, 1) for name, value in found.items()} for gpus, found in times.items()},
        "samples": plan.samples,
    }  # fmt: skip


def main() -> None:
    """Size all plans."""
    write("sizing", {plan.name: sized(plan) for plan in plans()})


if __name__ == "__main__":
    main()
