"""Reward functions and models, by family, and their composition with named parts."""
