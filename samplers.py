"""Every sampler as a table: one row of coefficients per network evaluation, one `step` for all of them, one loop.

A sampler needs no more of a diffusion model than alpha_bar_t, what the network's output predicts, and noise. So this
file knows nothing of losses or training, and ddpm.py makes it a part of its interface: `ddpm.step` is the `step` below.
The letters are those of schedules.py; `schedule` is anything with alpha_bar, (T+1,) float64.

[1] Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models
[2] Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models
[3] Lu et al. 2022, DPM-Solver++
[4] Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models (EDM)
[5] Zhao et al. 2023, UniPC
[6] Song et al. 2023, Consistency Models
"""

import csv
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from noise import normal
from schedules import (
    VARIANCES,
    alpha_bar_at,
    check_choice,
    check_output,
    check_target,
    interpolate_log_var,
    log_sigma,
    time_at,
    x0_coefficients,
)

SPACINGS, NOISE_SPACINGS = ("trailing", "leading", "linspace"), ("karras", "logsnr", "flow")
COLUMNS = ("t", "s", "a", "b", "clip", "c0", "ct", "cp", "cp2", "cz", "log_min", "log_max")


# Times, whole or between the whole ones

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

    "karras" is even in sigma^(1/7) ([4] eq. 5) and "logsnr" in log sigma, both down to t = 1. "flow" is even in
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


def as_python(times: Tensor) -> list[int | float]:
    """Times as Python's numbers, the whole ones as integers."""
    return [int(t) if t % 1 == 0 else t for t in times.tolist()]


# The samplers: a function each, from alpha_bar at both ends of every step to the columns that it fills; others are 0

def ddim(bar_t: Tensor, bar_s: Tensor, eta: float = 0., variance: str = "beta_tilde") -> dict[str, Tensor]:
    """DDIM ([2] eq. 12): ancestral sampling at eta = 1 ([1] algorithm 2), Euler's method for an ODE at 0 ([4] eq. 4).

    The noise has the `variance`; what the mean leaves room for is always eta^2 beta_tilde. eps_hat is that of the
    clipped x0_hat (use_clipped_model_output=True in diffusers).
    """
    beta = 1 - bar_t / bar_s
    beta_tilde = beta * (1 - bar_s) / (1 - bar_t)
    c0, ct = ddim_mean(bar_t, bar_s, eta**2 * beta_tilde)
    size = {"beta_tilde": beta_tilde, "beta": beta, "learned": torch.ones_like(beta)}[variance]
    columns = {"c0": c0, "ct": ct, "cz": size.sqrt() * eta * (bar_s < 1)}
    if variance == "learned":
        floor = beta_tilde[-2] if len(beta) > 1 else beta[-1]                     # log beta_tilde_1 would be -inf
        columns |= {"log_min": torch.where(bar_s < 1, beta_tilde, floor).log(), "log_max": beta.log()}
    return columns


def ancestral(bar_t: Tensor, bar_s: Tensor, variance: str = "beta_tilde") -> dict[str, Tensor]:
    """DDPM's own sampler ([1] algorithm 2): `ddim` at eta = 1."""
    return ddim(bar_t, bar_s, 1., variance)


def ddim_mean(bar_t: Tensor, bar_s: Tensor, var: Tensor | float = 0.) -> tuple[Tensor, Tensor]:
    """c0 and ct of the step that leaves room for noise of this variance ([2] eq. 12)."""
    ct = ((1 - bar_s - var).clamp(min=0) / (1 - bar_t)).sqrt()                    # eps_hat is (xt - sqrt(bar_t) x0_hat)
    return bar_s.sqrt() - ct * bar_t.sqrt(), ct                                   # / sqrt(1 - bar_t), hence both


def dpm_2m(bar_t: Tensor, bar_s: Tensor, eta: float = 0.) -> dict[str, Tensor]:
    """DPM-Solver++(2M) ([3] algorithm 2), at eta = 1 its SDE variant: DDIM's step, of second order.

    The noise is always beta_tilde's: any other solves another equation, to which the steps do not converge.
    """
    columns = ddim(bar_t, bar_s, eta)
    cp = second_order(columns["c0"], log_sigma(bar_t) - log_sigma(bar_s))
    return columns | {"c0": columns["c0"] - cp, "cp": cp}


def second_order(gain: Tensor, h: Tensor) -> Tensor:
    """cp for x0_hat on the line through its last two values over log-SNR, half a step on; h: the steps in log sigma.

    gain: the weight of x0_hat. The first step knows no line yet, the last goes to an infinite log-SNR: there cp is 0.
    """
    cp = torch.zeros_like(h)
    cp[1:-1] = -gain[1:-1] * h[1:-1] / (2 * h[:-2])
    return cp


def unipc(bar_t: Tensor, bar_s: Tensor, bh1: bool = False) -> dict[str, Tensor]:
    """UniPC-2 ([5] algorithm 1) with B(h) = exp(h) - 1, or h if bh1.

    Its rows lead from predicted to predicted state: x0_hat there also corrects the step that led there, by
    w0 x0_hat + w1 x0_prev + w2 x0_prev2, where w0 + w1 + w2 = 0, which costs no evaluation.
    """
    (c0, ct), h = ddim_mean(bar_t, bar_s), log_sigma(bar_t) - log_sigma(bar_s)
    gain = torch.where(h.isfinite(), bar_s.sqrt() * h, c0) if bh1 else c0         # B(h) sqrt(bar_s)
    cp, w0, w2 = second_order(gain, h), torch.zeros_like(h), torch.zeros_like(h)
    before, last = h[:-2], h[1:-1]                                                # the step that led to t is the last
    phi = 1 + torch.expm1(-last) / last
    psi = (phi - 1 + 2 * phi / last) / (1 + before / last)
    w0[1:2] = gain[:1] / 2                                                        # the first step's: the trapezoid rule
    w0[2:] = bar_t[2:].sqrt() * (phi - psi)
    w2[2:] = -bar_t[2:].sqrt() * psi * last / before - cp[1:-1]
    return {"c0": c0 - cp + ct * w0, "ct": ct, "cp": cp - ct * (w0 + w2), "cp2": ct * w2}


def heun(bar_t: Tensor, bar_s: Tensor, churn: float = 0., s_tmin: float = 0., s_tmax: float = math.inf,
         s_noise: float = 1.) -> dict[str, Tensor]:
    """EDM ([4] algorithm 2), its times visited `twice`: DDIM's step, then its correction and the next step's churn.

    Both slopes of a step from sigma to n are (x - x0_hat) / n on the predicted state x, so the correction is
    (sigma - n) / 2n (x0_hat - x0_prev). From an infinite sigma it is that of flow matching, which is finite.
    """
    (c0, ct), correction = ddim_mean(bar_t, bar_s), torch.arange(len(bar_t), device=bar_t.device) % 2 == 1
    n = (1 / bar_t - 1).sqrt()
    sigma = n.roll(1)
    w = torch.where(sigma == math.inf, 1 / n + 1, sigma / n - 1) / 2 * bar_s.sqrt()
    return {"c0": torch.where(correction, w, c0), "ct": torch.where(correction, (bar_s / bar_t).sqrt(), ct),
            "cp": torch.where(correction, -w, 0),
            "cz": torch.where(correction, s_noise * (1 - bar_s / bar_t).clamp(min=0).sqrt(), 0)}


def twice(schedule, t: Tensor, churn: float = 0., s_tmin: float = 0., s_tmax: float = math.inf,
          s_noise: float = 1.) -> Tensor:
    """The times as Heun's method visits them: all but the first twice, for the correction and for the next step.

    Churn makes a step from sigma in s_tmin..s_tmax begin at 1 + churn / steps times sigma, or sqrt(2) times if that is
    less, as [4] does; where that would be beyond the schedule's last sigma, as always at T, there is none. The first
    step begins there at once: its noise is part of x_T.
    """
    level, last = log_sigma(alpha_bar_at(schedule, t)), log_sigma(schedule.alpha_bar[-1])
    churned = level + math.log1p(min(churn / len(t), math.sqrt(2) - 1))
    raised = (churned <= last) & (s_tmin <= level.exp()) & (level.exp() <= s_tmax)
    left = torch.where(raised, time_at(schedule, churned), t) if churn else t
    return torch.stack([t, left], dim=1).flatten()[1:]


def consistency(bar_t: Tensor, bar_s: Tensor) -> dict[str, Tensor]:
    """Consistency models ([6] algorithm 1): x0_hat, noised again to s."""
    return {"c0": bar_s.sqrt(), "cz": (1 - bar_s).sqrt()}


SAMPLERS = {"ddim": ddim, "ddpm": ancestral, "2m": dpm_2m, "heun": heun, "unipc": unipc,
            "unipc-bh1": partial(unipc, bh1=True), "consistency": consistency}
RANGES = {"eta": (0, 1), "churn": (0, 1e6), "s_tmin": (0, math.inf), "s_tmax": (0, math.inf), "s_noise": (0, 10)}


def options_of(sampler: str) -> list[str]:
    """The options that a sampler's function takes: eta, variance, churn, ... Raises ValueError for no sampler."""
    check_choice("sampler", sampler, SAMPLERS)
    return [name for name in inspect.signature(SAMPLERS[sampler]).parameters if name in (*RANGES, "variance")]


# The table

def sampler_rows(schedule, times, *, sampler: str = "ddim", target: str = "eps", clip: bool = True,
                 **options) -> Tensor:
    """The sampler as a table (S, 12), float64, one row per network evaluation t -> s; `step` explains the columns.

    times: decreasing, in 1..T, whole or between; the last step goes to 0. The chain is that of the listed times alone,
    so betas and variances are the shortened chain's. options: those of the sampler's function, eta, variance or churn.
    """
    check_options(sampler, options)
    t = chain_of(schedule, times)
    if sampler == "heun":
        t = twice(schedule, t, **options)
    s = torch.cat([t[1:], t.new_zeros(1)])
    bar_t, bar_s = alpha_bar_at(schedule, t), alpha_bar_at(schedule, s)
    check_target(bar_t[0], target)
    a, b = x0_coefficients(bar_t, target)
    columns = {"t": t, "s": s, "a": a, "b": b, "clip": torch.full_like(a, 1 if clip else math.inf),
               **SAMPLERS[sampler](bar_t, bar_s, **options)}
    rows = torch.stack([columns.get(name, torch.zeros_like(a)) for name in COLUMNS], dim=1)
    check_noise(rows)
    return rows


def check_options(sampler: str, options: dict) -> None:
    """Raises ValueError for options that the sampler does not take, or that are out of range."""
    allowed = options_of(sampler)
    for name, value in options.items():
        if name not in allowed:
            raise ValueError(f"{name} is {value}, but the sampler {sampler} takes "
                             f"{' and '.join(allowed) or 'no options'}; leave {name} out")
        if name in RANGES and not RANGES[name][0] <= value <= RANGES[name][1]:
            raise ValueError(f"{name} is {value:g}; it must be between {RANGES[name][0]} and {RANGES[name][1]:g}")
    check_choice("variance", options.get("variance", VARIANCES[0]), VARIANCES)


def chain_of(schedule, times) -> Tensor:
    """The times of a chain, int64 if all are whole, else float64. Raises ValueError for others."""
    T, dtype = len(schedule.alpha_bar) - 1, None if isinstance(times, Tensor) else torch.float64
    t = torch.as_tensor(times, dtype=dtype, device=schedule.alpha_bar.device)
    if t.ndim != 1 or t.dtype == torch.bool:
        raise ValueError(f"times are {t.dtype}, shape {tuple(t.shape)}; they must be numbers, (S,)")
    t = t.double()                                                                # small integers would wrap in diff
    listed = as_python(t) if len(t) < 10 else f"{as_python(t[:3])} to {as_python(t[-3:])}"
    if not len(t) or not (t[0] <= T and t[-1] >= 1 and (t.diff() < 0).all()):
        raise ValueError(f"times are {listed}; they must decrease and lie in 1..{T}")
    t = t if (t % 1).any() else t.long()
    alpha_bar = alpha_bar_at(schedule, t)
    if same := (alpha_bar.diff() <= 0).nonzero().flatten().tolist():
        first, second = t[same[0]], t[same[0] + 1]
        raise ValueError(f"times are {listed}; alpha_bar must differ between them, and it is "
                         f"{alpha_bar[same[0]]:.2g} at {first:g} and at {second:g}")
    return t


def check_noise(rows: Tensor) -> None:
    """Raises ValueError if noise would be drawn twice for one time: x_T's, and that of every row that adds some."""
    landed_on = torch.cat([column(rows, "t")[:1], column(rows, "s")[column(rows, "cz") != 0]]).float()
    if len(landed_on.unique()) < len(landed_on):
        raise ValueError("two times are equal in float32, and so would be the noise that lands there; use fewer steps")


def column(rows: Tensor, name: str) -> Tensor:
    """The column of this name, (S,)."""
    return rows[:, COLUMNS.index(name)]


def network_times(rows: Tensor) -> Tensor:
    """t of every row (S,): int64 if all are whole, as training has them, else float64."""
    t = column(rows, "t")
    return t if (t % 1).any() else t.long()


class Needs(NamedTuple):
    """What rows read besides x_t and the output's first half."""
    noise: bool
    x0_prev: bool
    x0_prev2: bool
    learned: bool               # the output's second half


def needs(rows: Tensor) -> Needs:
    """What any of these rows reads."""
    return Needs(*(bool(column(rows, name).any()) for name in ("cz", "cp", "cp2", "log_max")))


# The table as a file

def write_table(path, rows: Tensor) -> None:
    """Writes the rows as CSV below a line of the columns' names; the numbers come back to the bit."""
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows.tolist()])


def is_file(sampler: str) -> bool:
    """Whether this names a table's file, and no sampler of SAMPLERS."""
    return sampler.endswith(".csv")


def read_table(path, schedule, target: str = "eps") -> Tensor:
    """The rows (S, 12) of a file as `write_table` writes it, however they were found.

    Raises ValueError for another file, and for rows that are no chain of this schedule and target.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        names, *lines = [line for line in csv.reader(file) if line] or [[]]
    if sorted(names) != sorted(COLUMNS) or not lines:
        raise ValueError(f"{path} begins with {','.join(names)[:100]!r}; a sampler's table begins with "
                         f"{','.join(COLUMNS)}, and has a row for each network evaluation")
    order = [names.index(name) for name in COLUMNS]
    try:
        rows = torch.tensor([[float(line[k]) for k in order] for line in lines], dtype=torch.float64)
    except (ValueError, IndexError):
        raise ValueError(f"{path} has a row that is not {len(COLUMNS)} numbers") from None
    check_rows(schedule, rows, target, path)
    return rows.to(schedule.alpha_bar.device)


def check_rows(schedule, rows: Tensor, target: str, path) -> None:
    """Raises ValueError for a file's rows that are not what `sampler_rows` makes sure of.

    A time may be visited twice, as Heun's method does, so it is over two rows that times decrease.
    """
    t, s, a, b, clip = rows[:, :5].T
    if clip.isnan().any() or not rows[:, [k for k, name in enumerate(COLUMNS) if name != "clip"]].isfinite().all():
        raise ValueError(f"{path} has a number that is not finite; only clip may be inf")
    T = len(schedule.alpha_bar) - 1
    if not (t[0] <= T and t.min() >= 1 and (t[1:] <= t[0]).all() and (t[2:] < t[:-2]).all()):
        raise ValueError(f"{path} has the times {as_python(t)}; they must decrease and lie in 1..{T}")
    if s.tolist() != [*t[1:].tolist(), 0]:
        raise ValueError(f"{path} has the ends {as_python(s)}; a row's s must be the next row's t, and the last 0")
    if column(rows, "cp")[0] or column(rows, "cp2")[:2].any():
        raise ValueError(f"{path} weighs predictions before there are any; cp must be 0 in the first row, and cp2 in "
                         f"the first two")
    expected = torch.stack(x0_coefficients(alpha_bar_at(schedule, t).cpu(), target))
    if not torch.allclose(torch.stack([a, b]), expected, rtol=1e-6):
        (first_a, first_b), *_ = expected.T
        raise ValueError(f"{path} was made for another model: its a, b begin with {a[0]:.6g}, {b[0]:.6g}; with this "
                         f"schedule and a network that predicts {target} they are {first_a:.6g}, {first_b:.6g}")
    check_noise(rows)


# The chain

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
    _, _, a, b, clip, c0, ct, cp, cp2, cz, log_min, log_max = row.to(xt.dtype)
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


def per_row(denoise: Callable | Sequence[Callable], rows: Tensor) -> Sequence[Callable]:
    """The denoiser of every row, if one is for all of them."""
    return [denoise] * len(rows) if callable(denoise) else denoise


@torch.no_grad()
def sample(denoise: Callable | Sequence[Callable], rows: Tensor, shape, seeds: Tensor | None, *,
           x_T: Tensor | None = None, step: Callable = step, ahead: int = 1
           ) -> Iterator[tuple[int | float, Tensor, Tensor]]:
    """Runs the chain from noise to data, yielding (s, x_s, x0_hat) after every row ([1] algorithm 2).

    denoise: one for all rows, or one for each. shape: one image's, (C, H, W). seeds: int64 (B,), one per image
    (`noise.image_seeds`), on rows' device; None, if the chain draws no noise. x_T: the x_t of the first row
    (B, C, H, W), by default the seeds' noise. step: `step` or its fused twin. ahead: number of rows whose noise is
    computed together, which is faster for small images and changes no bit. Raises ValueError for a start or an output
    of another shape.
    """
    steps, reads, s = torch.arange(len(rows), device=rows.device).split(1), needs(rows), column(rows, "s")
    if seeds is None and (x_T is None or reads.noise):
        raise ValueError("seeds is None, but the chain draws noise; pass one per image, noise.image_seeds makes them")
    xt = normal(seeds, column(rows, "t")[0], shape) if x_T is None else x_T
    if xt.shape[1:] != (*shape,) or seeds is not None and len(xt) != len(seeds) or not xt.is_floating_point():
        raise ValueError(f"x_T is {xt.dtype}, shape {tuple(xt.shape)}; it must be floating, {(*shape,)} per image and "
                         f"one image per seed")
    times = network_times(rows)[:, None].expand(-1, len(xt)).unbind()
    x0_hat, x0_prev, z = None, None, None
    denoisers = per_row(denoise, rows)
    for k, landed_on in enumerate(as_python(s)):
        if reads.noise and ahead > 1:
            if k % ahead == 0:
                block = normal(seeds, s[k:k + ahead, None], shape).unbind()
            z = block[k % ahead]
        output = denoisers[k](xt, times[k])
        check_output(output, xt.shape, reads.learned)
        xs, x0 = step(rows, steps[k], xt, output, x0_hat if reads.x0_prev else None,
                      seeds if reads.noise and z is None else None, z=z, x0_prev2=x0_prev if reads.x0_prev2 else None)
        xt, x0_hat, x0_prev = xs, x0, x0_hat
        yield landed_on, xt, x0_hat


SHOWN = {"DDPM": {"sampler": "ddpm"}, "DDIM": {}, "DPM-Solver++(2M)": {"sampler": "2m"},
         "SDE-DPM-Solver++(2M)": {"sampler": "2m", "eta": 1.}, "UniPC-2": {"sampler": "unipc"},
         "Heun with churn": {"sampler": "heun", "churn": 1.}, "Consistency": {"sampler": "consistency"}}


def print_tables(schedule) -> None:
    """Prints the samplers as what they are: tables of the same ten steps."""
    times, shown = timesteps(len(schedule.alpha_bar) - 1, 10), COLUMNS[:10]
    lines = [inspect.getsource(step).split("\n\n")[1]]                            # python -OO has no docstrings
    for name, choice in SHOWN.items():
        lines += [f"\n{name}", "".join(f"{name:>9}" for name in shown)]
        lines += ["".join(f"{value:9.4g}" for value in row[:10])
                  for row in sampler_rows(schedule, times, **choice).tolist()]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:                                                       # of python ddpm.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())            # what is left goes nowhere
