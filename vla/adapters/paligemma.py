"""pi0 and pi0.5: PaliGemma with an expert of Gemma's shape."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS
from torch import Tensor
from transformers import DynamicCache

from vla.adapters.base import Inputs, Reads
from vla.adapters.vlm import MASK, TOKENS, Cached, VLMAdapter, images_of


class _PaliGemmaAdapter(VLMAdapter):
    expert: ClassVar[str] = "paligemma_with_expert.gemma_expert.model.layers"
    steps_key: ClassVar[str] = "num_inference_steps"
    before_the_expert: ClassVar[tuple[str, ...]] = ("paligemma_with_expert.paligemma",)

    @property
    def _vlm_size(self) -> int:
        return int(self._model.paligemma_with_expert.paligemma.config.text_config.hidden_size)

    def _images(self, batch: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        found: tuple[list[Tensor], list[Tensor]] = self.policy._preprocess_images(batch)
        return found

    def _see(self, inputs: Inputs) -> tuple[Tensor, Tensor, DynamicCache]:
        both = self._model.paligemma_with_expert
        embedded, mask, blocks = self._model.embed_prefix(
            *images_of(inputs), inputs[TOKENS], inputs[f"{TOKENS}_{MASK}"]
        )
        both.paligemma.model.language_model.config._attn_implementation = "eager"  # as lerobot does before it samples
        (hidden, _), cache = both.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(mask, blocks)),
            position_ids=torch.cumsum(mask, 1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        return mask, hidden, cache


class Pi0Adapter(_PaliGemmaAdapter):
    """The state is a token of the expert, and its projection is trained with it."""

    usual_reads: ClassVar[Reads] = "expert"

    def _denoise(self, prefix: Cached, x_t: Tensor, time: Tensor) -> Tensor:
        found: Tensor = self._model.denoise_step(
            state=prefix.state, prefix_pad_masks=prefix.mask, past_key_values=prefix.cache(), x_t=x_t, timestep=time
        )
        return found


class Pi05Adapter(_PaliGemmaAdapter):
    """The state is written into the prompt by its preprocessor."""

    usual_reads: ClassVar[Reads] = "vlm"

    def _state(self, batch: dict[str, Any]) -> Tensor:
        tokens: Tensor = batch[OBS_LANGUAGE_TOKENS]
        return tokens.new_zeros(len(tokens), 0, dtype=torch.float32)

    def _denoise(self, prefix: Cached, x_t: Tensor, time: Tensor) -> Tensor:
        found: Tensor = self._model.denoise_step(
            prefix_pad_masks=prefix.mask, past_key_values=prefix.cache(), x_t=x_t, timestep=time
        )
        return found
