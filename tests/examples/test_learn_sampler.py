"""Learned tables: exact where the solution is known, by gradients that reach every number, for any model of ours."""

import pytest
import torch
from torch.testing import assert_close

import ddpm
import sample
import samplers
from examples import learn_sampler
from examples.learn_sampler import end, learn, table_of

SCHEDULE, DEVIATIONS = ddpm.cosine_schedule(), torch.tensor([0.2, 0.5, 0.9]).double().view(3, 1, 1)
GENERATOR = torch.Generator().manual_seed(0)
X_T = torch.randn(64, 3, 1, 1, generator=GENERATOR).double()


def denoise(xt, t):
    """E[x0 | x_t] of data whose channels are Gaussian with these deviations: the target is x0."""
    alpha_bar = ddpm.alpha_bar_at(SCHEDULE, t).view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * DEVIATIONS**2 / (alpha_bar * DEVIATIONS**2 + 1 - alpha_bar) * xt


def error(rows, k=0):
    """To the end of the probability-flow ODE, which for a Gaussian only scales."""
    alpha_bar = SCHEDULE.alpha_bar[-1]
    scale = DEVIATIONS / (alpha_bar * DEVIATIONS**2 + 1 - alpha_bar).sqrt()
    return (end(denoise, rows, X_T) - scale * X_T).square().mean()


def classical(steps):
    return samplers.sampler_rows(SCHEDULE, samplers.spaced_times(SCHEDULE, steps, "flow"), sampler="unipc", target="x0",
                                 clip=False)


def test_two_evaluations_solve_a_gaussian():
    """Which no classical table of two rows does: the error of three scales is that of some 5 numbers."""
    rows = learn(error, classical(2), SCHEDULE, "x0", updates=500, lr=0.03)
    assert error(classical(2)) > 1e-3 and error(rows) < 1e-10
    samplers.check_rows(SCHEDULE, rows, "x0", "rows")


def test_gradients_reach_every_number():
    rows = classical(3)
    numbers = (learn_sampler.numbers_of(rows, SCHEDULE) - 0.01).requires_grad_()   # off whole times, a kink

    def of(numbers):
        return error(table_of(numbers, rows, SCHEDULE, "x0"))

    of(numbers).backward()
    for i in range(3):
        for k, (name, fixed) in enumerate(learn_sampler.LEARNED.items()):
            h = torch.zeros_like(numbers)
            h[i, k] = 1e-6
            with torch.no_grad():
                slope = ((of(numbers + h) - of(numbers - h)) / 2e-6).item()
            assert_close(numbers.grad[i, k].item(), slope, rtol=1e-4, atol=1e-9)
            assert (slope != 0) == (i >= fixed), name


@pytest.mark.parametrize("flags", ["", "--guidance 1 --labels 3,none", "--steps 1"])
def test_a_table_of_the_digits_is_better_than_where_it_began(flags, tmp_path, capsys):
    path = tmp_path / "new" / "rows.csv"
    before, after = learn_sampler.main(["--steps", "3", "--updates", "8", "--n", "64", "--batch", "16",
                                        "--out", str(path), *flags.split()])
    assert after < 0.95 * before and path.with_suffix(".png").is_file()
    said = capsys.readouterr().out
    assert f"{before:.5f}  --sampler" in said and f"{after:.5f}  learned" in said
    made = sample.generate(sample.Config(n=4, sampler=str(path)))
    assert made.evaluations == 3 or "--steps 1" in flags
