"""One step of a rectified flow as a stochastic differential equation with the same marginals (Flow-GRPO, arXiv
2505.05470, equation 9; pi_RL, arXiv 2510.25889).

x_t = (1 - t) x_0 + t noise, velocity v = noise - x_0, from t down to t' < t, with diffusion coefficient s:
mean = x + [v + s^2 / (2 t) (x + (1 - t) v)] (t' - t),   std = s sqrt(t - t')
With s = 0 this is the Euler step of the flow's own ordinary differential equation.
"""

from __future__ import annotations

from torch import Tensor


def flow_sde_step(x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor, diffusion: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (n, ...) of the next state and its standard deviation; t, t_next and diffusion broadcast against x."""
    score_part = diffusion.square() / (2 * t) * (x + (1 - t) * velocity)
    mean = x + (velocity + score_part) * (t_next - t)
    return mean, diffusion * (t - t_next).sqrt()


def flow_grpo_diffusion(t: Tensor, t_first: Tensor, noise: float) -> Tensor:
    """Flow-GRPO's coefficient a sqrt(t / (1 - t)); at t = 1, where it has no bound, the value at `t_first`."""
    bounded = t.where(t < 1, t_first)
    return noise * (bounded / (1 - bounded)).sqrt()
