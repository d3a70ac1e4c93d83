"""Importance sampling of t by the size of its latest losses (Nichol & Dhariwal 2021, section 3.3)."""

import math

import torch
from torch import Tensor

LATEST = 10                     # losses of each t that are kept


def empty_history(T: int) -> Tensor:
    """(T, 10), NaN where there is no loss yet."""
    return torch.full((T, LATEST), math.nan)


def importance(history: Tensor) -> Tensor:
    """p_t, (T,) float64: the root mean square of the latest losses of t, normalised (Nichol & Dhariwal 2021, eq. 18).

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
