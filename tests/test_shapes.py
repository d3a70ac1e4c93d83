"""The core on whatever shapes, dtypes and layouts there are: right, or refused, and never wrong without a word."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import ddpm
import noise
import samplers
from kernels import group_norm_silu, group_norm_silu_plain, sampling_step

small = settings(max_examples=60, derandomize=True, database=None, deadline=None)
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")
LAYOUTS = ("contiguous", "channels_last", "transposed", "every second", "expanded")
schedules = st.builds(lambda name, T: ddpm.SCHEDULES[name](T), st.sampled_from([*ddpm.SCHEDULES]), st.integers(1, 60))
pictures = st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


def laid(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers, otherwise in memory; expanded are those of one row for all."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "every second":
        return torch.stack([x, -x], dim=-1)[..., 0]
    return x[..., :1, :].expand_as(x) if layout == "expanded" else x


def numbers(shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# The process

@small
@given(schedules, st.lists(st.integers(0, 4), min_size=1, max_size=5), st.sampled_from(ddpm.TARGETS), st.data())
def test_the_target_leads_back_to_x0_whatever_the_shape(schedule, shape, target, choose):
    t = torch.tensor(choose.draw(st.lists(st.integers(1, ddpm.schedule_length(schedule)), min_size=shape[0],
                                          max_size=shape[0])), dtype=torch.int64)
    assume(target != "eps" or (schedule.alpha_bar[t] > 0).all())
    x0, eps = (numbers(shape, k, torch.float64) for k in range(2))
    xt = ddpm.q_sample(schedule, x0, t, eps)
    x0_hat, eps_hat = ddpm.predict(schedule, ddpm.training_target(schedule, x0, t, eps, target), xt, t, target)
    assert xt.shape == x0.shape and xt.dtype == x0.dtype
    assert_close((x0_hat, eps_hat), (x0, eps), rtol=1e-6, atol=1e-6)


@small
@given(schedules, pictures, st.sampled_from(LAYOUTS), st.sampled_from([torch.float32, torch.bfloat16]))
def test_layouts_change_nothing(schedule, shape, layout, dtype):
    x, eps, t = laid(numbers(shape, 0, dtype), layout), numbers(shape, 1, dtype), torch.ones(shape[0]).long()
    assert torch.equal(ddpm.q_sample(schedule, x, t, eps), ddpm.q_sample(schedule, x.clone().contiguous(), t, eps))


OPTIONS = {"eta": st.floats(0, 1), "churn": st.floats(0, 50), "variance": st.sampled_from(ddpm.VARIANCES)}


@small
@given(schedules, st.sampled_from([*samplers.SAMPLERS]), st.sampled_from(ddpm.TARGETS), st.data())
def test_rows_are_valid_for_any_times(schedule, sampler, target, choose):
    times = sorted(choose.draw(st.sets(st.integers(1, ddpm.schedule_length(schedule)), min_size=1)), reverse=True)
    options = {name: choose.draw(OPTIONS[name]) for name in samplers.options_of(sampler)}
    assume(target != "eps" or schedule.alpha_bar[times[0]] > 0)
    rows = samplers.sampler_rows(schedule, times, sampler=sampler, target=target, **options)
    t, s, _, _, _, c0, ct, cp, cp2, cz, log_min, log_max = rows.T
    assert rows.isfinite().all() and s.tolist() == [*t[1:].tolist(), 0]
    visited = t[[0, *range(1, len(t), 2)]] if sampler == "heun" else t
    assert visited.tolist() == times
    assert (cz >= 0).all() and cz[-1] == 0 and (log_min <= log_max + 1e-12).all()
    bar_t, bar_s = (samplers.alpha_bar_at(schedule, time) for time in (t, s))
    assert_close(c0 + cp + cp2 + ct * bar_t.sqrt(), bar_s.sqrt(), rtol=1e-9, atol=1e-9)     # a known x0 stays itself
    if options.get("variance", "beta_tilde") == "beta_tilde" or options["eta"] == 0:
        assert_close(ct**2 * (1 - bar_t) + cz**2, 1 - bar_s, rtol=1e-9, atol=1e-9)          # and its noise is that of s


@small
@given(schedules, st.sampled_from(samplers.NOISE_SPACINGS), st.integers(1, 5))
def test_any_spacing_by_noise_makes_a_chain(schedule, spacing, steps):
    T = ddpm.schedule_length(schedule)
    assume(T > 1 and (spacing == "flow" or schedule.alpha_bar[-1] > 0))
    times = samplers.spaced_times(schedule, min(T, steps), spacing)
    assert times[0] == T and times.min() >= 1 and (times.diff() <= 0).all()
    if (times.diff() < 0).all():
        assert ddpm.sampler_rows(schedule, times, target="v").isfinite().all()


@pytest.mark.parametrize("times", [[math.nan], [[5]], 5, torch.tensor([True]), [5., math.nan], [5., 5.]])
def test_times_of_another_kind(times):
    with pytest.raises(ValueError, match="times are .*(must be numbers|must decrease)"):
        ddpm.sampler_rows(ddpm.linear_schedule(10), times)


@pytest.mark.parametrize("steps", [2.5, math.nan, 10**30])
def test_numbers_of_steps_that_are_none(steps):
    with pytest.raises(ValueError, match="takes 1 to 10 steps"):
        ddpm.timesteps(10, steps)


def test_noise_of_fractional_seeds_is_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        noise.normal(torch.ones(2), 1, (3,))


@small
@given(pictures, st.lists(st.integers(0, 8), max_size=5), st.sampled_from(["learned", "beta"]))
def test_outputs_of_other_shapes_are_refused(shape, other, variance):
    """What would broadcast, above all."""
    rows = ddpm.sampler_rows(ddpm.linear_schedule(10), [10, 5], variance=variance, eta=1.)
    seeds, double = noise.image_seeds(0, torch.arange(shape[0])), [shape[0], 2 * shape[1], *shape[2:]]
    for output in (other, [1, *shape[1:]], [*shape[:3], 1], double, [*shape]):
        chain = ddpm.sample(lambda xt, t, output=output: torch.zeros(output), rows, shape[1:], seeds)
        if output == double or variance == "beta" and output == [*shape]:
            assert all(xs.shape == shape for _, xs, _ in chain)
        else:
            with pytest.raises(ValueError, match="the network's output is"):
                next(chain)


# Kernels

@small
@given(st.integers(0, 2), st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (6, 4), (5, 2)]), st.integers(1, 5),
       st.integers(1, 4), st.sampled_from(LAYOUTS), st.sampled_from([torch.float32, torch.float16]), st.booleans())
def test_the_fused_norm_is_torch_s(B, channels, H, W, layout, dtype, silu):
    (C, groups), weight, bias = channels, numbers((channels[0],), 1), numbers((channels[0],), 2)
    x = laid(numbers((B, C, H, W), 0, dtype), layout)
    if C % groups:
        with pytest.raises(ValueError, match=f"groups is {groups}; it must divide the {C} channels"):
            group_norm_silu(x, groups, weight, bias)
        return
    true = torch.group_norm(x.double(), groups, weight.double(), bias.double())
    true = torch.nn.functional.silu(true) if silu else true
    for function in (group_norm_silu_plain, group_norm_silu):
        y = function(x, groups, weight, bias, silu=silu)
        assert y.shape == x.shape and y.dtype == dtype
        assert_close(y.double(), true, rtol=2e-3 if dtype == torch.float16 else 1e-4, atol=1e-4)


@small
@given(pictures, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from(["ddim", "ddpm", "2m", "learned"]),
       st.integers(0, 2))
def test_the_fused_step_is_the_plain_one(shape, layout, other, kind, k):
    choice = {"ddim": {}, "ddpm": {"eta": 1.}, "2m": {"sampler": "2m"}, "learned": {"eta": 1., "variance": "learned"}}
    rows = ddpm.sampler_rows(ddpm.cosine_schedule(20), [20, 11, 3], **choice[kind])
    output = (shape[0], 2 * shape[1], *shape[2:]) if kind == "learned" else shape
    arguments = (rows, torch.tensor([k]), laid(numbers(shape), layout), laid(numbers(output, 1), other),
                 laid(numbers(shape, 2), other) if kind == "2m" else None, noise.image_seeds(3, torch.arange(shape[0])))
    assert_close(sampling_step(*arguments), ddpm.step(*arguments), rtol=1e-5, atol=1e-5)
