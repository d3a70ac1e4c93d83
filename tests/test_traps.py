"""Errors that were found in other implementations, and that no other test here would catch by name."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import data
import ddpm
import sample
import train
from run import cli, pictures, state
from unet import CONFIGS, UNet

ROOT = Path(__file__).parents[1]


def test_q_sample_leaves_its_picture_alone():
    schedule, x0, eps = ddpm.linear_schedule(), torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    before = x0.clone()
    strip = [ddpm.q_sample(schedule, x0, torch.full((2,), t), eps) for t in (1, 500, 1000)]
    assert_close(x0, before, rtol=0, atol=0)
    assert_close(strip[2], ddpm.q_sample(schedule, before, torch.full((2,), 1000), eps), rtol=0, atol=0)


@pytest.mark.parametrize("eta", [0., 1.])
def test_x_t_is_never_clamped(eta):
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), [1000, 900], eta=eta)
    xt, z = 4 * torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    xs, x0_hat = ddpm.step(rows, torch.tensor([0]), xt, 0 * xt, z=z)
    assert xs.abs().max() > 3 and x0_hat.abs().max() == 1


def test_grids_are_sampled_without_dropout(tmp_path, monkeypatch):
    monkeypatch.setitem(train.CONFIGS, "digits", replace(CONFIGS["digits"], dropout=0.5))
    run = train.start(train.Config(T=5), data.load("digits"))
    with torch.no_grad():
        for w in run.ema.values():
            w.add_(0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(0)))
    tints = [state.save_samples(run, tmp_path / f"{k}.png") for k in range(2)]
    assert tints[0] == tints[1] and run.unet.training
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


@pytest.mark.parametrize("n", [1, 3, 17, 99])
def test_grids_take_any_number_of_pictures(n):
    sheet = pictures.grid(torch.ones(n, 1, 8, 8), columns=5)
    assert sheet.height == -(-n // 5) * 68 + 4


def test_every_block_is_told_the_whole_time():
    unet = UNet(CONFIGS["mnist32"])
    with torch.no_grad():
        row = unet.embed(torch.tensor([99, 100, 101, 700, 701]))
    told = [part for part in row.split(unet.time_widths, dim=1) if part.shape[1]]
    assert len(told) > 15
    for part in told:                                   # near times are near, and far ones far, in every block
        near, far = (part[1] - part[2]).norm(), (part[1] - part[3]).norm()
        assert 0 < near < 0.5 * far


def test_ddim_takes_the_model_s_variance_for_its_noise():
    """eta scales the noise, whose variance is learned; the direction keeps eta^2 beta_tilde, as for a fixed one."""
    schedule, eta, t, s = ddpm.linear_schedule(), 0.5, 600, 400
    fixed, learned = (ddpm.sampler_rows(schedule, [t, s], eta=eta, variance=v) for v in ("beta_tilde", "learned"))
    xt, v, z = torch.randn(2, 1, 4, 4), torch.rand(2, 1, 4, 4) * 2 - 1, torch.randn(2, 1, 4, 4)
    output = torch.cat([0.5 * xt, v], dim=1)
    mean, _ = ddpm.step(fixed, torch.tensor([0]), xt, output[:, :1])
    xs, _ = ddpm.step(learned, torch.tensor([0]), xt, output, z=z)
    beta = 1 - schedule.alpha_bar[t] / schedule.alpha_bar[s]
    beta_tilde = beta * (1 - schedule.alpha_bar[s]) / (1 - schedule.alpha_bar[t])
    log_var = (v + 1) / 2 * beta.log() + (1 - v) / 2 * beta_tilde.log()
    assert_close(xs, (mean + eta * (log_var / 2).exp() * z).float(), rtol=1e-5, atol=1e-5)


def test_schedules_of_2015_are_betas_of_one_s_own():
    T = 40
    even = ddpm.from_betas(1 / (T - torch.arange(1, T + 1) + 1).double())       # alpha_bar_t = 1 - t/T
    assert_close(even.alpha_bar[:-1], 1 - torch.arange(T) / T, check_dtype=False, rtol=1e-6, atol=1e-6)
    assert even.alpha_bar[-1] == 0
    roll = ddpm.from_betas(torch.linspace(-18, 10, T).double().sigmoid() * (0.3 - 1e-5) + 1e-5)
    assert roll.alpha_bar[-1].item() == pytest.approx(0.00636, rel=1e-2)


def test_fractions_come_from_the_command_line():
    assert cli.parse(sample.Config, ["--eta", "0.25", "--guidance", "1.5"]).eta == 0.25
    assert cli.parse(train.Config, ["--null", "0.15"]).null == 0.15


def test_requirements_are_named_as_the_index_names_them():
    """The index calls it scikit-learn and pillow; the modules are called otherwise."""
    for name in ("requirements.txt", "pyproject.toml"):
        words = re.findall(r"[\w-]+(?=[=>])", (ROOT / name).read_text())
        assert "scikit-learn" in words and "pillow" in words and not {"sklearn", "PIL"} & {*words}
