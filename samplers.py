"""Every sampler as a table: one row of coefficients per network evaluation, one `step` for all of them, one loop.

A sampler needs no more of a diffusion model than alpha_bar_t, what the network's output predicts, and noise. So this
file knows nothing of betas, losses or training, and ddpm.py imports it: `ddpm.step` is the `step` below. The letters
are those of ddpm.py; sigma is the noise for a signal of one, sqrt(1 / alpha_bar - 1). `schedule` is anything with
alpha_bar, (T+1,) float64, as ddpm.Schedule.

[1] Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models
[2] Nichol, Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models
[3] Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models
[4] Salimans, Ho 2022, Progressive Distillation (v, and the parametrisations of the output)
[5] Lu et al. 2022, DPM-Solver++
[6] Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models (EDM)
[7] Zhao et al. 2023, UniPC
[8] Song et al. 2023, Consistency Models
[9] Liu et al. 2022, Flow Straight and Fast (rectified flow)
"""

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from noise import normal

TARGETS, VARIANCES = ("eps", "x0", "v", "flow"), ("beta_tilde", "beta", "learned")
SAMPLERS = ("ddim", "2m", "heun", "unipc", "unipc-bh1", "consistency")
SPACINGS, NOISE_SPACINGS = ("trailing", "leading", "linspace"), ("karras", "logsnr", "flow")
COLUMNS = ("t", "s", "a", "b", "clip", "c0", "ct", "cp", "cz", "log_min", "log_max", "cp2")


def check_choice(name: str, value: str, allowed) -> None:
    """Raises ValueError unless value is one of the allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


# What the network's output says

def x0_coefficients(alpha_bar: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """a, b such that x0_hat = a xt + b output; float64, the shape of alpha_bar ([1] eq. 15, [4] appendix D).

    "flow" is eps - x0, the velocity of the straight path from x0 to eps ([9] eq. 4); xt is that path's point, scaled.
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


def interpolate_log_var(v: Tensor, log_min: Tensor, log_max: Tensor) -> Tensor:
    """The learned log variance: log_min at v = -1, log_max at v = 1, and straight on beyond ([2] eq. 15)."""
    return log_min + (v + 1) / 2 * (log_max - log_min)


def check_output(output: Tensor, shape: tuple, learned: bool) -> None:
    """Raises ValueError unless the output has x_t's shape (B, C, ...), or 2C channels, as a learned variance needs."""
    B, C, *rest = shape
    if output.shape != (B, 2 * C, *rest) and (learned or output.shape != (B, C, *rest)):
        raise ValueError(f"the network's output is {tuple(output.shape)} for x_t {tuple(shape)}; a learned variance "
                         f"needs {2 * C} channels, a fixed one {C} or {2 * C}, and the rest must be equal")


# Times, whole or between the whole ones

def log_sigma(alpha_bar: Tensor) -> Tensor:
    """log sqrt(1 / alpha_bar - 1), half the log-SNR negated: -inf for clean data, inf for noise alone."""
    return -alpha_bar.logit() / 2


def alpha_bar_at(schedule, t: Tensor) -> Tensor:
    """alpha_bar at t: the table's entry at a whole t; between two of them log sigma is interpolated linearly."""
    if not t.is_floating_point():
        return schedule.alpha_bar[t]
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


def spaced_times(schedule, steps: int, spacing: str = "trailing", shift: float = 1.) -> Tensor:
    """`timesteps` of the schedule, or `steps` real-valued times from T down that are even in a function of the noise.

    "karras" is even in sigma^(1/7) ([6] eq. 5) and "logsnr" in log sigma, both down to t = 1. "flow" is even in
    u = sigma / (1 + sigma), the last of its steps being that to 0; shift k > 1 moves those to more noise, from
    v = u / u_T to k v / (1 + (k - 1) v). Raises ValueError for "karras" and "logsnr" if alpha_bar_T = 0.
    """
    check_choice("spacing", spacing, (*SPACINGS, *NOISE_SPACINGS))
    if not 0 < shift < math.inf or shift != 1 and spacing != "flow":
        raise ValueError(f"shift is {shift:g}; it must be above 0, and 1 unless the spacing is flow")
    whole = timesteps(len(schedule.alpha_bar) - 1, steps, spacing if spacing in SPACINGS else "trailing")
    if spacing in SPACINGS:
        return whole
    most, least = log_sigma(schedule.alpha_bar[[-1, 1]])
    if spacing == "flow":
        left = 1 - torch.arange(steps, dtype=torch.float64, device=most.device) / steps
        return time_at(schedule, (most.sigmoid() * shift * left / (shift * left + (1 - left))).logit())
    if most == math.inf:
        raise ValueError(f"alpha_bar is 0 at T, where sigma is infinite; spacing {spacing} needs a finite sigma, "
                         f"use trailing or flow")
    part = torch.linspace(0, 1, steps, dtype=torch.float64, device=most.device)
    if spacing == "logsnr":
        return time_at(schedule, most.lerp(least, part))
    return time_at(schedule, 7 * (most / 7).exp().lerp((least / 7).exp(), part).log())


def network_times(rows: Tensor) -> Tensor:
    """t of every row (S,): int64 if all are whole, as training has them, else float64."""
    t = rows[:, 0]
    return t if (t % 1).any() else t.long()


def needs(rows: Tensor) -> list[bool]:
    """Whether any of these rows reads the noise, x0_prev, x0_prev2, and the output's second half."""
    return [bool(rows[:, COLUMNS.index(name)].any()) for name in ("cz", "cp", "cp2", "log_max")]


def numbers(times: Tensor) -> list[int | float]:
    """Times as Python's numbers, the whole ones as integers."""
    return [int(t) if t % 1 == 0 else t for t in times.tolist()]


# The samplers: one row per network evaluation

def sampler_rows(schedule, times, *, sampler: str = "ddim", target: str = "eps", variance: str = "beta_tilde",
                 eta: float = 0., clip: bool = True, churn: float = 0.) -> Tensor:
    """The sampler as a table (S, 12), float64, one row per network evaluation t -> s; `step` explains the columns.

    times: decreasing, in 1..T, whole or between; the last step goes to 0. The chain is that of the listed times alone,
    so betas and variances are the shortened chain's. sampler:
    - "ddim" ([3] eq. 12): at eta = 1 it is ancestral sampling ([1] algorithm 2), at eta = 0 Euler's method for the ODE
      of EDM or of flow matching. The noise has the `variance`, the mean's is always eta^2 beta_tilde.
    - "2m": DPM-Solver++ of second order ([5] algorithm 2), at eta = 1 its SDE variant.
    - "heun" ([6] algorithm 2): two rows per step, but one for the last. churn: S_churn, shared by all steps.
    - "unipc": of second order with B(h) = exp(h) - 1; "unipc-bh1": with B(h) = h ([7] algorithm 1).
    - "consistency" ([8] algorithm 1): x0_hat, noised again to s.
    """
    t = check_chain(schedule, times, sampler, variance, eta, churn)
    if sampler == "heun":
        t = with_corrections(schedule, t, churn)
    s = torch.cat([t[1:], t.new_zeros(1)])
    bar_t, bar_s = alpha_bar_at(schedule, t), alpha_bar_at(schedule, s)
    if target == "eps" and bar_t[0] == 0:
        raise ValueError("alpha_bar is 0 at the first step: x_T holds no signal, and eps cannot say what x0 is; "
                         "use target v, x0 or flow, or a schedule with beta_T < 1")
    a, b = x0_coefficients(bar_t, target)
    c0, ct, cz, log_min, log_max = ddim_weights(bar_t, bar_s, variance if sampler in ("ddim", "2m") else "", eta)
    cp = cp2 = torch.zeros_like(c0)
    if sampler in ("2m", "unipc", "unipc-bh1"):
        c0, cp, cp2 = multistep_weights(bar_t, bar_s, c0, ct, sampler)
    elif sampler == "heun":
        c0, ct, cp, cz = heun_weights(bar_t, bar_s, c0, ct)
    elif sampler == "consistency":
        c0, ct, cz = bar_s.sqrt(), torch.zeros_like(ct), (1 - bar_s).sqrt()
    landed_on = torch.cat([t[:1], s[cz > 0]]).float()
    if len(landed_on.unique()) < len(landed_on):
        raise ValueError("two times are equal in float32, and so would be the noise that lands there; use fewer steps")
    limit = torch.full_like(c0, 1 if clip else math.inf)
    return torch.stack([t, s, a, b, limit, c0, ct, cp, cz, log_min, log_max, cp2], dim=1)


def ddim_weights(bar_t: Tensor, bar_s: Tensor, variance: str, eta: float) -> tuple[Tensor, ...]:
    """c0, ct, cz, log_min, log_max of DDIM ([3] eq. 12); without a variance no noise."""
    beta = 1 - bar_t / bar_s
    beta_tilde = beta * (1 - bar_s) / (1 - bar_t)
    ct = ((1 - bar_s - eta**2 * beta_tilde).clamp(min=0) / (1 - bar_t)).sqrt()   # eps_hat is (xt - sqrt(bar_t) x0_hat)
    c0 = bar_s.sqrt() - ct * bar_t.sqrt()                                         # / sqrt(1 - bar_t), hence both
    cz = log_min = log_max = torch.zeros_like(c0)
    if variance:
        size = {"beta_tilde": beta_tilde, "beta": beta, "learned": torch.ones_like(beta)}[variance]
        cz = size.sqrt() * eta * (bar_s < 1)
    if variance == "learned":
        floor = beta_tilde[-2] if len(beta) > 1 else beta[-1]                     # log beta_tilde_1 would be -inf
        log_min, log_max = torch.where(bar_s < 1, beta_tilde, floor).log(), beta.log()
    return c0, ct, cz, log_min, log_max


def multistep_weights(bar_t: Tensor, bar_s: Tensor, c0: Tensor, ct: Tensor, sampler: str) -> tuple[Tensor, ...]:
    """c0, cp, cp2 of DPM-Solver++(2M) ([5] algorithm 2) and of UniPC-2 ([7] algorithm 1).

    Both take x0_hat from the line through its last two values over log-SNR, half a step on; the first and the last
    step are of first order. UniPC's rows lead from predicted to predicted state: x0_hat there also corrects the step
    that led there, by w0 x0_hat + w1 x0_prev + w2 x0_prev2, where w0 + w1 + w2 = 0, which costs no evaluation.
    """
    h = log_sigma(bar_t) - log_sigma(bar_s)
    gain = torch.where(h.isfinite(), bar_s.sqrt() * h, c0) if sampler == "unipc-bh1" else c0    # B(h) sqrt(bar_s)
    cp, w0, w2 = torch.zeros(3, len(h), dtype=h.dtype, device=h.device)
    cp[1:-1] = -gain[1:-1] * h[1:-1] / (2 * h[:-2])
    if sampler != "2m":
        before, last = h[:-2], h[1:-1]                                            # the step that led to t is the last
        phi = 1 + torch.expm1(-last) / last
        psi = (phi - 1 + 2 * phi / last) / (1 + before / last)
        w0[1:2] = gain[:1] / 2                                                    # the first step's: the trapezoid rule
        w0[2:] = bar_t[2:].sqrt() * (phi - psi)
        w2[2:] = -bar_t[2:].sqrt() * psi * last / before - cp[1:-1]
    return c0 - cp + ct * w0, cp - ct * (w0 + w2), ct * w2


def with_corrections(schedule, t: Tensor, churn: float) -> Tensor:
    """The times as Heun's method visits them: all but the first twice, for the correction and for the next step.

    Churn makes the next step begin at 1 + churn / steps times sigma, or sqrt(2) times if that is less; where it would
    be beyond the first sigma, there is none.
    """
    level = log_sigma(alpha_bar_at(schedule, t))
    churned = level + math.log1p(min(churn / len(t), math.sqrt(2) - 1))
    left = torch.where(churned < level[0], time_at(schedule, churned), t) if churn else t
    return torch.stack([t, left], dim=1).flatten()[1:]


def heun_weights(bar_t: Tensor, bar_s: Tensor, c0: Tensor, ct: Tensor) -> tuple[Tensor, ...]:
    """c0, ct, cp, cz of EDM's Heun ([6] algorithm 2): DDIM's step, then its correction and the next step's churn.

    Both slopes of a step from sigma to n are (x - x0_hat) / n on the predicted state x, so the correction is
    (sigma - n) / 2n (x0_hat - x0_prev). From an infinite sigma it is that of flow matching, which is finite.
    """
    n, correction = (1 / bar_t - 1).sqrt(), torch.arange(len(c0), device=c0.device) % 2 == 1
    sigma = n.roll(1)
    w = torch.where(sigma == math.inf, 1 / n + 1, sigma / n - 1) / 2 * bar_s.sqrt()
    churn = (1 - bar_s / bar_t).clamp(min=0).sqrt()
    return (torch.where(correction, w, c0), torch.where(correction, (bar_s / bar_t).sqrt(), ct),
            torch.where(correction, -w, 0), torch.where(correction, churn, 0))


def check_chain(schedule, times, sampler: str, variance: str, eta: float, churn: float) -> Tensor:
    """The times, int64 if all are whole, else float64. Raises ValueError unless these make a sampler."""
    T, dtype = len(schedule.alpha_bar) - 1, None if isinstance(times, Tensor) else torch.float64
    t = torch.as_tensor(times, dtype=dtype, device=schedule.alpha_bar.device)
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("variance", variance, VARIANCES)
    if t.ndim != 1 or t.dtype == torch.bool:
        raise ValueError(f"times are {t.dtype}, shape {tuple(t.shape)}; they must be numbers, (S,)")
    if not len(t) or not (t[0] <= T and t[-1] >= 1 and (t.diff() < 0).all()):
        raise ValueError(f"times are {numbers(t)}; they must decrease and lie in 1..{T}")
    t = t.double() if (t % 1).any() else t.long()
    alpha_bar = alpha_bar_at(schedule, t)
    if same := (alpha_bar.diff() <= 0).nonzero().flatten().tolist():
        first, second = t[same[0]], t[same[0] + 1]
        raise ValueError(f"times are {numbers(t)}; alpha_bar must differ between them, and it is "
                         f"{alpha_bar[same[0]]:.2g} at {first:g} and at {second:g}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; it must be between 0 (DDIM) and 1 (DDPM)")
    if eta and sampler not in ("ddim", "2m"):
        raise ValueError(f"eta is {eta:g}; only the samplers ddim and 2m take it, leave it at 0 for {sampler}")
    if not 0 <= churn < math.inf or churn and sampler != "heun":
        raise ValueError(f"churn is {churn:g}; it must be 0 or more, and 0 for every sampler but heun")
    return t


def step(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, x0_prev: Tensor | None = None,
         seeds: Tensor | None = None, *, z: Tensor | None = None,
         x0_prev2: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One reverse step, x_t -> x_s by row i: returns x_s and x0_hat.

        x0_hat = clamp(a xt + b output, -clip, clip)
        xs     = c0 x0_hat + ct xt + cp x0_prev + cp2 x0_prev2 + cz sigma z

    i: int64 (1,). output: (B, C, ...), or (B, 2C, ...) whose second half is v in
    sigma = exp(log_var / 2), log_var = log_min + (v + 1)/2 (log_max - log_min). x0_prev, x0_prev2: the x0_hat of the
    last row and of the one before, where cp and cp2 are not zero. z defaults to the noise of the images' seeds;
    without either no noise is added.
    """
    row = rows.index_select(0, i)[0]                                              # no .item(): stays on the device
    _, _, a, b, clip, c0, ct, cp, cz, log_min, log_max, cp2 = row.to(xt.dtype)
    C = xt.shape[1]
    output = output.to(xt.dtype)
    x0_hat = (a * xt + b * output[:, :C]).clamp(-clip, clip)
    xs = c0 * x0_hat + ct * xt
    if x0_prev is not None:
        xs = xs + cp * x0_prev
    if x0_prev2 is not None:
        xs = xs + cp2 * x0_prev2
    if z is None and seeds is not None:
        z = normal(seeds, row[1], xt.shape[1:])                                   # s, not cast on the way
    if z is not None:
        sigma = (interpolate_log_var(output[:, C:], log_min, log_max) / 2).exp() if output.shape[1] > C else 1
        xs = xs + cz * sigma * z
    return xs, x0_hat


@torch.no_grad()
def sample(denoise: Callable, rows: Tensor, shape, seeds: Tensor, *,
           step: Callable = step, ahead: int = 1) -> Iterator[tuple[int | float, Tensor, Tensor]]:
    """Runs the chain from noise to data, yielding (s, x_s, x0_hat) after every row ([1] algorithm 2).

    shape: one image's, (C, H, W). seeds: int64 (B,), one per image (`noise.image_seeds`), on rows' device.
    step: `step` or its fused twin. ahead: number of rows whose noise is computed together, which is faster
    for small images and changes no bit. Raises ValueError if the output's channels do not fit.
    """
    steps = torch.arange(len(rows), device=rows.device).split(1)
    times = network_times(rows)[:, None].expand(-1, len(seeds)).unbind()
    noisy, second, third, learned = needs(rows)
    xt, x0_hat, x0_prev, z = normal(seeds, rows[0, 0], shape), None, None, None
    for k, s in enumerate(numbers(rows[:, 1])):
        if noisy and ahead > 1:
            if k % ahead == 0:
                block = normal(seeds, rows[k:k + ahead, 1:2], shape).unbind()
            z = block[k % ahead]
        output = denoise(xt, times[k])
        check_output(output, xt.shape, learned)
        xs, x0 = step(rows, steps[k], xt, output, x0_hat if second else None, seeds if noisy and z is None else None,
                      z=z, **{"x0_prev2": x0_prev} if third else {})
        xt, x0_hat, x0_prev = xs, x0, x0_hat
        yield s, xt, x0_hat


SHOWN = {"DDPM": {"eta": 1.}, "DDIM": {}, "DPM-Solver++(2M)": {"sampler": "2m"},
         "SDE-DPM-Solver++(2M)": {"sampler": "2m", "eta": 1.}, "UniPC-2": {"sampler": "unipc"},
         "Heun with churn": {"sampler": "heun", "churn": 1.}, "Consistency": {"sampler": "consistency"}}


def print_tables(schedule) -> None:
    """Prints the samplers as what they are: tables of the same ten steps."""
    times, columns = timesteps(len(schedule.alpha_bar) - 1, 10), [*COLUMNS[:8], "cp2", "cz"]
    lines = [inspect.getsource(step).split("\n\n")[1]]                            # python -OO has no docstrings
    for name, choice in SHOWN.items():
        lines += [f"\n{name}", "".join(f"{c:>9}" for c in columns)]
        for row in sampler_rows(schedule, times, **choice).tolist():
            lines.append("".join(f"{row[COLUMNS.index(c)]:9.4g}" for c in columns))
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:                                                       # of python ddpm.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())            # what is left goes nowhere
