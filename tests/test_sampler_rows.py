"""The samplers' times and rows against published numbers, published steps and closed forms.

The golden arrays count time from 0: their t is ours minus one.
"""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import samplers
from ddpm import alpha_bar_at, cosine_schedule, flow_schedule, from_betas, linear_schedule
from samplers import COLUMNS, VARIANCES, column, sampler_rows, step, timesteps
from tests.helpers import (
    FIXED,
    GOLDEN_SCHEDULES,
    close,
    each_clip,
    each_schedule,
    each_target,
    golden,
    guided_diffusion,
    output_of,
    pictures,
    same,
)


def each_row(rows, index, xt, output, z=None):
    """x_s and x0_hat when image k takes row index[k]."""
    done = [step(rows, i.view(1), xt[k:k + 1], output[k:k + 1], z=None if z is None else z[k:k + 1])
            for k, i in enumerate(index)]
    return [torch.cat(x) for x in zip(*done, strict=True)]


@pytest.mark.parametrize("T", [1, 2, 7, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps(T, spacing):
    for steps in range(1, T + 1):
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


@each_clip
@pytest.mark.parametrize("first", [20., None], ids=["sigma 20", "T"])
@pytest.mark.parametrize("s_churn, s_tmin, s_tmax, s_noise", [
    (0., 0., math.inf, 1.), (2., 0., math.inf, 1.), (100., 0., math.inf, 1.), (4., 0.05, 15., 1.003),
    (100., 0.5, 2., 1.2), (2., 200., 300., 1.)])
def test_heun_is_edm_s_algorithm(s_churn, s_tmin, s_tmax, s_noise, first, clip):
    """Karras et al. 2022, algorithm 2, in its own coordinates, from below the schedule's last sigma and from there.

    No step begins beyond that, where the schedule ends; the first step's own noise is a part of x_T here.
    """
    schedule, N = linear_schedule(), 8
    times = samplers.spaced_times(schedule, N, "karras")
    if first:
        times = samplers.time_at(schedule, torch.linspace(math.log(first), math.log(0.02), N).double())
    rows = sampler_rows(schedule, times, sampler="heun", churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise,
                        target="x0", clip=clip)
    sigma = torch.cat([(1 / alpha_bar_at(schedule, times) - 1).sqrt(), torch.zeros(1).double()])
    largest = (1 / schedule.alpha_bar[-1] - 1).sqrt()
    z = pictures(len(rows) + 1, 2, 3, 4).double()

    def denoise(x, sigma):
        x0 = (2 * x / (1 + sigma**2).sqrt()).sin() * 1.3
        return x0.clamp(-1, 1) if clip else x0

    x, y, past, k = z[-1] * sigma[0], None, None, 0
    for i in range(N):
        gamma = min(s_churn / N, math.sqrt(2) - 1) if s_tmin <= sigma[i] <= s_tmax else 0.
        gamma = gamma if (1 + gamma) * sigma[i] <= largest else 0.
        hat = sigma[i] + gamma * sigma[i]
        x = x + (hat**2 - sigma[i]**2).sqrt() * s_noise * z[k - 1]      # at i = 0, z[-1]: any noise would do
        y = x if y is None else y
        d = (x - denoise(x, hat)) / hat
        following = x + (sigma[i + 1] - hat) * d
        if i < N - 1:
            d2 = (following - denoise(following, sigma[i + 1])) / sigma[i + 1]
            following = x + (sigma[i + 1] - hat) * (d + d2) / 2
        x = following
        for _ in range(2 if i < N - 1 else 1):
            level, s = ((1 / alpha_bar_at(schedule, rows[k, column]) - 1).sqrt() for column in (0, 1))
            state, past = step(rows, torch.tensor([k]), y / (1 + level**2).sqrt(), denoise(y, level), past, z=z[k])
            y, k = state * (1 + s**2).sqrt(), k + 1
        without = y - column(rows, "cz")[k - 1] * z[k - 1] * (1 + s**2).sqrt()     # its churn belongs to the next step
        assert_close(without, x, rtol=1e-9, atol=1e-9 * x.abs().max().item())
    assert k == len(rows) == 2 * N - 1 and (column(rows, "cz") > 0).any() == (s_churn > 0 and s_tmin < 200)
    assert (rows[0, 0] > times[0]) == bool(first and s_churn and s_tmin <= first <= s_tmax)


@pytest.mark.parametrize("spacing, level", [
    ("karras", lambda sigma: sigma**(1 / 7)), ("logsnr", torch.log), ("flow", lambda sigma: sigma / (1 + sigma))])
def test_spacings_are_even_in_the_noise(spacing, level):
    schedule = linear_schedule()
    times = samplers.spaced_times(schedule, 10, spacing)
    assert times.dtype == torch.float64 and times[0] == 1000 and (times[-1] == 1) == (spacing != "flow")
    sigma = (1 / alpha_bar_at(schedule, times) - 1).sqrt()
    steps = level(torch.cat([sigma, torch.zeros(1)])).diff() if spacing == "flow" else level(sigma).diff()
    assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shift", [0.1, 1., 3.])
def test_flow_spacing_shifts(shift):
    times = samplers.spaced_times(flow_schedule(), 4, "flow", shift)
    u = torch.tensor([1, 0.75, 0.5, 0.25]).double()
    u = shift * u / (1 + (shift - 1) * u)
    assert_close((1 / alpha_bar_at(flow_schedule(), times) - 1).sqrt()[1:], (u / (1 - u))[1:])
    assert times[0] == 1000 and (shift != 1 or times.tolist() == [1000, 750, 500, 250])


@pytest.mark.parametrize("choice, message", [
    ({"steps": 0}, "steps is 0"), ({"steps": 11}, "steps is 11"), ({"spacing": "karras", "steps": 11}, "steps is 11"),
    ({"spacing": "odd"}, "'odd'"), ({"shift": 3.}, "shift is 3"), ({"spacing": "flow", "shift": 0.}, "shift is 0"),
    ({"spacing": "flow", "shift": math.nan}, "shift is nan"),
    ({"schedule": flow_schedule(), "spacing": "karras"}, "use trailing or flow"),
    ({"schedule": flow_schedule(), "spacing": "logsnr"}, "use trailing or flow")])
def test_spaced_times_errors(choice, message):
    with pytest.raises(ValueError, match=message):
        samplers.spaced_times(**{"schedule": linear_schedule(10), "steps": 10} | choice)


def test_alpha_bar_between_the_times():
    """The table's own entries at whole times, their geometric mean in sigma half way, and back again."""
    schedule = cosine_schedule()
    t = torch.arange(4, 4001, dtype=torch.float64) / 4
    alpha_bar = alpha_bar_at(schedule, t)
    same(alpha_bar[::4], schedule.alpha_bar[t[::4].long()])
    same(alpha_bar_at(schedule, t[::4].long()), schedule.alpha_bar[t[::4].long()])
    sigma = (1 / alpha_bar - 1).sqrt()
    assert_close(sigma[2::4], (sigma[:-1:4] * sigma[4::4]).sqrt(), rtol=1e-9, atol=0)
    assert (alpha_bar.diff() < 0).all()
    assert_close(samplers.time_at(schedule, sigma.log()), t, rtol=0, atol=1e-9)
    same(samplers.time_at(schedule, sigma[::4].log()), t[::4])


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


@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_is_ddim_at_eta_1(variance):
    rows, times = sampler_rows(linear_schedule(), timesteps(1000, 7), sampler="ddpm", variance=variance), [999, 4]
    same(rows, sampler_rows(linear_schedule(), timesteps(1000, 7), eta=1., variance=variance))
    same(sampler_rows(linear_schedule(), times, sampler="ddpm"), sampler_rows(linear_schedule(), times, eta=1.))


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


@pytest.mark.parametrize("times", [
    torch.tensor([250, 20, 3], dtype=torch.uint8), torch.tensor([250, 20, 3], dtype=torch.int16), [250., 20., 3.],
    torch.tensor([250., 20., 3.]), np.array([250, 20, 3], dtype=np.uint16), (250, 20, 3)], ids=str)
def test_times_of_any_kind_make_the_same_rows(times):
    same(sampler_rows(linear_schedule(), times), sampler_rows(linear_schedule(), torch.tensor([250, 20, 3])))


def test_many_wrong_times_are_not_all_listed():
    with pytest.raises(ValueError, match=r"times are \[1000, 999, 998\] to \[3, 2, 0\]; they must decrease"):
        sampler_rows(linear_schedule(), [*range(1000, 1, -1), 0])


@pytest.mark.parametrize("choice, message", [
    ({"eta": -0.1}, "eta is -0.1"), ({"eta": 1.1}, "eta is 1.1"), ({"eta": math.nan}, "eta is nan"),
    ({"sampler": "heun", "churn": -1.}, "churn is -1"), ({"sampler": "heun", "churn": math.inf}, "churn is inf"),
    ({"sampler": "heun", "s_noise": -1.}, "s_noise is -1"), ({"s_tmax": 2.}, "s_tmax is 2.0, but the sampler ddim"),
    ({"times": []}, r"times are \[\]"), ({"times": [5, 5, 1]}, r"\[5, 5, 1\]"), ({"times": [1, 5]}, "decrease"),
    ({"times": [11, 5]}, r"1\.\.10"), ({"times": [5, 0]}, r"1\.\.10"), ({"times": [5., 0.5]}, r"1\.\.10"),
    ({"times": [5 + 1e-9, 5.], "eta": 1.}, "equal in float32"), ({"times": [5 + 1e-15, 5.]}, "alpha_bar must differ"),
    ({"sampler": "euler"}, "'euler'"), ({"variance": "fixed_small"}, "'fixed_small'"), ({"target": "score"}, "'score'"),
    ({"sampler": "heun", "eta": 0.5}, "eta is 0.5, but the sampler heun takes churn and s_tmin and"),
    ({"sampler": "unipc", "eta": 1.}, "eta is 1"), ({"sampler": "consistency", "eta": 1.}, "takes no options"),
    ({"sampler": "heun", "variance": "beta"}, "variance is beta"),
    ({"sampler": "2m", "eta": 1., "variance": "beta"}, "variance is beta, but the sampler 2m takes eta; leave"),
    ({"sampler": "ddpm", "eta": 0.5}, "eta is 0.5, but the sampler ddpm takes variance; leave eta out"),
    ({"churn": 1.}, "churn is 1.0, but the sampler ddim takes eta and variance; leave"),
])
def test_sampler_rows_errors(choice, message):
    with pytest.raises(ValueError, match=message):
        sampler_rows(linear_schedule(10), **{"times": range(10, 0, -1)} | choice)
