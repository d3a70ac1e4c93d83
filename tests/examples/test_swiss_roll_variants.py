"""The optimum by quadrature against closed forms and the tabulated limits; every variant against its optimum."""

import functools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from torch.quasirandom import SobolEngine

import swiss_roll
from examples import swiss_roll_variants as variants


@pytest.mark.slow
def test_constants_of_the_default_are_its_optimum():
    default = variants.optimum(swiss_roll.tuned_schedule())
    assert abs(default.diagonal - swiss_roll.K_STAR) < 0.001
    assert abs(default.limit - swiss_roll.MINUS_H1) < 0.001
    assert abs(default.full - 2.627) < 0.001


@pytest.mark.parametrize("noise, schedule, diagonal, full, limit", [
    (0., variants.paper_schedule(), -1.477, 0.240, 2.338),
    (0., variants.sigmoid_betas(), 2.039, 2.485, 2.601),
])
def test_other_data_and_schedules(noise, schedule, diagonal, full, limit):
    """The limits that an independent Monte Carlo gave, to its own error."""
    here = variants.optimum(schedule, noise, points=64)
    assert abs(here.diagonal - diagonal) < 0.015 and abs(here.full - full) < 0.03 and abs(here.limit - limit) < 0.01
    assert here.diagonal < here.full < here.limit


def test_turned_kl_is_that_of_full_gaussians():
    torch.manual_seed(0)
    mean1, mean2, log_var2 = torch.randn(3, 7, 2, dtype=torch.float64)
    log_var1, ahead = torch.randn(7, 1, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    axes = torch.stack([variants.turn(e.expand(7, 2), ahead) for e in torch.eye(2, dtype=torch.float64)], dim=-1)
    full = axes @ torch.diag_embed(log_var2.exp()) @ axes.mT
    round_one = MultivariateNormal(mean1, torch.diag_embed(log_var1.exp().expand(7, 2)))
    exact = kl_divergence(round_one, MultivariateNormal(mean2, full))
    torch.testing.assert_close(variants.turned_kl(mean1, log_var1, mean2, log_var2, ahead).sum(1), exact)


def test_turned_samples_have_the_covariance_of_the_kl():
    ahead, std = torch.tensor([3., 1.]), torch.tensor([2., 0.5])
    x = variants.turn(std * torch.randn(200_000, 2), ahead)
    along = ahead / ahead.norm()
    axes = torch.stack([along, torch.stack([-along[1], along[0]])], dim=-1)
    torch.testing.assert_close(torch.cov(x.T), axes @ torch.diag(std**2) @ axes.T, atol=0.05, rtol=0)


def test_tables():
    even = variants.even_schedule(100)
    torch.testing.assert_close(even.beta[1].item(), swiss_roll.BETA_1, rtol=1e-6, atol=0)
    log_tau2 = (swiss_roll.NOISE**2 + (1 / even.alpha_bar[1:] - 1) * (1 + swiss_roll.NOISE**2)).log()
    torch.testing.assert_close(log_tau2.diff(), log_tau2.diff()[:1].expand(99), rtol=1e-6, atol=0)
    paper = variants.paper_schedule()
    assert paper.alpha_bar[-1] == 0
    torch.testing.assert_close(paper.alpha_bar[20] / paper.alpha_bar[1], torch.tensor(20 / 39).double())
    sigmoid = variants.sigmoid_betas().beta
    torch.testing.assert_close(sigmoid[40].item(), 1e-5 + (0.3 - 1e-5) / (1 + math.exp(-10)))
    torch.testing.assert_close(sigmoid[1].item(), 1e-5 + (0.3 - 1e-5) / (1 + math.exp(18)))


@pytest.mark.slow
@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_learns_and_stays_below_its_optimum(name):
    torch.manual_seed(0)
    variant = variants.VARIANTS[name]
    model, kl = variant.model(), variants.turned_kl if variant.full else variants.normal_kl
    T = len(variant.schedule(model).beta) - 1
    points = swiss_roll.batch(SobolEngine(5, scramble=True, seed=5), 256, T)
    sobol = SobolEngine(5, scramble=True, seed=0)

    def K(points):
        return swiss_roll.bound(model, variant.schedule(model), *points, kl)

    with torch.no_grad():
        before = K(points).item()
    swiss_roll.train(model, lambda: K(swiss_roll.batch(sobol, 32, T)), variants.optimisers(model), 60)
    with torch.no_grad():
        after = K(points).item()
        schedule = variant.schedule(model)
    limits = variants.optimum(schedule, points=32)
    assert before + 0.05 < after < (limits.full if variant.full else limits.diagonal) < limits.limit
    chain = swiss_roll.sample(model, schedule, swiss_roll.image_seeds(0, torch.arange(9)),
                              *[variants.turn] * variant.full)
    assert chain[0].isfinite().all() and chain[0].shape == (9, 2)


def test_learned_betas_move_and_the_first_does_not():
    torch.manual_seed(0)
    model = variants.LearnedBeta()
    start = model.schedule().beta.detach()
    torch.testing.assert_close(start, variants.even_schedule(40).beta)
    sobol = SobolEngine(5, scramble=True, seed=0)
    swiss_roll.train(model, lambda: swiss_roll.bound(model, model.schedule(), *swiss_roll.batch(sobol, 32, 40)),
                     variants.optimisers(model), 5)
    now = model.schedule().beta.detach()
    assert now[1] == start[1] and (now[2:] != start[2:]).all()


@pytest.mark.slow
def test_main_prints_the_table_and_writes_the_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variants, "optimum", functools.partial(variants.optimum, points=16))       # quick and rough
    variants.main(["--steps", "2", "--only", "rbf,full", "--out", str(tmp_path / "new")])
    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"rbf.png", "full.png"}
    assert "K*" in printed and "16 radial basis functions" in printed and "full covariance" in printed
