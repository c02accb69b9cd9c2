"""Robots: action chunks of flow-matching policies as decisions, over ManiSkill simulation."""
