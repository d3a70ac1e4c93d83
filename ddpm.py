"""The mathematics of denoising diffusion: q, p, losses, the bound; its schedules and samplers are files of their own.

The letters are those of Ho et al. 2020 [1]. Time t runs 1..T and t = 0 is clean data (schedules.py has the tables);
on a CPU other t raise ValueError. t may be of any integer type, and real where no single step is asked for. A
coefficient is computed in float64 and only then cast to x's dtype. `eps` and `z` are standard normal noise; `_hat`
marks a prediction. A denoiser is any callable (xt, t) -> output with t an int64 tensor (B,), or float64 if t is real,
as where a sampler stops between whole times. The output predicts eps, x0, v or flow, and has twice
the channels if it also predicts the variance. x may have any shape (B, C, ...).

[1] Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models
[2] Nichol, Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models
[3] Li, He 2025, Back to Basics: Let Denoising Generative Models Denoise
[4] Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy
"""

import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.special import log_ndtr

from guidance import classifier_guided, guided, weights_in_interval  # noqa: F401  all are part of this interface
from samplers import (  # noqa: F401  the samplers are part of this module's interface: ddpm.step, ddpm.sample, ...
    COLUMNS,
    SAMPLERS,
    SPACINGS,
    print_tables,
    sample,
    sampler_rows,
    spaced_times,
    step,
    timesteps,
)
from schedules import (  # noqa: F401  and so are the schedules: ddpm.linear_schedule, ...
    SCHEDULES,
    TARGETS,
    VARIANCES,
    Schedule,
    alpha_bar_at,
    broadcast_to,
    check_choice,
    check_floating,
    check_output,
    check_target,
    cosine_schedule,
    flow_schedule,
    from_alpha_bar,
    from_betas,
    interpolate_log_var,
    linear_schedule,
    log_sigma,
    named_schedule,
    quadratic_schedule,
    rescale_zero_snr,
    schedule_check,
    schedule_length,
    sigmoid_schedule,
    x0_coefficients,
)

# The forward process q

def as_times(schedule: Schedule, t: Tensor, first: int = 1, whole: bool = False) -> Tensor:
    """t as int64, or as float64 if it is real, which `whole` refuses. Raises ValueError for t outside first..T.

    Nothing else would: a table's entry -1 is its last. Looked at only where that is free and possible: on a CPU, and
    not while something traces or transforms what is done to t.
    """
    if t.dtype == torch.bool or whole and t.is_floating_point():
        raise ValueError(f"t is {t.dtype}; it must be int64, since a step leads from a whole time to the one before")
    t = t.double() if t.is_floating_point() else t.long()
    if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
        with suppress(RuntimeError):                                              # vmap, fake tensors: t has no values
            least, most = (bound.item() for bound in t.aminmax())
            if not first <= least <= most <= schedule_length(schedule):
                raise ValueError(f"t goes from {least} to {most}; it must lie in {first}..{schedule_length(schedule)}")
    return t


def q_step(schedule: Schedule, x_prev: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t from x_{t-1} ([1] eq. 2)."""
    t = as_times(schedule, t, whole=True)
    a, b = broadcast_to(x_prev, schedule.alpha[t].sqrt(), schedule.beta[t].sqrt())
    return a * x_prev + b * eps


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t from x0 in one jump ([1] eq. 4); t = 0 is x0 itself."""
    alpha_bar = alpha_bar_at(schedule, as_times(schedule, t, first=0))
    a, b = broadcast_to(x0, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return a * x0 + b * eps


def q_posterior(schedule: Schedule, x0: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and log variance of q(x_{t-1} | x_t, x0) ([1] eq. 6-7); the variances are (B, 1, ...).

    The log is clipped at t = 1, where the variance is zero, to that of t = 2, so T must be 2 or more ([2] 3.1).
    """
    t = as_times(schedule, t, whole=True)
    beta, alpha, alpha_bar, beta_tilde = schedule
    c0 = alpha_bar[t - 1].sqrt() * beta[t] / (1 - alpha_bar[t])
    ct = alpha[t].sqrt() * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    c0, ct, var, log_var = broadcast_to(xt, c0, ct, beta_tilde[t], beta_tilde[t.clamp(min=2)].log())
    return c0 * x0 + ct * xt, var, log_var


# The parametrisations of the network's output

def predict(schedule: Schedule, output: Tensor, xt: Tensor, t: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """x0_hat and eps_hat from the network's output, which has xt's shape."""
    t = as_times(schedule, t)
    a, b = broadcast_to(xt, *x0_coefficients(alpha_bar_at(schedule, t), target))
    x0_hat = a * xt + b * output
    return x0_hat, eps_from_x0(schedule, x0_hat, xt, t)


def eps_from_x0(schedule: Schedule, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """The eps that makes x_t of x0 ([1] eq. 4, solved for eps)."""
    alpha_bar = alpha_bar_at(schedule, as_times(schedule, t))
    a, b = broadcast_to(xt, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return (xt - a * x0) / b


def training_target(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor, target: str) -> Tensor:
    """The regression target: eps, x0, v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, or flow = eps - x0."""
    t = as_times(schedule, t, first=0)
    if target in ("eps", "x0", "flow"):
        return {"eps": eps, "x0": x0, "flow": eps - x0}[target]
    a, b = broadcast_to(x0, *x0_coefficients(alpha_bar_at(schedule, t), target))  # x0 = a xt + b v, so v = a eps + b x0
    return a * eps + b * x0


def exact_denoiser(schedule: Schedule, data: Tensor, target: str = "eps") -> Callable:
    """The optimal denoiser of a finite data set (N, C, ...): no network, no training.

    x0_hat is the mean of the data, each weighted by how likely it became x_t. The posterior of a finite set.
    """
    check_floating(data)
    points = data.flatten(1).double()                                   # N D

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        alpha_bar = alpha_bar_at(schedule, as_times(schedule, t))[:, None]
        near = alpha_bar.sqrt() * (xt.flatten(1).double() @ points.T) - alpha_bar * points.square().sum(1) / 2
        x0 = ((near / (1 - alpha_bar)).softmax(1) @ points).view(xt.shape).to(xt.dtype)
        return training_target(schedule, x0, t, eps_from_x0(schedule, x0, xt, t), target)

    return denoise


# Training

SPACES = (*TARGETS, "min-snr")


def loss(schedule: Schedule, denoise: Callable, x0: Tensor, t: Tensor, eps: Tensor, *,
         target: str = "eps", kind: str = "l2", space: str = "") -> Tensor:
    """The simple loss of each image (B,): mean |target - output|^2, or its first power for "l1" ([1] algorithm 1).

    space: the quantity whose squared error is minimised, by default the target; see `space_weight`.
    """
    t = as_times(schedule, t)
    output = denoise(q_sample(schedule, x0, t, eps), t)
    error = simple_loss(training_target(schedule, x0, t, eps, target), output, kind)
    if not space:
        return error
    if kind != "l2":
        raise ValueError(f"space is {space!r} and the loss {kind}; a space weights squared errors, use l2")
    return error * space_weight(alpha_bar_at(schedule, t), target, space).to(error.dtype)


def space_weight(alpha_bar: Tensor, target: str, space: str) -> Tensor:
    """What makes the squared error of the target's prediction that of x0, eps, v or flow from the same prediction [3].

    "min-snr": that of x0, times the signal-to-noise ratio or 5, whichever is less [4].
    """
    check_choice("space", space, SPACES)
    _, b = x0_coefficients(alpha_bar, target)                                     # b times the output's error is x0's
    weight = (b**2 * (alpha_bar / (1 - alpha_bar)).clamp(max=5) if space == "min-snr" else
              (b / x0_coefficients(alpha_bar, space)[1])**2)
    return torch.where(weight.isnan(), 1, weight)                                 # at alpha_bar 0 or 1, the limit there


def simple_loss(target: Tensor, output: Tensor, kind: str = "l2") -> Tensor:
    """Mean distance of each image (B,): squared for "l2", absolute for "l1"; raises ValueError for other shapes."""
    if output.shape != target.shape:
        raise ValueError(f"the network's output is {tuple(output.shape)} for a target of {tuple(target.shape)}; with a "
                         f"learned variance use hybrid_loss, else the shapes must be equal")
    check_choice("kind", kind, ("l2", "l1"))
    error = target - output.to(target.dtype)
    return {"l2": error.square, "l1": error.abs}[kind]().flatten(1).mean(1)


def hybrid_loss(schedule: Schedule, denoise: Callable, x0: Tensor, t: Tensor, eps: Tensor, *,
                target: str = "eps", cdf: Callable | None = None) -> Tensor:
    """The loss for a learned variance, (B,): simple + T/1000 bound, the bound teaching only the variance."""
    simple, bound = hybrid_parts(schedule, denoise, x0, t, eps, target=target, cdf=cdf)
    return simple + bound


def hybrid_parts(schedule: Schedule, denoise: Callable, x0: Tensor, t: Tensor, eps: Tensor, *,
                 target: str = "eps", cdf: Callable | None = None) -> tuple[Tensor, Tensor]:
    """The simple loss and T/1000 of the bound, each (B,).

    As published ([2] section 3.1, lambda = 0.001 of a bound of T terms): in bits, x0 unclipped.
    """
    C, t = x0.shape[1], as_times(schedule, t, whole=True)
    output = denoise(q_sample(schedule, x0, t, eps), t)
    frozen = torch.cat([output[:, :C].detach(), output[:, C:]], dim=1)
    bound = bound_terms(schedule, lambda xt, t: frozen, x0, t, eps,
                        target=target, variance="learned", clip=False, cdf=cdf)
    simple = simple_loss(training_target(schedule, x0, t, eps, target), output[:, :C])
    return simple, bound * schedule_length(schedule) / 1000


# The bound

def p_mean_log_var(schedule: Schedule, output: Tensor, xt: Tensor, t: Tensor, *,
                   target: str, variance: str, clip: bool) -> tuple[Tensor, Tensor]:
    """Mean and log variance of p(x_{t-1} | x_t) ([1] eq. 11, [2] eq. 15).

    output: (B, C, ...) or, for variance "learned", (B, 2C, ...) with v in the second half: log variance is
    log beta_tilde at v = -1 and log beta at v = 1. At t = 1 beta_tilde, and "beta" too, are those of t = 2.
    """
    check_choice("variance", variance, VARIANCES)
    t = as_times(schedule, t, whole=True)
    C, output = xt.shape[1], output.to(xt.dtype)
    check_output(output, xt.shape, variance == "learned")
    x0_hat, _ = predict(schedule, output[:, :C], xt, t, target)
    mean, _, log_min = q_posterior(schedule, x0_hat.clamp(-1, 1) if clip else x0_hat, xt, t)
    if variance == "beta_tilde":
        return mean, log_min
    if variance == "beta":
        [log_beta] = broadcast_to(xt, torch.where(t > 1, schedule.beta[t], schedule.beta_tilde[2]).log())
        return mean, log_beta
    [log_max] = broadcast_to(xt, schedule.beta[t].log())
    return mean, interpolate_log_var(output[:, C:], log_min, log_max)


def normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N1 || N2) of every element, in nats."""
    return (log_var2 - log_var1 + (log_var1 - log_var2).exp() + (mean1 - mean2)**2 * (-log_var2).exp() - 1) / 2


def decoder_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor, cdf: Callable | None = None) -> Tensor:
    """log p(x0 | x_1) of every pixel in nats: the Gaussian's mass in the pixel's bin of 256 ([1] eq. 13).

    x0 lies on the 8-bit grid in [-1, 1]; the first and last bins reach to infinity. cdf: an approximation of that of
    N(0, 1), whose mass is 1e-12 or more, as published; by default the exact one, however far from the mean.
    """
    lower, upper = (((x0 + side / 255) - mean) * (-log_var / 2).exp() for side in (-1, 1))
    lower, upper = torch.where(x0 < -0.999, -math.inf, lower), torch.where(x0 > 0.999, math.inf, upper)
    return (cdf(upper) - cdf(lower)).clamp(min=1e-12).log() if cdf else log_mass(lower, upper)


def log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log of N(0, 1)'s mass between these, by the tail that is nearer, where numbers are small and none cancels."""
    left = lower + upper < 0
    far, near = (torch.where(left, *pair).double() for pair in ((lower, -upper), (upper, -lower)))
    below = log_ndtr(near)
    return (below + (-(log_ndtr(far) - below).exp()).log1p()).to(lower.dtype)


def bound_terms(schedule: Schedule, denoise: Callable, x0: Tensor, t: Tensor, eps: Tensor, *,
                target: str, variance: str, clip: bool, cdf: Callable | None = None) -> Tensor:
    """Each image's term L_{t-1} of the bound in bits/dim (B,): a KL, at t = 1 the decoder ([1] eq. 5)."""
    xt = q_sample(schedule, x0, t, eps)
    mean, log_var = p_mean_log_var(schedule, denoise(xt, t), xt, t, target=target, variance=variance, clip=clip)
    true_mean, _, true_log_var = q_posterior(schedule, x0, xt, t)
    kl = normal_kl(true_mean, true_log_var, mean, log_var).flatten(1).mean(1)
    decoder = -decoder_log_likelihood(x0, mean, log_var, cdf).flatten(1).mean(1)
    return torch.where(t == 1, decoder, kl) / math.log(2)


def prior_bits(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T, KL(q(x_T | x0) || N(0, I)), of each image (B,) in bits/dim, float64 ([1] eq. 5)."""
    check_floating(x0)
    alpha_bar = schedule.alpha_bar[-1]
    zero = torch.zeros_like(alpha_bar)
    kl = normal_kl(alpha_bar.sqrt() * x0.double(), (-alpha_bar).log1p(), zero, zero)
    return kl.flatten(1).mean(1) / math.log(2)


if __name__ == "__main__":
    print_tables(linear_schedule())
