"""One step and the whole chain of every sampler, against closed forms and exact denoisers."""

import math
import runpy

import pytest
import torch
from torch.testing import assert_close

import ddpm
import sample as sample_script
import samplers
import train
from ddpm import exact_denoiser, flow_schedule, linear_schedule, p_mean_log_var, q_sample, simple_loss
from noise import normal
from samplers import COLUMNS, VARIANCES, sample, sampler_rows, step, timesteps
from tests.helpers import (
    SAMPLERS,
    each_clip,
    each_target,
    gaussian_denoiser,
    gaussian_with_variance,
    last,
    pictures,
    same,
    seeds_of,
)


def with_v(denoise, v):
    """A denoiser whose output also has this constant v."""
    def both(xt, t):
        return torch.cat([denoise(xt, t), torch.full_like(xt, v)], dim=1)
    return both


# One step

@pytest.mark.parametrize("times", [[10, 5, 1], [10]])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_last_step_adds_no_noise(variance, times):
    rows = sampler_rows(linear_schedule(10), times, eta=1., variance=variance)
    xt, z = pictures(2, 3, 4, 4), 100 * torch.ones(2, 3, 4, 4)
    output = torch.cat([xt, xt], dim=1) if variance == "learned" else xt
    for i in range(len(times)):
        xs, _ = step(rows, torch.tensor([i]), xt, output, z=z)
        mean, _ = step(rows, torch.tensor([i]), xt, output)
        assert xs.equal(mean) == (i == len(times) - 1)


def test_fixed_rows_ignore_variance_channels():
    rows = sampler_rows(linear_schedule(10), range(10, 0, -1), eta=1.)
    xt, z = pictures(2, 3, 4, 4), pictures(2, 3, 4, 4, seed=2)
    for i in (0, 9):
        same(step(rows, torch.tensor([i]), xt, torch.cat([xt, z], dim=1), z=z)[0],
             step(rows, torch.tensor([i]), xt, xt, z=z)[0])


@each_clip
def test_clip(clip):
    """What is not a number passes, and touches no other pixel."""
    rows = sampler_rows(linear_schedule(10), [10, 5], eta=1., target="x0", clip=clip)
    output = torch.tensor([-3., -0.5, math.nan, 0.5, 3., 0.]).view(1, 1, 2, 3)
    xs, x0_hat = step(rows, torch.tensor([0]), pictures(1, 1, 2, 3), output, seeds=seeds_of(1))
    same(x0_hat, output.clamp(-1, 1) if clip else output)
    same(xs.isnan(), output.isnan())


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
    _, _, a, b, clip, c0, ct, cp, cp2, cz, log_min, log_max = rows[2].tolist()
    x0_hat = (a * xt + b * output).clamp(-clip, clip)
    sigma = ((1 + v) / 4 * log_max + (1 - v) / 4 * log_min).exp() if learned else 1
    expected = c0 * x0_hat + ct * xt + cp * x0_prev + cp2 * x0_prev2 + cz * sigma * z, x0_hat
    output = torch.cat([output, v], dim=1) if learned else output
    assert_close(step(rows, torch.tensor([2]), xt, output, x0_prev, z=z, x0_prev2=x0_prev2), expected)
    assert 0 < (x0_hat.abs() == clip).float().mean() < 1


@pytest.mark.parametrize("choice", SAMPLERS.values(), ids=SAMPLERS)
def test_sample_runs_the_rows(choice):
    """The network is told whole times as integers, others as they are."""
    rows, seeds, times_told = sampler_rows(linear_schedule(), timesteps(1000, 7), **choice), seeds_of(2), []

    def denoise(xt, t):
        times_told.append(t)
        return elementwise(xt, t)

    chain = list(sample(denoise, rows, (3, 5, 5), seeds))
    xt, past, times = normal(seeds, 1000, (3, 5, 5)), [None, None], [*rows[:, 0].tolist(), 0]
    assert [s for s, _, _ in chain] == times[1:]
    for i, (s, xs, x0) in enumerate(chain):
        t = torch.tensor([times[i]] * 2, dtype=torch.float64 if "churn" in choice else torch.int64)
        xt, x0_hat = step(rows, torch.tensor([i]), xt, elementwise(xt, t), past[-1], z=normal(seeds, s, (3, 5, 5)),
                          x0_prev2=past[-2])
        past.append(x0_hat)
        for got, expected in ((times_told[i], t), (xs, xt), (x0, x0_hat)):
            same(got, expected)


@pytest.mark.parametrize("ahead", [2, 3, 100])
def test_ahead_changes_no_bit(ahead):
    rows = sampler_rows(linear_schedule(), timesteps(1000, 7), eta=1., variance="learned")
    chains = [sample(with_v(elementwise, 0.3), rows, (3, 5, 5), seeds_of(2), ahead=a) for a in (1, ahead)]
    for one, other in zip(*chains, strict=True):
        assert one[0] == other[0] and all(map(torch.equal, one[1:], other[1:]))


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


def test_sample_takes_another_step():
    rows, calls = sampler_rows(linear_schedule(10), [10, 5], eta=1.), []

    def other(rows, i, xt, output, x0_prev=None, seeds=None, *, z=None, x0_prev2=None):
        calls.append((i.tolist(), x0_prev, seeds is None, z is None))
        return xt + 1, xt

    chain = list(sample(elementwise, rows, (1, 2, 2), seeds_of(2), step=other))
    same(chain[-1][1], normal(seeds_of(2), 10, (1, 2, 2)) + 2)
    assert calls == [([0], None, False, True), ([1], None, False, True)]


@pytest.mark.parametrize("variance, channels, fits", [
    ("learned", 3, False), ("learned", 6, True), ("beta", 1, False), ("beta", 3, True), ("beta", 6, True)])
def test_sample_refuses_other_channels(variance, channels, fits):
    """And takes no gradients of the others."""
    rows, weight = sampler_rows(linear_schedule(10), [10, 5], eta=1., variance=variance), torch.ones(1).requires_grad_()
    chain = sample(lambda xt, t: weight * torch.zeros(2, channels, 4, 4), rows, (3, 4, 4), seeds_of(2))
    if fits:
        assert not last(chain).requires_grad
    else:
        with pytest.raises(ValueError, match=rf"output is \(2, {channels}, 4, 4\) for x_t \(2, 3, 4, 4\)"):
            next(chain)


@pytest.mark.parametrize("choice", SAMPLERS.values(), ids=SAMPLERS)
def test_a_start_is_where_the_chain_begins(choice):
    """The chain's own noise as a start changes no bit; from an x_t on, the chain is that of the times left."""
    rows, seeds = sampler_rows(linear_schedule(), timesteps(1000, 7), **choice), seeds_of(2)
    whole = list(sample(elementwise, rows, (3, 5, 5), seeds))
    same(last(sample(elementwise, rows, (3, 5, 5), seeds, x_T=normal(seeds, 1000, (3, 5, 5)))), whole[-1][1])
    if not samplers.needs(rows).x0_prev:
        s, xs, _ = whole[2]
        same(last(sample(elementwise, rows[3:], (3, 5, 5), seeds, x_T=xs)), whole[-1][1])
        assert rows[3, 0] == s


@pytest.mark.parametrize("x_T, seeds, says", [
    (torch.zeros(2, 3, 4, 5), seeds_of(2), r"x_T is torch.float32, shape \(2, 3, 4, 5\); .* \(3, 4, 4\) per"),
    (torch.zeros(3, 3, 4, 4), seeds_of(2), "one image per seed"), (torch.zeros(3, 4, 4), seeds_of(3), "per image"),
    (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), seeds_of(2), "x_T is torch.uint8"),
    (torch.zeros(2, 3, 4, 4), None, "seeds is None, but the chain draws noise"), (None, None, "seeds is None")])
def test_starts_that_do_not_fit_are_refused(x_T, seeds, says):
    rows = sampler_rows(linear_schedule(10), [10, 5], sampler="ddpm")
    with pytest.raises(ValueError, match=says):
        next(sample(elementwise, rows, (3, 4, 4), seeds, x_T=x_T))


def test_a_chain_without_noise_needs_no_seeds():
    rows, xt = sampler_rows(linear_schedule(10), [10, 5]), pictures(2, 3, 4, 4)
    with_seeds, without = (last(sample(elementwise, rows, (3, 4, 4), s, x_T=xt)) for s in (seeds_of(2), None))
    same(with_seeds, without)


def shares(schedule, times, target, count, v=None, **choice):
    """How many of so many pictures land on each of three, when the denoiser is exact; all must land."""
    data = pictures(3, 2, 4, 4).sign() * 0.8
    denoise = exact_denoiser(schedule, data, target)
    rows = sampler_rows(schedule, times, target=target, **choice)
    x = last(sample(denoise if v is None else with_v(denoise, v), rows, (2, 4, 4), seeds_of(count)))
    distance, nearest = (x[:, None] - data).abs().flatten(2).amax(2).min(1)
    assert distance.max() < 0.01
    return nearest.bincount(minlength=3)


@each_target
@pytest.mark.parametrize("name", [*SAMPLERS, "learned"])
def test_exact_denoiser_lands_on_the_data_in_equal_shares(name, target):
    choice = SAMPLERS.get(name, {"eta": 1., "variance": "learned", "v": 0.2})
    count = shares(linear_schedule(), timesteps(1000, 40), target, 300, **choice)
    assert count.min() > 300 / 3 - 30                                   # 3.7 standard deviations of a fair share


@pytest.mark.parametrize("spacing", ["trailing", "flow"])
@each_target
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_on_the_straight_path(name, target, spacing):
    """alpha_bar_T is 0, the first step comes from an infinite sigma, and times may lie between the whole ones."""
    schedule = flow_schedule(100)
    times = samplers.spaced_times(schedule, 30, spacing)
    if target == "eps":
        with pytest.raises(ValueError, match="alpha_bar is 0 .* use target v, x0 or flow"):
            sampler_rows(schedule, times, target=target, **SAMPLERS[name])
    else:
        assert shares(schedule, times, target, 60, **SAMPLERS[name]).min() > 5


def test_flow_matching_trains_and_samples(tmp_path):
    flags = "--schedule flow --target flow --space v --batch 8 --steps 2 --T 50 --device cpu --out"
    train.main([*flags.split(), str(tmp_path)])
    checkpoint = ["--checkpoint", str(tmp_path / "last.safetensors"), "--n", "2", "--out", str(tmp_path / "out")]
    for sampler in samplers.SAMPLERS:
        sample_script.main([*checkpoint, "--sampler", sampler, "--steps", "5", "--spacing", "flow", "--shift", "3"])
    assert (tmp_path / "out" / "grid.png").exists()


@pytest.mark.parametrize("flags, says", [
    ("--schedule flow --target eps", "alpha_bar is 0 at the first step"),
    ("--schedule linear --T 20000 --target eps", "alpha_bar is 1.3e-88 at the first step"),
    ("--space odd", "space is 'odd'"),
    ("--space v --loss l1", "space is v and loss l1; a space weights squared errors, use loss l2"),
    ("--space v --loss hybrid", "space is v and loss hybrid"),
    ("--sampling lognormal --loss bound", "use sampling stratified or importance")])
def test_trainings_that_cannot_work(flags, says, refused):
    assert says in refused(train.main, flags.split())


def test_the_script_prints_a_table_for_each_sampler(capsys):
    runpy.run_path(ddpm.__file__, run_name="__main__")
    tables = capsys.readouterr().out.split("\n\n")[1:]
    assert [table.splitlines()[0] for table in tables] == list(samplers.SHOWN)
    assert {choice.get("sampler", "ddim") for choice in samplers.SHOWN.values()} == {*samplers.SAMPLERS} - {"unipc-bh1"}
    for table in tables:
        name, head, *rows = table.strip().splitlines()
        assert head.split() == [*COLUMNS[:10]] and len(rows) == (19 if "Heun" in name else 10)
        assert [row.split()[1] for row in rows] == [*(row.split()[0] for row in rows[1:]), "0"]


# A Gaussian data set: its exact denoiser is linear, so its chains are known

@pytest.mark.parametrize("name, target, tolerance", [
    ("ddpm", "eps", 0.035), ("ddpm beta", "x0", 0.015), ("ddim", "v", 0.015), ("ddim 0.5", "flow", 0.015),
    ("2m", "x0", 0.006), ("2m sde", "v", 0.015), ("2m 0.5", "eps", 0.015), ("heun", "flow", 0.006),
    ("heun churn", "eps", 0.015), ("unipc", "v", 0.006), ("unipc-bh1", "x0", 0.006)])
def test_samplers_reach_a_known_gaussian(name, target, tolerance):
    mean, std, schedule = 0.4, 0.5, linear_schedule()
    rows = sampler_rows(schedule, timesteps(1000, 250, "linspace"), target=target, clip=False, **SAMPLERS[name])
    x = last(sample(gaussian_denoiser(schedule, mean, std**2, target), rows, (1, 64, 64), seeds_of(5)))
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(std, rel=tolerance)


@pytest.mark.parametrize("learned", [False, True])
def test_the_noise_of_2m_is_always_beta_tilde_s(learned):
    """Of N(0.3, 0.25) in 20 steps the published solver makes a variance of 0.235; the model's own beta would make 0.41.

    A network that also predicts a variance is sampled alike.
    """
    schedule = linear_schedule()
    denoise = gaussian_denoiser(schedule, 0.3, 0.25, "eps")
    rows = sampler_rows(schedule, timesteps(1000, 20), sampler="2m", eta=1., clip=False)
    x = last(sample(with_v(denoise, 1.) if learned else denoise, rows, (1, 64, 64), seeds_of(10)))
    assert x.var().item() == pytest.approx(0.235, abs=0.005) and x.mean().item() == pytest.approx(0.3, abs=0.01)


@each_target
def test_an_exact_learned_variance_is_exact_at_every_step(target):
    mean, var, schedule = 0.4, 0.25, linear_schedule(8, 0.2, 0.95)      # far too few steps for a fixed variance
    rows = sampler_rows(schedule, range(8, 0, -1), target=target, variance="learned", eta=1., clip=False)
    for s, xs, _ in sample(gaussian_with_variance(schedule, mean, var, target), rows, (1, 64, 64), seeds_of(5)):
        alpha_bar = schedule.alpha_bar[s].item()
        assert xs.mean().item() == pytest.approx(alpha_bar**0.5 * mean, abs=0.02)
        assert s == 0 or xs.std().item() == pytest.approx((alpha_bar * var + 1 - alpha_bar)**0.5, rel=0.015)
