"""alpha_bar and what follows from it alone: schedules, the times between, and what the network's output says.

The letters are those of Ho et al. 2020 [1]. Time t runs 1..T and t = 0 is clean data, so every table has T + 1 entries
and alpha_bar[0] = 1. Tables are float64; sigma is the noise for a signal of one, sqrt(1 / alpha_bar - 1).

[1] Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models
[2] Nichol, Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models
[3] Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models
[4] Salimans, Ho 2022, Progressive Distillation (v, and the parametrisations of the output)
[5] Liu et al. 2022, Flow Straight and Fast (rectified flow)
[6] Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps are Flawed
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

TARGETS, VARIANCES = ("eps", "x0", "v", "flow"), ("beta_tilde", "beta", "learned")


def check_choice(name: str, value: str, allowed) -> None:
    """Raises ValueError unless value is one of the allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


# Schedules

class Schedule(NamedTuple):
    """The tables of a forward process, each (T+1,) float64, indexed by the paper's t."""
    beta: Tensor                # variance added by step t, beta[0] = 0
    alpha: Tensor               # 1 - beta
    alpha_bar: Tensor           # signal variance left at t, alpha_bar[0] = 1
    beta_tilde: Tensor          # variance of q(x_{t-1} | x_t, x0), beta_tilde[1] = 0


def from_betas(beta) -> Schedule:
    """The schedule with these beta_1..beta_T, any in (0, 1), of which the last may be 1 ([1] eq. 4 and 7)."""
    beta = torch.as_tensor(beta, dtype=torch.float64)
    if beta.ndim != 1 or not len(beta) or not ((beta > 0) & (beta <= 1)).all() or (beta[:-1] == 1).any():
        raise ValueError(f"beta must be numbers in (0, 1), of which the last may be 1; got shape "
                         f"{tuple(beta.shape)}{f', {beta.min():g} to {beta.max():g}' if beta.numel() else ''}")
    beta = torch.cat([beta.new_zeros(1), beta])
    alpha = 1 - beta
    alpha_bar = alpha.cumprod(0)
    beta_tilde = torch.zeros_like(beta)
    beta_tilde[1:] = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    return Schedule(beta, alpha, alpha_bar, beta_tilde)


def from_alpha_bar(alpha_bar: Tensor, **arguments: float) -> Schedule:
    """The schedule whose alpha_bar_0..alpha_bar_T are proportional to these, betas at most 0.999 ([2] eq. 17).

    Raises ValueError, with the arguments that the alpha_bars were made of, if they do not fall at every step.
    """
    if not (alpha_bar.diff() < 0).all() or alpha_bar[-1] < 0:
        made_of = ", ".join(f"{name} = {value:g}" for name, value in arguments.items())
        raise ValueError(f"alpha_bar must fall at each of {len(alpha_bar) - 1} steps, to 0 or more, and it does not"
                         f"{made_of and f' for {made_of}; change one of them'}")
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))


def linear_schedule(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """beta from start to end in equal steps, not rescaled by T ([1] section 4)."""
    return from_betas(torch.linspace(start, end, T, dtype=torch.float64))


def quadratic_schedule(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """sqrt(beta) from sqrt(start) to sqrt(end) in equal steps ("quad" in the published code of [3])."""
    return from_betas(torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64)**2)


def cosine_schedule(T: int = 1000, s: float = 0.008) -> Schedule:
    """alpha_bar_t = cos^2 of (t/T + s)/(1 + s) quarter turns, 1 at t = 0 ([2] eq. 17)."""
    t = torch.arange(T + 1, dtype=torch.float64)
    return from_alpha_bar(torch.cos((t / T + s) / (1 + s) * math.pi / 2)**2, s=s)


def sigmoid_schedule(T: int = 1000, start: float = -3, end: float = 3, tau: float = 1) -> Schedule:
    """alpha_bar falls as a sigmoid of (start..end)/tau, scaled to 1..0 (Jabri et al. 2022, algorithm 2)."""
    if not tau > 0:
        raise ValueError(f"tau is {tau:g}; it must be above 0")
    u = torch.linspace(start / tau, end / tau, T + 1, dtype=torch.float64).sigmoid()
    return from_alpha_bar(u[-1] - u, start=start, end=end, tau=tau)


def flow_schedule(T: int = 1000) -> Schedule:
    """Rectified flow's straight path (1 - u) x0 + u eps, u = t/T, scaled to unit variance; alpha_bar_T = 0 [5]."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    alpha_bar = (1 - u)**2 / ((1 - u)**2 + u**2)
    return from_betas(1 - alpha_bar[1:] / alpha_bar[:-1])


SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "quadratic": quadratic_schedule,
             "sigmoid": sigmoid_schedule, "flow": flow_schedule}


def rescale_zero_snr(schedule: Schedule) -> Schedule:
    """The schedule, its signal shifted to 0 at T and scaled to stay what it was at t = 1 ([6] algorithm 1); T > 1."""
    signal = schedule.alpha_bar.sqrt()
    signal[1:] = (signal[1:] - signal[-1]) * signal[1] / (signal[1] - signal[-1])
    return from_betas(1 - (signal[1:] / signal[:-1])**2)


def named_schedule(name: str, T: int, zero_snr: bool = False) -> Schedule:
    """The schedule of SCHEDULES with this name, rescaled if asked for."""
    return rescale_zero_snr(SCHEDULES[name](T)) if zero_snr else SCHEDULES[name](T)


def schedule_length(schedule: Schedule) -> int:
    """T, the number of steps."""
    return len(schedule.beta) - 1


def schedule_check(schedule: Schedule) -> float:
    """Bits/dim of unit-variance data that are left in x_T: KL(q(x_T | x0) || N(0, I)) = -log2(1 - alpha_bar_T)/2.

    Sampling starts from N(0, I) all the same, so this is what every chain loses at once: 3e-5 for the linear
    schedule of [1], 0.036 if its betas are crossed in 300 steps.
    """
    return math.log2(1 / (1 - schedule.alpha_bar[-1].item())) / 2


# Coefficients of pictures

def check_floating(x: Tensor) -> None:
    """Raises ValueError for pictures of integers, whose scale would be another, and coefficients 0 and 1."""
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; it must be floating, pictures in [-1, 1] (data.to_unit makes them)")


def broadcast_to(x: Tensor, *coefficients: Tensor) -> list[Tensor]:
    """Float64 coefficients (B,) in x's dtype, shaped to multiply x (B, ...)."""
    check_floating(x)
    return [c.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) for c in coefficients]


# Between the whole times

def log_sigma(alpha_bar: Tensor) -> Tensor:
    """log sqrt(1 / alpha_bar - 1), half the log-SNR negated: -inf for clean data, inf for noise alone."""
    return -alpha_bar.logit() / 2


def alpha_bar_at(schedule, t: Tensor) -> Tensor:
    """alpha_bar at t: the table's entry at a whole t; between two of them log sigma is interpolated linearly."""
    if not t.is_floating_point():
        return schedule.alpha_bar[t.long()]                                       # a uint8 index would be a mask
    t = t.double()
    below, above, table = t.floor().long(), t.ceil().long(), log_sigma(schedule.alpha_bar)
    between = torch.lerp(table[below], table[above], t - below)
    return torch.where(below == above, schedule.alpha_bar[below], (-2 * between).sigmoid())


def time_at(schedule, level: Tensor) -> Tensor:
    """The t in 1..T at which log sigma is this level, the inverse of `alpha_bar_at`; float64, to 1e-11 of a step.

    Where alpha_bar_T = 0, log sigma is infinite at T, and nothing lies between T - 1 and T.
    """
    table = log_sigma(schedule.alpha_bar)                                         # increases with t
    T = len(table) - 1
    below = (torch.searchsorted(table, level) - 1).clamp(1, max(T - 1, 1))
    above = (below + 1).clamp(max=T)
    t = below + ((level - table[below]) / (table[above] - table[below])).clamp(0, 1)
    return torch.where(level >= table[T], T, t.round(decimals=11))                # so that whole times are whole


# What the network's output says

def x0_coefficients(alpha_bar: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """a, b such that x0_hat = a xt + b output; float64, the shape of alpha_bar ([1] eq. 15, [4] appendix D).

    "flow" is eps - x0, the velocity of the straight path from x0 to eps ([5] eq. 4); xt is that path's point, scaled.
    """
    check_choice("target", target, TARGETS)
    if target == "eps":
        return 1 / alpha_bar.sqrt(), -(1 / alpha_bar - 1).sqrt()
    if target == "x0":
        return torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if target == "flow":
        return 1 / (signal + noise), -noise / (signal + noise)
    return signal, -noise


def check_target(alpha_bar: Tensor, target: str) -> None:
    """Raises ValueError if a or b is infinite in float32 at this alpha_bar (), the least of a chain."""
    if not all(c.float().isfinite() for c in x0_coefficients(alpha_bar, target)):
        raise ValueError(f"alpha_bar is {alpha_bar:.2g} at the first step: x_T holds no signal, and {target} cannot "
                         f"say what x0 is; use target v, x0 or flow, or a schedule that ends with less noise")


def interpolate_log_var(v: Tensor, log_min: Tensor, log_max: Tensor) -> Tensor:
    """The learned log variance: log_min at v = -1, log_max at v = 1, and straight on beyond ([2] eq. 15)."""
    return log_min + (v + 1) / 2 * (log_max - log_min)


def check_output(output: Tensor, shape: tuple, learned: bool) -> None:
    """Raises ValueError unless the output has x_t's shape (B, C, ...), or 2C channels, as a learned variance needs."""
    B, C, *rest = shape
    if output.shape != (B, 2 * C, *rest) and (learned or output.shape != (B, C, *rest)):
        raise ValueError(f"the network's output is {tuple(output.shape)} for x_t {tuple(shape)}; a learned variance "
                         f"needs {2 * C} channels, a fixed one {C} or {2 * C}, and the rest must be equal")
