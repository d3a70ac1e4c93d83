"""Every sampler as a table: one row of coefficients per step, one `step` for all of them, one loop.

A sampler needs no more of a diffusion model than alpha_bar_t, what the network's output predicts, and noise. So this
file knows nothing of betas, losses or training, and ddpm.py imports it: `ddpm.step` is the `step` below. The letters
are those of ddpm.py; `schedule` is anything with alpha_bar, (T+1,) float64, as ddpm.Schedule.

[1] Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models
[2] Nichol, Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models
[3] Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models
[4] Salimans, Ho 2022, Progressive Distillation (v, and the parametrisations of the output)
[5] Lu et al. 2022, DPM-Solver++
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from noise import normal

TARGETS, VARIANCES = ("eps", "x0", "v"), ("beta_tilde", "beta", "learned")
SAMPLERS, SPACINGS = ("ddim", "2m"), ("trailing", "leading", "linspace")
COLUMNS = ("t", "s", "a", "b", "clip", "c0", "ct", "cp", "cz", "log_min", "log_max")


def check_choice(name: str, value: str, allowed) -> None:
    """Raises ValueError unless value is one of the allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


# What the network's output says

def x0_coefficients(alpha_bar: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """a, b such that x0_hat = a xt + b output; float64, the shape of alpha_bar ([1] eq. 15, [4] appendix D)."""
    check_choice("target", target, TARGETS)
    if target == "eps":
        return 1 / alpha_bar.sqrt(), -(1 / alpha_bar - 1).sqrt()
    if target == "x0":
        return torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return alpha_bar.sqrt(), -(1 - alpha_bar).sqrt()


def interpolate_log_var(v: Tensor, log_min: Tensor, log_max: Tensor) -> Tensor:
    """The learned log variance: log_min at v = -1, log_max at v = 1, and straight on beyond ([2] eq. 15)."""
    return log_min + (v + 1) / 2 * (log_max - log_min)


def check_output(output: Tensor, shape: tuple, learned: bool) -> None:
    """Raises ValueError unless the output has x_t's shape (B, C, ...), or 2C channels, as a learned variance needs."""
    B, C, *rest = shape
    if output.shape != (B, 2 * C, *rest) and (learned or output.shape != (B, C, *rest)):
        raise ValueError(f"the network's output is {tuple(output.shape)} for x_t {tuple(shape)}; a learned variance "
                         f"needs {2 * C} channels, a fixed one {C} or {2 * C}, and the rest must be equal")


# The samplers: one row per step

def timesteps(T: int, steps: int, spacing: str = "trailing") -> Tensor:
    """`steps` times, decreasing, of 1..T: "trailing" begins at T, "leading" ends at 1, "linspace" does both."""
    check_choice("spacing", spacing, SPACINGS)
    if steps not in range(1, T + 1):
        raise ValueError(f"steps is {steps}; a chain of T = {T} takes 1 to {T} steps")
    if spacing == "trailing":
        return (T - torch.arange(steps, dtype=torch.float64) * T / steps).round().long()
    if spacing == "leading":
        return (torch.arange(steps) * (T // steps) + 1).flip(0)
    return torch.linspace(T - 1, 0, steps, dtype=torch.float64).round().long() + 1   # halves rounded as published


def sampler_rows(schedule, times, *, sampler: str = "ddim", target: str = "eps",
                 variance: str = "beta_tilde", eta: float = 0., clip: bool = True) -> Tensor:
    """The sampler as a table (S, 11), float64, one row per step t -> s; `step` explains the columns.

    times: decreasing integers in 1..T; the last step goes to 0. sampler: "ddim" ([3] eq. 12), which is
    ancestral sampling ([1] algorithm 2) at eta = 1, or "2m", DPM-Solver++ of second order ([5] algorithm 2),
    which wants even steps: trailing times, not linspace. The chain is that of the listed times alone, so betas
    and variances are the shortened chain's. The variance is the noise's; the mean's is always eta^2 beta_tilde.
    """
    t = torch.as_tensor(times, device=schedule.alpha_bar.device)
    T = len(schedule.alpha_bar) - 1
    check_chain(t, T, sampler, variance, eta)
    s = torch.cat([t[1:], t.new_zeros(1)])
    bar_t, bar_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    if target == "eps" and bar_t[0] == 0:
        raise ValueError("alpha_bar is 0 at the first step: x_T holds no signal, and eps cannot say what x0 is; "
                         "use target v or x0, or a schedule with beta_T < 1")
    beta = 1 - bar_t / bar_s
    beta_tilde = beta * (1 - bar_s) / (1 - bar_t)

    a, b = x0_coefficients(bar_t, target)
    ct = ((1 - bar_s - eta**2 * beta_tilde).clamp(min=0) / (1 - bar_t)).sqrt()   # eps_hat is (xt - sqrt(bar_t) x0_hat)
    c0 = bar_s.sqrt() - ct * bar_t.sqrt()                                         # / sqrt(1 - bar_t), hence both
    cp = torch.zeros_like(c0)
    if sampler == "2m":
        half_log_snr = torch.cat([bar_t, bar_s[-1:]]).logit() / 2
        h = half_log_snr.diff()
        cp[1:-1] = -c0[1:-1] * h[1:-1] / (2 * h[:-2])                             # 1/2r of the last step's x0_hat
        c0 = c0 - cp

    log_min = log_max = torch.zeros_like(c0)
    cz = {"beta_tilde": beta_tilde, "beta": beta, "learned": torch.ones_like(beta)}[variance].sqrt() * eta * (s > 0)
    if variance == "learned":
        floor = beta_tilde[-2] if len(t) > 1 else beta[-1]                        # log beta_tilde_1 would be -inf
        log_min, log_max = torch.where(s > 0, beta_tilde, floor).log(), beta.log()
    limit = torch.full_like(c0, 1 if clip else math.inf)
    return torch.stack([t, s, a, b, limit, c0, ct, cp, cz, log_min, log_max], dim=1)


def check_chain(t: Tensor, T: int, sampler: str, variance: str, eta: float) -> None:
    """Raises ValueError unless these make a sampler."""
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("variance", variance, VARIANCES)
    if t.ndim != 1 or len(t) and (t.is_floating_point() or t.dtype == torch.bool):
        raise ValueError(f"times are {t.dtype}, shape {tuple(t.shape)}; they must be whole numbers, (S,)")
    if not len(t) or t[0] > T or t[-1] < 1 or (t.diff() >= 0).any():
        raise ValueError(f"times are {t.tolist()}; they must decrease and lie in 1..{T}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; it must be between 0 (DDIM) and 1 (DDPM)")
    if sampler == "2m" and eta:
        raise ValueError(f"eta is {eta:g}; the 2m sampler adds no noise, leave eta at 0")


def step(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, x0_prev: Tensor | None = None,
         seeds: Tensor | None = None, *, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One reverse step, x_t -> x_s by row i: returns x_s and x0_hat.

        x0_hat = clamp(a xt + b output, -clip, clip)
        xs     = c0 x0_hat + ct xt + cp x0_prev + cz sigma z

    i: int64 (1,). output: (B, C, ...), or (B, 2C, ...) whose second half is v in
    sigma = exp(log_var / 2), log_var = log_min + (v + 1)/2 (log_max - log_min). x0_prev: the last step's
    x0_hat, for 2m. z defaults to the noise of the images' seeds; without either no noise is added.
    """
    row = rows.index_select(0, i)[0]                                              # no .item(): stays on the device
    _, _, a, b, clip, c0, ct, cp, cz, log_min, log_max = row.to(xt.dtype)
    C = xt.shape[1]
    output = output.to(xt.dtype)
    x0_hat = (a * xt + b * output[:, :C]).clamp(-clip, clip)
    xs = c0 * x0_hat + ct * xt
    if x0_prev is not None:
        xs = xs + cp * x0_prev
    if z is None and seeds is not None:
        z = normal(seeds, row[1].long(), xt.shape[1:])                            # s, not cast on the way
    if z is not None:
        sigma = (interpolate_log_var(output[:, C:], log_min, log_max) / 2).exp() if output.shape[1] > C else 1
        xs = xs + cz * sigma * z
    return xs, x0_hat


@torch.no_grad()
def sample(denoise: Callable, rows: Tensor, shape, seeds: Tensor, *,
           step: Callable = step, ahead: int = 1) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Runs the chain from noise to data, yielding (s, x_s, x0_hat) after every step ([1] algorithm 2).

    shape: one image's, (C, H, W). seeds: int64 (B,), one per image (`noise.image_seeds`), on rows' device.
    step: `step` or its fused twin. ahead: number of steps whose noise is computed together, which is faster
    for small images and changes no bit. Raises ValueError if the output's channels do not fit.
    """
    steps = torch.arange(len(rows), device=rows.device).split(1)
    times = rows[:, :1].long().expand(-1, len(seeds)).unbind()
    noisy, second_order, learned = (rows[:, COLUMNS.index(c)].any().item() for c in ("cz", "cp", "log_max"))
    xt, x0_hat, z = normal(seeds, times[0], shape), None, None
    for k, s in enumerate(rows[:, 1].long().tolist()):
        if noisy and ahead > 1:
            if k % ahead == 0:
                block = normal(seeds, rows[k:k + ahead, 1:2].long(), shape).unbind()
            z = block[k % ahead]
        output = denoise(xt, times[k])
        check_output(output, xt.shape, learned)
        xt, x0_hat = step(rows, steps[k], xt, output, x0_hat if second_order else None,
                          seeds if noisy and z is None else None, z=z)
        yield s, xt, x0_hat
