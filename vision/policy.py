"""Any vision-language model of transformers as a policy over tokens."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging

from mmrl.heads import HEADS, CriticConfig, Worth, load_head, make_critic
from mmrl.statistics import Entropy, asked, of_categorical
from mmrl.types import Evaluation, Policy, Transitions
from vision.adapters import START, VISION_MODULE, LoRA, OtherAdapter, copy_start, freeze_vision, with_adapter
from vision.allowed import only
from vision.features import FeatureCache
from vision.prefix import NoPlainCache, Prefilled, Prefix, Read, prefill, read_naive, read_shared
from vision.transitions import Conversations, Prompt, TokenTransitions

transformers_logging.disable_progress_bar()

VISION_TOKEN = re.compile(r"image|video|vision|img|frame|row_\d+_col_\d+|fake_token", re.IGNORECASE)


@dataclass(frozen=True)
class PolicyConfig:
    """Which model, and what of it is trained. `adapter` is a new LoRA, or the folder (or hub name) of one to go on
    from. `reference` is what a KL penalty keeps close to: `start`, the model with the adapter it began from, or
    `base`, the model without any. `shared_prefix` auto falls back to the naive path, and says
    so, on architectures without a plain key-value cache. `gradient_checkpointing` recomputes activations
    in the backward pass: less memory, more time. `reuse_prefill` keeps the run of the prompts
    of sampling, with its gradient, for the first use in the update: the activations of all prompts of a step
    stay in memory, and each prompt runs once a step instead of twice. `critic` is V of the state before each token, for
    advantages that need one (`mmrl.advantages.GAE`); null: none."""

    model: str
    adapter: LoRA | str | None = None
    reference: Literal["start", "base"] = "start"
    freeze_vision: bool = True
    max_pixels: int | None = None
    shared_prefix: Literal["auto", "never"] = "auto"
    gradient_checkpointing: bool = False
    reuse_prefill: bool = False
    cache_features: bool = True
    cache_features_mb: float = 2048.0
    critic: CriticConfig | None = None

    def __post_init__(self) -> None:
        if self.gradient_checkpointing and self.reuse_prefill:
            raise ValueError(
                "policy.gradient_checkpointing and policy.reuse_prefill exclude each other: one runs prompts again to "
                "save memory, the other keeps them to save time; set one to false"
            )


class VisionPolicy(Policy):
    """A model and its processor; a decision is the next token of an answer.

    Distribution: softmax of the float32 logits at temperature 1 over the whole vocabulary, without the
    special tokens of pictures and videos, which are banned in sampling and in the log-softmax alike:
    one of them in an answer makes every later forward fail. Where transitions say which tokens were `allowed`, it is
    that of these alone.

    A critic reads the last hidden state before each token, which the token's own logits are a linear map of: all that
    the model knows of picture, question and answer so far, at no further run of it. It is brought to mean 0 and
    variance 1, since large models have single numbers in the hundreds there. No gradient goes through it to the model.
    """

    windowable = False
    noise = "categorical"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        config: PolicyConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.model, self.processor, self.config = model, processor, config
        tokenizer = processor.tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError(f"policy.model {config.model}: its tokenizer has no end-of-sequence token")
        self.eos_ids = _eos_ids(model, tokenizer)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.register_buffer("banned", _vision_token_mask(model, processor), persistent=False)
        self.mrope = any(callable(getattr(type(m), "get_rope_index", None)) for m in model.modules())
        self.sharing = config.shared_prefix == "auto"
        self.changes = 0
        """Times that an optimiser wrote the weights: what was made of older ones has another number."""
        self._kept: tuple[tuple[str, ...], tuple[int, ...], Prefilled] | None = None
        frozen_tower = not any(p.requires_grad for p in self.vision_parameters())
        self.features = (
            FeatureCache(model, config.cache_features_mb) if config.cache_features and frozen_tower else None
        )
        if config.critic is not None and model.get_output_embeddings() is None:
            raise ValueError(
                f"policy.critic is set and {type(model).__name__} does not say which layer makes its logits, before "
                "which the critic reads: set it to null"
            )
        self.critic = make_critic(config.critic, model.config.get_text_config().hidden_size, generator)

    @staticmethod
    def load(config: PolicyConfig, generator: torch.Generator | None = None) -> VisionPolicy:
        """The model `config.model`, a hub name or a folder, in float32. A critic is new, of `generator`.

        Raises:
            ValueError: it is neither a folder that holds a model nor the name of one.
        """
        name = config.model
        try:
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"policy.model {name!r} could not be loaded as a vision-language model with its processor: give a "
                f"folder written by save_pretrained, or a hub name and a network ({str(error).splitlines()[0]})"
            ) from error
        if config.max_pixels is not None:
            _limit_pixels(processor, config.max_pixels)
        if config.adapter is not None:
            model = with_adapter(model, config.adapter)
        elif config.freeze_vision:
            freeze_vision(model)
        return VisionPolicy(model, processor, config, generator)

    def vision_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the vision tower."""
        for name, parameter in self.model.named_parameters():
            if VISION_MODULE.search(name):
                yield parameter

    def critic_parameters(self) -> Sequence[nn.Parameter]:
        return [] if self.critic is None else list(self.critic.parameters())

    def worth(self, states: Tensor) -> Worth:
        """V (...) of hidden states (..., D); nothing without a critic."""
        return Worth() if self.critic is None else self.critic.worth(layer_norm(states.float(), states.shape[-1:]))

    def forward(self, transitions: Transitions, steps: Tensor) -> Evaluation:
        """Log-probs and values (b, t) of the first t tokens of each completion; `steps` is 0 .. t-1 in every row."""
        if isinstance(transitions, Conversations):
            return self._converse(transitions, steps.shape[1])
        if not isinstance(transitions, TokenTransitions):
            raise TypeError(f"VisionPolicy scores TokenTransitions or Conversations, got {type(transitions).__name__}")
        return self._evaluate(transitions.to(self.banned.device), steps.shape[1])

    def _converse(self, transitions: Conversations, width: int) -> Evaluation:
        """Each turn after all that was said before it, in the first `width` decisions of each conversation."""
        transitions = transitions.to(self.banned.device)
        lengths = [int(length.max()) for length in transitions.length]
        turns = [self._evaluate(turn, length) for turn, length in zip(transitions.turns, lengths, strict=True)]

        logprobs = transitions.spread([turn.logprobs for turn in turns], width)
        stats = {name: transitions.spread([turn.stats[name] for turn in turns], width) for name in turns[0].stats}
        values = [turn.values for turn in turns if turn.values is not None]
        logits = [turn.value_logits for turn in turns if turn.value_logits is not None]
        return Evaluation(
            logprobs=logprobs, entropy=stats.get("entropy"), stats=stats, bins=turns[0].bins,
            values=transitions.spread(values, width) if values else None,
            value_logits=transitions.spread(logits, width) if logits else None,
        )  # fmt: skip

    def _evaluate(self, transitions: TokenTransitions, length: int) -> Evaluation:
        tokens = transitions.completions[:, :length]
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            logprobs, stats, states = checkpoint(self._score, transitions, tokens, length, use_reentrant=False)
        else:
            logprobs, stats, states = self._score(transitions, tokens, length)
        worth = self.worth(states)
        return Evaluation(
            logprobs=logprobs, entropy=stats.get("entropy"), values=worth.values, stats=stats,
            value_logits=worth.logits, bins=worth.bins,
        )  # fmt: skip

    def _score(
        self, transitions: TokenTransitions, tokens: Tensor, length: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        logits, states = self._read(transitions, length)
        allowed = None if transitions.allowed is None else transitions.allowed[:, :length]
        log_softmax = self.log_softmax(only(logits, allowed))
        logprobs = log_softmax.gather(-1, tokens[..., None]).squeeze(-1)
        wanted = (*self.report, Entropy()) if self.report_entropy else self.report
        return logprobs, of_categorical(asked(wanted), log_softmax, tokens), states

    def _read(self, transitions: TokenTransitions, length: int) -> Read:
        prefix = self.prefix(transitions)
        if prefix is not None:
            return read_shared(self.model, prefix, transitions.completions[:, :length], self.mrope)
        with self.serving(transitions):
            return read_naive(self.model, transitions, length, self.pad_id, self.mrope)

    def prefix(self, transitions: TokenTransitions, keep: bool = False) -> Prefix | None:
        """The prompts of `transitions`, run and handed to their rows; None where they cannot be shared. With
        `keep` they are run with gradient, for the next call that needs it."""
        if not self.sharing:
            return None
        if torch.is_grad_enabled() and (reused := self._reuse(transitions)) is not None:
            return reused
        try:
            with torch.set_grad_enabled(keep or torch.is_grad_enabled()), self.serving(transitions):
                prefilled = prefill(self.model, transitions.prompts, self.pad_id, self.mrope)
        except NoPlainCache as reason:
            self.stop_sharing(reason)
            return None
        if keep:
            self._kept = (_names(transitions.prompts), self._versions(), prefilled)
        return prefilled.for_rows(transitions.prompt_index)

    def _reuse(self, transitions: TokenTransitions) -> Prefix | None:
        """The prompts as sampling ran them, if no weight has changed since and most of them are needed. Only
        once, since a backward pass frees what it went through."""
        if self._kept is None:
            return None
        names, versions, prefilled = self._kept
        wanted = _names(transitions.prompts)
        if not set(wanted) <= set(names) or 2 * len(wanted) < len(names):
            return None
        self._kept = None
        if versions != self._versions():
            return None
        places = torch.tensor([names.index(name) for name in wanted], device=self.banned.device)
        return prefilled.for_rows(places[transitions.prompt_index])

    def weights_changed(self) -> None:
        self.changes += 1
        self._kept = None  # fused optimisers write weights without telling `_version`

    def _versions(self) -> tuple[int, ...]:
        """Changes whenever a weight is written to."""
        return tuple(parameter._version for parameter in self.parameters())

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Log-probs (..., V) in float32, -inf at banned tokens."""
        return torch.log_softmax(logits.float().masked_fill(self.banned, float("-inf")), dim=-1)

    def serving(self, transitions: TokenTransitions) -> contextlib.AbstractContextManager[None]:
        """Cached picture features for these rows, in the order in which the model will ask for them."""
        if self.features is None:
            return contextlib.nullcontext()
        prompts = transitions.prompts
        order = prompts if self.sharing else [prompts[int(i)] for i in transitions.prompt_index]
        return self.features.serving(order)

    def stop_sharing(self, reason: NoPlainCache) -> None:
        """Use the naive path from now on, and say so."""
        warnings.warn(f"{reason}: prompts are not shared over their group (slower, same numbers)", stacklevel=2)
        self.sharing = False

    def export(self, folder: Path, merge: bool, dtype: str | None) -> bool:
        """Write what plain transformers, or peft, loads. `merge` puts the adapter into the weights, in place;
        returns whether an adapter was written."""
        if isinstance(self.model, PeftModel) and merge:
            self.model = self.model.merge_and_unload()
        if dtype is not None:
            self.model.to(vars(torch)[dtype])
        self._save_all(folder)
        return isinstance(self.model, PeftModel)

    def save_pretrained(self, folder: Path) -> None:
        """The model, or only its adapter, with the processor; a critic beside it."""
        self._save_all(folder)
        if self.critic is not None:
            save_model(self.critic, str(folder / HEADS))

    def save_model(self, folder: Path) -> None:
        """The model, or only its adapter, without the processor."""
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(folder, selected_adapters=["default"])
        else:
            self.model.save_pretrained(folder)

    def _save_all(self, folder: Path) -> None:
        self.save_model(folder)
        self.processor.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        if self.critic is not None:
            load_head(self.critic, folder / HEADS)
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, load_peft_weights(str(folder), device="cpu"))
            return
        saved = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())

    def reference(self, moved: bool = False) -> Policy:
        """A frozen policy: what a KL penalty keeps close to. `moved`: the adapter is not the config's any more."""
        if not isinstance(self.model, PeftModel):
            fixed = VisionPolicy.load(replace(self.config, critic=None)).requires_grad_(False).eval()
            fixed.model.load_state_dict(self.model.state_dict())
            return fixed
        if (moved or isinstance(self.config.adapter, str)) and self.config.reference == "start":
            copy_start(self.model)
            return OtherAdapter(self, START)
        return OtherAdapter(self, None)  # a new adapter starts as none at all


def _names(prompts: tuple[Prompt, ...]) -> tuple[str, ...]:
    return tuple(f"{prompt.id}/{prompt.image_key}" for prompt in prompts)


def _limit_pixels(processor: ProcessorMixin, max_pixels: int) -> None:
    size = getattr(processor.image_processor, "size", None)
    if size is None or "longest_edge" not in size or size.get("shortest_edge") is None:
        raise ValueError(
            f"policy.max_pixels is {max_pixels}, and {type(processor.image_processor).__name__} does not bound "
            "pictures by their number of pixels: remove the line, and set the size in the processor's own config"
        )
    size["longest_edge"] = max_pixels
    size["shortest_edge"] = min(size["shortest_edge"], max_pixels)


def _eos_ids(model: nn.Module, tokenizer: object) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's, and those of the generation config."""
    found = getattr(model.generation_config, "eos_token_id", None)
    listed = found if isinstance(found, list) else [found]
    return tuple(sorted({int(i) for i in (*listed, tokenizer.eos_token_id) if i is not None}))  # type: ignore[attr-defined]


def _vision_token_mask(model: nn.Module, processor: ProcessorMixin) -> Tensor:
    """Which ids (V,) stand for pictures and videos: from the config's own names and the special tokens."""
    config, tokenizer = model.config, processor.tokenizer
    banned = torch.zeros(model.get_input_embeddings().num_embeddings, dtype=torch.bool)
    for name, value in config.to_dict().items():
        if name.endswith(("token_id", "token_index")) and VISION_TOKEN.search(name) and isinstance(value, int):
            banned[value] = True
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special and VISION_TOKEN.search(token.content) and index < len(banned):
            banned[index] = True
    return banned
