"""Collecting ahead of the update: one step off, or asynchronously with bounded staleness. `feed.py` is where to start.

running.py: the threads; stream.py: samples on their way; weights.py: versions of the policy; source.py, worker.py: who
draws, in this process or in one of its own.
"""

from mmrl.ahead.config import Ahead
from mmrl.ahead.stream import Sample, SampleStream, Stale
from mmrl.ahead.weights import Files, InMemory, Network, WeightStore

__all__ = ["Ahead", "Files", "InMemory", "Network", "Sample", "SampleStream", "Stale", "WeightStore"]
