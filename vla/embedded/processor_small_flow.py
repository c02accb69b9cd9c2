"""What stands before and after the small flow-matching policy: lerobot's usual pipelines."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors
from torch import Tensor

from vla.embedded.configuration_small_flow import SmallFlowConfig


def make_small_flow_pre_post_processors(
    config: SmallFlowConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[Any, Any]:
    """The pre- and the postprocessor; `dataset_stats` as lerobot computes them."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
