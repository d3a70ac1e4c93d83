"""How fast each sampler's error falls with the number of steps, on problems whose solution is known.

The problems, and why the last step to 0 is left out, are in bench/work_precision.py. Halving the steps multiplies
the error by 2 to the order.
"""

import math

import pytest
import torch

from bench.work_precision import DEVIATIONS, MEANS, SCHEDULE, state_error, times, variance_error, x0_mean
from ddpm import exact_denoiser
from samplers import COLUMNS, alpha_bar_at, sampler_rows

HALVING = [128, 256]
OWN = {"points": 0 * DEVIATIONS, "mixture": DEVIATIONS, "wide": torch.full((3,), 0.6).double()}


def order(coarse, fine):
    """Of errors one halving apart, neither of which is rounding."""
    assert coarse > fine > 1e-9
    return math.log2(coarse / fine)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("choice, expected", [
    ({}, 1), ({"sampler": "2m"}, 2), ({"sampler": "heun"}, 2),
    ({"sampler": "unipc"}, 3), ({"sampler": "unipc-bh1"}, 3)], ids=str)
def test_order_on_the_ode(choice, expected, kind):
    """DDIM is Euler's method. UniPC's corrector raises the order of its predictor by one (Zhao et al. 2023, 3.3)."""
    errors = [state_error(steps, OWN[kind], **choice)[1] for steps in HALVING]
    assert order(*errors) == pytest.approx(expected, abs=0.25), errors


def test_points_are_the_exact_denoiser_s():
    """The points above are a finite data set, whose optimal denoiser ddpm.py has; between whole times, too."""
    denoise = exact_denoiser(SCHEDULE, MEANS[[0, 1, 1, 2]][:, None], "x0")
    x = torch.linspace(-2, 2, 9).double()[:, None]
    for t in times(7):
        torch.testing.assert_close(denoise(x, t.expand(9)), x0_mean(x, t, OWN["points"]))


@pytest.mark.parametrize("choice, expected", [
    ({}, 1), ({"eta": 1.}, 1), ({"eta": 0.5}, 1), ({"sampler": "2m"}, 2), ({"sampler": "2m", "eta": 1.}, 2),
    ({"sampler": "2m", "eta": 0.5}, 2), ({"sampler": "heun"}, 2), ({"sampler": "heun", "churn": 5.}, 2),
    ({"sampler": "unipc"}, 3), ({"sampler": "unipc-bh1"}, 3)], ids=str)
def test_weak_order_on_a_gaussian(choice, expected):
    """Weak: it is the distribution that converges, here its variance, which needs no sampling."""
    assert order(*(variance_error(steps, **choice)[1] for steps in HALVING)) == pytest.approx(expected, abs=0.1)


def test_consistency_is_exact_for_a_consistency_function():
    """A Gaussian's is known: the ODE's solution at t = 0. Its samples have the exact variance after any few steps."""
    var = 0.25
    for steps in (1, 2, 5):
        rows = sampler_rows(SCHEDULE, times(5)[:steps], sampler="consistency", target="x0", clip=False)
        marginal = alpha_bar_at(SCHEDULE, rows[:, 0]) * (var - 1) + 1
        variance = marginal[0]
        for row, now in zip(rows, marginal, strict=True):
            c0, ct, cz = (row[COLUMNS.index(name)] for name in ("c0", "ct", "cz"))
            variance = (c0 * (var / now).sqrt() + ct)**2 * variance + cz**2
        assert variance.item() == pytest.approx(var, rel=1e-12)
