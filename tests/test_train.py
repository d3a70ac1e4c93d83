import copy
import io
import json
import math
import os
import shlex
import shutil
import signal
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import convert
import data
import ddpm
import evaluate
import noise
import sample
import train
from run import checkpoint, folder, pictures
from run.importance import LATEST
from run.state import PATIENCE, Progress
from tests.forks import forked
from tests.helpers import same_run
from train import Config

QUICK = ["--batch", "8", "--warmup", "2", "--log_every", "2", "--sample_every", "100", "--save_every", "3", "--T", "20"]


def weights(out):
    return checkpoint.load(out / "last.safetensors").weights


def run(out, *flags):
    train.main([*QUICK, "--out", str(out), *flags])


def test_a_run_leaves_what_it_says(tmp_path, curves, capsys):
    """And announces a schedule that leaves signal."""
    run(tmp_path, "--steps", "5", "--schedule", "linear", "--T", "300")
    last = checkpoint.load(tmp_path / "last.safetensors")
    *lines, grid = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert last.step == 5 and last.data["classes"] == tuple("0123456789") and last.network.classes == 11
    assert [line["step"] for line in lines] == [2, 4, 5] and {"loss", "norm", "lr", "images_per_second"} < {*lines[0]}
    assert grid["step"] == 5 and {"samples_mean", "samples_std", "data_mean", "data_std"} < {*grid}
    assert Image.open(tmp_path / "samples" / "000005.png").width > 600
    assert Image.open(tmp_path / "loss.png").size > (100, 100)
    assert Image.open(tmp_path / "progress.gif").n_frames == 1
    said = capsys.readouterr().out
    assert "173,921 parameters" in said and "seed 0" in said
    assert "warning" in said and "0.036 bits/dim of the data are left in x_T" in said


def test_tensorboard_shows_the_log_and_the_grids(tmp_path):
    """Of a run that was resumed too, and lost the lines after its checkpoint."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, "--steps", "4", "--save_every", "3", "--tensorboard")
    shutil.copy(tmp_path / "previous.safetensors", tmp_path / "last.safetensors")           # of step 3
    run(tmp_path, "--steps", "6", "--tensorboard")
    shown = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, k in (("loss", None), ("quarters", 0), ("samples_mean", 0), ("lr", None)):
        lines = [line for line in folder.read_log(tmp_path) if name in line]
        values = {line["step"]: line[name] if k is None else line[name][k] for line in lines}
        scalars = shown.Scalars(name if k is None else f"{name}/{k + 1}")
        assert {event.step: event.value for event in scalars} == pytest.approx(
            {step: value for step, value in values.items() if value is not None}, rel=1e-6)
    assert [event.step for event in shown.Images("samples")] == [6]
    assert Image.open(io.BytesIO(shown.Images("samples")[0].encoded_image_string)).size == Image.open(
        tmp_path / "samples" / "000006.png").size


def test_tensorboard_that_is_not_installed_is_a_sentence(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in refused(train.main, [*QUICK, "--tensorboard", "--out", str(tmp_path)])


@pytest.mark.parametrize("steps, warmup, told", [
    (10, 100, "reaches 0.00013, not --lr 0.005, as it rises for --warmup 100 of 10 steps"),     # step 4: .04 * .658
    (100, 100, "reaches 0.0013, not"), (1000, 100, ""), (1, 0, "")])
def test_a_warmup_that_is_too_long_is_told(capsys, steps, warmup, told):
    train.describe(started(steps=steps, warmup=warmup)[0], train.learning_rate)
    said = [line for line in capsys.readouterr().out.splitlines() if "rises" in line]
    assert len(said) == bool(told) and all(told in line and "lower --warmup" in line for line in said)


def test_the_steps_are_told_as_times_that_the_pictures_are_used(capsys):
    train.describe(started(steps=3000, batch=64)[0], train.learning_rate)
    assert "steps    3,000 with 64 pictures, each used 160 times\n" in capsys.readouterr().out


@pytest.mark.parametrize("T", [20, 60])
def test_the_command_that_is_printed_at_the_end_samples_from_the_run(tmp_path, capsys, monkeypatch, T):
    """With few steps, in a folder with a space, from any place."""
    monkeypatch.chdir(tmp_path)
    run("my run", "--steps", "2", "--T", str(T))
    python, script, *flags = shlex.split(capsys.readouterr().out.rpartition("sample from it with: ")[2])
    assert python == "python" and Path(script).samefile(sample.__file__)
    sample.main([*flags, "--n", "2"])
    assert f"{min(T, 50)} network evaluations" in capsys.readouterr().out and Path("out/grid.png").exists()


def test_a_run_s_folder_is_its_checkpoint_wherever_one_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("run", "--steps", "2")
    assert checkpoint.load("run").step == 2
    grids = []
    for flags in (["--checkpoint", "run"], ["--from", "run/"], ["--checkpoint", "run/last.safetensors"]):
        sample.main([*flags, "--n", "4", "--steps", "2"])
        grids.append(Path("out/grid.png").read_bytes())
    assert grids[0] == grids[1] == grids[2]
    evaluate.main(["neighbours", "--checkpoint", "run", "--n", "2", "--steps", "2", "--among", "20"])
    checkpoint.main(["--source", "run", "--to", "given.safetensors"])
    convert.main(["--source", "run", "--to", "folder.safetensors"])
    assert {checkpoint.load(f"{name}.safetensors").step for name in ("given", "folder")} == {2}


def test_the_loss_falls(tmp_path):
    run(tmp_path, "--steps", "60", "--log_every", "20", "--batch", "32", "--T", "1000")
    losses = [line["loss"] for line in folder.read_log(tmp_path) if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]


def on_a_gpu(*flags):
    return pytest.param(["--device", "cuda", "--deterministic", *flags], [], marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason="a CPU does the same at every run anyway"))


@pytest.mark.parametrize("flags, more", [
    (["--accumulate", "3", "--loss", "l1"], []), (["--workers", "2"], ["--recompute"]),
    (["--loss", "bound", "--sampling", "importance", "--T", "3", "--batch", "32"], []), (["--dtype", "fp16"], []),
    on_a_gpu(), on_a_gpu("--dtype", "bf16"), on_a_gpu("--dtype", "bf16", "--compile")])
def test_a_run_cut_in_two_ends_bitwise_where_the_whole_one_does(tmp_path, flags, more, monkeypatch, restored, capsys):
    """It dies after step 3, when its checkpoint is there, and may recompute from there on."""
    flags, update = ["--steps", "6", "--device", "cpu", *flags], train.update

    def dies(run, model, k, *batch):
        if k > 3:
            raise KeyboardInterrupt
        return update(run, model, k, *batch)

    run(tmp_path / "whole", *flags)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "update", dies)
        run(tmp_path / "cut", *flags)
    half = checkpoint.load(tmp_path / "cut" / "last.safetensors")
    run(tmp_path / "cut", *flags, *more)
    assert "last.safetensors at step 3" in capsys.readouterr().out
    same_run(tmp_path / "cut", tmp_path / "whole")
    assert checkpoint.load(tmp_path / "cut" / "last.safetensors").updates == 6
    assert "importance" not in flags or not half.history.isnan().any()      # it had begun to choose before the cut


@pytest.fixture
def restored():
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_is_torch_s(tmp_path, restored, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    run(tmp_path, "--steps", "1", "--deterministic")
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_folder_is_one_run_s_until_a_signal_ends_it_with_a_checkpoint(tmp_path, refused):
    flags = [*QUICK, "--steps", "100000", "--save_every", "100000", "--out", str(tmp_path)]
    with forked(["train.py", *flags]) as process:
        process.until((tmp_path / "log.jsonl").exists)
        assert "another process writes into" in refused(train.main, flags)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0 and "stopped at step" in process.stdout
    with folder.lock(tmp_path):                                     # it is free again
        assert checkpoint.load(tmp_path / "last.safetensors").step > 0


def test_more_steps_go_on_and_no_more_do_nothing(tmp_path, capsys):
    """And a seed of -1 is chosen, printed and kept."""
    run(tmp_path, "--steps", "3", "--seed", "-1")
    seed = checkpoint.load(tmp_path / "last.safetensors").settings["seed"]
    assert seed >= 0 and f"seed {seed}" in capsys.readouterr().out
    run(tmp_path, "--steps", "4", "--seed", "-1")
    run(tmp_path, "--steps", "4", "--seed", "-1")
    last = checkpoint.load(tmp_path / "last.safetensors")
    assert last.step == 4 and last.settings["seed"] == seed
    assert "last.safetensors at step 4" in capsys.readouterr().out


def test_parts_of_a_batch_add_up_to_it_and_bf16_trains_float32_weights(tmp_path):
    for name, flags in {"whole": [], "parts": ["--accumulate", "3"], "bf16": ["--dtype", "bf16"]}.items():
        run(tmp_path / name, "--steps", "2", *flags)
    whole, parts, half = (torch.cat([w.flatten() for w in weights(tmp_path / name).values()])
                          for name in ("whole", "parts", "bf16"))
    assert_close(parts, whole, rtol=1e-3, atol=1e-4)
    assert half.dtype == torch.float32 and 0 < (half - whole).norm() < 0.2 * whole.norm()


@pytest.mark.parametrize("mode, classes", [("RGB", 0), ("RGBA", 2), ("L", 45)])
def test_a_folder_of_pictures(tmp_path, mode, classes):
    """Of many classes a grid shows some."""
    for k in range(max(6, classes)):
        path = tmp_path / "pictures" / (f"class{k % classes}" if classes else "") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (10 + k, 12)).save(path)
    run(tmp_path / "run", "--steps", "2", "--data", str(tmp_path / "pictures"), "--size", "8x12", "--flip")
    last = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert last.data["shape"] == (len(mode), 8, 12) and last.network.classes == (classes + 1 if classes else 0)
    if classes == 45:
        assert Image.open(tmp_path / "run" / "samples" / "000002.png").size == (20 * 100 + 4, 24 + 5 * 68)


def test_null_one_trains_without_labels_and_null_zero_without_a_null_class(tmp_path, refused):
    for null, classes, says in (("1", 0, "has no classes"), ("0", 10, "has no null class")):
        run(tmp_path / null, "--steps", "2", "--null", null)
        path = str(tmp_path / null / "last.safetensors")
        assert checkpoint.load(path).network.classes == classes
        assert says in refused(sample.main, ["--checkpoint", path, "--guidance", "1", "--steps", "2"])


def test_dropout_is_another_for_every_seed_step_and_process(monkeypatch):
    masks = set()
    for rank, seed, step in product((0, 1), (0, 1, 2**31 - 1), (1, 2, 3)):
        monkeypatch.setattr(train.processes, "rank", lambda rank=rank: rank)
        torch.manual_seed(train.dropout_seed(seed, step))
        masks.add(tuple((torch.rand(64) < 0.5).tolist()))
    assert len(masks) == 18


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing(tmp_path, monkeypatch, refused):
    run(tmp_path, "--steps", "3")
    before, objective = weights(tmp_path), train.objective
    monkeypatch.setattr(train, "objective", lambda *args: {"loss": objective(*args)["loss"] * math.nan})
    said = refused(train.main, [*QUICK, "--out", str(tmp_path), "--steps", "50"])
    assert "not finite 5 steps in a row, seen at step 8" in said
    assert_close(weights(tmp_path), before, rtol=0, atol=0)


def started(**settings):
    """A run of the digits before its first step, and that step's batch."""
    run = train.start(Config(**{"T": 20, "batch": 8, **settings}), data.load("digits"))
    return run, *data.Batches(run.dataset, run.config.batch, 0, False)[1]


def test_one_bad_step_is_skipped(monkeypatch):
    run, pixels, labels = started()
    before = copy.deepcopy((run.unet.state_dict(), run.ema))
    monkeypatch.setattr(train, "objective",
                        lambda *args: {"loss": math.inf * args[2](args[3], args[4]).flatten(1).mean(1)})
    norm = train.update(run, train.trained_model(run), 1, pixels, labels)
    assert not norm.isfinite() and run.progress.failures == 1 and not folder.mean_losses(run.progress.records)
    assert_close((run.unet.state_dict(), run.ema), before, rtol=0, atol=0)
    assert all(moment.abs().max() == 0 for state in run.optimizer.state.values() for moment in state.values())


def test_fp16_scales_the_loss(monkeypatch):
    """Gradients that would be 0 in float16 are those of float32; where scaled ones overflow, the scale is halved."""
    objective, norms = train.objective, {}
    for dtype, enabled in (("float32", True), ("fp16", True), ("fp16", False)):
        run, pixels, labels = started(dtype=dtype)
        run.scaler._enabled &= enabled
        with monkeypatch.context() as patch:
            patch.setattr(train, "objective", lambda *args: {"loss": 1e-6 * objective(*args)["loss"]})
            norms[dtype, enabled] = train.update(run, train.trained_model(run), 1, pixels, labels)
    assert_close(norms["fp16", True], norms["float32", True], rtol=0.01, atol=0)
    assert norms["fp16", False] < 0.9 * norms["float32", True]
    run, pixels, labels = started(dtype="fp16")
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.**30})
    before = copy.deepcopy(run.unet.state_dict())
    for k, scale in enumerate((2.**29, 2.**28), 1):
        assert not train.update(run, train.trained_model(run), k, pixels, labels).isfinite()
        assert run.progress.failures == k and run.scaler.get_scale() == scale
    assert_close(run.unet.state_dict(), before, rtol=0, atol=0)


def test_the_network_is_told_other_times_at_every_step(tmp_path, monkeypatch):
    told, objective = [], train.objective
    monkeypatch.setattr(train, "objective", lambda config, schedule, denoise, x0, t, eps: told.append(t) or objective(
        config, schedule, denoise, x0, t, eps))
    train.main(["--steps", "5", "--batch", "8", "--warmup", "1", "--device", "cpu", "--out", str(tmp_path)])
    t = torch.stack(told)
    assert t.shape == (5, 8) and t.dtype == torch.int64 and all(len(times.unique()) == 5 for times in t.T)
    assert t.min() >= 1 and t.max() <= 1000 and t.max() - t.min() > 700


def test_times_are_stratified_and_cover_the_chain():
    config = Config(batch=50, T=1000)
    t = torch.stack([train.sample_timesteps(config, step) for step in range(1, 201)])
    assert_close((t - 1) // 20, torch.arange(50).expand(200, 50))
    assert t.min() >= 1 and t.max() <= 1000 and len(t.unique()) > 950


# Importance sampling of t

def history(T, seed=0):
    return torch.rand(T, LATEST, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, T + 1)[:, None]


def test_importance_is_the_root_mean_square_and_even_until_all_is_known():
    losses = history(7)
    p, rms = train.importance(losses), losses.double().square().mean(1).sqrt()
    assert_close(p, 0.999 * rms / rms.sum() + 0.001 / 7)
    losses[3, 0] = math.nan
    assert_close(train.importance(losses), torch.full((7,), 1 / 7, dtype=torch.float64))


def test_remember_keeps_the_last_ten_of_each_t():
    losses = torch.full((3, LATEST), math.nan)
    train.update_history(losses, torch.tensor([2, 2, 3] + [2] * 10), torch.arange(13.))
    assert losses[0].isnan().all() and losses[1].tolist() == list(range(3, 13))
    assert losses[2, -1] == 2 and losses[2, :-1].isnan().all()


def test_importance_sampling_is_unbiased():
    config, p = Config(batch=16, T=20), train.importance(history(20))
    t = torch.cat([train.sample_timesteps(config, step, p) for step in range(2000)])
    share = (t - 1).bincount(minlength=20).double() / len(t)
    assert_close(share, p, rtol=0.05, atol=0)
    g = torch.linspace(3, -1, 20).exp().double()                    # large where p is small
    assert_close((g / (20 * p))[t - 1].mean(), g.mean(), rtol=0.01, atol=0)
    assert abs(g[t - 1].mean() / g.mean() - 1) > 0.3                # without the weights it would not be


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_weighted(accumulate):
    run, pixels, labels = started(sampling="importance", clip=math.inf, accumulate=accumulate)
    with torch.no_grad():
        run.weights["last.weight"].normal_(generator=torch.Generator().manual_seed(0))
    run.history.copy_(history(20))
    p = train.importance(run.history)
    t, y = train.sample_timesteps(run.config, 1, p), train.hide_labels(run.config, 1, labels, 10)
    eps = noise.normal(noise.image_seeds(0, torch.arange(8)), 1, (1, 8, 8), noise.TRAIN)
    losses = train.objective(run.config, run.schedule, lambda xt, t: run.unet(xt, t, y), data.to_unit(pixels), t,
                             eps)["loss"]
    expected = torch.autograd.grad((losses / (20 * p[t - 1])).mean(), run.weights["last.weight"])[0]
    train.update(run, train.trained_model(run), 1, pixels, labels)
    [record] = run.progress.records
    assert_close(run.weights["last.weight"].grad, expected.float(), rtol=1e-4, atol=1e-6)
    assert_close(record[:, 0].sum(), (1 / (20 * p[t - 1])).sum(), rtol=1e-6, atol=0)
    assert run.history[t[0] - 1, -1] == pytest.approx(losses[0].item(), rel=1e-4)


# Times that are chosen by their noise

@pytest.mark.parametrize("sampling, mean, deviation", [("lognormal", -1.2, 1.2), ("logit-normal", 0., 1.)])
@pytest.mark.parametrize("schedule", ddpm.SCHEDULES)
def test_log_sigma_is_normal(schedule, sampling, mean, deviation):
    """By its moments, also of the times that are drawn, which come without weights."""
    run, pixels, labels = started(T=1000, batch=64, schedule=schedule, sampling=sampling)
    level = ddpm.log_sigma(run.schedule.alpha_bar[1:]).clamp(max=20)                   # infinite at the end of flow
    assert run.p.sum() == pytest.approx(1, abs=1e-12) and run.p.min() >= 0
    assert (run.p * level).sum() == pytest.approx(mean, abs=0.005)
    assert (run.p * (level - mean)**2).sum().sqrt() == pytest.approx(deviation, abs=0.01)
    drawn = torch.cat([level[train.sample_timesteps(run.config, step, run.p) - 1] for step in range(200)])
    assert drawn.mean() == pytest.approx(mean, abs=0.02) and drawn.std() == pytest.approx(deviation, abs=0.02)
    train.update(run, train.trained_model(run), 1, pixels, labels)
    assert run.progress.records[0][:, 0].sum() == 64


def test_zero_snr_leaves_no_signal(tmp_path, refused):
    """And where nothing is left, a network that predicts eps could not say what x0 is."""
    run(tmp_path, "--steps", "2", "--zero_snr")
    beta = checkpoint.load(tmp_path).beta
    assert beta[-1] == 1 and (beta[:-1] < 0.99).all()
    sample.main(["--checkpoint", str(tmp_path), "--n", "2", "--steps", "4", "--out", str(tmp_path / "out")])
    assert "use target v" in refused(train.main, [*QUICK, "--zero_snr", "--target", "eps", "--out", "x"])


# What the log says

@pytest.mark.parametrize("loss, channels, names", [
    ("l2", 1, {"loss"}), ("hybrid", 2, {"loss", "simple", "bound"}), ("bound", 2, {"loss"})])
def test_the_log_has_the_losses_and_their_quarters(tmp_path, loss, channels, names):
    run(tmp_path, "--steps", "4", "--loss", loss, "--target", "eps")
    *lines, grid = folder.read_log(tmp_path)
    assert checkpoint.load(tmp_path / "last.safetensors").network.out_channels == channels
    for line in lines:
        assert {*line} & set(folder.PARTS) == names and len(line["quarters"]) == 4
        assert line["loss"] == pytest.approx(sum(line["quarters"]) / 4)             # 8 pictures, 2 a quarter
        if loss == "hybrid":
            assert line["loss"] == pytest.approx(line["simple"] + line["bound"])


def test_records_are_weighted_means_by_quarter():
    t, weights = torch.tensor([1, 2, 3, 8]), torch.tensor([1., 3., 2., 2.])
    losses = torch.tensor([[4., 8., 1., 3.]])
    line = folder.mean_losses([folder.loss_record(8, t, weights, losses)] * 2)
    assert line == {"loss": 4.5, "quarters": [7., 1., None, 3.]}


def test_bound_only_is_the_bound():
    run, _, _ = started(T=5, batch=4, loss="bound", target="eps", null=1.)
    x0, t = data.to_unit(run.dataset.images[:5]), torch.arange(1, 6)
    eps = noise.normal(noise.image_seeds(0, t), 0, (1, 8, 8))
    terms = ddpm.bound_terms(run.schedule, run.unet, x0, t, eps, target="eps", variance="learned", clip=False)
    assert_close(train.objective(run.config, run.schedule, run.unet, x0, t, eps), {"loss": 5 * terms})
    assert terms.min() > 0


def test_a_colour_cast_is_seen():
    mean, std = torch.tensor([0., 1., -1.]), torch.tensor([1., 2., 3.])
    tint = pictures.channel_statistics("samples", torch.randn(50, 3, 8, 8) * std.view(3, 1, 1) + mean.view(3, 1, 1))
    assert_close(torch.tensor(tint["samples_mean"]), mean, rtol=0, atol=0.2)
    assert_close(torch.tensor(tint["samples_std"]), std, rtol=0.1, atol=0)


def test_the_gradient_is_clipped():
    run, *batch = started(clip=1e-3)
    norm = train.update(run, train.trained_model(run), 1, *batch)
    left = torch.stack([w.grad.norm() for w in run.weights.values() if w.grad is not None]).norm()
    assert norm > 0.01 and left.item() == pytest.approx(1e-3, rel=1e-2)


# Recipes

@pytest.mark.parametrize("name", train.PRESETS)
def test_every_preset_can_work_and_is_its_own_run(name, tmp_path, capsys):
    config = train.PRESETS[name]
    train.check(config)
    C, size = (1, 32) if name == "mnist32" else (3, int(config.size or 32))
    pictures = data.Data("x", torch.zeros(2, C, size, size, dtype=torch.uint8), None, (), (C, size, size))
    assert train.network_for(config, pictures).out_channels == (2 * C if config.loss in train.LEARNED else C)
    assert config.out == f"runs/{name}"


@pytest.mark.parametrize("name, recipe", [
    ("cars64", "network=cars64 T=300 batch=128 lr=0.001 size=64 flip=True loss=l2 schedule=linear target=eps"),
    ("mnist32", "network=mnist32 T=1000 batch=64 lr=2e-05 steps=70275 size=32 fit=pad ema=0.9999 schedule=linear"),
    ("folder128", "network=folder128 T=1000 size=128 loss=l1 batch=16 accumulate=2 lr=8e-05 steps=10000 dtype=float32 "
     "sample_every=1000"),
    ("cifar10", "network=cifar10 T=1000 batch=128 lr=0.0002 ema=0.9999 clip=1.0 steps=800000 flip=True "
     "schedule=linear"),
    ("improved-cifar10", "network=improved-cifar10 T=4000 schedule=cosine loss=hybrid lr=0.0001 batch=128 "
     "sampling=stratified"),
    ("improved-cifar10-bound", "network=improved-cifar10 T=4000 schedule=cosine loss=bound sampling=importance"),
    ("imagenet64", "network=imagenet64 T=4000 schedule=cosine batch=129 accumulate=3 lr=0.0002 loss=hybrid "
     "save_every=10000"),
    ("imagenet64-guided", "network=imagenet64 T=1000 null=0.2 lr=0.0003 batch=1024 steps=600000 loss=hybrid")])
def test_presets_are_the_recipes_of_their_sources(name, recipe):
    settings = vars(train.PRESETS[name])
    assert {part: str(settings[part.split("=")[0]]) for part in recipe.split()} == {
        part: part.split("=")[1] for part in recipe.split()}


def test_a_preset_is_printed_and_flags_change_it(tmp_path, capsys):
    run(tmp_path, "--preset", "folder128", "--data", "digits", "--size", "8", "--network", "digits", "--steps", "2")
    said = capsys.readouterr().out
    assert "preset folder128:" in said and "--loss l1" in said and "--batch 8" in said
    assert checkpoint.load(tmp_path / "last.safetensors").settings["lr"] == 8e-5


def test_labels_are_hidden_as_often_as_asked():
    config = Config(batch=1000, null=0.1)
    labels = train.hide_labels(config, 1, torch.arange(1000) % 10, 10)
    assert 70 < (labels == 10).sum() < 130
    assert_close(labels[labels != 10], (torch.arange(1000) % 10)[labels != 10])


def test_average_is_ramped_and_takes_weights_alone():
    """And stays where an update failed."""
    weights, ema = {"w": torch.tensor([1.], requires_grad=True)}, {"w": torch.tensor([0.])}
    train.update_average(ema, weights, 0.9, 0, torch.tensor(False))
    assert_close(ema["w"], torch.tensor([0.]), rtol=0, atol=0)
    train.update_average(ema, weights, decay=0.9, k=0)
    assert_close(ema["w"], torch.tensor([0.9]))                     # 1 - (1 + 0)/(10 + 0)
    train.update_average(ema, weights, 0.9, 10**6, torch.tensor(True))
    assert_close(ema["w"], torch.tensor([0.91]))
    run, _, _ = started()
    assert run.ema.keys() == {name for name, _ in run.unet.named_parameters()}


def test_failures_are_counted_in_a_row_and_too_many_are_not_forgotten():
    """A GPU is asked late, when another step may have followed."""
    progress, counts = Progress(), []
    for step, finite in enumerate([True, False, False, True, *[False] * PATIENCE, True], 1):
        progress.count(step, torch.tensor(finite), torch.full((4, 2), step if finite else math.nan))
        counts.append(int(progress.failures))
    assert counts == [0, 1, 2, 0, *range(1, PATIENCE + 1), PATIENCE + 1] and progress.step == len(counts)
    assert [record[0, 0] for record in progress.records] == [1, 0, 0, 4, *[0] * PATIENCE, len(counts)]
    with pytest.raises(ValueError, match=f"{PATIENCE} steps in a row, seen at step {len(counts)}; lower --lr"):
        progress.check_failures()


def test_adam_has_betas_0_9_and_0_99():
    """Kingma & Ba 2014, algorithm 1, three updates in float64."""
    run, *batch = started(optimizer="adam", lr=1e-3, warmup=0, final=1., clip=math.inf, T=4)
    model, name = train.trained_model(run), "last.bias"
    expected, m, v = run.weights[name].detach().double(), 0, 0
    for k in (1, 2, 3):
        train.update(run, model, k, *batch)
        g = run.weights[name].grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        expected = expected - 1e-3 * (m / (1 - 0.9**k)) / ((v / (1 - 0.99**k)).sqrt() + 1e-8)
        assert_close(run.weights[name].detach().double(), expected, rtol=1e-5, atol=1e-9)


def test_a_run_is_a_function_of_its_seed(tmp_path, monkeypatch):
    """Weights, order, mirrored pictures, times, noise, hidden labels, dropout; not of where torch's generator is."""
    monkeypatch.setitem(train.CONFIGS, "dropout", replace(train.CONFIGS["digits"], dropout=0.5))
    ends = []
    for seed, state in (("7", 1), ("7", 2), ("8", 1)):
        torch.manual_seed(state)
        out = tmp_path / f"{seed} {state}"
        run(out, "--steps", "3", "--seed", seed, "--network", "dropout", "--flip", "--null", "0.5")
        ends.append(torch.cat([w.flatten() for w in weights(out).values()]))
    assert torch.equal(ends[0], ends[1]) and (ends[0] - ends[2]).norm() > 0.1 * ends[0].norm()


def test_learning_rate_rises_and_falls():
    config = Config(warmup=100, lr=1., final=0.1)
    assert_close(train.learning_rate(config, 50, 1000), 0.5 * (0.1 + 0.9 * (1 + math.cos(0.05 * math.pi)) / 2))
    assert_close(train.learning_rate(config, 1000, 1000), 0.1)
    assert_close(train.learning_rate(replace(config, final=1.), 700, 1000), 1.)


def timed(out, seconds, pace):
    """Trains for so many seconds of a clock by which each step takes `pace`; the rate of every step there is."""
    config = Config(minutes=seconds / 60, warmup=0, batch=2, T=20, log_every=1, out=str(out))
    train.train(train.prepare(config, lambda: None), clock=(pace * tick for tick in range(100)).__next__)
    return [line["lr"] for line in folder.read_log(out) if "lr" in line]


def test_minutes_end_a_run_when_its_rate_has_fallen(tmp_path, capsys):
    """It may be resumed, also with more minutes, and be slower then."""
    config = Config(warmup=0)
    assert timed(tmp_path, 3, pace=1)[1:] == pytest.approx([train.learning_rate(config, step, 3) for step in (2, 3)])
    assert "warning: the learning rate goes" not in capsys.readouterr().out
    last = checkpoint.load(tmp_path)
    assert (last.step, last.seconds) == (3, 3)
    rates = timed(tmp_path, 10, pace=2)                             # ends of steps: 5, 7, 9, 11 seconds
    assert "at step 3 of about 10\nwarning: the learning rate goes from 5e-05 to 0.0033, as" in capsys.readouterr().out
    steps = [10, round(4 * 10 / 5), round(5 * 10 / 7), round(6 * 10 / 9)]
    assert rates[3:] == pytest.approx([train.learning_rate(config, k, n) for k, n in enumerate(steps, 4)])
    assert checkpoint.load(tmp_path).step == 7 and rates[-1] < config.lr / 50
    assert timed(tmp_path, 10, pace=1) == rates
    assert "at step 7 of about 7; nothing is left to do, ask for more --minutes" in capsys.readouterr().out


@pytest.mark.parametrize("flags, says", [
    ("--data mnst", "no data set 'mnst'"), ("--network vgg", "network is 'vgg'"), ("--target y", "target is 'y'"),
    ("--loss huber", "loss is 'huber'"), ("--sampling even", "sampling is 'even'"),
    ("--schedule flat", "schedule is 'flat'"), ("--T 0", "T is 0"), ("--batch 0", "batch is 0"),
    ("--accumulate 9", "accumulate is 9"), ("--lr -1", "lr is -1"), ("--lr nan", "lr is nan"),
    ("--minutes -1", "minutes is -1"), ("--optimizer sgd", "optimizer is 'sgd'"), ("--null 2", "null is 2"),
    ("--seed -2", "seed is -2"), ("--seed 2147483648", "seed is 2147483648"),
    ("--dtype fp8", "dtype is 'fp8'"), ("--device tpu", "device is 'tpu'"), ("--steps -5", "steps is -5"),
    ("--size 9x8", "9 x 8 pixels do not halve"), ("--workers -1", "workers is -1"),
    ("--T 1 --loss hybrid", "T is 1; it must be between 2 and"),
    ("--T 1 --loss bound", "T is 1; it must be between 2 and"),
    ("--T 100000 --schedule linear", "linear and T = 100000 is 0 before T; use a smaller T")])
def test_bad_flags_are_one_sentence_and_exit_2(tmp_path, refused, flags, says):
    error = refused(train.main, [*QUICK, "--out", str(tmp_path), *flags.split()])
    assert says in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
