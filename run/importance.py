"""How probable each t is in training: by the size of its latest losses, or by its noise.

[1] Nichol, Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models (section 3.3)
[2] Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models (EDM)
[3] Esser et al. 2024, Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Stable Diffusion 3)
"""

import math

import torch
from torch import Tensor
from torch.special import ndtr

from ddpm import Schedule, log_sigma

LATEST = 10                     # losses of each t that are kept
LEVELS = {"lognormal": (-1.2, 1.2), "logit-normal": (0., 1.)}   # mean and deviation of log sigma: [2] eq. 5, [3] 3.1


def empty_history(T: int) -> Tensor:
    """(T, 10), NaN where there is no loss yet."""
    return torch.full((T, LATEST), math.nan)


def importance(history: Tensor) -> Tensor:
    """p_t, (T,) float64: the root mean square of the latest losses of t, normalised ([1] eq. 18).

    history: (T, 10), NaN where there is no loss yet. Uniform until all are known; a thousandth stays uniform.
    """
    uniform = torch.full((len(history),), 1 / len(history), dtype=torch.float64)
    if history.isnan().any():
        return uniform
    p = history.double().square().mean(1).sqrt()
    return 0.999 * p / p.sum() + 0.001 * uniform


def update_history(history: Tensor, t: Tensor, losses: Tensor) -> None:
    """Writes the losses (B,) of timesteps t (B,) into the history, in place, each over the oldest of its t."""
    for row, loss in zip((t - 1).tolist(), losses.tolist(), strict=True):
        history[row] = torch.cat([history[row, 1:], history.new_tensor([loss])])


def level_probabilities(schedule: Schedule, mean: float, deviation: float) -> Tensor:
    """p_t, (T,) float64, if log sigma is normal: its mass between the middles of t and its neighbours.

    Middles in u = sigma / (1 + sigma), flow matching's time, which is 1 where alpha_bar is 0; log sigma = logit u.
    """
    u = log_sigma(schedule.alpha_bar).sigmoid()
    level = ((u[1:-1] + u[2:]) / 2).logit()
    below = ndtr((level - mean) / deviation)
    return torch.cat([below, below.new_ones(1)]).diff(prepend=below.new_zeros(1))
