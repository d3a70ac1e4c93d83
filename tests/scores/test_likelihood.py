from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import ddpm
import evaluate
import noise
import train
from run import checkpoint
from scores.likelihood import bound, partition, sample_timesteps
from scores.pictures import load_pictures

DIGITS = str(Path(__file__).parents[2] / "weights" / "digits.safetensors")
CHOICE = {"target": "eps", "variance": "beta_tilde", "clip": True}
SCHEDULE = ddpm.linear_schedule(30, 1e-3, 0.4)


def model(xt, t, labels=None):
    return 0.9 * xt + t.view(-1, 1, 1, 1) / 100 + (0 if labels is None else labels.view(-1, 1, 1, 1) / 10)


def pixels(n):
    return torch.randint(256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_every_term_is_the_core_s():
    images, labels = pixels(5), torch.arange(5)
    terms = bound(SCHEDULE, model, images, labels, parts=partition(30, 0), seed=3, batch=7, **CHOICE)
    x0, seeds, expected = data.to_unit(images), noise.image_seeds(3, torch.arange(5)), []
    for t in range(1, 31):
        t = torch.full((5,), t)
        eps = noise.normal(seeds, t, (1, 4, 4), noise.TRAIN)
        expected.append(ddpm.bound_terms(SCHEDULE, lambda xt, t: model(xt, t, labels), x0, t, eps, **CHOICE).double())
    expected = torch.stack(expected)
    assert_close(terms.bits, expected.mean(1), rtol=1e-5, atol=1e-7)
    assert_close(terms.prior, ddpm.prior_bits(SCHEDULE, x0))
    assert_close(terms.total, expected.sum(0) + terms.prior, rtol=1e-5, atol=1e-6)
    assert terms.t.tolist() == list(range(1, 31)) and terms.width.tolist() == [1] * 30


@pytest.mark.parametrize("T, times", [(1000, 50), (1000, 3), (30, 29), (2, 1), (4000, 100)])
def test_parts_are_all_of_the_chain_once(T, times):
    parts = partition(T, times)
    assert parts[:2].tolist() == [1, 2] and parts[-1] == T + 1 and (parts.diff() > 0).all()
    assert len(parts) <= times + 2


def test_times_are_even_in_their_part():
    parts = partition(30, 4)
    k = torch.arange(5).repeat(4000)
    t = sample_timesteps(parts, noise.image_seeds(0, torch.arange(20000) // 5), k)
    assert (t >= parts[k]).all() and (t < parts[k + 1]).all()
    share = (t - 1).bincount(minlength=30) * parts.diff().repeat_interleave(parts.diff()) / 4000
    assert_close(share, torch.ones(30), rtol=0, atol=0.12)              # each t has total weight 1


def test_fewer_times_estimate_the_same_sum():
    images = pixels(400)
    every, some = (bound(SCHEDULE, model, images, None, parts=partition(30, times), batch=4096, **CHOICE).total.mean()
                   for times in (0, 5))
    assert some.item() == pytest.approx(every.item(), rel=0.01)


def test_distortion_is_that_of_x0_hat_and_falls_to_nothing_for_a_perfect_guess():
    images = pixels(4)
    exact = ddpm.exact_denoiser(SCHEDULE, data.to_unit(images))
    terms = bound(SCHEDULE, lambda xt, t, y: exact(xt, t), images, None, parts=partition(30, 0), **CHOICE)
    assert terms.distortion[0] < 0.1 and terms.distortion[-1] > 20
    identity = bound(SCHEDULE, lambda xt, t, y: xt, images, None, parts=partition(30, 0),
                     target="x0", variance="beta_tilde", clip=False)
    xt = ddpm.q_sample(SCHEDULE, data.to_unit(images), torch.full((4,), 9), noise.normal(
        noise.image_seeds(0, torch.arange(4)), 9, (1, 4, 4), noise.TRAIN))
    error = 127.5 * (xt - data.to_unit(images)).square().mean().sqrt().double()
    assert_close(identity.distortion[8], error, rtol=1e-5, atol=0)


def test_nll_prints_every_term_and_plots_the_curves(tmp_path, capsys):
    evaluate.main(["nll", "--checkpoint", DIGITS, "--n", "40", "--times", "20", "--out", str(tmp_path / "nll.png")])
    lines = capsys.readouterr().out.splitlines()
    values = {line[:28].strip(): float(line[28:].split()[0]) for line in lines[2:-1]}
    assert "40 pictures of digits (held-out)" in lines[0] and "variance beta_tilde" in lines[0]
    assert [*values][0] == "prior, L_T" and [*values][-2:] == ["decoder, L_0, t = 1", "sum"] and len(values) == 7
    *parts, total = values.values()
    assert total == pytest.approx(sum(parts), abs=1e-4) and 3.5 < total < 5
    assert Image.open(tmp_path / "nll.png").width > 900


def test_a_learned_variance_and_labels_are_used(tmp_path, capsys):
    saved = checkpoint.load(DIGITS)
    weights = {**saved.ema}
    for name in ("last.weight", "last.bias"):
        weights[name] = torch.cat([weights[name], 0 * weights[name]])   # v = 0: midway between the two variances
    network = replace(saved.network, out_channels=2)
    checkpoint.save(tmp_path / "x.safetensors", saved._replace(network=network, ema=weights, weights={}))
    totals = {}
    for flags in ([], ["--variance", "beta_tilde"], ["--no-labels"]):
        evaluate.main(["nll", "--checkpoint", str(tmp_path / "x.safetensors"), "--n", "20", "--times", "10",
                       "--out", str(tmp_path / "nll.png"), *flags])
        output = capsys.readouterr().out
        assert f"variance {'beta_tilde' if '--variance' in flags else 'learned'}" in output
        totals[" ".join(flags)] = float(output.split("sum")[1].split()[0])
    assert len(set(totals.values())) == 3 and totals[""] < totals["--no-labels"]


def test_a_short_chain_has_few_terms_and_one_of_one_step_no_bound(tmp_path, refused, capsys):
    flags = ["--steps", "1", "--batch", "2", "--out", str(tmp_path)]
    nll = ["nll", "--checkpoint", f"{tmp_path}/last.safetensors", "--n", "2", "--out", str(tmp_path / "nll.png")]
    train.main(["--T", "1", *flags])
    assert "the bound needs a T of 2 or more" in refused(evaluate.main, nll)
    (tmp_path / "last.safetensors").unlink()
    train.main(["--T", "3", *flags])
    evaluate.main(nll)                                                  # of 50 intervals at most
    assert "2 of 3 timesteps per picture" in capsys.readouterr().out


def test_pictures_of_another_kind_are_refused(tmp_path, refused):
    saved, model = checkpoint.load(DIGITS), str(tmp_path / "x.safetensors")
    np.savez(tmp_path / "plain.npz", arr_0=np.zeros((4, 8, 8), np.uint8))
    plain = ["--data", str(tmp_path / "plain.npz")]
    for changes, flags, message in (
            ({"settings": {**saved.settings, "data": ""}}, [], "does not say what it was trained on"),
            ({}, ["--data", "dead-leaves"], "channels is 1, and dead-leaves has 3"),
            ({}, plain, "plain.npz has no labels; name a labelled set, or use --no-labels"),
            ({"data": {**saved.data, "classes": (*"0123456789X",), "counts": ()}}, ["--no-labels"], "no null class")):
        checkpoint.save(tmp_path / "x.safetensors", saved._replace(**changes))
        assert message in refused(evaluate.main, ["nll", "--checkpoint", model, *flags])


def test_pictures_are_read_as_the_model_s(tmp_path):
    """Of its size and channels: a held-out folder may be grey where the training set was in colour, or the reverse."""
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.png")
    read = load_pictures(checkpoint.load(DIGITS), str(tmp_path)).images
    assert read.shape == (1, 1, 8, 8) and (read == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
