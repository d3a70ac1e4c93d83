import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import ddpm
import noise
import sample
import samplers
from data.image_files import read_image
from run import arrays, checkpoint, folder, pictures
from sample import Config, generate
from unet import UNet

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "weights" / "digits.safetensors")
SAME = {"rtol": 0, "atol": 1e-4}                    # one picture, computed in other batches or by other kernels


def digits(**settings):
    return generate(Config(**{"checkpoint": DIGITS, "n": 4, "steps": "3", **settings}))


def test_main_writes_the_pictures_it_was_asked_for(tmp_path, capsys):
    sample.main(["--checkpoint", DIGITS, "--n", "20", "--steps", "5", "--gif", "--png", "--npz", "--out", str(tmp_path),
                 "--snapshots", "1000,500,0"])
    assert "20 pictures in" in (said := capsys.readouterr().out) and "images/s, 5 network evaluations" in said
    assert Image.open(tmp_path / "grid.png").size == (10 * 68 + 4, 24 + 2 * 68)
    assert Image.open(tmp_path / "strip.png").size == (3 * 68 + 4, 24 + 10 * 68)
    assert Image.open(tmp_path / "reverse.gif").n_frames == 6
    with np.load(tmp_path / "pictures.npz") as arrays:
        assert arrays["arr_0"].shape == (20, 8, 8, 1) and arrays["arr_1"].tolist() == [*range(10)] * 2
        one = np.array(Image.open(tmp_path / "png" / "000013.png"))
        assert (one == arrays["arr_0"][13, :, :, 0]).all()
    assert data.load(str(tmp_path / "pictures.npz")).shape == (1, 8, 8)


def test_the_strip_has_the_snapshots_asked_for(tmp_path):
    sample.main(["--checkpoint", DIGITS, "--n", "4", "--steps", "5", "--snapshots", "1000,600,0",
                 "--out", str(tmp_path)])
    samples = generate(Config(checkpoint=DIGITS, n=4, steps="5"), lambda times: {1000, 600})
    assert Image.open(tmp_path / "strip.png").tobytes() == pictures.strip(samples, [1000, 600, 0]).tobytes()


@pytest.mark.slow
def test_a_film_of_a_hundred_digits_is_small_and_shows_the_chain(tmp_path):
    sample.main(["--checkpoint", DIGITS, "--steps", "200", "--eta", "1", "--gif", "--out", str(tmp_path)])
    sheet, path = Image.open(tmp_path / "grid.png").convert("L"), tmp_path / "reverse.gif"
    with Image.open(path) as gif:
        assert path.stat().st_size < 2e6 and 30 < gif.n_frames <= pictures.FRAMES + 1
        gif.seek(gif.n_frames - 1)
        assert gif.info["duration"] == 2000 and gif.width == sheet.width // 2
        last = gif.convert("L").crop((0, 0, gif.width, gif.height - 20)).resize((sheet.width, sheet.height - 20))
    away = np.asarray(last, int) - np.asarray(sheet, int)[20:]                    # without its heads
    assert np.abs(away).mean() < 12                         # of 256: half the size and sixteen greys


@pytest.mark.parametrize("settings", [{"n": 7}, {"batch": 1}, {"batch": 3, "eta": 1.}, {"batch": 3, "sampler": "2m"},
                                      {"batch": 3, "guidance": 1.}])
def test_a_picture_does_not_depend_on_the_batch(settings):
    whole = digits(**{**settings, "n": 8, "batch": 100})
    parts = digits(**{"n": 8, **settings})
    assert_close(parts.x, whole.x[:len(parts.x)], **SAME)
    assert_close(parts.labels, whole.labels[:len(parts.x)])


def test_seeds_and_images_differ():
    x = digits(labels="3").x
    assert (x[0] - x[1]).abs().max() > 0.1
    assert (x - digits(labels="3", seed=1).x).abs().flatten(1).max(1).values.min() > 0.1


def test_the_chain_is_the_core_s():
    """What generate returns is what the plain lines of ddpm.py make of the checkpoint."""
    last = checkpoint.load(DIGITS)
    unet = UNet(last.network).eval()
    unet.load_state_dict(last.ema)
    rows = ddpm.sampler_rows(ddpm.cosine_schedule(1000), [1000, 600, 200], target="v", eta=1.)
    labels = torch.arange(4)
    steps = ddpm.sample(lambda xt, t: unet(xt, t, labels), rows, (1, 8, 8), noise.image_seeds(0, torch.arange(4)))
    *_, (_, x0, _) = steps
    assert_close(digits(steps="1000,600,200", eta=1.).x, x0, **SAME)


def test_the_default_steps_of_a_short_chain_are_all_of_it(tmp_path, refused):
    last, path = checkpoint.load(DIGITS), str(tmp_path / "x.safetensors")
    checkpoint.save(path, last._replace(beta=ddpm.cosine_schedule(8).beta[1:]))
    assert generate(Config(checkpoint=path, n=2)).evaluations == 8 and digits(steps="50", n=2).evaluations == 50
    assert "steps is 9" in refused(sample.main, ["--checkpoint", path, "--steps", "9", "--out", str(tmp_path / "o")])


def test_labels_and_guidance_matter():
    sevens, threes = digits(labels="7", steps="20").x, digits(labels="3", steps="20").x
    assert (sevens - threes).abs().mean() > 0.1
    assert digits(labels="4,2", n=5).labels.tolist() == [4, 2, 4, 2, 4]
    free = digits(labels="none").x
    assert_close(digits(labels="7", guidance=-1.).x, free, **SAME)
    assert (digits(labels="7", guidance=2.).x - digits(labels="7").x).abs().max() > 0.01


@pytest.mark.parametrize("phi", [0., 0.7])
def test_guidance_in_an_interval(phi, capsys, tmp_path):
    """Where sigma lies in it the chain is the guided one, elsewhere that without, with one evaluation of each picture.

    The steps' sigmas are 22918, 1.38 and 0.34.
    """
    steps = {"steps": "1000,600,200", "labels": "7", "n": 3, "guidance": 2., "guidance_rescale": phi}
    network, rows, (schedule, *_) = digits_network(), digits_rows(1000, 600, 200), (ddpm.cosine_schedule(), None)
    labels, seeds = torch.full((3,), 7), noise.image_seeds(0, torch.arange(3))
    for interval, ws in (("0.2,1", (0, 0, 2.)), ("1.3,1.4", (0, 2., 0)), ("1,inf", (2., 2., 0)), ("0,inf", (2.,) * 3)):
        assert ddpm.weights_in_interval(schedule, samplers.network_times(rows), 2., *map(float, interval.split(","))) \
            == [*ws]
        batches, xt, past = [], noise.normal(seeds, 1000, (1, 8, 8)), None

        def model(xt, t, y, batches=batches):
            batches.append(len(xt))
            return network(xt, t, y)

        for k, w in enumerate(ws):
            output = ddpm.guided(model, labels, 10, w, phi)(xt, samplers.network_times(rows)[k].expand(3))
            xt, past = ddpm.step(rows, torch.tensor([k]), xt, output)
        assert batches == [6 if w else 3 for w in ws]
        assert_close(digits(guidance_interval=interval, **steps).x, xt, **SAME)
    assert torch.equal(digits(guidance_interval="0,inf", **steps).x, digits(**steps).x)
    sample.main(["--n", "2", "--steps", "4", "--guidance", "1", "--guidance_interval", "0,1.1", "--out", str(tmp_path)])
    assert "4 network evaluations, 2 of twice the batch;" in capsys.readouterr().out


def digits_network():
    saved = checkpoint.load(DIGITS)
    unet = UNet(saved.network).eval().requires_grad_(False)
    unet.load_state_dict(saved.ema)
    return unet


def digits_rows(*times):
    return ddpm.sampler_rows(ddpm.cosine_schedule(), times, target="v")


@pytest.fixture
def seven(tmp_path):
    """A file with a seven, larger than the model's pictures and in colour."""
    images = data.digits(held_out=True)
    Image.fromarray(images.images[images.labels == 7][0, 0].numpy()).convert("RGB").resize((80, 80)).save(
        tmp_path / "seven.png")
    return tmp_path / "seven.png"


@pytest.mark.parametrize("settings, times", [
    ({"steps": "10", "strength": 0.6}, [600, 500, 400, 300, 200, 100]), ({"steps": "1000,500,250"}, [500, 250]),
    ({"steps": "4", "spacing": "karras", "strength": 1.}, None), ({"steps": "4", "sampler": "2m"}, [500, 250])])
def test_a_chain_that_starts_from_a_picture(seven, settings, times):
    """Its first state is q(x_t | x0) with the image's noise, and the rows are the shortened chain's."""
    config = Config(checkpoint=DIGITS, n=3, labels="7", start=str(seven), **settings)
    last = checkpoint.load(DIGITS)
    plan = sample.make_plan(config, last)
    t, schedule = samplers.column(plan.rows, "t"), ddpm.from_betas(last.beta)
    assert times is None or t.tolist() == times
    x0 = data.to_unit(read_image(seven, (1, 8, 8), "crop")).expand(3, 1, 8, 8)
    z = noise.normal(plan.seeds[0], t[0], (1, 8, 8))
    x_T = ddpm.q_sample(schedule, x0, t[:1].expand(3), z)
    assert_close(plan.first(plan.seeds[0]), x_T, rtol=0, atol=1e-6)
    rows = ddpm.sampler_rows(schedule, t, sampler=config.sampler, target="v")
    network, labels = digits_network(), torch.full((3,), 7)
    *_, (_, xs, _) = ddpm.sample(lambda xt, t: network(xt, t, labels), rows, (1, 8, 8), plan.seeds[0], x_T=x_T)
    assert_close(generate(config).x, xs, **SAME)


def test_the_weaker_the_nearer_to_the_picture(seven):
    x0 = data.to_unit(read_image(seven, (1, 8, 8), "crop"))
    far = [(digits(labels="7", start=str(seven), strength=strength, steps="100").x - x0).square().mean()
           for strength in (0, 0.1, 0.3, 0.6, 1)]
    assert far == sorted(far) and far[0] < 1e-3 < 0.1 < far[-1]


@pytest.fixture
def hybrid(tmp_path):
    """The digits' weights with a second half of outputs, v = 1: a model that learned beta for its variance."""
    saved = checkpoint.load(DIGITS)
    ema = {**saved.ema}
    for name, v in (("last.weight", 0), ("last.bias", 1)):
        ema[name] = torch.cat([ema[name], torch.full_like(ema[name], v)])
    network = replace(saved.network, out_channels=2)
    checkpoint.save(tmp_path / "hybrid.safetensors", saved._replace(network=network, ema=ema, weights={}))
    return str(tmp_path / "hybrid.safetensors")


def test_ddpm_has_the_model_s_variance_and_2m_beta_tilde_s(hybrid):
    """A model's own variance makes other pictures by ddpm, the same ones by 2m."""
    chosen = {(name, sampler): digits(checkpoint=path, sampler=sampler, eta=eta, variance=variance).x
              for name, path, variance in (("small", DIGITS, ""), ("learned", hybrid, ""), ("large", DIGITS, "beta"))
              for sampler, eta in (("ddpm", 0), ("ddim", 1), ("2m", 1)) if sampler != "2m" or not variance}
    for name in ("small", "learned", "large"):
        assert torch.equal(chosen[name, "ddpm"], chosen[name, "ddim"])
    assert_close(chosen["learned", "ddpm"], chosen["large", "ddpm"], **SAME)
    assert (chosen["small", "ddpm"] - chosen["large", "ddpm"]).abs().mean() > 0.01
    assert torch.equal(chosen["learned", "2m"], chosen["small", "2m"])


@pytest.mark.parametrize("flags, said", [("--spacing trailing", True), ("--spacing logsnr", False),
                                         ("--spacing karras --sampler 2m", False)])
def test_heun_says_when_its_steps_are_too_long(tmp_path, capsys, flags, said):
    """Ten times trailing on the cosine schedule: FD is 50 there, and 1.7 with logsnr."""
    sample.main(["--sampler", "heun", "--n", "1", "--steps", "10", "--out", str(tmp_path), *flags.split()])
    output = capsys.readouterr().out
    assert ("multiplies errors by 247; use --spacing logsnr" in output) == ("a step of heun" in output) == said


def test_raw_weights_half_precision_and_no_clip_are_other_pictures_of_the_same_kind():
    x = digits(steps="10").x
    for settings in ({"weights": "raw"}, {"dtype": "bf16"}, {"dtype": "fp16"}, {"clip": False}):
        other = digits(steps="10", **settings).x
        assert other.dtype == torch.float32 and 0 < (other - x).abs().mean() < 0.5


@pytest.mark.slow
def test_compiled_pictures_are_the_same():
    assert_close(digits(n=8, compile=True).x, digits(n=8).x, **SAME)


def test_snapshots_are_the_nearest_times_visited():
    config = Config(checkpoint=DIGITS, n=2, steps="4")
    samples = generate(config, keep=lambda times: {pictures.nearest(t, times) for t in (990, 300)})
    assert set(samples.states) == {1000, 250, 0}
    assert_close(samples.states[1000], noise.normal(noise.image_seeds(0, torch.arange(2)), 1000, (1, 8, 8)))
    assert_close(samples.states[0], samples.x)


@pytest.mark.parametrize("flags, says", [
    ("--guidance_interval 0.2,5", "guidance is 0, so guidance_interval and guidance_rescale would do nothing"),
    ("--guidance 1 --guidance_interval 0.2", "guidance_interval is 0.2; it must be two sigmas, as 0.2,5"),
    ("--guidance 1 --guidance_interval low,5", "it must be numbers, as 0.2,5"),
    ("--guidance 1 --guidance_interval 5,5.01 --steps 3", "guidance 1 would do nothing between sigma 5 and 5.01; the"),
    ("--guidance 1 --guidance_rescale 1.1", "guidance_rescale is 1.1; it must be between 0 and 1"),
    ("--start none.png", "none.png"), ("--start x --strength 2", "strength is 2.0; it must be between 0 and 1"),
    ("--strength 0.3", "strength is 0.3, but there is no picture to start from"),
    ("--n 0", "n is 0"), ("--batch 0", "batch is 0"), ("--steps 1001", "steps is 1001"),
    ("--steps 0 --spacing karras", "steps is 0"), ("--steps few", "steps is 'few'"), ("--steps=", "times are []"),
    ("--steps 9,5 --spacing karras", "spacing karras and shift 1"), ("--spacing odd", "spacing is 'odd'"),
    ("--eta nan", "eta is nan"), ("--labels 11", "labels has '11'"), ("--sampler euler", "sampler is 'euler'"),
    ("--churn 1", "churn is 1"), ("--variance beta", "with eta 0 no noise is added; use --eta 1"),
    ("--sampler heun --variance beta", "variance is beta, but the sampler heun takes churn"),
    ("--sampler 2m --eta 1 --variance beta", "variance is beta, but the sampler 2m takes eta; leave variance out"),
    ("--sampler ddpm --eta 0.5", "eta is 0.5, but the sampler ddpm takes variance"),
    ("--variance learned", "learned none"), ("--weights best", "weights is 'best'"), ("--seed -1", "seed is -1"),
    ("--checkpoint nowhere.safetensors", "no checkpoint nowhere.safetensors"), ("--guidance nan", "guidance is nan"),
    ("--snapshots a", "snapshots is 'a'"), ("--device tpu", "device is")])
def test_bad_flags_are_one_sentence_and_exit_2(tmp_path, refused, flags, says):
    error = refused(sample.main, ["--checkpoint", DIGITS, "--out", str(tmp_path), *flags.split()])
    assert says in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_weights_that_cannot_be_sampled_are_told(tmp_path, refused):
    last, path = checkpoint.load(DIGITS), str(tmp_path / "x.safetensors")
    for says, ema in {"not finite": {name: w * float("nan") for name, w in last.ema.items()},
                      "last.bias": {name: w for name, w in last.ema.items() if name != "last.bias"}}.items():
        checkpoint.save(path, last._replace(ema=ema))
        assert says in refused(sample.main, ["--checkpoint", path, "--steps", "2", "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_unconditional_networks_take_no_labels(tmp_path, refused):
    last, path = checkpoint.load(DIGITS), str(tmp_path / "x.safetensors")
    network = last.network.__class__(1, 1, D=8, widths=(8,), blocks=1, heads=(0, 0), groups=4)
    weights = {k: w.detach() for k, w in UNet(network).named_parameters()}
    checkpoint.save(path, last._replace(network=network, weights={}, ema=weights))
    assert digits(checkpoint=path).labels is None
    for flags in (["--labels", "3"], ["--guidance", "1"]):
        assert "has no classes" in refused(sample.main, ["--checkpoint", path, "--out", str(tmp_path / "out"), *flags])


MANY = ["--checkpoint", DIGITS, "--steps", "1", "--batch", "10", "--npz"]


@pytest.mark.parametrize("torn", [0, 100])
def test_an_npz_is_resumed_after_a_stop(tmp_path, monkeypatch, capsys, torn):
    """With or without part of a batch behind the last whole one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    sample.main([*MANY, "--n", "45", "--out", str(whole)])
    append, calls = arrays.append, []

    def dies(path, done, pixels):
        calls.append(done)
        if len(calls) == 4:
            with path.open("ab") as file:
                file.write(b"x" * torn)
            raise KeyboardInterrupt
        append(path, done, pixels)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(arrays, "append", dies)
        sample.main([*MANY, "--n", "45", "--out", str(parts)])
    assert not (parts / "pictures.npz").exists()
    capsys.readouterr()
    sample.main([*MANY, "--n", "45", "--out", str(parts)])
    assert "images/s, 2 network evaluations" in capsys.readouterr().out   # 27 of 45 were there: 3 of 5 batches of 9
    with np.load(parts / "pictures.npz") as ours, np.load(whole / "pictures.npz") as theirs:
        assert len(ours["arr_0"]) == 45 and all((ours[name] == theirs[name]).all() for name in ("arr_0", "arr_1"))
    assert Image.open(parts / "grid.png").tobytes() == Image.open(whole / "grid.png").tobytes()
    assert sorted(path.name for path in parts.iterdir()) == ["grid.png", "pictures.npz"]


def test_an_npz_of_other_pictures_is_not_resumed():
    last = checkpoint.load(DIGITS)
    keys = {arrays.digest(Config(**settings), last) for settings in ({}, {"seed": 1}, {"labels": "3"}, {"n": 3})}
    ema = {name: w + (name == "last.bias") for name, w in last.ema.items()}
    keys |= {arrays.digest(Config(), other) for other in (
        last._replace(ema=ema), last._replace(beta=last.beta / 2), last._replace(settings={**last.settings, "x": 1}))}
    assert len(keys) == 7
    assert arrays.digest(Config(batch=3, device="cpu"), last) == arrays.digest(Config(), last)


def test_processes_that_read_different_checkpoints_do_not_sample(monkeypatch):
    monkeypatch.setattr(sample.processes, "broadcast_first", lambda step: step + 500)
    with pytest.raises(ValueError, match="digits.safetensors was replaced while it was read; sample again"):
        digits()


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, monkeypatch):
    alive, append = {}, arrays.append

    def counts(path, done, pixels):
        gc.collect()
        n = int(path.parent.name)
        alive[n] = max(alive.get(n, 0), sum(x.numel() for x in gc.get_objects() if type(x) is torch.Tensor
                                            and x.shape[1:] == (1, 8, 8)))
        append(path, done, pixels)

    monkeypatch.setattr(arrays, "append", counts)
    monkeypatch.setattr(arrays, "SHOWN", 20)
    for n in (40, 200):
        sample.main([*MANY, "--n", str(n), "--out", str(tmp_path / str(n))])
    assert 0 < alive[200] <= alive[40]


# The folder

def test_a_folder_belongs_to_one_sampler_at_a_time(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(folder, "PATIENCE", 0)
    with folder.lock(tmp_path):
        for flags in ([], ["--png"], ["--npz"], ["--gif"]):
            command = ["--checkpoint", DIGITS, "--n", "2", "--steps", "1", "--out", str(tmp_path), *flags]
            assert f"another process writes into {tmp_path}" in refused(sample.main, command)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_fewer_pictures_leave_none_of_an_earlier_command(tmp_path):
    (tmp_path / "png").mkdir()
    others = {"x.png", "12.png", "000012.jpg", "notes.txt"}
    for name in {*others, "000012.png", "000003.png", "1000000.png", "000001.png.tmp"}:
        (tmp_path / "png" / name).write_text("old")
    sample.main(["--checkpoint", DIGITS, "--n", "3", "--steps", "1", "--png", "--out", str(tmp_path)])
    assert {path.name for path in (tmp_path / "png").iterdir()} == {
        *others, "000000.png", "000001.png", "000002.png", "metadata.csv"}
    assert all((tmp_path / "png" / name).read_text() == "old" for name in others)
