"""The small policies of assets/: real policy classes of lerobot. Importing this registers them there."""

from vla.embedded.configuration_small_flow import SmallFlowConfig
from vla.embedded.modeling_small_flow import SmallFlowPolicy

__all__ = ["SmallFlowConfig", "SmallFlowPolicy"]
