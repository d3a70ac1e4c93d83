"""Every sampler against published numbers, published schedulers, closed forms and exact denoisers.

The golden arrays count time from 0: their t is ours minus one.
"""

import math
import runpy

import pytest
import torch
from torch.testing import assert_close

import ddpm
import sample as sample_script
import samplers
import train
from ddpm import (
    alpha_bar_at,
    cosine_schedule,
    exact_denoiser,
    flow_schedule,
    from_betas,
    linear_schedule,
    p_mean_log_var,
    q_sample,
    simple_loss,
)
from noise import image_seeds, normal
from samplers import COLUMNS, VARIANCES, interpolate_log_var, sample, sampler_rows, step, timesteps
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

SAMPLERS = {"ddpm": {"eta": 1.}, "ddpm beta": {"eta": 1., "variance": "beta"}, "ddim": {}, "ddim 0.5": {"eta": 0.5},
            "2m": {"sampler": "2m"}, "2m sde": {"sampler": "2m", "eta": 1.}, "2m 0.5": {"sampler": "2m", "eta": 0.5},
            "heun": {"sampler": "heun"}, "heun churn": {"sampler": "heun", "churn": 10.}, "unipc": {"sampler": "unipc"},
            "unipc-bh1": {"sampler": "unipc-bh1"}, "consistency": {"sampler": "consistency"}}


def each_row(rows, index, xt, output, z=None):
    """x_s and x0_hat when image k takes row index[k]."""
    done = [step(rows, i.view(1), xt[k:k + 1], output[k:k + 1], z=None if z is None else z[k:k + 1])
            for k, i in enumerate(index)]
    return [torch.cat(x) for x in zip(*done, strict=True)]


def column(rows, name):
    return rows[:, COLUMNS.index(name)]


def seeds_of(count, seed=0):
    return image_seeds(seed, torch.arange(count))


def last(chain):
    """x_0 of a chain."""
    return list(chain)[-1][1]


def with_v(denoise, v):
    """A denoiser whose output also has this constant v."""
    def both(xt, t):
        return torch.cat([denoise(xt, t), torch.full_like(xt, v)], dim=1)
    return both


@pytest.mark.parametrize("name", ["COLUMNS", "SAMPLERS", "SPACINGS", "sample", "sampler_rows", "step", "timesteps"])
def test_ddpm_has_the_samplers(name):
    assert getattr(ddpm, name) is getattr(samplers, name)


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


@each_clip
@pytest.mark.parametrize("churn", [0., 2., 100.])
def test_heun_is_edm_s_algorithm(churn, clip):
    """Karras et al. 2022, algorithm 2, in its own coordinates: Heun's steps from churned states, at last Euler's."""
    schedule, steps = linear_schedule(), 8
    times = samplers.spaced_times(schedule, steps, "karras")
    rows = sampler_rows(schedule, times, sampler="heun", churn=churn, target="x0", clip=clip)
    sigma = torch.cat([(1 / alpha_bar_at(schedule, times) - 1).sqrt(), torch.zeros(1).double()])
    z = pictures(len(rows), 2, 3, 4).double()

    def denoise(x, sigma):
        x0 = (2 * x / (1 + sigma**2).sqrt()).sin() * 1.3
        return x0.clamp(-1, 1) if clip else x0

    gamma = min(churn / steps, math.sqrt(2) - 1)
    x = y = z[-1] * (1 + sigma[0]**2).sqrt()                            # z[-1] is not used else: the last row has none
    past, k = None, 0
    for i in range(steps):
        raised = i > 0 and sigma[i] * (1 + gamma) < sigma[0]            # not beyond the first sigma
        hat = sigma[i] * (1 + gamma) if raised else sigma[i]
        x = x + (hat**2 - sigma[i]**2).sqrt() * z[k - 1] if raised else x
        d = (x - denoise(x, hat)) / hat
        following = x + (sigma[i + 1] - hat) * d
        if i < steps - 1:
            d2 = (following - denoise(following, sigma[i + 1])) / sigma[i + 1]
            following = x + (sigma[i + 1] - hat) * (d + d2) / 2
        x = following
        for _ in range(2 if i < steps - 1 else 1):
            level = (1 / alpha_bar_at(schedule, rows[k, 0]) - 1).sqrt()
            output = denoise(y, level) if k else denoise(y, sigma[0])
            s = (1 / alpha_bar_at(schedule, rows[k, 1]) - 1).sqrt()
            state, past = step(rows, torch.tensor([k]), y / (1 + level**2).sqrt(), output, past, z=z[k])
            y, k = state * (1 + s**2).sqrt(), k + 1
        without = y - column(rows, "cz")[k - 1] * z[k - 1] * (1 + s**2).sqrt()     # its churn belongs to the next step
        assert_close(without, x, rtol=1e-9, atol=1e-9 * x.abs().max().item())
    assert k == len(rows) == 2 * steps - 1 and (column(rows, "cz") > 0).any() == (churn > 0)


@pytest.mark.parametrize("spacing, level", [
    ("karras", lambda sigma: sigma**(1 / 7)), ("logsnr", torch.log), ("flow", lambda sigma: sigma / (1 + sigma))])
def test_spacings_are_even_in_the_noise(spacing, level):
    schedule = linear_schedule()
    times = samplers.spaced_times(schedule, 10, spacing)
    assert times.dtype == torch.float64 and times[0] == 1000 and (times[-1] == 1) == (spacing != "flow")
    sigma = (1 / alpha_bar_at(schedule, times) - 1).sqrt()
    steps = level(torch.cat([sigma, torch.zeros(1)])).diff() if spacing == "flow" else level(sigma).diff()
    assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shift", [0.1, 0.2, 0.3, 0.5, 1., 3.])
def test_flow_spacing_shifts(shift):
    times = samplers.spaced_times(flow_schedule(), 4, "flow", shift)
    u = torch.tensor([1, 0.75, 0.5, 0.25]).double()
    u = shift * u / (1 + (shift - 1) * u)
    assert_close((1 / alpha_bar_at(flow_schedule(), times) - 1).sqrt()[1:], (u / (1 - u))[1:])
    assert times[0] == 1000 and (shift != 1 or times.tolist() == [1000, 750, 500, 250])


@pytest.mark.parametrize("choice, message", [
    ({"spacing": "odd"}, "'odd'"), ({"shift": 3.}, "shift is 3"), ({"spacing": "flow", "shift": 0.}, "shift is 0"),
    ({"spacing": "karras", "steps": 1001}, "steps is 1001"), ({"spacing": "flow", "shift": math.nan}, "shift is nan")])
def test_spaced_times_errors(choice, message):
    with pytest.raises(ValueError, match=message):
        samplers.spaced_times(linear_schedule(), **{"steps": 10} | choice)


@pytest.mark.parametrize("spacing", ["karras", "logsnr"])
def test_an_infinite_sigma_cannot_be_spaced(spacing):
    with pytest.raises(ValueError, match="use trailing or flow"):
        samplers.spaced_times(flow_schedule(), 10, spacing)


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


def test_noise_between_the_times_is_its_own():
    """A function of the time landed on, real or whole; whole ones keep what an integer has."""
    seeds = seeds_of(3)
    times = [1, 1.25, 1.5, 1.5 + 1e-6, 2, 999, 999.9999, 1000, 999 + 2**-14]
    noises = [normal(seeds, t, (1, 8, 8)) for t in times]
    for i, a in enumerate(noises):
        same(a, normal(seeds, torch.tensor(times[i], dtype=torch.float64), (1, 8, 8)))
        for b in noises[:i]:
            assert (a - b).abs().mean() > 0.5
    for t in (1, 2, 999, 1000):
        same(normal(seeds, float(t), (1, 8, 8)), normal(seeds, torch.tensor(t), (1, 8, 8)))


@pytest.mark.parametrize("name", ["ddpm", "2m sde", "heun churn", "consistency"])
@pytest.mark.parametrize("spacing", samplers.NOISE_SPACINGS)
def test_no_two_rows_share_their_noise(name, spacing):
    schedule, seen = linear_schedule(), []
    rows = sampler_rows(schedule, samplers.spaced_times(schedule, 60, spacing), **SAMPLERS[name] | {"clip": True})
    for s in [rows[0, 0].item(), *rows[column(rows, "cz") > 0][:, 1].tolist()]:
        seen.append(normal(seeds_of(1), s, (4,)).flatten().tolist())
    assert len({tuple(z) for z in seen}) == len(seen) > 50


def test_the_network_is_told_the_time_between():
    schedule, told = linear_schedule(), []

    def denoise(xt, t):
        told.append(t)
        return 0 * xt

    times = samplers.spaced_times(schedule, 5, "karras")
    list(sample(denoise, sampler_rows(schedule, times), (1, 2, 2), seeds_of(2)))
    assert all(t.dtype == torch.float64 and t.shape == (2,) for t in told)
    same(torch.stack(told)[:, 0], times)
    del told[:]
    list(sample(denoise, sampler_rows(schedule, times.round()), (1, 2, 2), seeds_of(2)))
    assert all(t.dtype == torch.int64 for t in told)


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
    ({"sampler": "heun", "eta": 0.5}, "only the samplers ddim and 2m take it, leave it at 0 for heun"),
    ({"sampler": "unipc", "eta": 1.}, "eta is 1"), ({"sampler": "consistency", "eta": 1.}, "eta is 1"),
    ({"churn": 1.}, "churn is 1; it must be 0 or more, and 0 for every sampler but heun"),
    ({"sampler": "heun", "churn": -1.}, "churn is -1"), ({"sampler": "heun", "churn": math.inf}, "churn is inf"),
    ({"times": [5., 1.5, 1.5]}, "decrease"), ({"times": [5, 0.5]}, r"1\.\.10"),
    ({"times": [5 + 1e-9, 5.], "eta": 1.}, "equal in float32"),
])
def test_sampler_rows_errors(choice, message):
    with pytest.raises(ValueError, match=message):
        sampler_rows(linear_schedule(10), **{"times": range(10, 0, -1)} | choice)


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
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
    return 0.5 * xt * (1 + xt.abs()).reciprocal() + t.float().view(-1, 1, 1, 1) / 1000


@pytest.mark.parametrize("learned", [False, True])
def test_a_step_is_its_two_lines(learned):
    """Of any row: every coefficient counts, and the clip."""
    rows, g = torch.linspace(-1.5, 2, 4 * len(COLUMNS), dtype=torch.float64).view(4, -1), torch.Generator()
    rows[:, COLUMNS.index("clip")] = 0.7
    xt, output, x0_prev, x0_prev2, z, v = torch.randn(6, 2, 3, 2, 2, dtype=torch.float64, generator=g.manual_seed(0))
    _, _, a, b, clip, c0, ct, cp, cz, log_min, log_max, cp2 = rows[2].tolist()
    x0_hat = (a * xt + b * output).clamp(-clip, clip)
    sigma = ((1 + v) / 4 * log_max + (1 - v) / 4 * log_min).exp() if learned else 1
    expected = c0 * x0_hat + ct * xt + cp * x0_prev + cp2 * x0_prev2 + cz * sigma * z, x0_hat
    output = torch.cat([output, v], dim=1) if learned else output
    assert_close(step(rows, torch.tensor([2]), xt, output, x0_prev, z=z, x0_prev2=x0_prev2), expected)
    assert 0 < (x0_hat.abs() == clip).float().mean() < 1


@pytest.mark.parametrize("choice", SAMPLERS.values(), ids=SAMPLERS)
def test_sample_runs_the_rows(choice):
    rows, seeds = sampler_rows(linear_schedule(), timesteps(1000, 7), **choice), seeds_of(2)
    xt, past, times = normal(seeds, 1000, (3, 5, 5)), [None, None], [*rows[:, 0].tolist(), 0]
    chain = list(sample(elementwise, rows, (3, 5, 5), seeds))
    assert [s for s, _, _ in chain] == times[1:]
    for i, (s, xs, x0) in enumerate(chain):
        t = torch.tensor([times[i]] * 2, dtype=torch.float64 if "churn" in choice else torch.int64)
        xt, x0_hat = step(rows, torch.tensor([i]), xt, elementwise(xt, t), past[-1], z=normal(seeds, s, (3, 5, 5)),
                          x0_prev2=past[-2])
        past.append(x0_hat)
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
    ({"sampler": "heun"}, 4, [[10]]), ({"sampler": "unipc"}, 1, [[10]]),
    ({"eta": 1.}, 1, [[10], [7], [4], [1], [0]]), ({"eta": 1.}, 3, [[10], [1, 4, 7], [0]]),
])
def test_noise_is_drawn_only_where_it_lands(choice, ahead, draws, monkeypatch):
    drawn = []

    def count(seeds, s, shape, stream=0):
        drawn.append(torch.as_tensor(s).unique().tolist())
        return normal(seeds, s, shape, stream)

    monkeypatch.setattr(samplers, "normal", count)
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


@pytest.mark.parametrize("spacing", ["trailing", "flow"])
@each_target
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_on_the_straight_path(name, target, spacing):
    """alpha_bar_T is 0, the first step comes from an infinite sigma, and times may lie between the whole ones."""
    schedule, data = flow_schedule(100), pictures(3, 2, 4, 4).sign() * 0.8
    times = samplers.spaced_times(schedule, 30, spacing)
    if target == "eps":
        with pytest.raises(ValueError, match="use target v, x0 or flow"):
            sampler_rows(schedule, times, target=target, **SAMPLERS[name])
        return
    rows = sampler_rows(schedule, times, target=target, **SAMPLERS[name])
    x = last(sample(exact_denoiser(schedule, data, target), rows, (2, 4, 4), seeds_of(60)))
    distance, nearest = (x[:, None] - data).abs().flatten(2).amax(2).min(1)
    assert distance.max() < 0.01 and nearest.bincount(minlength=3).min() > 5


def test_flow_matching_trains_and_samples(tmp_path):
    flags = "--schedule flow --target flow --space v --batch 8 --steps 2 --T 50 --device cpu --out"
    train.main([*flags.split(), str(tmp_path)])
    checkpoint = ["--checkpoint", str(tmp_path / "last.pt"), "--n", "2", "--out", str(tmp_path / "out")]
    for sampler in samplers.SAMPLERS:
        sample_script.main([*checkpoint, "--sampler", sampler, "--steps", "5", "--spacing", "flow", "--shift", "3"])
    assert (tmp_path / "out" / "grid.png").exists()


@pytest.mark.parametrize("flags, says", [
    ("--schedule flow --target eps", "target is eps and schedule flow"), ("--space odd", "space is 'odd'"),
    ("--space v --loss l1", "space is v and loss l1; a space weights squared errors, use loss l2"),
    ("--space v --loss hybrid", "space is v and loss hybrid")])
def test_trainings_that_cannot_work(flags, says, refused):
    assert says in refused(train.main, flags.split())


def test_the_script_prints_a_table_for_each_sampler(capsys):
    runpy.run_path(ddpm.__file__, run_name="__main__")
    tables = capsys.readouterr().out.split("\n\n")[1:]
    assert [table.splitlines()[0] for table in tables] == list(samplers.SHOWN)
    assert {choice.get("sampler", "ddim") for choice in samplers.SHOWN.values()} == {*samplers.SAMPLERS} - {"unipc-bh1"}
    for table in tables:
        name, head, *rows = table.strip().splitlines()
        assert head.split() == [*COLUMNS[:8], "cp2", "cz"] and len(rows) == (19 if "Heun" in name else 10)
        assert [row.split()[1] for row in rows] == [*(row.split()[0] for row in rows[1:]), "0"]


# A Gaussian data set: its exact denoiser is linear, so its chains are known

@each_target
@pytest.mark.parametrize("name, tolerance", [
    ("ddpm", 0.035), ("ddpm beta", 0.015), ("ddim", 0.015), ("ddim 0.5", 0.015), ("2m", 0.006), ("2m sde", 0.015),
    ("2m 0.5", 0.015), ("heun", 0.006), ("heun churn", 0.015), ("unipc", 0.006), ("unipc-bh1", 0.006)])
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
    for s, xs, _ in sample(gaussian_with_variance(schedule, mean, var, target), rows, (1, 64, 64), seeds_of(5)):
        alpha_bar = schedule.alpha_bar[s].item()
        assert xs.mean().item() == pytest.approx(alpha_bar**0.5 * mean, abs=0.02)
        assert s == 0 or xs.std().item() == pytest.approx((alpha_bar * var + 1 - alpha_bar)**0.5, rel=0.015)
