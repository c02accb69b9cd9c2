"""Weights on decisions, planned on the whole rollout, one a file."""

from mmrl.selectors.drop_decided_groups import DropDecidedGroups
from mmrl.selectors.drop_truncated import DropTruncated

__all__ = ["DropDecidedGroups", "DropTruncated"]
