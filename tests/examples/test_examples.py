"""The examples beside closed forms, and what they make of the committed digits model or of a short training."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import ddpm
import noise
from examples import classifier_guidance, denoise_1d, inpaint, interpolate, invert, low_dimension, memorise
from examples.common import Model, rms, run, trained
from run import checkpoint
from tests.helpers import gaussian_denoiser
from unet import UNet


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "picture.png"


# Chains from any start

@pytest.mark.parametrize("sampler", ["ddim", "2m", "heun", "unipc", "unipc-bh1"])
@pytest.mark.parametrize("spacing", ["trailing", "logsnr"])
def test_rows_of_any_sampler_run_from_a_start(sampler, spacing):
    """Earlier predictions and real times are carried: all go where the exact flow of a Gaussian leads, 0.75 here."""
    schedule, told = ddpm.linear_schedule(), []
    exact = gaussian_denoiser(schedule, 0.5, 0.0625, "eps")

    def denoise(xt, t):
        told.append(t)
        return exact(xt, t)

    times = ddpm.spaced_times(schedule, 40, spacing)
    times = times[times < 600]
    bar = ddpm.alpha_bar_at(schedule, times[0])
    start = bar.sqrt() * 0.5 + (bar * 0.0625 + 1 - bar).sqrt()                      # one deviation above the mean
    rows = ddpm.sampler_rows(schedule, times, sampler=sampler, clip=False)
    x0 = run(denoise, rows, start.float().expand(2, 1, 3, 3))
    assert_close(x0, torch.full_like(x0, 0.75), rtol=0, atol=0.04 if sampler == "ddim" else 0.02)
    assert [t[0].item() for t in told] == rows[:, 0].tolist()


def test_rows_with_noise_need_seeds():
    rows = ddpm.sampler_rows(ddpm.linear_schedule(10), [10, 5], eta=1)
    with pytest.raises(ValueError, match="seeds is None, but the chain draws noise"):
        run(lambda xt, t: xt, rows, torch.zeros(1, 1, 2, 2))


def test_a_model_with_labels_is_told_real_times():
    model = trained("weights/digits.safetensors")
    x = torch.zeros(2, 1, 8, 8)
    low, between, high = (model.denoise(x, torch.tensor([t] * 2)) for t in (400, 400.5, 401))
    assert_close(between, (low + high) / 2, rtol=0, atol=5e-3)


# Inversion

def test_inversion_comes_back_the_nearer_the_more_steps(out, capsys):
    errors = invert.main(["--n", "6", "--steps", "5,20,80", "--out", str(out)])
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1] and errors[2] < 0.02
    assert "80 steps up and down" in capsys.readouterr().out and Image.open(out).width > 400


def test_upward_rows_are_the_sampler_s_own_formula_run_backwards():
    """With the output held fixed, a step up undoes the step down: x_t -> x_s -> x_t."""
    schedule, times = ddpm.linear_schedule(), [1000, 600, 250, 1]
    down = ddpm.sampler_rows(schedule, times, clip=False)
    up = invert.upward_rows(Model(schedule, None, "eps"), times)
    assert up[:, :2].tolist() == [[1, 250], [250, 600], [600, 1000]]
    x, eps = torch.randn(2, 3, 4, 4, dtype=torch.float64)[:, None]
    for k in range(3):
        xs, x0_hat = ddpm.step(down, torch.tensor([k]), x, eps)
        xt, x0_again = ddpm.step(up, torch.tensor([2 - k]), xs, eps)
        assert_close(xt, x)
        assert_close(x0_again, x0_hat)


def test_inversion_takes_real_times():
    """And misses the picture by no more than at whole ones nearby."""
    model, x = trained("weights/digits.safetensors"), data.to_unit(data.digits(held_out=True).images[:4])
    times = ddpm.spaced_times(model.schedule, 80, "flow")
    up = invert.upward_rows(model, times)
    assert up[:, 0].tolist() == times.flip(0)[:-1].tolist() and (times % 1).any()
    again = invert.picture_of(model, invert.noise_of(model, x, times), times)
    assert rms(again - x) < 0.05


# Interpolation

def test_interpolation_begins_and_ends_at_the_given_pictures(out):
    sampled, ends = interpolate.main(["--pairs", "3", "--stops", "5", "--steps", "80", "--out", str(out)])
    assert sampled.shape == (5, 3, 1, 8, 8) and out.exists()
    assert rms(sampled[0] - ends[:3]) < 0.05 and rms(sampled[-1] - ends[3:]) < 0.05
    assert interpolate.decided(sampled[2]) > interpolate.decided((ends[:3] + ends[3:]) / 2) + 0.02  # no mixtures


def test_slerp_keeps_the_length_and_an_even_pace():
    x, y = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    x, y = (v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for v in (x, y))
    path = interpolate.slerp(x, y, torch.linspace(0, 1, 5, dtype=torch.float64)).flatten(2)       # S B D
    assert_close(path.norm(dim=2), torch.ones(5, 4, dtype=torch.float64))
    assert_close(path[[0, -1]], torch.stack([x, y]).flatten(2))
    cosines = (path[1:] * path[:-1]).sum(2)
    assert_close(cosines, cosines[:1].expand(4, 4))


@pytest.mark.parametrize("apart", [0., 1e-7, 1e-4, 1e-2])
def test_slerp_of_equal_ends_is_their_line(apart):
    """No nan, and nothing far from the line: the arc differs by a square of the angle."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, w = x + apart * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, 5)
    path = interpolate.slerp(x, y, w)
    assert_close(path, torch.lerp(x, y, w.view(-1, 1, 1, 1, 1)), rtol=0, atol=2 * apart**2 + 1e-6)
    assert interpolate.slerp(x, -x, w).isfinite().all()


# Inpainting and denoising

@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "picture.png"
    tensors = inpaint.main(["--n", "12", "--samples", "2", "--steps", "20", "--rounds", "3", "--out", str(path)])
    assert path.exists()
    return {name: x.cpu() for name, x in tensors.items()}


def test_seen_pixels_stay_and_holes_are_filled_better_than_by_the_mean(repaired):
    x0, seen, filled = (repaired[name] for name in ("x0", "seen", "filled"))
    assert_close(filled[seen], x0[seen], rtol=0, atol=0)
    training = data.to_unit(data.digits().images)
    mean = training.mean(0).expand_as(x0)
    assert rms((filled - x0)[~seen]) < 0.75 * rms((training[:len(x0)] - x0)[~seen])       # against digits at random
    assert filled[~seen].std() > 1.3 * mean[~seen].std()            # not the mean, but samples
    assert not torch.allclose(filled[::2], filled[1::2], atol=0.1)


def gaussian_pairs():
    """The exact model of Gaussian pairs of correlation 0.8, and the whole chain's rows."""
    schedule, covariance = ddpm.cosine_schedule(200), torch.tensor([[1, 0.8], [0.8, 1]], dtype=torch.float64)

    def denoise(xt, t):
        bar = ddpm.alpha_bar_at(schedule, t)[:, None, None]
        inverse = torch.linalg.inv(bar * covariance + (1 - bar) * torch.eye(2))
        return ((1 - bar).sqrt() * inverse @ xt.double()[..., None])[..., 0].to(xt.dtype)

    rows = ddpm.sampler_rows(schedule, list(range(200, 0, -1)), eta=1, clip=False)
    return Model(schedule, denoise, "eps"), rows


def test_inpainting_samples_the_conditional_of_a_gaussian():
    """x1 given x0 = 1 is N(0.8, 0.36): what more rounds come nearer to."""
    model, rows = gaussian_pairs()
    n = 2000
    x0, seeds = torch.tensor([[1., 0.]]).repeat(n, 1), noise.image_seeds(0, torch.arange(n))
    seen = torch.tensor([True, False]).expand(n, 2)
    means = {}
    for rounds in (1, 8):
        sampled = inpaint.inpaint(model, rows, x0, seen, seeds, rounds)
        assert (sampled[:, 0] == 1).all()
        means[rounds], std = sampled[:, 1].mean().item(), sampled[:, 1].std().item()
    assert abs(means[8] - 0.8) < 0.06 and abs(std - 0.6) < 0.06
    assert abs(means[1] - 0.8) > abs(means[8] - 0.8)


@pytest.mark.parametrize("sampler", ["2m", "heun", "unipc"])
def test_inpainting_refuses_rows_that_read_earlier_predictions(sampler):
    model, x = gaussian_pairs()[0], torch.ones(3, 2)
    rows = ddpm.sampler_rows(model.schedule, [200, 100, 50], sampler=sampler)
    with pytest.raises(ValueError, match="read earlier predictions, which repeated steps do not have; use the sampler"):
        inpaint.inpaint(model, rows, x, x > 0, noise.image_seeds(0, torch.arange(3)), 2)


def test_inpainting_at_real_times_samples_the_same_conditional():
    (model, _), n, told = gaussian_pairs(), 2000, []
    rows = ddpm.sampler_rows(model.schedule, torch.linspace(199.5, 1, 150), eta=1, clip=False)
    x0, seen = torch.tensor([[1., 0.]]).repeat(n, 1), torch.tensor([True, False]).expand(n, 2)
    recorded = model._replace(denoise=lambda xt, t: told.append(t[0].item()) or model.denoise(xt, t))
    sampled = inpaint.inpaint(recorded, rows, x0, seen, noise.image_seeds(0, torch.arange(n)), 12)
    assert (sampled[:, 0] == 1).all() and told[::12] == rows[:, 0].tolist()
    assert abs(sampled[:, 1].mean().item() - 0.8) < 0.06 and abs(sampled[:, 1].std().item() - 0.6) < 0.06


def test_denoising_samples_the_posterior_of_a_gaussian(monkeypatch):
    """y = x0 + sigma n with sigma = 1: p(x0 | y) has mean C (C + I)^-1 y and covariance C - C (C + I)^-1 C."""
    model, rows = gaussian_pairs()
    monkeypatch.setattr(ddpm, "sampler_rows", lambda schedule, times, **_: rows[len(rows) - len(times):])
    n, C, eye = 4000, torch.tensor([[1, 0.8], [0.8, 1]]), torch.eye(2)
    y = torch.tensor([1., -0.5])
    sampled = inpaint.denoised(model, y.repeat(n, 1), 1., noise.image_seeds(0, torch.arange(n)))
    gain = C @ torch.linalg.inv(C + eye)
    assert_close(sampled.mean(0), gain @ y, rtol=0, atol=0.05)
    assert_close(sampled.T.cov(), C - gain @ C, rtol=0, atol=0.05)


# Memorisation

def test_the_exact_denoiser_copies_and_the_trained_one_does_not(out, capsys):
    exact, trained, new = memorise.main(["--n", "30", "--steps", "25", "--out", str(out)])
    assert exact.max() < 1 / 255                                    # less than a grey level: copies
    assert 0.5 < trained.median() / new.median() < 2
    assert trained.min() > 20 / 255 and "nearest training picture" in capsys.readouterr().out
    assert out.exists()


# One dimension

def test_signals_jump_as_often_as_said_and_differ():
    x = denoise_1d.signals(0, 1, 2000)
    assert x.shape == (2000, 1, denoise_1d.L) and set(x.unique().tolist()) == {-1., 1.}
    assert abs(denoise_1d.jumps(x) - (denoise_1d.L - 1) * denoise_1d.JUMPS) < 0.2
    assert abs(x[:, :, 0].mean().item()) < 0.1
    assert not torch.equal(x, denoise_1d.signals(0, 2, 2000))


@pytest.mark.slow
def test_signals_are_denoised_better_than_by_any_moving_average(out, capsys):
    x = denoise_1d.main(["--steps", "300", "--out", str(out)])
    assert rms(x["clean"] - x["x0"]) < 0.95 * rms(x["smooth"] - x["x0"])
    assert (x["sampled"].abs() > 0.8).float().mean() > 0.9            # two levels, as the data
    assert 2 < denoise_1d.jumps(x["sampled"]) < 5.5
    assert "moving average" in capsys.readouterr().out and Image.open(out).width > 800


# A curve in many dimensions

def test_the_spiral_lies_in_a_plane_of_any_dimension():
    for D in (2, 50):
        directions = low_dimension.plane(D, 3)
        assert_close(directions @ directions.T, torch.eye(2), rtol=0, atol=1e-5)
    curve = low_dimension.spiral(torch.linspace(0, 1, 1000))
    assert curve.norm(dim=1).max() == pytest.approx(2) and curve.norm(dim=1).min() == pytest.approx(2 / 3)
    flat, near, away = low_dimension.distances(curve @ directions + 0.1 * torch.ones(50), directions)
    assert away == pytest.approx((0.1 * torch.ones(50) - 0.1 * directions.sum(1) @ directions).norm().item(), rel=1e-3)
    assert flat.shape == (1000, 2) and near < 0.2


@pytest.mark.slow
def test_only_x0_stays_in_the_plane(out):
    flags = ["--dimensions", "64", "--width", "24", "--steps", "300", "--batch", "64", "--n", "50", "--out"]
    out_of_plane = low_dimension.main([*flags, str(out)])
    assert 10 * out_of_plane["x0", 64] < min(out_of_plane["eps", 64], out_of_plane["v", 64])
    assert Image.open(out).width > 200


# What they share

def test_models_of_other_pictures_are_refused():
    """A network of any size would take the digits, and make nothing of them."""
    with pytest.raises(ValueError, match=r"fashion.* makes pictures of \(1, 28, 28\), and the digits here are"):
        trained("weights/fashion.safetensors")


def test_a_model_of_labelled_pictures_may_take_no_labels(tmp_path):
    saved = checkpoint.load("weights/digits.safetensors")
    network = replace(saved.network, classes=0)
    plain = saved._replace(network=network, weights={}, ema=UNet(network).state_dict())
    checkpoint.save(tmp_path / "last.safetensors", plain)
    model = trained(str(tmp_path / "last.safetensors"))
    assert model.denoise(torch.zeros(2, 1, 8, 8), torch.tensor([5, 9])).shape == (2, 1, 8, 8)


# Guidance by a classifier

def test_a_classifier_of_noisy_digits_guides_a_model_without_labels(out, capsys):
    scores = classifier_guidance.main(["--n", "200", "--updates", "600", "--steps", "20", "--out", str(out)])
    agree = [each["agree"] for each in scores.values()]
    assert agree[0] < 0.2 and agree == sorted(agree) and agree[-1] > 0.9
    assert scores[3]["FD"] < scores[0]["FD"] and "at t = 250" in capsys.readouterr().out
    assert Image.open(out).size == (4 * 68 + 4, 24 + 10 * 68)
