"""Every table, posterior, loss and sampler against published numbers, closed forms and exact denoisers.

The golden arrays count time from 0: their t is ours minus one.
"""

import functools
import itertools
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ddpm
from ddpm import (
    COLUMNS,
    SCHEDULES,
    TARGETS,
    VARIANCES,
    bound_terms,
    cosine_schedule,
    decoder_log_likelihood,
    exact_denoiser,
    from_betas,
    guided,
    hybrid_loss,
    interpolate_log_var,
    linear_schedule,
    loss,
    normal_kl,
    p_mean_log_var,
    predict,
    prior_bits,
    q_posterior,
    q_sample,
    q_step,
    quadratic_schedule,
    sample,
    sampler_rows,
    schedule_check,
    sigmoid_schedule,
    simple_loss,
    step,
    timesteps,
    training_target,
)
from noise import image_seeds, normal

GOLDEN_SCHEDULES = {"linear1000": linear_schedule(), "linear100": linear_schedule(100, 1e-3, 0.2),
                    "cosine1000": cosine_schedule(), "cosine50": cosine_schedule(50)}
FIXED = {"fixed_small": "beta_tilde", "fixed_large": "beta", "learned_range": "learned"}
SAMPLERS = {"ddpm": {"eta": 1.}, "ddpm beta": {"eta": 1., "variance": "beta"}, "ddim": {}, "ddim 0.5": {"eta": 0.5},
            "2m": {"sampler": "2m"}}

each_schedule = pytest.mark.parametrize("name", GOLDEN_SCHEDULES)
each_clip = pytest.mark.parametrize("clip", [False, True])
each_target = pytest.mark.parametrize("target", TARGETS)


@functools.cache
def golden(name):
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {key: torch.from_numpy(array) for key, array in file.items()}


@functools.cache
def guided_diffusion(prefix=""):
    return {key.removeprefix(prefix): value for key, value in golden("guided_diffusion").items()
            if key.startswith(prefix)}


def close(actual, expected, rtol=1e-5, atol=1e-5):
    assert_close(actual.expand_as(expected), expected, rtol=rtol, atol=atol)


def same(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def tanh_cdf(x):
    """The published decoder's approximation of the normal CDF."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def output_of(family):
    g = guided_diffusion()
    return torch.cat([g["eps_hat"], g["var_hat"]], dim=1) if family == "learned_range" else g["eps_hat"]


def each_row(rows, index, xt, output, z=None):
    """x_s and x0_hat when image k takes row index[k]."""
    done = [step(rows, i.view(1), xt[k:k + 1], output[k:k + 1], z=None if z is None else z[k:k + 1])
            for k, i in enumerate(index)]
    return [torch.cat(x) for x in zip(*done, strict=True)]


def column(rows, name):
    return rows[:, COLUMNS.index(name)]


def seeds_of(count, seed=0):
    return image_seeds(seed, torch.arange(count))


def pictures(count, *shape, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def last(chain):
    """x_0 of a chain."""
    return list(chain)[-1][1]


def with_v(denoise, v):
    """A denoiser whose output also has this constant v."""
    def both(xt, t):
        return torch.cat([denoise(xt, t), torch.full_like(xt, v)], dim=1)
    return both


# Schedules

@each_schedule
def test_golden_schedules(name):
    g, schedule = guided_diffusion(f"{name}/"), GOLDEN_SCHEDULES[name]
    assert_close(schedule.beta[1:], g["beta"], rtol=1e-9, atol=0)
    assert_close(schedule.alpha_bar[1:], g["alpha_bar"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name, T, schedule, rtol", [
    ("sigmoid", 1000, sigmoid_schedule(), 2e-5), ("sigmoid", 100, sigmoid_schedule(100), 2e-5),
    ("cosine", 1000, cosine_schedule(), 1e-9), ("cosine", 100, cosine_schedule(100), 1e-9),
    ("linear", 1000, linear_schedule(), 1e-9), ("linear", 100, linear_schedule(100, 1e-3, 0.2), 1e-9),
])
def test_second_golden_schedules(name, T, schedule, rtol):
    assert_close(schedule.beta[1:], golden("lucidrains_schedules")[f"{name}{T}/beta"], rtol=rtol, atol=0)


def test_quadratic_schedule():
    beta = quadratic_schedule(5, 0.01, 0.25).beta
    assert_close(beta, torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)**2)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1000, 10, 1])
def test_schedule_tables(name, T):
    schedule = SCHEDULES[name](T)
    beta, alpha, alpha_bar, beta_tilde = schedule
    assert all(table.shape == (T + 1,) and table.dtype == torch.float64 for table in schedule)
    assert [table[0].item() for table in schedule] == [0, 1, 1, 0] and beta_tilde[1] == 0
    assert beta.max() <= 0.999 and (alpha_bar.diff() < 0).all()
    same(alpha, 1 - beta)
    assert_close(alpha_bar[1:], alpha_bar[:-1] * alpha[1:])
    assert_close(beta_tilde[1:] * (1 - alpha_bar[1:]), beta[1:] * (1 - alpha_bar[:-1]))


def test_schedule_defaults():
    assert all(len(make().beta) == 1001 for make in SCHEDULES.values())
    for name in ("linear", "quadratic"):
        assert_close(SCHEDULES[name]().beta[[1, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))


@pytest.mark.parametrize("beta", [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), torch.tensor([0.1, 0.2]).double()])
def test_from_betas_takes_any_sequence(beta):
    assert_close(from_betas(beta).alpha_bar, torch.tensor([1, 0.9, 0.72], dtype=torch.float64))


@pytest.mark.parametrize("beta", [[], [0.1, 0.], [-0.1], [0.1, 1.01], [math.nan], [[0.1]], 0.1])
def test_from_betas_errors(beta):
    with pytest.raises(ValueError, match="beta must be"):
        from_betas(beta)


@pytest.mark.parametrize("T, bits", [(1000, 2.91e-5), (300, 0.0356)])
def test_schedule_check(T, bits):
    schedule = linear_schedule(T)
    assert schedule_check(schedule) == pytest.approx(bits, rel=3e-3)
    unit = torch.tensor([[1.], [-1.]])                                  # the prior term of unit-variance data
    assert schedule_check(schedule) == pytest.approx(prior_bits(schedule, unit).mean().item())


# The forward process q

@each_schedule
def test_golden_q(name):
    g, schedule, x0 = guided_diffusion(f"{name}/"), GOLDEN_SCHEDULES[name], guided_diffusion()["x0"]
    t = g["t"] + 1
    xt = q_sample(schedule, x0, t, guided_diffusion()["noise"])
    mean, var, log_var = q_posterior(schedule, x0, xt, t)
    close(xt, g["xt"])
    close(mean, g["posterior_mean"])
    close(var, g["posterior_var"])
    close(log_var, g["posterior_log_var_clipped"])
    assert var.shape == log_var.shape == (4, 1, 1, 1)


@each_schedule
def test_golden_prior(name):
    bits = prior_bits(GOLDEN_SCHEDULES[name], guided_diffusion()["x0"])
    assert bits.dtype == torch.float64 and (bits > 0).all()
    assert_close(bits.float(), guided_diffusion(f"{name}/")["prior_bpd"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_steps_compose_to_q_sample(name):
    schedule = SCHEDULES[name](30)
    x, variance, one = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), torch.ones(1)
    for t in torch.arange(1, 31).view(-1, 1):
        x = q_step(schedule, x, t, 0 * one)
        variance = q_step(schedule, variance.sqrt(), t, 0 * one)**2 + q_step(schedule, 0 * x, t, one)**2
        assert_close(q_sample(schedule, one.double(), t, 0 * one), x)
        assert_close(q_sample(schedule, 0 * x, t, one)**2, variance)


@pytest.mark.parametrize("t", [-1, 0, 11, 10**9])
@pytest.mark.parametrize("name", ["q_step", "q_sample", "q_posterior", "predict", "loss", "hybrid_loss", "bound_terms"])
def test_times_outside_the_chain_are_refused(name, t):
    """Of a table, -1 is the last entry; t = 0 is clean, which q_sample alone can make."""
    schedule, t = ddpm.linear_schedule(10), torch.tensor([1, t])
    x, eps = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    bound = {"target": "eps", "variance": "learned", "clip": False}
    calls = {
        "q_step": lambda: ddpm.q_step(schedule, x, t, eps), "q_sample": lambda: ddpm.q_sample(schedule, x, t, eps),
        "q_posterior": lambda: ddpm.q_posterior(schedule, x, x, t),
        "predict": lambda: ddpm.predict(schedule, eps, x, t, "v"),
        "loss": lambda: ddpm.loss(schedule, lambda xt, t: xt, x, t, eps),
        "hybrid_loss": lambda: ddpm.hybrid_loss(schedule, lambda xt, t: torch.cat([xt, xt], 1), x, t, eps),
        "bound_terms": lambda: ddpm.bound_terms(schedule, lambda xt, t: torch.cat([xt, xt], 1), x, t, eps, **bound)}
    if name == "q_sample" and t[1] == 0:
        assert_close(calls[name]()[1], x[1])
        return
    with pytest.raises(ValueError, match=r"t goes from .*; it must lie in [01]\.\.10"):
        calls[name]()


def test_times_are_not_looked_at_while_compiling():
    """One graph, without a break for the look."""
    schedule, x, t = ddpm.linear_schedule(10), torch.randn(2, 1, 2, 2), torch.tensor([1, 10])
    compiled = torch.compile(lambda x, t: ddpm.q_sample(schedule, x, t, x), fullgraph=True, backend="eager")
    assert_close(compiled(x, t), ddpm.q_sample(schedule, x, t, x))


def test_q_steps_reach_the_distribution_of_q_sample():
    schedule, x0 = linear_schedule(10, 0.02, 0.3), torch.full((50000, 1), 0.8)
    x = x0
    for t in range(1, 11):
        x = q_step(schedule, x, torch.full((50000,), t), pictures(50000, 1, seed=t))
    jump = q_sample(schedule, x0, torch.full((50000,), 10), pictures(50000, 1, seed=0))
    alpha_bar = schedule.alpha_bar[10].item()
    for drawn in (x, jump):
        assert drawn.mean().item() == pytest.approx(alpha_bar**0.5 * 0.8, abs=0.02)
        assert drawn.var().item() == pytest.approx(1 - alpha_bar, rel=0.03)


@pytest.mark.parametrize("t", [2, 5, 10])
def test_posterior_is_bayes_on_a_grid(t):
    schedule, x0, xt = linear_schedule(10, 0.02, 0.3), 0.7, -0.3
    beta, alpha_bar = schedule.beta[t].item(), schedule.alpha_bar[t - 1].item()
    x = torch.linspace(-8, 8, 100001, dtype=torch.float64)              # x_{t-1}
    log_p = -(x - alpha_bar**0.5 * x0)**2 / (2 * (1 - alpha_bar)) - (xt - (1 - beta)**0.5 * x)**2 / (2 * beta)
    p = log_p.softmax(0)
    mean, var, log_var = q_posterior(schedule, torch.tensor([[x0]]).double(), torch.tensor([[xt]]).double(),
                                     torch.tensor([t]))
    assert_close(mean.squeeze(), (p * x).sum())
    assert_close(var.squeeze(), (p * x**2).sum() - (p * x).sum()**2)
    assert_close(log_var, var.log())


# The parametrisations of the network's output

@each_target
@pytest.mark.parametrize("name", ["linear1000", "cosine50"])
def test_predict_inverts_the_target(name, target):
    schedule = GOLDEN_SCHEDULES[name]
    t = torch.arange(1, len(schedule.beta))
    x0, eps = pictures(len(t), 2, 3).double(), pictures(len(t), 2, 3, seed=2).double()
    xt = q_sample(schedule, x0, t, eps)
    x0_hat, eps_hat = predict(schedule, training_target(schedule, x0, t, eps, target), xt, t, target)
    assert_close(x0_hat, x0, rtol=0, atol=1e-9)
    assert_close(eps_hat, eps, rtol=0, atol=1e-9)


def test_v_is_the_rotation():
    schedule, t = from_betas([0.36]), torch.tensor([1])
    v = training_target(schedule, torch.tensor([[2.]]), t, torch.tensor([[5.]]), "v")
    assert v.item() == pytest.approx(0.8 * 5 - 0.6 * 2)


@each_target
@pytest.mark.parametrize("T", [1, 50])
def test_exact_denoiser_is_the_posterior_mean(target, T):
    schedule, t = linear_schedule(T, 0.01, 0.3), torch.tensor([T, 1, T])
    data, xt = pictures(5, 2, 3, 3), pictures(3, 2, 3, 3, seed=2)
    x0_hat, _ = predict(schedule, exact_denoiser(schedule, data, target)(xt, t), xt, t, target)
    for k in range(3):
        alpha_bar = schedule.alpha_bar[t[k]]
        weights = (-(xt[k] - alpha_bar.sqrt() * data).square().flatten(1).sum(1) / (2 * (1 - alpha_bar))).softmax(0)
        assert_close(x0_hat[k], torch.einsum("n,nchw->chw", weights.float(), data), rtol=1e-4, atol=1e-4)


def test_unknown_target():
    schedule, t, x = linear_schedule(10), torch.tensor([1]), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="'score'"):
        predict(schedule, x, x, t, "score")
    with pytest.raises(ValueError, match="'score'"):
        loss(schedule, lambda xt, t: xt, x, t, x, target="score")


def labelled(calls, channels):
    """A model whose output depends on its labels, and that records its batches."""
    def model(xt, t, labels):
        calls.append(len(xt))
        scale = (labels + 1).view(-1, 1, 1, 1) * t.view(-1, 1, 1, 1)
        return torch.cat([xt * scale * k for k in range(1, channels + 1)], dim=1)
    return model


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("w, batch", [(0, 3), (-1, 6), (4, 6), (0.5, 6)])
def test_guided(w, batch, channels):
    calls, xt, t = [], pictures(3, 2, 4, 4), torch.tensor([5, 6, 7])
    labels, null, model = torch.tensor([0, 1, 2]), 3, labelled([], channels)
    output = guided(labelled(calls, channels), labels, null, w)(xt, t)
    conditional, unconditional = model(xt, t, labels), model(xt, t, torch.full((3,), null))
    assert calls == [batch] and output.shape == (3, 2 * channels, 4, 4)
    assert_close(output[:, :2], (1 + w) * conditional[:, :2] - w * unconditional[:, :2])
    same(output[:, 2:], conditional[:, 2:])


# Losses

def test_loss_is_the_distance_to_the_target():
    schedule, t = linear_schedule(10), torch.tensor([3, 10])
    x0, eps = pictures(2, 1, 4, 4), pictures(2, 1, 4, 4, seed=2)
    offset = torch.tensor([0.5, -2.]).view(-1, 1, 1, 1)
    for target, true in [("eps", eps), ("x0", x0), ("v", training_target(schedule, x0, t, eps, "v"))]:
        def denoise(xt, t, true=true):
            same(xt, q_sample(schedule, x0, t, eps))
            return true + offset
        assert_close(loss(schedule, denoise, x0, t, eps, target=target), torch.tensor([0.25, 4]))
        assert_close(loss(schedule, denoise, x0, t, eps, target=target, kind="l1"), torch.tensor([0.5, 2]))


@each_schedule
def test_golden_hybrid(name):
    g, schedule = guided_diffusion(f"{name}/"), GOLDEN_SCHEDULES[name]
    x0, noise, t = guided_diffusion()["x0"], guided_diffusion()["noise"], g["t"] + 1
    output = output_of("learned_range")
    simple = loss(schedule, lambda xt, t: output[:, :3], x0, t, noise)
    total = hybrid_loss(schedule, lambda xt, t: output, x0, t, noise, cdf=tanh_cdf)
    close(simple, g["hybrid/mse"])
    close(total, g["hybrid/loss"])
    close(total - simple, g["hybrid/vb"], rtol=1e-5, atol=2e-6)


@each_target
def test_hybrid_gradients(target):
    schedule, t = linear_schedule(100), torch.tensor([1, 2, 50, 100])
    x0, noise = guided_diffusion()["x0"], guided_diffusion()["noise"]
    output = output_of("learned_range").clone().requires_grad_()
    choice = {"schedule": schedule, "denoise": lambda xt, t: output, "x0": x0, "t": t, "eps": noise, "target": target}
    [hybrid] = torch.autograd.grad(hybrid_loss(**choice).sum(), output)
    [simple] = torch.autograd.grad(loss(**choice | {"denoise": lambda xt, t: output[:, :3]}).sum(), output)
    [bound] = torch.autograd.grad(bound_terms(**choice, variance="learned", clip=False).sum(), output)
    same(hybrid[:, :3], simple[:, :3])
    assert_close(hybrid[:, 3:], bound[:, 3:] * 100 / 1000)
    assert bound[:, 3:].flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("C", [1, 3])
def test_losses_refuse_other_shapes(C):
    schedule, t, x = linear_schedule(10), torch.tensor([1, 5]), torch.zeros(2, C, 4, 4)
    with pytest.raises(ValueError, match="hybrid_loss"):
        loss(schedule, lambda xt, t: torch.cat([xt, xt], dim=1), x, t, x)
    with pytest.raises(ValueError, match="shapes"):
        simple_loss(x, x[:1])
    with pytest.raises(ValueError, match="channels"):
        hybrid_loss(schedule, lambda xt, t: xt, x, t, x)


# The bound

@each_clip
@pytest.mark.parametrize("family", FIXED)
@each_schedule
def test_golden_p(name, family, clip):
    g, schedule = guided_diffusion(f"{name}/"), GOLDEN_SCHEDULES[name]
    t, output, expected = g["t"] + 1, output_of(family), f"eps/{family}/clip{clip:d}/"
    choice = {"target": "eps", "variance": FIXED[family], "clip": clip}
    mean, log_var = p_mean_log_var(schedule, output, g["xt"], t, **choice)
    close(mean, g[expected + "mean"])
    close(log_var, g[expected + "log_var"])
    bits = bound_terms(schedule, lambda xt, t: output, guided_diffusion()["x0"], t, guided_diffusion()["noise"],
                       cdf=tanh_cdf, **choice)
    close(bits, g[expected + "vb_bpd"], rtol=1e-5, atol=2e-6)
    x0_hat, _ = predict(schedule, output[:, :3], g["xt"], t, "eps")
    close(x0_hat.clamp(-1, 1) if clip else x0_hat, g[expected + "x0"])


@each_schedule
def test_golden_p_when_the_output_is_x0(name):
    g, t = guided_diffusion(f"{name}/"), guided_diffusion(f"{name}/")["t"] + 1
    mean, _ = p_mean_log_var(GOLDEN_SCHEDULES[name], g["x0hat"], g["xt"], t, target="x0", variance="beta_tilde",
                             clip=True)
    close(mean, g["x0/fixed_small/clip1/mean"])


def test_golden_bound():
    g, schedule, x0 = guided_diffusion("bpd/linear100/"), GOLDEN_SCHEDULES["linear100"], guided_diffusion()["x0"]
    terms = [bound_terms(schedule, lambda xt, t: 0.9 * xt, x0, torch.full((4,), t), guided_diffusion()["noise"],
                         target="eps", variance="beta_tilde", clip=True, cdf=tanh_cdf) for t in range(100, 0, -1)]
    terms, prior = torch.stack(terms, dim=1), prior_bits(schedule, x0)
    close(terms, g["terms"], rtol=1e-5, atol=2e-6)
    assert_close(prior.float(), g["prior"], rtol=1e-5, atol=1e-8)
    close((terms.sum(1) + prior).float(), g["model_is_0.9x/noise_is_noise"])


@each_clip
@pytest.mark.parametrize("variance", VARIANCES)
def test_p_does_not_depend_on_the_target(variance, clip):
    schedule, t = linear_schedule(), torch.tensor([1, 2, 500, 1000])
    x0, eps, xt, v = (pictures(4, 2, 3, 3, seed=k).double() for k in range(4))
    _, eps = predict(schedule, x0, xt, t, "x0")
    outputs = {target: torch.cat([training_target(schedule, x0, t, eps, target), v], dim=1) for target in TARGETS}
    p = [p_mean_log_var(schedule, output, xt, t, target=target, variance=variance, clip=clip)
         for target, output in outputs.items()]
    for mean, log_var in p[1:]:
        assert_close(mean, p[0][0], rtol=1e-9, atol=1e-9)
        assert_close(log_var, p[0][1])


def test_learned_variance_spans_beta_tilde_to_beta():
    schedule, t, x = linear_schedule(10), torch.tensor([2, 5, 10]), torch.zeros(3, 1, 2, 2).double()
    for v, var in [(-1, schedule.beta_tilde[t]), (1, schedule.beta[t]),
                   (0, (schedule.beta_tilde[t] * schedule.beta[t]).sqrt())]:
        _, log_var = p_mean_log_var(schedule, torch.cat([x, x + v], dim=1), x, t, target="eps", variance="learned",
                                    clip=True)
        close(log_var.exp(), var.view(-1, 1, 1, 1).expand_as(x), rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance, message", [("learned", "channels"), ("fixed_small", "'fixed_small'")])
def test_p_refuses_what_it_cannot_read(variance, message):
    x = torch.zeros(2, 1, 4, 4)                                         # one channel, which would broadcast in silence
    with pytest.raises(ValueError, match=message):
        p_mean_log_var(linear_schedule(10), x, x, torch.tensor([1, 5]), target="eps", variance=variance, clip=True)


def test_normal_kl():
    mean1, log_var1, mean2, log_var2 = (pictures(50, 2, seed=k).double() for k in range(4))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean1, (log_var1 / 2).exp()),
                                                 torch.distributions.Normal(mean2, (log_var2 / 2).exp()))
    assert_close(normal_kl(mean1, log_var1, mean2, log_var2), expected)


def test_decoder_sums_to_one():
    x0 = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(-1, 1)
    mean, log_var = torch.meshgrid(torch.linspace(-1.2, 1.2, 7), torch.linspace(-9, 2, 5), indexing="ij")
    likelihood = decoder_log_likelihood(x0, mean.reshape(-1).double(), log_var.reshape(-1).double()).exp()
    assert_close(likelihood.sum(0), torch.ones(35, dtype=torch.float64), rtol=0, atol=1e-8)


def test_decoder_is_the_mass_of_the_bin():
    x0, mean, log_var = torch.tensor([[51 / 127.5 - 1]]).double(), torch.tensor([[-0.5]]), torch.tensor([[-2.]])
    pdf = torch.distributions.Normal(-0.5, math.exp(-1)).log_prob(x0).exp()
    assert_close(decoder_log_likelihood(x0, mean, log_var).exp(), pdf * 2 / 255, rtol=1e-4, atol=0)


# A Gaussian data set: its exact denoiser is linear, so its likelihood and its chains are known

def gaussian_denoiser(schedule, mean, var, target):
    """The exact output for x0 ~ N(mean, var), and v such that the learned variance is exact too."""
    def denoise(xt, t):
        alpha_bar, beta, beta_tilde = (table[t].view(-1, 1, 1, 1).to(xt.dtype) for table in
                                       (schedule.alpha_bar, schedule.beta, schedule.beta_tilde))
        gain = alpha_bar.sqrt() * var / (alpha_bar * var + 1 - alpha_bar)
        x0_hat = mean + gain * (xt - alpha_bar.sqrt() * mean)
        x0_var = var * (1 - gain * alpha_bar.sqrt())
        before = schedule.alpha_bar[t - 1].view(-1, 1, 1, 1)
        log_var = (beta_tilde + x0_var * before * (beta / (1 - alpha_bar))**2).log()
        log_min = schedule.beta_tilde[t.clamp(min=2)].view(-1, 1, 1, 1).log()
        v = 2 * (log_var - log_min) / (beta.log() - log_min) - 1
        _, eps_hat = predict(schedule, x0_hat, xt, t, "x0")
        return torch.cat([training_target(schedule, x0_hat, t, eps_hat, target), v.expand_as(xt).to(xt.dtype)], dim=1)
    return denoise


@each_target
@pytest.mark.parametrize("mean, var", [(0., 1.), (0.1, 0.3)])
def test_bound_of_a_gaussian_is_its_likelihood(mean, var, target):
    schedule = linear_schedule(40, 0.02, 0.8)
    x0 = torch.tensor([20, 100, 140, 230]).view(-1, 1, 1, 1).double() / 127.5 - 1
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(5))
    weights = weights / weights.sum()                                   # E[f(eps)] = sum of weights * f(nodes)
    bits = prior_bits(schedule, x0)
    for t, (eps, weight) in itertools.product(range(1, 41), zip(nodes, weights, strict=True)):
        bits += weight * bound_terms(schedule, gaussian_denoiser(schedule, mean, var, target), x0, torch.full((4,), t),
                                     eps.expand_as(x0), target=target, variance="learned", clip=False)
    log_density = torch.distributions.Normal(mean, var**0.5).log_prob(x0).flatten()
    assert_close(bits, -(log_density + math.log(2 / 255)) / math.log(2), rtol=0, atol=2e-4)


@each_target
@pytest.mark.parametrize("name, tolerance", [("ddpm", 0.035), ("ddpm beta", 0.015), ("ddim", 0.015),
                                             ("ddim 0.5", 0.015), ("2m", 0.006)])
def test_samplers_reach_a_known_gaussian(name, tolerance, target):
    mean, std, schedule = 0.4, 0.5, linear_schedule()
    rows = sampler_rows(schedule, timesteps(1000, 250, "linspace"), target=target, clip=False, **SAMPLERS[name])
    x = last(sample(gaussian_denoiser(schedule, mean, std**2, target), rows, (1, 64, 64), seeds_of(5)))
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(std, rel=tolerance)


@each_target
def test_an_exact_learned_variance_is_exact_at_every_step(target):
    mean, var, schedule = 0.4, 0.25, linear_schedule(8, 0.2, 0.95)      # far too few steps for a fixed variance
    rows = sampler_rows(schedule, range(8, 0, -1), target=target, variance="learned", eta=1., clip=False)
    for s, xs, _ in sample(gaussian_denoiser(schedule, mean, var, target), rows, (1, 64, 64), seeds_of(5)):
        alpha_bar = schedule.alpha_bar[s].item()
        assert xs.mean().item() == pytest.approx(alpha_bar**0.5 * mean, abs=0.02)
        assert s == 0 or xs.std().item() == pytest.approx((alpha_bar * var + 1 - alpha_bar)**0.5, rel=0.015)


# The samplers' rows

@pytest.mark.parametrize("T", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps(T, spacing):
    for steps in {1, 2, 3, 5, 17, T // 3, T // 2, T - 1, T}:
        if not 1 <= steps <= T:
            continue
        times = timesteps(T, steps, spacing)
        assert times.dtype == torch.int64 and len(times) == steps
        assert (times.diff() < 0).all() and times[-1] >= 1 and times[0] <= T
        assert times[0] == T or spacing == "leading"
        assert times[-1] == 1 or spacing == "trailing" or steps == 1


@pytest.mark.parametrize("T, steps, spacing, times", [
    (10, 4, "trailing", [10, 8, 5, 2]), (10, 3, "trailing", [10, 7, 3]), (10, 4, "leading", [7, 5, 3, 1]),
    (10, 4, "linspace", [10, 7, 4, 1]), (4, 3, "linspace", [4, 3, 1]),
])
def test_timesteps_examples(T, steps, spacing, times):
    assert timesteps(T, steps, spacing).tolist() == times


@pytest.mark.parametrize("steps, spacing", [(0, "trailing"), (11, "trailing"), (-1, "leading"), (5, "quadratic")])
def test_timesteps_errors(steps, spacing):
    with pytest.raises(ValueError, match=spacing if spacing == "quadratic" else str(steps)):
        timesteps(10, steps, spacing)


@pytest.mark.parametrize("key, spacing", [("linear/ddim50", "leading"), ("linear/10", "linspace"),
                                          ("cosine/25", "linspace")])
def test_golden_timesteps(key, spacing):
    expected = guided_diffusion(f"respaced/{key}/")["timesteps"]
    same(timesteps(1000, len(expected), spacing), expected.flip(0) + 1)


@each_clip
@pytest.mark.parametrize("family", FIXED)
@each_schedule
def test_golden_ancestral_step(name, family, clip):
    g, schedule, T = guided_diffusion(f"{name}/"), GOLDEN_SCHEDULES[name], len(GOLDEN_SCHEDULES[name].beta) - 1
    rows = sampler_rows(schedule, range(T, 0, -1), eta=1., variance=FIXED[family], clip=clip)
    xs, x0_hat = each_row(rows, T - 1 - g["t"], g["xt"], output_of(family), guided_diffusion()["z"])
    close(xs, g[f"eps/{family}/clip{clip:d}/sample"])
    close(x0_hat, g[f"eps/{family}/clip{clip:d}/x0"])


RESPACED = {"linear/ddim50": "linear1000", "linear/10": "linear1000", "linear/10,15,20": "linear1000",
            "cosine/25": "cosine1000"}


@each_clip
@pytest.mark.parametrize("eta", [0., 0.5, 1.])
@pytest.mark.parametrize("key", RESPACED)
def test_golden_respaced_ddim(key, eta, clip):
    g, schedule = guided_diffusion(f"respaced/{key}/"), GOLDEN_SCHEDULES[RESPACED[key]]
    times = (g["timesteps"] + 1).flip(0)
    rows = sampler_rows(schedule, times, eta=eta, clip=clip)
    xs, _ = each_row(rows, len(times) - 1 - g["index"], g["xt"], guided_diffusion()["eps_hat"], guided_diffusion()["z"])
    loose = key.startswith("cosine") and clip and eta == 1
    close(xs, g[f"ddim/eta{eta}/clip{clip:d}/sample"], atol=1e-4 if loose else 1e-5)


@each_clip
@pytest.mark.parametrize("key", RESPACED)
def test_golden_respaced_ancestral(key, clip):
    g, schedule = guided_diffusion(f"respaced/{key}/"), GOLDEN_SCHEDULES[RESPACED[key]]
    times, index = (g["timesteps"] + 1).flip(0), len(g["timesteps"]) - 1 - g["index"]
    assert_close(schedule.alpha_bar[times].flip(0), g["alpha_bar"], rtol=1e-9, atol=0)
    rows = sampler_rows(schedule, times, eta=1., variance="learned", clip=clip)
    assert_close(column(rows, "log_max").exp().flip(0), g["beta"], rtol=1e-9, atol=1e-12)
    mean, _ = each_row(rows, index, g["xt"], guided_diffusion()["eps_hat"])
    expected = f"ancestral/fixed_small/clip{clip:d}/"
    close(mean, g[expected + "mean"])
    close(column(rows, "log_min")[index].float().view(-1, 1, 1, 1), g[expected + "log_var"])


@each_clip
@pytest.mark.parametrize("eta", [0., 1.])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_golden_ddim_of_diffusers(spacing, eta, clip):
    g, key = golden("diffusers_schedulers"), f"ddim/{spacing}/20/eta{eta}/clip{clip:d}/"
    times = g[key + "timesteps"] + 1
    same(timesteps(1000, 20, spacing), times)
    for t, expected in zip(times[[0, 10, 19]].tolist(), g[key + "prev"], strict=True):
        pair = [t] if t <= 50 else [t, t - 50]                          # it always steps by T / 20
        rows = sampler_rows(linear_schedule(), pair, eta=eta, clip=clip)
        xs, _ = each_row(rows, torch.zeros(4, dtype=torch.int64), g["x"], g["eps_hat"], g["z"])
        close(xs, expected)
    if spacing != "linspace":
        rows = sampler_rows(linear_schedule(), times, eta=eta, clip=clip)
        for i, expected in zip([0, 10, 19], g[key + "prev"], strict=True):
            close(each_row(rows, torch.tensor([i] * 4), g["x"], g["eps_hat"], g["z"])[0], expected)


def test_golden_dpm_solver():
    g = golden("diffusers_schedulers")
    times = g["dpmpp2m/trailing/20/timesteps"] + 1
    rows, xt, x0_hat = sampler_rows(linear_schedule(), times, sampler="2m", clip=False), g["x"], None
    for i, expected in enumerate(g["dpmpp2m/trailing/20/trace_model_is_0.9x"]):
        xt, x0_hat = step(rows, torch.tensor([i]), xt, 0.9 * xt, x0_hat)
        close(xt, expected)
    assert column(rows, "cp")[[0, -1]].tolist() == [0, 0]


@each_schedule
def test_ddim_at_eta_1_is_ancestral(name):
    beta, alpha, alpha_bar, beta_tilde = (table.flip(0)[:-1] for table in GOLDEN_SCHEDULES[name])
    before = GOLDEN_SCHEDULES[name].alpha_bar[:-1].flip(0)
    rows = sampler_rows(GOLDEN_SCHEDULES[name], range(len(beta), 0, -1), eta=1.)
    assert_close(column(rows, "c0"), before.sqrt() * beta / (1 - alpha_bar), rtol=0, atol=2e-12)
    assert_close(column(rows, "ct"), alpha.sqrt() * (1 - before) / (1 - alpha_bar), rtol=0, atol=2e-12)
    assert_close(column(rows, "cz"), beta_tilde.sqrt(), rtol=0, atol=2e-12)
    assert_close(column(rows, "a"), 1 / alpha_bar.sqrt())
    assert_close(column(rows, "b"), -(1 - alpha_bar).sqrt() / alpha_bar.sqrt())


@each_target
@pytest.mark.parametrize("sampler", [{"eta": 1., "variance": v} for v in VARIANCES] + [{"eta": 0.3}, {"sampler": "2m"}])
def test_rows_of_a_subsequence_are_those_of_the_shortened_schedule(sampler, target):
    schedule, times = linear_schedule(), torch.tensor([1000, 640, 333, 300, 12, 5])
    alpha_bar = schedule.alpha_bar[torch.cat([times, torch.zeros(1, dtype=torch.int64)])].flip(0)
    short = from_betas(1 - alpha_bar[1:] / alpha_bar[:-1])
    rows = sampler_rows(schedule, times, target=target, **sampler)
    assert_close(rows[:, 2:], sampler_rows(short, range(6, 0, -1), target=target, **sampler)[:, 2:])
    assert rows.dtype == torch.float64 and rows.shape == (6, len(COLUMNS))
    assert rows[:, 0].tolist() == times.tolist() and rows[:, 1].tolist() == [*times[1:].tolist(), 0]


@pytest.mark.parametrize("choice, message", [
    ({"eta": -0.1}, "eta is -0.1"), ({"eta": 1.1}, "eta is 1.1"), ({"eta": math.nan}, "eta is nan"),
    ({"times": []}, r"times are \[\]"), ({"times": [5, 5, 1]}, r"\[5, 5, 1\]"), ({"times": [1, 5]}, "decrease"),
    ({"times": [11, 5]}, r"1\.\.10"), ({"times": [5, 0]}, r"1\.\.10"),
    ({"sampler": "euler"}, "'euler'"), ({"variance": "fixed_small"}, "'fixed_small'"), ({"target": "score"}, "'score'"),
    ({"sampler": "2m", "eta": 0.5}, "2m"),
])
def test_sampler_rows_errors(choice, message):
    with pytest.raises(ValueError, match=message):
        sampler_rows(linear_schedule(10), **{"times": range(10, 0, -1)} | choice)


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("sampler", [{"eta": 0.}, {"eta": 1.}, {"sampler": "2m"}])
def test_a_last_beta_of_one(sampler, target):
    schedule, data = from_betas([*torch.linspace(0.001, 0.4, 9).tolist(), 1]), pictures(2, 1, 4, 4).sign() / 2
    with pytest.raises(ValueError, match="alpha_bar is 0"):
        sampler_rows(schedule, range(10, 0, -1), **sampler)
    rows = sampler_rows(schedule, range(10, 0, -1), target=target, **sampler)
    x = last(sample(exact_denoiser(schedule, data, target), rows, (1, 4, 4), seeds_of(20)))
    assert_close(x.abs(), torch.full_like(x, 0.5), rtol=0, atol=1e-3)


# One step

@pytest.mark.parametrize("variance", VARIANCES)
def test_the_last_step_adds_no_noise(variance):
    rows = sampler_rows(linear_schedule(10), [10, 5, 1], eta=1., variance=variance)
    xt, z = pictures(2, 3, 4, 4), 100 * torch.ones(2, 3, 4, 4)
    output = torch.cat([xt, xt], dim=1) if variance == "learned" else xt
    for i in range(3):
        xs, _ = step(rows, torch.tensor([i]), xt, output, z=z)
        mean, _ = step(rows, torch.tensor([i]), xt, output)
        assert xs.equal(mean) == (i == 2)


def test_learned_noise_is_scaled_pixel_by_pixel():
    schedule = linear_schedule(10)
    rows = sampler_rows(schedule, range(10, 0, -1), eta=1., variance="learned")
    xt, v, z = pictures(2, 1, 4, 4), pictures(2, 1, 4, 4, seed=2), pictures(2, 1, 4, 4, seed=3)
    mean, _ = step(rows, torch.tensor([3]), xt, torch.cat([xt, v], dim=1))
    xs, _ = step(rows, torch.tensor([3]), xt, torch.cat([xt, v], dim=1), z=z)
    log_var = interpolate_log_var(v, schedule.beta_tilde[7].log().float(), schedule.beta[7].log().float())
    assert_close(xs, mean + (log_var / 2).exp() * z)


def test_fixed_rows_ignore_variance_channels():
    rows = sampler_rows(linear_schedule(10), range(10, 0, -1), eta=1.)
    xt, z = pictures(2, 3, 4, 4), pictures(2, 3, 4, 4, seed=2)
    for i in (0, 9):
        same(step(rows, torch.tensor([i]), xt, torch.cat([xt, z], dim=1), z=z)[0],
             step(rows, torch.tensor([i]), xt, xt, z=z)[0])


def test_clip():
    xt = torch.tensor([-3., -0.5, 0.5, 3.]).view(1, 1, 2, 2)
    for clip in (False, True):
        rows = sampler_rows(linear_schedule(10), [10], target="x0", clip=clip)
        same(step(rows, torch.tensor([0]), xt, xt)[1], xt.clamp(-1, 1) if clip else xt)


@each_clip
def test_nan_passes_the_clamp(clip):
    rows, xt = sampler_rows(linear_schedule(10), range(10, 0, -1), eta=1., clip=clip), pictures(1, 1, 4, 4)
    output = xt.clone()
    output[0, 0, 1, 2] = math.nan
    for x in step(rows, torch.tensor([4]), xt, output, seeds=seeds_of(1)):
        same(x.isnan(), output.isnan())


@pytest.mark.parametrize("variance", ["beta", "learned"])
def test_a_bfloat16_output_is_cast_first(variance):
    schedule, xt, t = linear_schedule(), pictures(2, 3, 4, 4), torch.tensor([1000, 3])
    output = pictures(2, 6, 4, 4, seed=2).bfloat16()
    rows = sampler_rows(schedule, [1000, 500], eta=1., variance=variance, clip=False)
    xs, x0_hat = step(rows, torch.tensor([0]), xt, output, z=xt)
    assert xs.dtype == x0_hat.dtype == torch.float32
    for x, y in zip((xs, x0_hat), step(rows, torch.tensor([0]), xt, output.float(), z=xt), strict=True):
        same(x, y)
    choice = {"target": "eps", "variance": variance, "clip": False}
    for x, y in zip(p_mean_log_var(schedule, output, xt, t, **choice),
                    p_mean_log_var(schedule, output.float(), xt, t, **choice), strict=True):
        same(x, y)
    same(simple_loss(xt, output[:, :3]), simple_loss(xt, output[:, :3].float()))


def test_coefficients_are_float64_before_the_cast():
    schedule, t, one = linear_schedule(), torch.tensor([1]), torch.ones(1, 1)
    exact = math.sqrt(1 - schedule.alpha_bar[1].item())
    assert q_sample(schedule, 0 * one, t, one).item() == pytest.approx(exact, rel=1e-7)
    rows = sampler_rows(schedule, [1], clip=False)
    assert step(rows, torch.tensor([0]), 0 * one, one)[1].item() == pytest.approx(-exact / (1 - 1e-4)**0.5, rel=1e-7)


def test_step_is_one_graph_for_every_row():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    rows = sampler_rows(linear_schedule(10), range(10, 0, -1), eta=1., variance="learned")
    xt, output = pictures(2, 3, 4, 4), pictures(2, 6, 4, 4, seed=2)
    for i in (0, 5, 9):
        for x, y in zip(compiled(rows, torch.tensor([i]), xt, output, xt, seeds_of(2)),
                        step(rows, torch.tensor([i]), xt, output, xt, seeds_of(2)), strict=True):
            assert_close(x, y)
    assert len(graphs) == 1
    assert "item" not in [node.target for node in graphs[0].graph.nodes]      # the host reads nothing


# The whole chain

def elementwise(xt, t):
    return 0.5 * xt * (1 + xt.abs()).reciprocal() + t.view(-1, 1, 1, 1) / 1000


@pytest.mark.parametrize("choice", SAMPLERS.values(), ids=SAMPLERS)
def test_sample_runs_the_rows(choice):
    rows, seeds = sampler_rows(linear_schedule(), timesteps(1000, 7), **choice), seeds_of(2)
    xt, x0_hat, times = normal(seeds, 1000, (3, 5, 5)), None, [*rows[:, 0].long().tolist(), 0]
    chain = list(sample(elementwise, rows, (3, 5, 5), seeds))
    assert [s for s, _, _ in chain] == times[1:]
    for i, (s, xs, x0) in enumerate(chain):
        xt, x0_hat = step(rows, torch.tensor([i]), xt, elementwise(xt, torch.full((2,), times[i])), x0_hat,
                          z=normal(seeds, s, (3, 5, 5)))
        same(xs, xt)
        same(x0, x0_hat)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("ahead", [2, 3, 100])
def test_ahead_changes_no_bit(ahead, variance):
    rows = sampler_rows(linear_schedule(), timesteps(1000, 7), eta=1., variance=variance)
    chains = [sample(with_v(elementwise, 0.3), rows, (3, 5, 5), seeds_of(2), ahead=a) for a in (1, ahead)]
    for (s, xs, x0_hat), (other_s, other_xs, other_x0_hat) in zip(*chains, strict=True):
        assert s == other_s
        same(xs, other_xs)
        same(x0_hat, other_x0_hat)


@pytest.mark.parametrize("choice", SAMPLERS.values(), ids=SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(choice):
    rows, seeds = sampler_rows(linear_schedule(), timesteps(1000, 7), **choice), seeds_of(5)
    x = last(sample(elementwise, rows, (3, 5, 5), seeds))
    for i in range(5):
        same(last(sample(elementwise, rows, (3, 5, 5), seeds[i:i + 1]))[0], x[i])
    same(last(sample(elementwise, rows, (3, 5, 5), seeds.flip(0))), x.flip(0))
    assert len(x.flatten(1).unique(dim=0)) == 5


@pytest.mark.parametrize("choice, ahead, draws", [
    ({}, 1, [[10]]), ({}, 4, [[10]]), ({"sampler": "2m"}, 1, [[10]]), ({"variance": "learned"}, 1, [[10]]),
    ({"eta": 1.}, 1, [[10], [7], [4], [1], [0]]), ({"eta": 1.}, 3, [[10], [1, 4, 7], [0]]),
])
def test_noise_is_drawn_only_where_it_lands(choice, ahead, draws, monkeypatch):
    drawn = []

    def count(seeds, s, shape, stream=0):
        drawn.append(s.unique().tolist())
        return normal(seeds, s, shape, stream)

    monkeypatch.setattr(ddpm, "normal", count)
    rows = sampler_rows(linear_schedule(10), [10, 7, 4, 1], **choice)
    last(sample(with_v(elementwise, 0.), rows, (1, 2, 2), seeds_of(2), ahead=ahead))
    assert drawn == draws


def test_first_noise_is_not_that_of_x_T():
    seen, rows, seeds = [], sampler_rows(linear_schedule(10), [10, 9, 1], eta=1., clip=False), seeds_of(2)

    def denoise(xt, t):
        seen.append(xt)
        return 0 * xt

    list(sample(denoise, rows, (1, 8, 8), seeds))
    z = (seen[1] - step(rows, torch.tensor([0]), seen[0], 0 * seen[0])[0]) / column(rows, "cz")[0].float()
    same(seen[0], normal(seeds, 10, (1, 8, 8)))
    assert_close(z, normal(seeds, 9, (1, 8, 8)), rtol=0, atol=1e-5)
    assert (z - seen[0]).abs().mean() > 0.5


def test_sample_takes_another_step():
    rows, calls = sampler_rows(linear_schedule(10), [10, 5], eta=1.), []

    def other(rows, i, xt, output, x0_prev=None, seeds=None, *, z=None):
        calls.append((i.tolist(), x0_prev, seeds is None, z is None))
        return xt + 1, xt

    chain = list(sample(elementwise, rows, (1, 2, 2), seeds_of(2), step=other))
    same(chain[-1][1], normal(seeds_of(2), 10, (1, 2, 2)) + 2)
    assert calls == [([0], None, False, True), ([1], None, False, True)]


@pytest.mark.parametrize("variance, channels, fits", [
    ("learned", 3, False), ("learned", 6, True), ("learned", 5, False),
    ("beta", 3, True), ("beta", 6, True), ("beta", 5, False), ("beta", 1, False),
])
def test_sample_refuses_other_channels(variance, channels, fits):
    rows = sampler_rows(linear_schedule(10), [10, 5], eta=1., variance=variance)
    chain = sample(lambda xt, t: torch.zeros(2, channels, 4, 4), rows, (3, 4, 4), seeds_of(2))
    if fits:
        assert len(list(chain)) == 2
    else:
        with pytest.raises(ValueError, match=rf"output is \(2, {channels}, 4, 4\) for x_t \(2, 3, 4, 4\)"):
            next(chain)


def test_sample_takes_no_gradients():
    weight = torch.ones(1, requires_grad=True)
    rows = sampler_rows(linear_schedule(10), [10, 5])
    assert not last(sample(lambda xt, t: weight * xt, rows, (1, 2, 2), seeds_of(2))).requires_grad


@each_target
@pytest.mark.parametrize("name", [*SAMPLERS, "learned"])
def test_exact_denoiser_lands_on_the_data_in_equal_shares(name, target):
    schedule, count = linear_schedule(), 300
    data = pictures(3, 2, 4, 4).sign() * 0.8
    denoise = exact_denoiser(schedule, data, target)
    if name == "learned":
        denoise = with_v(denoise, 0.2)
    choice = SAMPLERS.get(name, {"eta": 1., "variance": "learned"})
    rows = sampler_rows(schedule, timesteps(1000, 40), target=target, **choice)
    x = last(sample(denoise, rows, (2, 4, 4), seeds_of(count), ahead=40))
    distance, nearest = (x[:, None] - data).abs().flatten(2).amax(2).min(1)
    assert distance.max() < 0.01
    assert nearest.bincount(minlength=3).min() > count / 3 - 30         # 3.7 standard deviations of a fair share


def test_the_script_prints_three_tables(capsys):
    runpy.run_path(ddpm.__file__, run_name="__main__")
    tables = capsys.readouterr().out.split("\n\n")[1:]
    assert [table.splitlines()[0] for table in tables] == ["DDPM", "DDIM", "DPM-Solver++(2M)"]
    for table in tables:
        _, head, *rows = table.strip().splitlines()
        assert head.split() == list(COLUMNS[:9]) and len(rows) == 10
        assert [row.split()[1] for row in rows] == [*(row.split()[0] for row in rows[1:]), "0"]
