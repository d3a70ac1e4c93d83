"""Rows and chains for whatever times, options and shapes there are: right, or refused, and never wrong in silence."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import ddpm
import noise
import samplers

small = settings(max_examples=60, derandomize=True, database=None, deadline=None)
schedules = st.builds(lambda name, T: ddpm.SCHEDULES[name](T), st.sampled_from([*ddpm.SCHEDULES]), st.integers(1, 60))
OPTIONS = {"eta": st.floats(0, 1), "churn": st.floats(0, 50), "variance": st.sampled_from(ddpm.VARIANCES),
           "s_tmin": st.floats(0, 2), "s_tmax": st.floats(0, 100), "s_noise": st.floats(0.9, 1.1)}


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
    assert visited[1:].tolist() == times[1:] and times[0] <= visited[0] <= ddpm.schedule_length(schedule)
    assert visited[0] == times[0] or options.get("churn")
    assert (cz >= 0).all() and cz[-1] == 0 and (log_min <= log_max + 1e-12).all()
    bar_t, bar_s = (samplers.alpha_bar_at(schedule, time) for time in (t, s))
    assert_close(c0 + cp + cp2 + ct * bar_t.sqrt(), bar_s.sqrt(), rtol=1e-9, atol=1e-9)     # a known x0 stays itself
    if options.get("variance", "beta_tilde") == "beta_tilde" or options.get("eta", 1) == 0:
        z = cz / options.get("s_noise", 1)
        assert_close(ct**2 * (1 - bar_t) + z**2, 1 - bar_s, rtol=1e-9, atol=1e-9)          # and its noise is that of s


@small
@given(schedules, st.sampled_from(samplers.NOISE_SPACINGS), st.integers(1, 5))
def test_any_spacing_by_noise_makes_a_chain(schedule, spacing, steps):
    T = ddpm.schedule_length(schedule)
    assume(T > 1 and (spacing == "flow" or schedule.alpha_bar[-1] > 0))
    times = samplers.spaced_times(schedule, min(T, steps), spacing)
    assert times[0] == T and times.min() >= 1 and (times.diff() <= 0).all()
    if (times.diff() < 0).all():
        assert ddpm.sampler_rows(schedule, times, target="v").isfinite().all()


@pytest.mark.parametrize("call, value, says", [
    *((ddpm.sampler_rows, times, "times are .*(must be numbers|must decrease)") for times in (
        [math.nan], [[5]], 5, torch.tensor([True]), [5., math.nan])),
    *((lambda schedule, steps: ddpm.timesteps(10, steps), steps, "takes 1 to 10 steps") for steps in (2.5, math.nan)),
    (lambda schedule, seeds: noise.normal(seeds, 1, (3,)), torch.ones(2), "whole numbers")])
def test_numbers_of_another_kind_are_refused(call, value, says):
    with pytest.raises(ValueError, match=says):
        call(ddpm.linear_schedule(10), value)
