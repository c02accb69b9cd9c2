"""One interface to the flow-matching policies of lerobot."""

from vla.adapters.base import Adapter, Prefix
from vla.adapters.load import load

__all__ = ["Adapter", "Prefix", "load"]
