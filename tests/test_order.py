"""How fast each sampler's error falls with the number of steps, against solutions that are known.

In one dimension the probability-flow ODE keeps the rank of every state: x_s is the quantile of q(x_s) that x_t is of
q(x_t). The times are even in log sigma, from sigma = 20 to 0.05, and the last step to 0 is left out: there log-SNR is
infinite, and every method is of first order. Halving the steps must multiply the error by 2 to the order.
"""

import math

import pytest
import torch

from ddpm import exact_denoiser, linear_schedule
from samplers import COLUMNS, alpha_bar_at, sampler_rows, step, time_at

SCHEDULE = linear_schedule()
MEANS, SHARES = torch.tensor([-0.6, 0.1, 0.8]).double(), torch.tensor([0.25, 0.5, 0.25]).double()
DEVIATIONS = {"points": torch.zeros(3).double(), "gaussian": torch.tensor([0.25]).double(),
              "mixture": torch.tensor([0.15, 0.1, 0.2]).double()}
HALVINGS = [32, 64, 128, 256]


def times(steps):
    return time_at(SCHEDULE, torch.linspace(math.log(20.), math.log(0.05), steps + 1, dtype=torch.float64))


def orders(errors):
    return [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]


def components(kind, alpha_bar):
    """Means, deviations and shares of q(x_t), each (K,)."""
    own = DEVIATIONS[kind]
    means, shares = (MEANS[1:2], torch.ones(1).double()) if kind == "gaussian" else (MEANS, SHARES)
    return alpha_bar.sqrt() * means, (alpha_bar * own**2 + 1 - alpha_bar).sqrt(), shares


def rank(kind, x, alpha_bar):
    """The share of q(x_t) that lies below x (n,)."""
    means, deviations, shares = components(kind, alpha_bar)
    return (shares * torch.special.ndtr((x[:, None] - means) / deviations)).sum(1)


def transported(kind, x, bar_t, bar_s):
    """x_s of the same rank as x_t, by bisection."""
    target, low, high = rank(kind, x, bar_t), torch.full_like(x, -20), torch.full_like(x, 20)
    for _ in range(100):
        middle = (low + high) / 2
        below = rank(kind, middle, bar_s) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def x0_mean(kind, x, t):
    """E[x0 | x_t] for x (n, 1)."""
    if kind == "points":                                                # exact_denoiser knows equal shares only
        return exact_denoiser(SCHEDULE, MEANS[[0, 1, 1, 2]][:, None], "x0")(x, t)
    alpha_bar = alpha_bar_at(SCHEDULE, t[0])
    means, deviations, shares = components(kind, alpha_bar)
    likely = (shares.log() - deviations.log() - ((x - means) / deviations)**2 / 2).softmax(1)
    posterior = (means + alpha_bar * DEVIATIONS[kind]**2 / deviations**2 * (x - means)) / alpha_bar.sqrt()
    return (likely * posterior).sum(1, keepdim=True)


def error(kind, steps, **choice):
    """The largest distance to the exact solution at the last listed time, of nine states from -2 to 2."""
    t = times(steps)
    rows = sampler_rows(SCHEDULE, t, target="x0", clip=False, **choice)[:-1]
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    x, past = start[:, None], [None, None]
    for k, row in enumerate(rows):
        x, x0_hat = step(rows, torch.tensor([k]), x, x0_mean(kind, x, row[0].expand(9)), past[-1], x0_prev2=past[-2])
        past.append(x0_hat)
    bar_t, bar_s = alpha_bar_at(SCHEDULE, t[[0, -1]])
    return (x[:, 0] - transported(kind, start, bar_t, bar_s)).abs().max().item()


@pytest.mark.parametrize("kind", DEVIATIONS)
@pytest.mark.parametrize("choice, order", [
    ({}, 1), ({"sampler": "2m"}, 2), ({"sampler": "heun"}, 2),
    ({"sampler": "unipc"}, 3), ({"sampler": "unipc-bh1"}, 3)], ids=str)
def test_order_on_the_ode(choice, order, kind):
    """DDIM is Euler's method. UniPC's corrector raises the order of its predictor by one (Zhao et al. 2023, 3.3)."""
    errors = [error(kind, steps, **choice) for steps in HALVINGS]
    assert errors[-1] > 1e-9                                            # not yet rounding
    assert orders(errors)[-1] == pytest.approx(order, abs=0.2), errors


def deviation_error(steps, var=0.25, **choice):
    """|Var[x_s] - exact| at the last listed time, of a Gaussian: x, x0_prev and x0_prev2 stay jointly Gaussian."""
    rows = sampler_rows(SCHEDULE, times(steps), target="x0", clip=False, **choice)[:-1]
    covariance = torch.zeros(3, 3, dtype=torch.float64)
    alpha_bar = alpha_bar_at(SCHEDULE, rows[0, 0])
    covariance[0, 0] = alpha_bar * var + 1 - alpha_bar
    for row in rows:
        alpha_bar = alpha_bar_at(SCHEDULE, row[0])
        c0, ct, cp, cz, cp2 = (row[COLUMNS.index(name)] for name in ("c0", "ct", "cp", "cz", "cp2"))
        gain = alpha_bar.sqrt() * var / (alpha_bar * var + 1 - alpha_bar)         # E[x0 | x_t] = gain x_t
        move = torch.stack([torch.stack([c0 * gain + ct, cp, cp2]), gain * torch.eye(3)[0], torch.eye(3)[1]])
        covariance = move @ covariance @ move.T
        covariance[0, 0] += cz**2
    alpha_bar = alpha_bar_at(SCHEDULE, rows[-1, 1])
    return (covariance[0, 0] - (alpha_bar * var + 1 - alpha_bar)).abs().item()


@pytest.mark.parametrize("choice, order", [
    ({"eta": 1.}, 1), ({"eta": 0.5}, 1), ({"sampler": "2m", "eta": 1.}, 2), ({"sampler": "2m", "eta": 0.5}, 2),
    ({"sampler": "heun", "churn": 5.}, 2)], ids=str)
def test_weak_order_on_the_sde(choice, order):
    """Weak: what converges is the distribution, here its variance, computed without sampling."""
    errors = [deviation_error(steps, **choice) for steps in HALVINGS]
    assert orders(errors)[-1] == pytest.approx(order, abs=0.1), errors


def test_consistency_is_exact_for_a_consistency_function():
    """A Gaussian's is known: the ODE's solution at t = 0. Its samples have the exact variance after any few steps."""
    var = 0.25
    for steps in (1, 2, 5):
        rows = sampler_rows(SCHEDULE, times(5)[:steps], sampler="consistency", target="x0", clip=False)
        variance = None
        for row in rows:
            alpha_bar = alpha_bar_at(SCHEDULE, row[0])
            now = alpha_bar * var + 1 - alpha_bar
            variance = now if variance is None else variance
            c0, ct, cz = (row[COLUMNS.index(name)] for name in ("c0", "ct", "cz"))
            variance = (c0 * (var / now).sqrt() + ct)**2 * variance + cz**2
        assert variance.item() == pytest.approx(var, rel=1e-12)
