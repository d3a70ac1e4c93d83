"""Every table, posterior, loss and sampler against published numbers, closed forms and exact denoisers.

The golden arrays count time from 0: their t is ours minus one.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close

import ddpm
from ddpm import SCHEDULES, TARGETS, VARIANCES, from_betas, linear_schedule, loss, predict, q_posterior, q_sample
from tests.helpers import (
    FIXED,
    GOLDEN_SCHEDULES,
    close,
    each_clip,
    each_schedule,
    each_target,
    gaussian_denoiser,
    gaussian_with_variance,
    golden,
    guided_diffusion,
    output_of,
    pictures,
    same,
)


def tanh_cdf(x):
    """The published decoder's approximation of the normal CDF."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


# Schedules

@each_schedule
def test_golden_schedules(name):
    g, schedule = guided_diffusion(f"{name}/"), GOLDEN_SCHEDULES[name]
    assert_close(schedule.beta[1:], g["beta"], rtol=1e-9, atol=0)
    assert_close(schedule.alpha_bar[1:], g["alpha_bar"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("key, schedule, rtol", [
    ("sigmoid1000", ddpm.sigmoid_schedule(), 2e-5), ("sigmoid100", ddpm.sigmoid_schedule(100), 2e-5),
    ("cosine100", ddpm.cosine_schedule(100), 1e-9), *((key, GOLDEN_SCHEDULES[key], 1e-9) for key in (
        "cosine1000", "linear1000", "linear100"))])
def test_second_golden_schedules(key, schedule, rtol):
    assert_close(schedule.beta[1:], golden("lucidrains_schedules")[f"{key}/beta"], rtol=rtol, atol=0)


def test_quadratic_schedule():
    beta = ddpm.quadratic_schedule(5, 0.01, 0.25).beta
    assert_close(beta, torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)**2)
    assert_close(ddpm.quadratic_schedule().beta[[1, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))


def test_sigmoid_schedule_is_stretched_by_tau():
    assert_close(ddpm.sigmoid_schedule(10, -3, 2, tau=0.5).beta, ddpm.sigmoid_schedule(10, -6, 4).beta)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1000, 10, 1])
def test_schedule_tables(name, T):
    schedule = SCHEDULES[name](T) if T < 1000 else SCHEDULES[name]()
    beta, alpha, alpha_bar, beta_tilde = schedule
    assert all(table.shape == (T + 1,) and table.dtype == torch.float64 for table in schedule)
    assert [table[0].item() for table in schedule] == [0, 1, 1, 0] and beta_tilde[1] == 0
    assert beta[:-1].max() <= 0.999 and (alpha_bar.diff() < 0).all()
    assert (alpha_bar[-1] == 0) == (name == "flow") and (name == "flow" or beta[-1] <= 0.999)
    same(alpha, 1 - beta)
    assert_close(alpha_bar[1:], alpha_bar[:-1] * alpha[1:])
    assert_close(beta_tilde[1:] * (1 - alpha_bar[1:]), beta[1:] * (1 - alpha_bar[:-1]))


@pytest.mark.parametrize("T", [1, 10])
def test_flow_is_the_straight_path_scaled(T):
    schedule, t = ddpm.flow_schedule(T), torch.arange(T + 1)
    x0, eps, u = torch.full((T + 1, 1), 0.7).double(), torch.full((T + 1, 1), -1.3).double(), t[:, None] / T
    path = (1 - u) * x0 + u * eps
    assert_close(q_sample(schedule, x0, t, eps), path / ((1 - u)**2 + u**2).sqrt(), rtol=1e-7, atol=1e-7)
    assert ddpm.training_target(schedule, x0, t, eps, "flow")[0].item() == pytest.approx(-2)


@pytest.mark.parametrize("beta", [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), torch.tensor([0.1, 0.2]).double()])
def test_from_betas_takes_any_sequence(beta):
    assert_close(from_betas(beta).alpha_bar, torch.tensor([1, 0.9, 0.72], dtype=torch.float64))


@pytest.mark.parametrize("beta", [[], [0.1, 0.], [1, 0.1], [0.1, 1.01], [math.nan], [[0.1]]])
def test_from_betas_errors(beta):
    with pytest.raises(ValueError, match="beta must be"):
        from_betas(beta)


@pytest.mark.parametrize("make, says", [
    (lambda: ddpm.sigmoid_schedule(tau=0.05), "start = -3, end = 3, tau = 0.05; change one"),
    (lambda: ddpm.sigmoid_schedule(tau=0.), "tau is 0; it must be above 0"),
    (lambda: ddpm.sigmoid_schedule(start=3, end=-3), "start = 3, end = -3"),
    (lambda: ddpm.cosine_schedule(s=-1), "alpha_bar must fall at each of 1000 steps.* for s = -1")])
def test_impossible_schedules_name_the_argument(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("T, target, fits", [(20000, "eps", False), (20000, "v", True), (10000, "eps", True)])
def test_targets_whose_coefficients_are_infinite_are_refused(T, target, fits):
    """alpha_bar_T is 1e-88 of the linear schedule with T = 20000: its root's inverse is no float32."""
    schedule = linear_schedule(T)
    for refuse in (lambda: ddpm.check_target(schedule.alpha_bar[-1], target),
                   lambda: ddpm.sampler_rows(schedule, [T, 1], target=target)):
        if fits:
            refuse()
        else:
            with pytest.raises(ValueError, match="alpha_bar is 1.3e-88 at the first step.*use target v, x0 or flow"):
                refuse()


@pytest.mark.parametrize("T, bits", [(1000, 2.91e-5), (300, 0.0356)])
def test_schedule_check(T, bits):
    schedule = linear_schedule(T)
    assert ddpm.schedule_check(schedule) == pytest.approx(bits, rel=3e-3)
    unit = torch.tensor([[1.], [-1.]])                                  # the prior term of unit-variance data
    assert ddpm.schedule_check(schedule) == pytest.approx(ddpm.prior_bits(schedule, unit).mean().item())


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
    bits = ddpm.prior_bits(GOLDEN_SCHEDULES[name], guided_diffusion()["x0"])
    assert bits.dtype == torch.float64 and (bits > 0).all()
    assert_close(bits.float(), guided_diffusion(f"{name}/")["prior_bpd"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_steps_compose_to_q_sample(name):
    schedule = SCHEDULES[name](30)
    x, variance, one = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), torch.ones(1)
    for t in torch.arange(1, 31).view(-1, 1):
        x = ddpm.q_step(schedule, x, t, 0 * one)
        variance = ddpm.q_step(schedule, variance.sqrt(), t, 0 * one)**2 + ddpm.q_step(schedule, 0 * x, t, one)**2
        assert_close(q_sample(schedule, one.double(), t, 0 * one), x)
        assert_close(q_sample(schedule, 0 * x, t, one)**2, variance)


@pytest.mark.parametrize("first, call", [
    (1, lambda s, x, t: ddpm.q_step(s, x, t, x)), (0, lambda s, x, t: q_sample(s, x, t, x)),
    (1, lambda s, x, t: q_posterior(s, x, x, t)), (1, lambda s, x, t: ddpm.eps_from_x0(s, x, x, t)),
    (1, lambda s, x, t: predict(s, x, x, t, "v")),
    (0, lambda s, x, t: ddpm.training_target(s, x, t, x, "v")), (1, lambda s, x, t: ddpm.exact_denoiser(s, x)(x, t)),
    (1, lambda s, x, t: loss(s, lambda xt, t: xt, x, t, x)),
    (1, lambda s, x, t: ddpm.hybrid_loss(s, lambda xt, t: torch.cat([xt, xt], 1), x, t, x))])
def test_times_outside_the_chain_are_refused(first, call):
    """Of a table, -1 is the last entry; t = 0 is clean, which q_sample can make, and for which there is a target."""
    schedule, x = linear_schedule(10), torch.ones(2, 1, 2, 2)
    for t in (-1, 0, 11):
        if t == first:
            assert_close(call(schedule, x, torch.tensor([1, t]))[1], x[1])
        else:
            with pytest.raises(ValueError, match=r"t goes from .*; it must lie in [01]\.\.10"):
                call(schedule, x, torch.tensor([1, t]))


KINDS_OF_TIMES = {"int16": torch.tensor([1, 99, 7], dtype=torch.int16), "uint8": torch.tensor([1, 99, 7]).byte(),
                  "float32": torch.tensor([1.5, 99.25, 7.]), "int64": torch.tensor([1, 99, 7])}
each_kind_of_times = pytest.mark.parametrize("t", KINDS_OF_TIMES.values(), ids=KINDS_OF_TIMES)


def lost(schedule, x0, t, eps):
    """A loss that depends on all that it is told, and on what the network is told."""
    return loss(schedule, lambda xt, t: xt * t.view(-1, 1, 1, 1), x0, t, eps, target="v", space="min-snr")


@each_kind_of_times
def test_times_of_any_kind(t):
    """int16, uint8 (which would index as a mask), float32: as int64 and float64, and the network is told those."""
    schedule, x0, eps = linear_schedule(100), pictures(3, 1, 2, 2), pictures(3, 1, 2, 2, seed=2)
    exact, told = t.double() if t.is_floating_point() else t.long(), []
    alpha_bar = torch.stack([schedule.alpha_bar[int(u)]**(1 - u % 1) * schedule.alpha_bar[math.ceil(u)]**(u % 1)
                             for u in exact.tolist()]).float().view(-1, 1, 1, 1)
    assert_close(q_sample(schedule, x0, t, eps), alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps, rtol=0.01,
                 atol=0.003)                                            # between two times nearly the geometric mean
    same(q_sample(schedule, x0, t, eps), q_sample(schedule, x0, exact, eps))
    same(ddpm.alpha_bar_at(schedule, t), ddpm.alpha_bar_at(schedule, exact))
    loss(schedule, lambda xt, t: told.append(t.dtype) or xt, x0, t, eps)
    assert told == [exact.dtype]
    if t.is_floating_point():
        with pytest.raises(ValueError, match="t is torch.float32; it must be int64"):
            ddpm.hybrid_loss(schedule, lambda xt, t: torch.cat([xt, xt], 1), x0, t, eps)
    else:
        same(q_posterior(schedule, x0, eps, t)[0], q_posterior(schedule, x0, eps, exact)[0])


@each_kind_of_times
def test_losses_under_transforms(t):
    """vmap, per-picture gradients, fake tensors and export: nothing looks at a value that is not there."""
    schedule, x0, eps = linear_schedule(100), pictures(3, 1, 2, 2), pictures(3, 1, 2, 2, seed=2)
    expected = lost(schedule, x0, t, eps)

    def alone(x0, t, eps):
        return lost(schedule, x0[None], t[None], eps[None])[0]

    assert_close(torch.vmap(alone)(x0, t, eps), expected)
    gradient = torch.func.grad(lambda x0: lost(schedule, x0, t, eps).sum())(x0)
    assert_close(torch.vmap(torch.func.grad(alone))(x0, t, eps), gradient)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert lost(schedule, *map(mode.from_tensor, (x0, t, eps))).shape == (3,)

    class Module(torch.nn.Module):
        def forward(self, x0, t, eps):
            return lost(schedule, x0, t, eps)

    exported = torch.export.export(Module(), (x0, t, eps)).module()
    assert_close(exported(x0, t.flip(0), eps), lost(schedule, x0, t.flip(0), eps))


@pytest.mark.parametrize("call", [
    lambda s, x: q_sample(s, x, torch.tensor([5]), torch.randn(1, 1, 2, 2)), ddpm.prior_bits, ddpm.exact_denoiser,
    lambda s, x: loss(s, lambda xt, t: xt, x, torch.tensor([5]), torch.randn(1, 1, 2, 2), target="x0")])
def test_pictures_of_whole_numbers_are_refused(call):
    """Whose coefficients would be cast to 0 and 1, or whose scale would be another."""
    with pytest.raises(ValueError, match=r"x is torch.uint8; it must be floating, pictures in \[-1, 1\]"):
        call(linear_schedule(10), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def test_times_are_not_looked_at_while_compiling():
    """One graph, without a break for the look."""
    schedule, x, t = ddpm.linear_schedule(10), torch.randn(2, 1, 2, 2), torch.tensor([1, 10])
    compiled = torch.compile(lambda x, t: ddpm.q_sample(schedule, x, t, x), fullgraph=True, backend="eager")
    assert_close(compiled(x, t), ddpm.q_sample(schedule, x, t, x))


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
    x0_hat, eps_hat = predict(schedule, ddpm.training_target(schedule, x0, t, eps, target), xt, t, target)
    assert_close(x0_hat, x0, rtol=0, atol=1e-9)
    assert_close(eps_hat, eps, rtol=0, atol=1e-9)


def test_v_is_the_rotation():
    schedule, t = from_betas([0.36]), torch.tensor([1])
    v = ddpm.training_target(schedule, torch.tensor([[2.]]), t, torch.tensor([[5.]]), "v")
    assert v.item() == pytest.approx(0.8 * 5 - 0.6 * 2)


@each_target
@pytest.mark.parametrize("T", [1, 50])
def test_exact_denoiser_is_the_posterior_mean(target, T):
    schedule, t = linear_schedule(T, 0.01, 0.3), torch.tensor([T, 1, T])
    data, xt = pictures(5, 2, 3, 3), pictures(3, 2, 3, 3, seed=2)
    x0_hat, _ = predict(schedule, ddpm.exact_denoiser(schedule, data, target)(xt, t), xt, t, target)
    for k in range(3):
        alpha_bar = schedule.alpha_bar[t[k]]
        weights = (-(xt[k] - alpha_bar.sqrt() * data).square().flatten(1).sum(1) / (2 * (1 - alpha_bar))).softmax(0)
        assert_close(x0_hat[k], torch.einsum("n,nchw->chw", weights.float(), data), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data", [0.5, 1.])
def test_edm_is_v_prediction_of_scaled_data(data):
    """Karras et al. 2022, table 1: c_in x is the state of data / sigma_data, F is -v, and lambda is v's own loss."""
    x0, eps, F = (pictures(5, 2, 3, seed=k).double() for k in range(3))
    sigma = torch.tensor([0.002, 0.1, 0.5, 3., 80.]).double()
    alpha_bar = 1 / (1 + (sigma / data)**2)
    schedule = ddpm.Schedule(*[torch.cat([torch.ones(1).double(), alpha_bar])] * 4)
    t, s = torch.arange(1, 6), sigma.view(-1, 1, 1)
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
    c_in, weight = 1 / (s**2 + data**2).sqrt(), (s**2 + data**2) / (s * data)**2
    y = data * x0 + s * eps                                             # EDM's noisy data, of deviation data
    xt = q_sample(schedule, x0, t, eps)
    assert_close(c_in * y, xt)
    x0_hat, _ = predict(schedule, -F, xt, t, "v")
    assert_close(c_skip * y + c_out * F, data * x0_hat)
    lost = loss(schedule, lambda xt, t: -F, x0, t, eps, target="v")
    assert_close(lost, (weight * (c_skip * y + c_out * F - data * x0)**2).flatten(1).mean(1))


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
    output = ddpm.guided(labelled(calls, channels), labels, null, w)(xt, t)
    conditional, unconditional = model(xt, t, labels), model(xt, t, torch.full((3,), null))
    assert calls == [batch] and output.shape == (3, 2 * channels, 4, 4)
    assert_close(output[:, :2], (1 + w) * conditional[:, :2] - w * unconditional[:, :2])
    same(output[:, 2:], conditional[:, 2:])


def test_guided_by_a_weight_of_each_picture():
    xt, t, labels, w = pictures(3, 2, 4, 4), torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2]), [0., -1., 2.5]
    each = [ddpm.guided(labelled([], 2), labels[k:k + 1], 3, w[k])(xt[k:k + 1], t[k:k + 1]) for k in range(3)]
    for kind in (torch.tensor(w), torch.tensor(w).double(), np.array(w), w):
        assert_close(ddpm.guided(labelled([], 2), labels, 3, kind)(xt, t), torch.cat(each))
    assert_close(ddpm.guided(labelled([], 1), labels, 3, torch.tensor(2.))(xt, t),
                 ddpm.guided(labelled([], 1), labels, 3, 2)(xt, t))


@pytest.mark.parametrize("channels", [1, 2])
def test_rescaled_guidance_is_the_published_one(channels):
    """diffusers' own lines, of each picture; with the deviation brought back all the way it is the conditional's."""
    rescale = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    xt, t, labels, null = pictures(3, 2, 4, 4), torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2]), 3
    xt = xt * torch.tensor([1., 5., 0.2]).view(3, 1, 1, 1)
    model, w = labelled([], channels), torch.tensor([2., 7.5, -0.5])
    plain, conditional = ddpm.guided(model, labels, null, w)(xt, t), model(xt, t, labels)
    for phi in (0.7, 1.):
        output = ddpm.guided(model, labels, null, w, phi)(xt, t)
        assert_close(output[:, :2], rescale(plain[:, :2], conditional[:, :2], phi))
        same(output[:, 2:], conditional[:, 2:])
    assert_close(output[:, :2].flatten(1).std(1), conditional[:, :2].flatten(1).std(1))


@each_target
@pytest.mark.parametrize("learned", [False, True])
def test_classifier_guidance_of_a_mixture_is_its_component(target, learned):
    """Two classes, N(m_y, v) each: grad log p(y | x_t) turns the mixture's exact denoiser into the class's own."""
    schedule, means, var = linear_schedule(), torch.tensor([0.6, -0.4]).double(), 0.09
    xt, t = pictures(5, 1, 2, 2).double(), torch.tensor([1, 10, 200, 700, 1000])

    def log_p(x, t):
        alpha_bar = schedule.alpha_bar[t].view(-1, 1)
        distance = x.flatten(1)[:, None] - alpha_bar.sqrt()[:, None] * means[:, None]          # B classes pixels
        return (-distance.square().sum(2) / (2 * (alpha_bar * var + 1 - alpha_bar))).log_softmax(1)

    def mixture(x, t):
        share = log_p(x, t).exp()
        output = sum(share[:, k].view(-1, 1, 1, 1) * gaussian_denoiser(schedule, means[k], var, target)(x, t)
                     for k in range(2))
        return torch.cat([output, x], dim=1) if learned else output

    for k in range(2):
        with torch.no_grad():
            output = ddpm.classifier_guided(schedule, mixture, lambda x, t, k=k: log_p(x, t)[:, k], 1., target)(xt, t)
        assert_close(output[:, :1], gaussian_denoiser(schedule, means[k], var, target)(xt, t), rtol=1e-9, atol=1e-9)
        same(output[:, 1:], xt if learned else xt[:, 1:])


def test_classifier_guidance_scales_the_score_and_needs_a_signal():
    schedule, xt, t = ddpm.flow_schedule(), pictures(2, 1, 2, 2), torch.tensor([500, 1000])
    output = [ddpm.classifier_guided(schedule, lambda x, t: 0 * x, lambda x, t: x.flatten(1).sum(1), s, "x0")(xt, t)
              for s in (1., 3.)]
    alpha_bar = schedule.alpha_bar[500]
    assert_close(output[0][0], torch.full((1, 2, 2), (1 - alpha_bar) / alpha_bar.sqrt()).float())
    assert_close(output[1], 3 * output[0])
    assert (output[1][1] == 0).all()                                    # x_T is noise alone


# Losses

def test_loss_is_the_distance_to_the_target():
    schedule, t = linear_schedule(10), torch.tensor([3, 10])
    x0, eps = pictures(2, 1, 4, 4), pictures(2, 1, 4, 4, seed=2)
    offset = torch.tensor([0.5, -2.]).view(-1, 1, 1, 1)
    for target, true in [("eps", eps), ("x0", x0), ("v", ddpm.training_target(schedule, x0, t, eps, "v"))]:
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
    total = ddpm.hybrid_loss(schedule, lambda xt, t: output, x0, t, noise, cdf=tanh_cdf)
    close(simple, g["hybrid/mse"])
    close(total, g["hybrid/loss"])
    close(total - simple, g["hybrid/vb"], rtol=1e-5, atol=2e-6)


@each_target
def test_hybrid_gradients(target):
    schedule, t = linear_schedule(100), torch.tensor([1, 2, 50, 100])
    x0, noise = guided_diffusion()["x0"], guided_diffusion()["noise"]
    output = output_of("learned_range").clone().requires_grad_()
    choice = {"schedule": schedule, "denoise": lambda xt, t: output, "x0": x0, "t": t, "eps": noise, "target": target}
    [hybrid] = torch.autograd.grad(ddpm.hybrid_loss(**choice).sum(), output)
    [simple] = torch.autograd.grad(loss(**choice | {"denoise": lambda xt, t: output[:, :3]}).sum(), output)
    [bound] = torch.autograd.grad(ddpm.bound_terms(**choice, variance="learned", clip=False).sum(), output)
    same(hybrid[:, :3], simple[:, :3])
    assert_close(hybrid[:, 3:], bound[:, 3:] * 100 / 1000)
    assert bound[:, 3:].flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("space", TARGETS)
@each_target
def test_space_is_whose_error_it_is(target, space):
    """The same prediction, read as eps, x0, v or flow, and its squared error there."""
    schedule, t = linear_schedule(50), torch.tensor([1, 20, 50])
    x0, eps, output = (pictures(3, 2, 3, 3, seed=k).double() for k in range(3))
    xt = q_sample(schedule, x0, t, eps)
    x0_hat, eps_hat = predict(schedule, output, xt, t, target)
    true, predicted = (ddpm.training_target(schedule, *pair, space) for pair in ((x0, t, eps), (x0_hat, t, eps_hat)))
    got = loss(schedule, lambda xt, t: output, x0, t, eps, target=target, space=space)
    assert_close(got, (true - predicted).square().flatten(1).mean(1))


@pytest.mark.parametrize("target, published", [("x0", lambda snr: snr.clamp(max=5)),
                                               ("eps", lambda snr: snr.clamp(max=5) / snr),
                                               ("v", lambda snr: snr.clamp(max=5) / (snr + 1))])
def test_min_snr_is_the_published_weight(target, published):
    """Hang et al. 2023, section 3.4, gamma = 5."""
    alpha_bar = ddpm.cosine_schedule().alpha_bar[1:]
    assert_close(ddpm.space_weight(alpha_bar, target, "min-snr"), published(alpha_bar / (1 - alpha_bar)))


@pytest.mark.parametrize("target, weights", [("eps", [1, 0]), ("x0", [0, 5]), ("v", [0, 0]), ("flow", [0, 0])])
def test_weights_have_their_limits_at_the_ends(target, weights):
    """At alpha_bar 0, where flow schedules end, min(SNR, 5) / SNR is 1; at both ends an error is its own."""
    ends, schedule = torch.tensor([0., 1.]).double(), ddpm.flow_schedule(4)
    assert ddpm.space_weight(ends, target, "min-snr").tolist() == weights
    assert ddpm.space_weight(ends, target, target).tolist() == [1, 1]
    x0, eps, T = pictures(1, 1, 2, 2), pictures(1, 1, 2, 2, seed=2), torch.tensor([4])
    got = loss(schedule, lambda xt, t: 0 * xt, x0, T, eps, target=target, space="min-snr")
    assert_close(got, weights[0] * loss(schedule, lambda xt, t: 0 * xt, x0, T, eps, target=target))


# The bound

@each_clip
@pytest.mark.parametrize("family", FIXED)
@each_schedule
def test_golden_p(name, family, clip):
    g, schedule = guided_diffusion(f"{name}/"), GOLDEN_SCHEDULES[name]
    t, output, expected = g["t"] + 1, output_of(family), f"eps/{family}/clip{clip:d}/"
    choice = {"target": "eps", "variance": FIXED[family], "clip": clip}
    mean, log_var = ddpm.p_mean_log_var(schedule, output, g["xt"], t, **choice)
    close(mean, g[expected + "mean"])
    close(log_var, g[expected + "log_var"])
    bits = ddpm.bound_terms(schedule, lambda xt, t: output, guided_diffusion()["x0"], t, guided_diffusion()["noise"],
                            cdf=tanh_cdf, **choice)
    close(bits, g[expected + "vb_bpd"], rtol=1e-5, atol=2e-6)
    x0_hat, _ = predict(schedule, output[:, :3], g["xt"], t, "eps")
    close(x0_hat.clamp(-1, 1) if clip else x0_hat, g[expected + "x0"])


@each_schedule
def test_golden_p_when_the_output_is_x0(name):
    g, t = guided_diffusion(f"{name}/"), guided_diffusion(f"{name}/")["t"] + 1
    mean, _ = ddpm.p_mean_log_var(GOLDEN_SCHEDULES[name], g["x0hat"], g["xt"], t, target="x0", variance="beta_tilde",
                                  clip=True)
    close(mean, g["x0/fixed_small/clip1/mean"])


def test_golden_bound():
    g, schedule, x0 = guided_diffusion("bpd/linear100/"), GOLDEN_SCHEDULES["linear100"], guided_diffusion()["x0"]
    terms = [ddpm.bound_terms(schedule, lambda xt, t: 0.9 * xt, x0, torch.full((4,), t), guided_diffusion()["noise"],
                              target="eps", variance="beta_tilde", clip=True, cdf=tanh_cdf) for t in range(100, 0, -1)]
    terms, prior = torch.stack(terms, dim=1), ddpm.prior_bits(schedule, x0)
    close(terms, g["terms"], rtol=1e-5, atol=2e-6)
    assert_close(prior.float(), g["prior"], rtol=1e-5, atol=1e-8)
    close((terms.sum(1) + prior).float(), g["model_is_0.9x/noise_is_noise"])


@each_clip
@pytest.mark.parametrize("variance", VARIANCES)
def test_p_does_not_depend_on_the_target(variance, clip):
    schedule, t = linear_schedule(), torch.tensor([1, 2, 500, 1000])
    x0, eps, xt, v = (pictures(4, 2, 3, 3, seed=k).double() for k in range(4))
    _, eps = predict(schedule, x0, xt, t, "x0")
    outputs = {target: torch.cat([ddpm.training_target(schedule, x0, t, eps, target), v], dim=1) for target in TARGETS}
    p = [ddpm.p_mean_log_var(schedule, output, xt, t, target=target, variance=variance, clip=clip)
         for target, output in outputs.items()]
    for mean, log_var in p[1:]:
        assert_close(mean, p[0][0], rtol=1e-9, atol=1e-9)
        assert_close(log_var, p[0][1])


def test_learned_variance_spans_beta_tilde_to_beta():
    schedule, t, x = linear_schedule(10), torch.tensor([2, 5, 10]), torch.zeros(3, 1, 2, 2).double()
    for v, var in [(-1, schedule.beta_tilde[t]), (1, schedule.beta[t]),
                   (0, (schedule.beta_tilde[t] * schedule.beta[t]).sqrt())]:
        _, log_var = ddpm.p_mean_log_var(schedule, torch.cat([x, x + v], dim=1), x, t, target="eps", variance="learned",
                                         clip=True)
        close(log_var.exp(), var.view(-1, 1, 1, 1).expand_as(x), rtol=1e-9, atol=0)


@pytest.mark.parametrize("call, says", [
    (lambda s, x, t: ddpm.p_mean_log_var(s, x, x, t, target="eps", variance="learned", clip=True), "channels"),
    (lambda s, x, t: ddpm.p_mean_log_var(s, x, x, t, target="eps", variance="fixed_small", clip=True), "'fixed_small'"),
    (lambda s, x, t: predict(s, x, x, t, "score"), "'score'"),
    (lambda s, x, t: ddpm.hybrid_loss(s, lambda xt, t: xt, x, t, x), "channels"),
    (lambda s, x, t: ddpm.simple_loss(x, x[:1]), "shapes"),
    (lambda s, x, t: loss(s, lambda xt, t: torch.cat([xt, xt], dim=1), x, t, x), "hybrid_loss"),
    (lambda s, x, t: loss(s, lambda xt, t: xt, x, t, x, target="score"), "'score'"),
    (lambda s, x, t: loss(s, lambda xt, t: xt, x, t, x, kind="l1", space="eps"), "space is 'eps' and the loss l1"),
    (lambda s, x, t: loss(s, lambda xt, t: xt, x, t, x, space="score"), "space is 'score'")])
def test_what_cannot_be_read_is_refused(call, says):
    with pytest.raises(ValueError, match=says):                         # one channel would broadcast in silence
        call(linear_schedule(10), torch.zeros(2, 1, 4, 4), torch.tensor([1, 5]))


def test_normal_kl():
    mean1, log_var1, mean2, log_var2 = (pictures(50, 2, seed=k).double() for k in range(4))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean1, (log_var1 / 2).exp()),
                                                 torch.distributions.Normal(mean2, (log_var2 / 2).exp()))
    assert_close(ddpm.normal_kl(mean1, log_var1, mean2, log_var2), expected)


def test_decoder_sums_to_one():
    x0 = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(-1, 1)
    mean, log_var = torch.meshgrid(torch.linspace(-1.2, 1.2, 7), torch.linspace(-9, 2, 5), indexing="ij")
    likelihood = ddpm.decoder_log_likelihood(x0, mean.reshape(-1).double(), log_var.reshape(-1).double()).exp()
    assert_close(likelihood.sum(0), torch.ones(35, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mean, deviation", [(0.5, 0.05), (-0.4, 0.02), (0.3, 1.), (0., 0.01)])
@pytest.mark.parametrize("x0", [-1., 51 / 127.5 - 1, 204 / 127.5 - 1, 1.])
def test_the_decoder_s_tails_are_exact(x0, mean, deviation):
    """By the logarithm of erfc, which math has down to 1e-308: no bound of 1e-12, not even 60 deviations away."""
    def tail(z):                                                        # log of the mass beyond z >= 0, an asymptote
        return math.log(math.erfc(z / 2**0.5) / 2) if z < 37 else -z * z / 2 - math.log(z * math.sqrt(2 * math.pi)) - (
            1 / z**2 - 2.5 / z**4)

    near, far = sorted(abs(x0 + side / 255 - mean) / deviation for side in (-1, 1))
    if abs(x0 - mean) < 1 / 255:
        expected = math.log(1 - math.exp(tail(near)) - math.exp(tail(far)))
    elif abs(x0) == 1:
        expected = tail(near)
    else:
        expected = tail(near) + math.log1p(-math.exp(tail(far) - tail(near)))
    got = ddpm.decoder_log_likelihood(*(torch.tensor([v]) for v in (x0, mean, 2 * math.log(deviation))))
    assert got.item() == pytest.approx(expected, rel=1e-4)
    if expected < -40:
        bounded = ddpm.decoder_log_likelihood(*(torch.tensor([v]) for v in (x0, mean, 2 * math.log(deviation))),
                                              cdf=torch.special.ndtr)
        assert bounded.item() == pytest.approx(math.log(1e-12))         # as published


def test_the_decoder_has_a_gradient_everywhere():
    x0 = torch.tensor([-1., 0.2, 1.])
    mean, log_var = torch.tensor([0.9, -300., 0.]).requires_grad_(), torch.tensor([-14., -2., 4.]).requires_grad_()
    for gradient in torch.autograd.grad(ddpm.decoder_log_likelihood(x0, mean, log_var).sum(), (mean, log_var)):
        assert gradient.isfinite().all() and (gradient != 0).all()


def test_decoder_is_the_mass_of_the_bin():
    x0, mean, log_var = torch.tensor([[51 / 127.5 - 1]]).double(), torch.tensor([[-0.5]]), torch.tensor([[-2.]])
    pdf = torch.distributions.Normal(-0.5, math.exp(-1)).log_prob(x0).exp()
    assert_close(ddpm.decoder_log_likelihood(x0, mean, log_var).exp(), pdf * 2 / 255, rtol=1e-4, atol=0)


# A Gaussian data set: its exact denoiser is linear, so its likelihood and its chains are known

@each_target
@pytest.mark.parametrize("mean, var", [(0., 1.), (0.1, 0.3)])
def test_bound_of_a_gaussian_is_its_likelihood(mean, var, target):
    schedule = linear_schedule(40, 0.02, 0.8)
    x0 = torch.tensor([20, 100, 140, 230]).view(-1, 1, 1, 1).double() / 127.5 - 1
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(5))
    weights = weights / weights.sum()                                   # E[f(eps)] = sum of weights * f(nodes)
    bits, denoise = ddpm.prior_bits(schedule, x0), gaussian_with_variance(schedule, mean, var, target)
    for t, (eps, weight) in itertools.product(range(1, 41), zip(nodes, weights, strict=True)):
        bits += weight * ddpm.bound_terms(schedule, denoise, x0, torch.full((4,), t), eps.expand_as(x0),
                                          target=target, variance="learned", clip=False)
    log_density = torch.distributions.Normal(mean, var**0.5).log_prob(x0).flatten()
    assert_close(bits, -(log_density + math.log(2 / 255)) / math.log(2), rtol=0, atol=2e-4)
