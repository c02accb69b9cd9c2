"""SmolVLA: SmolVLM with an expert that reads its layers' keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from torch import Tensor
from transformers import DynamicCache

from vla.adapters.base import Inputs, Reads
from vla.adapters.vlm import MASK, STATE, TOKENS, Cached, VLMAdapter, images_of


class SmolVLAAdapter(VLMAdapter):
    """The state is the last token of the prefix, so that its projection is frozen with the VLM."""

    expert: ClassVar[str] = "vlm_with_expert.lm_expert.layers"
    steps_key: ClassVar[str] = "num_steps"
    before_the_expert: ClassVar[tuple[str, ...]] = ("vlm_with_expert.vlm", "state_proj")
    usual_reads: ClassVar[Reads] = "vlm"

    @property
    def _vlm_size(self) -> int:
        return int(self._model.vlm_with_expert.config.text_config.hidden_size)

    def _images(self, batch: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        found: tuple[list[Tensor], list[Tensor]] = self.policy.prepare_images(batch)
        return found

    def _see(self, inputs: Inputs) -> tuple[Tensor, Tensor, DynamicCache]:
        tokens, valid = inputs[TOKENS], inputs[f"{TOKENS}_{MASK}"]
        if self.policy.config.pad_language_to == "longest":
            longest = int(valid.sum(1).max())
            tokens, valid = tokens[:, :longest], valid[:, :longest]
        embedded, mask, blocks = self._model.embed_prefix(*images_of(inputs), tokens, valid, state=inputs[STATE])
        (hidden, _), cache = self._model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(mask, blocks),
            position_ids=torch.cumsum(mask, 1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        return mask, hidden, cache

    def _denoise(self, prefix: Cached, x_t: Tensor, time: Tensor) -> Tensor:
        found: Tensor = self._model.denoise_step(
            prefix_pad_masks=prefix.mask, past_key_values=prefix.cache(), x_t=x_t, timestep=time
        )
        return found
