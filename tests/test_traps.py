"""Errors that were found in other implementations, and that no other test here would catch by name."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch.testing import assert_close

import data
import ddpm
import train
from run import state
from unet import CONFIGS


def test_grids_are_sampled_without_dropout(tmp_path, monkeypatch):
    monkeypatch.setitem(train.CONFIGS, "digits", replace(CONFIGS["digits"], dropout=0.5))
    run = train.start(train.Config(T=5), data.load("digits"))
    with torch.no_grad():
        for w in run.ema.values():
            w.add_(0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(0)))
    tints = [state.save_samples(run, tmp_path / f"{k}.png") for k in range(2)]
    assert tints[0] == tints[1] and run.unet.training
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


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


def test_requirements_are_named_as_the_index_names_them():
    """The index calls it scikit-learn and pillow; the modules are called otherwise."""
    for name in ("requirements.txt", "pyproject.toml"):
        words = re.findall(r"[\w-]+(?=[=>])", (Path(__file__).parents[1] / name).read_text())
        assert "scikit-learn" in words and "pillow" in words and not {"sklearn", "PIL"} & {*words}
