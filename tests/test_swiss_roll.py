"""The 2015 bound against closed forms, the limits no model passes, and the script from flag to figure."""

import inspect
import math
import re

import pytest
import torch
from torch.quasirandom import SobolEngine
from torch.testing import assert_close

import ddpm
import swiss_roll

SCHEDULE = swiss_roll.tuned_schedule()
T = len(SCHEDULE.beta) - 1


def fresh(n, seed=0):
    return swiss_roll.batch(SobolEngine(5, scramble=True, seed=seed), n, T)


@pytest.fixture(scope="module")
def trained():
    """A model and K on the same fresh points before and after a short training."""
    torch.manual_seed(0)
    model, points, sobol = swiss_roll.Reverse(T), fresh(512, seed=9), SobolEngine(5, scramble=True, seed=0)
    with torch.no_grad():
        before = swiss_roll.bound(model, SCHEDULE, *points).item()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    swiss_roll.train(
        model, lambda: swiss_roll.bound(model, SCHEDULE, *swiss_roll.batch(sobol, 32, T)), [optimiser], 200)
    with torch.no_grad():
        return model, before, swiss_roll.bound(model, SCHEDULE, *points).item()


def test_file_is_one_page_and_a_half():
    """About a hundred lines of it are code: neither empty, nor a comment, nor of a docstring."""
    source = inspect.getsource(swiss_roll)
    code = re.sub(r'^ *""".*?"""$', "", source, flags=re.M | re.S)
    assert len(source.splitlines()) <= 136
    assert 90 < sum(bool(line.strip()) and line.strip()[0] != "#" for line in code.splitlines()) <= 110


def test_data_are_centred_with_unit_variance():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    x0 = swiss_roll.data(u, torch.zeros(2, dtype=torch.float64))
    shrunk = 1 / (1 + swiss_roll.NOISE**2)                  # what the noise leaves of the curve's variance
    assert_close(x0.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close(x0.square().mean().item(), shrunk, atol=1e-5, rtol=0)


def test_data_is_the_roll_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    x, angle = datasets.make_swiss_roll(1000, noise=0, random_state=0)
    u = torch.tensor((angle / (1.5 * math.pi) - 1) / 2)
    there = torch.tensor(x[:, [2, 0]]) / 10 * torch.tensor([1, -1])
    here = swiss_roll.data(u, torch.zeros(2), noise=0) / 1.47295 + torch.tensor([0.02122, -0.2], dtype=torch.float64)
    assert_close(here, there, atol=1e-12, rtol=0)


def test_noise_is_scaled_with_the_data():
    u, n = torch.rand(5), torch.randn(5, 2)
    away = swiss_roll.data(u, n, 0.5) - swiss_roll.data(u, 0 * n, 0.5)
    assert_close(away, 0.5 * n / math.sqrt(1.25))


def test_the_variance_is_finite_whatever_the_network_says():
    model = swiss_roll.Reverse(T)
    with torch.no_grad():
        model.last.bias[2:] = 200
        _, log_var = model(SCHEDULE, torch.zeros(2, 5, 2), torch.tensor([2, 40]))
    assert log_var.isfinite().all()


def test_samples_are_fair_and_never_infinite():
    x0, eps = fresh(4096)
    assert x0.shape == eps.shape == (T - 1, 4096, 2)
    assert x0.isfinite().all() and eps.isfinite().all()
    assert_close(eps.mean((0, 1)), torch.zeros(2), atol=1e-3, rtol=0)
    assert_close(torch.cov(eps.flatten(0, 1).T), torch.eye(2), atol=1e-3, rtol=0)
    assert_close(x0.square().sum(-1).mean().item(), 2., atol=1e-3, rtol=0)
    assert not torch.equal(fresh(4)[0], fresh(4, seed=1)[0])


def test_schedule_begins_at_beta_1_and_is_even():
    assert T == 40
    assert_close(SCHEDULE.beta[1].item(), swiss_roll.BETA_1, rtol=1e-6, atol=0)
    v = swiss_roll.NOISE**2
    log_tau2 = (v + (1 / SCHEDULE.alpha_bar[1:] - 1) * (1 + v)).log()
    assert_close(log_tau2[:33].diff(), log_tau2[:33].diff()[:1].expand(32), rtol=1e-6, atol=0)
    assert_close(log_tau2[32:], torch.tensor([-2.7, -2.2, -1.8, -1.4, -1.0, -0.55, 0.1, 3.0]).double())


def gaussian_steps(schedule, variance):
    """The exact p(x_{t-1} | x_t) for data from N(0, variance), and the variance of every x_t."""
    spread = schedule.alpha_bar * variance + 1 - schedule.alpha_bar

    def exact(schedule, xt, t):
        keep = schedule.alpha[t].sqrt() * spread[t - 1] / spread[t]
        var = spread[t - 1] - keep**2 * spread[t]
        return keep.view(-1, 1, 1).to(xt) * xt, var.log().view(-1, 1, 1).to(xt).expand_as(xt)

    return exact, spread


def test_chain_of_exact_gaussian_steps_has_the_variance_of_the_data():
    schedule = ddpm.from_betas(torch.linspace(1e-4, 0.5, 30))
    exact, spread = gaussian_steps(schedule, 0.25)
    chain = swiss_roll.sample(exact, schedule, swiss_roll.image_seeds(0, torch.arange(20_000)))
    for t in (0, 5, 15, 30):
        assert_close(chain[t].square().mean().item(), spread[t].item(), rtol=0.03, atol=0)


@pytest.mark.parametrize("variance", [0.25, 1., 3.])
def test_bound_of_gaussian_data_is_their_likelihood(variance):
    """For x0 ~ N(0, variance) the exact reverse steps are Gaussian: K falls short of E log p(x0) at the ends alone."""
    torch.manual_seed(0)
    schedule = ddpm.from_betas(torch.linspace(0.01, 0.5, 20))
    exact, spread = gaussian_steps(schedule, variance)
    x0 = variance**0.5 * torch.randn(19, 100_000, 2, dtype=torch.float64)
    K = swiss_roll.bound(exact, schedule, x0, torch.randn_like(x0)).item()
    entropy_1, mismatch = math.log2(2 * math.pi * math.e * spread[1]), math.log2(spread[-1])
    assert_close(K, mismatch - entropy_1, atol=0.01, rtol=0)


def test_gap_of_a_wrong_model_is_its_kl():
    """Moving the exact mean by delta and its log variance by c costs the closed-form KL at every step."""
    schedule, x0 = ddpm.from_betas([0.1, 0.2, 0.3]), torch.zeros(2, 64, 2).double()
    eps = torch.randn_like(x0)

    def moved(delta, c):
        def model(schedule, xt, t):
            mean, var, _ = ddpm.q_posterior(schedule, x0[:len(t)], xt, t)
            return mean + delta * var.sqrt(), (var.log() + c).expand_as(mean)
        return swiss_roll.bound(model, schedule, x0, eps).item()

    per_dimension = 0.5 * (0.7 + (1 + 0.3**2) * math.exp(-0.7) - 1)
    assert_close(moved(0, 0) - moved(0.3, 0.7), 4 * per_dimension / math.log(2), atol=1e-9, rtol=0)


def test_short_training_raises_K_but_not_past_the_limits(trained):
    """The two limits are apart by what diagonal steps lose."""
    _, before, after = trained
    assert before + 5 < after < swiss_roll.K_STAR
    assert 0.2 < swiss_roll.MINUS_H1 - swiss_roll.K_STAR < 0.4


def test_variance_lies_above_beta_tilde_and_outputs_depend_on_t(trained):
    """By a multiple of what is above it, the network's output being the multiple's logarithm."""
    model, outputs, x, t = trained[0], [], torch.randn(1, 50, 2).expand(2, -1, -1), torch.tensor([10, 30])
    with model.last.register_forward_hook(lambda module, inputs, output: outputs.append(output)), torch.no_grad():
        mean, log_var = model(SCHEDULE, x, t)
    least, most = (table[t].float()[:, None, None] for table in (SCHEDULE.beta_tilde, SCHEDULE.beta))
    assert_close(log_var.exp(), least + (most - least) * outputs[0][..., 2:].exp())
    assert_close(model.tones[t, 0], (math.pi / T * t[:, None] * torch.arange(16)).cos())
    assert (mean[0] - mean[1]).abs().min() > 0 and (log_var[0] < log_var[1]).all()


def test_samples_are_a_function_of_the_seed(trained):
    model = trained[0]
    seeds = swiss_roll.image_seeds(3, torch.arange(20))
    chain = swiss_roll.sample(model, SCHEDULE, seeds)
    assert len(chain) == T + 1 and all(x.shape == (20, 2) for x in chain)
    few = swiss_roll.sample(model, SCHEDULE, seeds[5:8])
    assert_close(few[0], chain[0][5:8], atol=1e-4, rtol=0)
    gone = chain[0] - SCHEDULE.alpha[1].sqrt() * chain[1]               # the fixed step adds noise of variance beta_1
    assert 0.5 < gone.square().mean() / swiss_roll.BETA_1 < 2


def test_exact_steps_land_on_the_curve():
    """With a model that knows the nearest point of a short arc, the chain ends on the data."""
    points = swiss_roll.data(torch.rand(500), torch.zeros(2)).double()
    denoise = ddpm.exact_denoiser(SCHEDULE, points, target="x0")

    def model(schedule, xt, t):
        x0 = denoise(xt[0].double(), t.expand(xt.shape[1]))[None]
        mean, var, _ = ddpm.q_posterior(schedule, x0, xt.double(), t)
        return mean.float(), var.log().float()

    chain = swiss_roll.sample(model, SCHEDULE, swiss_roll.image_seeds(0, torch.arange(200)))
    assert torch.cdist(chain[0].double(), points).amin(1).max() < 0.01


def test_scores_of_known_sets():
    u = torch.rand(2000)
    x = swiss_roll.data(u, torch.zeros(2))
    moved = x + torch.tensor([0.3, 0.])
    away, w2, energy = swiss_roll.scores(x, moved).tolist()
    assert away < 1e-3
    assert_close(w2, 0.3 / math.sqrt(2), rtol=1e-3, atol=0)   # a shift of d is d |cos| in each direction
    assert energy > 0.01 and abs(swiss_roll.scores(x, x)[2]) < 1e-5
    far = swiss_roll.scores(torch.tensor([[3., 3.]]), moved[:1])[0]
    spiral = swiss_roll.data(torch.linspace(0, 1, 100_001), torch.zeros(2))
    assert_close(far.item(), (spiral - 3).norm(dim=1).min().item(), atol=1e-4, rtol=0)


def test_main_prints_the_bound_and_writes_the_figure(tmp_path, capsys, monkeypatch):
    batch, scores, drawn = swiss_roll.batch, swiss_roll.scores, []

    def few(sobol, n, T):                                                                   # enough for a test
        drawn.append(batch(sobol, n // 16, T))
        return drawn[-1]

    monkeypatch.setattr(swiss_roll, "batch", few)
    monkeypatch.setattr(swiss_roll, "scores", lambda x, y: scores(x[:500], y[:500]))
    out = tmp_path / "new" / "figure.png"
    swiss_roll.main(["--steps", "3", "--out", str(out)])
    assert len({x.sum().item() for pair in drawn for x in pair}) == 2 * (3 + 96)    # points and noise, anew each time
    printed = capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG" and out.stat().st_size > 30_000
    for words in ("K ", "2.35", "6.45", "K* 2.372", "excess", "-H(X_1) 2.679", "unknown", "distance to the curve",
                  "sliced W2", "energy distance", "real"):
        assert words in printed, words
    K, above_null, excess = (float(re.search(rf"{name} (-?[0-9.]+)", printed)[1]) for name in ("K", "L_null", "excess"))
    assert_close(above_null, K + math.log2(2 * math.pi * math.e), atol=2e-3, rtol=0)
    assert_close(excess, 2.372 - K, atol=2e-3, rtol=0)


def test_figure_has_three_rows_of_three_times(trained, monkeypatch):
    made = []
    monkeypatch.setattr(swiss_roll, "save_figure", lambda picture, out, dpi: made.append(picture))
    chain = swiss_roll.sample(trained[0], SCHEDULE, swiss_roll.image_seeds(0, torch.arange(50)))
    x0 = swiss_roll.data(torch.rand(50), torch.randn(50, 2))
    swiss_roll.figure(trained[0], SCHEDULE, x0, chain, "x.png")
    q, p, drift = (made[0].axes[k:k + 3] for k in (0, 3, 6))
    assert [axes.get_title() for axes in q] == ["$t = 0$", "$t = 20$", "$t = 40$"] and len(made[0].axes) == 9
    assert (q[0].collections[0].get_offsets() == x0.numpy()).all()
    assert all(min(limits) < -2.1 and max(limits) > 2.1 for axes in made[0].axes           # no arm is cut off
               for limits in (axes.get_xlim(), axes.get_ylim()))
    assert swiss_roll.data(torch.linspace(0, 1, 1000), torch.zeros(2)).abs().max() < 2.1
    for axes, t in zip(p, (0, 20, 40), strict=True):
        assert (axes.collections[0].get_offsets() == chain[t].numpy()).all()
    assert all(axes.collections for axes in drift)
