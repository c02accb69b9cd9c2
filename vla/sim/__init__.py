"""Simulation of robots by ManiSkill: many environments behind one batched call, on the CPU or on a GPU."""
