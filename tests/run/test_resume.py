"""run/resume.py: what is resumed, what is refused, and that nothing saved is lost by either."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import convert
import data
import ddpm
import published
import train
from run import checkpoint, folder, resume, state, tensors
from tests.helpers import same_run

FLAGS = ["--T", "20", "--batch", "8", "--warmup", "2", "--final", "1", "--log_every", "3", "--sample_every", "100",
         "--save_every", "1"]                       # a learning rate that does not depend on the number of steps


def resumed(out, *flags, steps=4):
    train.main([*FLAGS, *flags, "--steps", str(steps), "--out", str(out)])


@pytest.fixture(scope="module", autouse=True)
def unplotted():
    """Curves and grids take longer than these runs, and are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "plot_log", lambda out: (out / "loss.png").touch())
        patch.setattr(state, "score_samples", lambda run: {})
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three steps, in folders named after how their t are sampled."""
    base = tmp_path_factory.mktemp("runs")
    for sampling in ("stratified", "importance"):
        resumed(base / sampling, "--sampling", sampling, steps=3)
    return base


@pytest.fixture
def both(runs, tmp_path):
    """A copy of the first run, which has two checkpoints."""
    return Path(shutil.copytree(runs / "stratified", tmp_path / "run"))


@pytest.fixture
def out(both):
    """The same without its previous checkpoint."""
    (both / "previous.safetensors").unlink()
    return both


def rewrite(path, change):
    """Changes the checkpoint's tensors and facts as another program could; returns the file's bytes."""
    content, facts = tensors.load(path)
    change(content, facts)
    tensors.save(path, content, facts)
    return path.read_bytes()


WRONG = {
    "shape of a moment": lambda content, facts: content.update({"exp_avg.first.bias": torch.zeros(3)}),
    "flat": lambda content, facts: content.update({"exp_avg.first.weight": content["exp_avg.first.weight"].flatten()}),
    "a moment less": lambda content, facts: content.pop("exp_avg.first.bias"),
    "average less": lambda content, facts: content.pop("ema.first.bias"),
    "minutes": lambda content, facts: facts["settings"].update(minutes="x"),
    "other setting": lambda content, facts: facts["settings"].update(ema=1.),
    "classes": lambda content, facts: facts["data"].update(classes=["a"]),
    "pixels": lambda content, facts: facts["data"].update(shape=[1, 8, 16]),
    "network": lambda content, facts: facts["network"].update(dropout=0.5)}


@pytest.mark.parametrize("name", WRONG)
def test_a_checkpoint_that_cannot_be_resumed_is_a_sentence_and_kept(out, refused, name):
    """Moments of another shape made fused Adam corrupt the memory."""
    before = rewrite(out / "last.safetensors", WRONG[name])
    log = (out / "log.jsonl").read_bytes()
    error = refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert "last.safetensors" in error and error.strip().count("\n") == 0, error
    assert (out / "last.safetensors").read_bytes() == before and (out / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("name", ["minutes", "workers", "batch"])
def test_text_where_a_number_should_be_is_a_sentence(out, refused, name):
    rewrite(out / "last.safetensors", lambda content, facts: facts["settings"].update({name: "x"}))
    for flags in ([*FLAGS, "--out", str(out)], ["--resume", str(out)]):
        assert f"last.safetensors was trained with --{name} x" in refused(train.main, [*flags, "--steps", "4"])


def test_a_checkpoint_given_away_is_not_resumed(out, refused):
    path = str(out / "last.safetensors")
    checkpoint.main(["--source", path, "--to", path])
    error = refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert "last.safetensors was given away without its optimizer; choose another --out" in error


def test_a_run_whose_first_updates_failed_resumes_to_the_bit(tmp_path, monkeypatch):
    """Adam has moments then, of 0 updates."""
    objective, failing = train.objective, iter([math.nan] * 4)

    def failing_first(*args):
        return {"loss": objective(*args)["loss"] * next(failing, 1.)}

    monkeypatch.setattr(train, "objective", failing_first)
    resumed(tmp_path / "broken", steps=4)
    assert checkpoint.load(tmp_path / "broken" / "last.safetensors").updates == 0
    resumed(tmp_path / "broken", steps=6)
    failing = iter([math.nan] * 4)
    resumed(tmp_path / "unbroken", steps=6)
    same_run(tmp_path / "broken", tmp_path / "unbroken", log=False)


def test_other_versions_are_said(out, capsys):
    rewrite(out / "last.safetensors", lambda content, facts: facts["versions"].update(torch="1.0.0"))
    resumed(out)
    said = capsys.readouterr().out
    assert f"saved with torch 1.0.0 (now {torch.__version__}); the run resumes, but not to the bit" in said
    resumed(out, steps=5)
    assert "1.0.0" not in capsys.readouterr().out


# The two newest checkpoints

def test_the_last_two_checkpoints_are_kept(out):
    resumed(out, steps=6)
    assert [checkpoint.load(out / name).step for name in ("last.safetensors", "previous.safetensors")] == [6, 5]
    assert {each.name for each in out.iterdir()} == {"last.safetensors", "previous.safetensors", "log.jsonl",
                                                    "loss.png", "samples", "progress.gif"}


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(path.read_bytes()[:1000]), Path.unlink,
    lambda path: rewrite(path, WRONG["shape of a moment"])])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(runs, both, tmp_path, capsys, spoil):
    """And the damaged one never takes its place."""
    out, whole = both, tmp_path / "whole"
    spoil(out / "last.safetensors")
    sound = (out / "previous.safetensors").read_bytes()
    resumed(out, "--save_every", "2", steps=4)
    said = capsys.readouterr().out
    assert "warning: " in said and "last.safetensors" in said
    assert f"resuming {out / 'previous.safetensors'} at step 2" in said
    assert checkpoint.load(out / "last.safetensors").step == 4 and (out / "previous.safetensors").read_bytes() == sound
    shutil.copytree(runs / "stratified", whole)
    resumed(whole, steps=4)
    same_run(out, whole, log=False)
    resumed(out, steps=5)
    assert [checkpoint.load(out / name).step for name in ("last.safetensors", "previous.safetensors")] == [5, 4]


def test_two_damaged_checkpoints_are_refused_and_kept(both, refused):
    out = both
    for name in ("last.safetensors", "previous.safetensors"):
        (out / name).write_bytes(name.encode())
    assert "previous.safetensors: it is damaged" in refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    (out / "last.safetensors").unlink()
    assert "previous.safetensors: it is damaged" in refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert (out / "previous.safetensors").read_bytes() == b"previous.safetensors"


def test_another_run_s_checkpoint_is_refused_not_fallen_back_from(both, refused):
    before = (both / "last.safetensors").read_bytes()
    flags = [*FLAGS, "--ema", "0.9", "--target", "eps", "--steps", "4", "--out", str(both)]
    assert "--target v --ema 0.995" in refused(train.main, flags)
    assert (both / "last.safetensors").read_bytes() == before


# What may change, and is told

@pytest.mark.parametrize("before, after, told", [
    # lr .005, final .01: .005 * .01, then .005 * (.01 + .99 (1 + cos(5 pi / 40)) / 2)
    ("--steps 4", "--steps 40 --save_every 40", "from 5e-05 to 0.0048, --steps 4"),
    ("--steps 4 --final 1", "--steps 5 --final 1 --lr 1e-3", "from 0.005 to 0.001, --steps 4 --lr 0.005"),
    ("--steps 4 --final 1 --warmup 8", "--steps 5 --final 1", "from 0.0025 to 0.005, --steps 4 --warmup 8"),
    ("--steps 4 --final 1", "--steps 6 --final 1", ""), ("--steps 4", "--steps 3", ""), ("--steps 4", "--steps 4", "")])
def test_a_jump_of_the_learning_rate_is_told_with_both_values(tmp_path, capsys, before, after, told):
    flags = [*FLAGS[:6], "--log_every", "1", "--sample_every", "100", "--out", str(tmp_path)]
    train.main([*flags, *before.split()])
    capsys.readouterr()
    train.main([*flags, *after.split()])
    said = capsys.readouterr().out
    assert f"at step 4 of {after.split()[1]}" in said
    assert [line for line in said.splitlines() if "learning rate goes" in line] == (
        [f"warning: the learning rate goes {told.replace(',', ', as the run had')}"] if told else [])
    if told:
        rates = [f"{line['lr']:.2g}" for line in folder.read_log(tmp_path) if "lr" in line]
        assert rates[3:5] == [told.split()[1], told.split()[3].rstrip(",")]


def test_after_nan_the_advice_works(tmp_path, monkeypatch, refused):
    objective = train.objective
    resumed(tmp_path, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(train, "objective", lambda *args: {"loss": objective(*args)["loss"] * math.nan})
        said = refused(train.main, [*FLAGS, "--steps", "20", "--out", str(tmp_path)])
    assert "lower --lr, also of a run that is resumed" in said
    resumed(tmp_path, "--lr", "1e-3", steps=8)                                  # after 4 steps that changed nothing
    last = checkpoint.load(tmp_path)
    assert (last.step, last.updates, last.settings["lr"]) == (8, 4, 1e-3)


def test_accumulation_may_change_as_it_is_rounding_alone(tmp_path):
    for name, flags in (("same", []), ("parts", ["--accumulate", "2"])):
        resumed(tmp_path / name, steps=2)
        resumed(tmp_path / name, *flags)
    assert_close(*(checkpoint.load(tmp_path / name).weights for name in ("parts", "same")), rtol=1e-3, atol=1e-4)


def test_resume_goes_on_with_the_run_s_own_settings(tmp_path, capsys, refused):
    """In a folder that was moved, too; what may change may be typed beside it."""
    flags = ["--target", "eps", "--ema", "0.9", "--size", "8x8", "--seed", "-1", "--accept_changes"]
    resumed(tmp_path / "old", *flags, steps=4)
    (tmp_path / "old").rename(tmp_path / "new")
    own = checkpoint.load(tmp_path / "new").settings
    train.main(["--resume", str(tmp_path / "new"), "--steps", "6"])
    moved = {"out": str(tmp_path / "new"), "resume": str(tmp_path / "new"), "steps": 6, "accept_changes": False}
    last = checkpoint.load(tmp_path / "new")
    assert last.step == 6 and last.settings == own | moved and own["seed"] >= 0
    train.main(["--resume", str(tmp_path / "new" / "last.safetensors"), "--steps", "7"])
    assert checkpoint.load(tmp_path / "new").step == 7
    for flags, says in {("--ema", "0.5"): "was trained with --ema 0.9; repeat",
                        ("--preset", "cifar10"): "leave --preset out",
                        ("--out", str(tmp_path / "other")): "goes on in its own folder"}.items():
        assert says in refused(train.main, ["--resume", str(tmp_path / "new"), *flags])
    assert "no checkpoint" in refused(train.main, ["--resume", str(tmp_path / "none")])
    capsys.readouterr()
    train.main(["--resume", str(tmp_path / "new"), "--steps", "3"])
    assert "at step 7 of 3; nothing is left to do, ask for more --steps\n" in capsys.readouterr().out
    assert not (tmp_path / "other").exists() and not (tmp_path / "none").exists()


def test_resume_falls_back_on_the_previous_checkpoint(runs, tmp_path):
    shutil.copytree(runs / "stratified", tmp_path / "run")
    (tmp_path / "run" / "last.safetensors").write_bytes(b"half")
    train.main(["--resume", str(tmp_path / "run"), "--steps", "4"])
    assert checkpoint.load(tmp_path / "run").step == 4


# The weights of another model

def test_a_run_begins_with_the_weights_and_average_of_another(tmp_path, capsys, monkeypatch):
    """And its network, target and schedule; the average is not ramped again."""
    resumed(tmp_path / "first", "--target", "eps", "--schedule", "linear", "--T", "30", steps=3)
    first, began = checkpoint.load(tmp_path / "first"), []
    monkeypatch.setattr(train, "train", lambda run, train=train.train: (
        began.append([{k: w.clone() for k, w in part.items()} for part in (run.weights, run.ema)]), train(run)))
    init = ["--init", str(tmp_path / "first"), "--batch", "8", "--out", str(tmp_path / "second"), "--save_every", "1"]
    train.main([*init, "--steps", "1", "--ema", "0.9"])
    assert_close(began[0], [first.weights, first.ema], rtol=0, atol=0)
    second = checkpoint.load(tmp_path / "second")
    assert second.step == second.updates == 1 and second.network == first.network
    assert [second.settings[name] for name in ("target", "schedule", "T")] == ["eps", "linear", 30]
    assert_close(second.ema, {k: 0.9 * first.ema[k] + 0.1 * w for k, w in second.weights.items()}, rtol=1e-5, atol=1e-6)
    assert f"starting from {tmp_path / 'first'}\n" in capsys.readouterr().out
    train.main([*init, "--steps", "2", "--ema", "0.9"])
    assert_close(began[1][0], second.weights, rtol=0, atol=0)
    train.main(["--resume", str(tmp_path / "second"), "--steps", "3"])
    assert checkpoint.load(tmp_path / "second").step == 3


@pytest.mark.parametrize("average", [False, True])
def test_a_model_that_was_given_away_or_published_begins_a_run(tmp_path, average, monkeypatch):
    resumed(tmp_path / "first", "--null", "1", steps=3)
    source = str(tmp_path / "given.safetensors")
    checkpoint.main(["--source", str(tmp_path / "first"), "--to", source, *["--average"] * average])
    if average:
        convert.main(["--source", source, "--to", str(tmp_path / "diffusers")])
        source = str(tmp_path / "diffusers")
    model, began = published.read(source), []
    monkeypatch.setattr(train, "train", lambda run: began.append(run))
    train.main(["--init", source, "--out", str(tmp_path / "second"), "--batch", "8", "--null", "1"])
    assert_close(dict(began[0].weights), dict(model.weights or model.ema), rtol=0, atol=0)
    assert_close(dict(began[0].ema), dict(model.ema), rtol=0, atol=0)
    assert began[0].config.T == 20 and began[0].config.schedule == "cosine" and began[0].unet.config == model.network


def test_a_learned_variance_and_any_schedule_are_taken_over(tmp_path, monkeypatch):
    for name, make in ddpm.SCHEDULES.items():
        assert {resume.schedule_name(make(T).beta[1:].float()) for T in (20, 1000)} == {(name, False)}
        rescaled = {resume.schedule_name(ddpm.rescale_zero_snr(make(T)).beta[1:].float()) for T in (20, 1000)}
        assert rescaled == {(name, name != "flow")}                             # whose signal is 0 at T anyway
    with pytest.raises(ValueError, match="schedule of 3 steps, beta 0.1 to 0.3, is none of linear"):
        resume.schedule_name(torch.tensor([.1, .2, .3]))
    resumed(tmp_path / "first", "--loss", "hybrid", "--schedule", "sigmoid", "--T", "12", steps=1)
    began = []
    monkeypatch.setattr(train, "train", lambda run: began.append(run.config))
    train.main(["--init", str(tmp_path / "first"), "--preset", "folder128", "--out", str(tmp_path / "second"),
                "--data", "digits", "--size", "8"])
    assert [getattr(began[0], name) for name in ("loss", "schedule", "T", "target", "lr")] == [
        "hybrid", "sigmoid", 12, "v", 8e-5]


def test_classes_are_matched_by_name_and_new_ones_begin_anew(tmp_path, capsys, monkeypatch):
    for k, name in enumerate(("cat", "dog", "ant", "cat")):
        pictures(tmp_path / "ab"[k // 2] / name)
    resumed(tmp_path / "first", "--data", str(tmp_path / "a"), steps=2)
    table, began = checkpoint.load(tmp_path / "first").ema["classes.weight"], []
    monkeypatch.setattr(train, "train", lambda run: began.append(run.ema["classes.weight"]))
    train.main(["--init", str(tmp_path / "first"), "--data", str(tmp_path / "b"), "--out", str(tmp_path / "second"),
                "--seed", "1"])
    assert_close(began[0][[1, 2]], table[[0, 2]], rtol=0, atol=0)               # cat, and no label
    assert (began[0][:1] != table[:2]).all()
    assert "first, to which 1 of the classes are new: ant, ..." in capsys.readouterr().out


def test_a_model_that_does_not_fit_is_a_sentence(tmp_path, refused):
    resumed(tmp_path / "first", steps=2)
    pictures(tmp_path / "colour", mode="RGB")
    init = ["--steps", "1", "--init", str(tmp_path / "first")]
    for flags, says in {
            "--target eps": "predicts v of 20 steps of the schedule cosine; leave out --target",
            "--T 30": "leave out --target", "--schedule linear": "leave out --target",
            "--network fashion": "the network of", "--loss hybrid": "has out_channels 1 (here 2)",
            f"--data {tmp_path / 'colour'} --channels 3": "in_channels 1 (here 3), out_channels 1 (here 3)"}.items():
        out = tmp_path / "second"
        assert says in refused(train.main, [*init, "--out", str(out), *flags.split()])
        assert not out.exists() or not list(out.iterdir())
    assert "no file or folder" in refused(train.main, ["--init", str(tmp_path / "none"), "--out", str(out)])


# The data

def test_the_digest_decides_wherever_the_data_lie(tmp_path, monkeypatch):
    for lazy in (False, True):
        monkeypatch.setattr(data.sets, "IN_MEMORY", 0 if lazy else 2**30)
        here, out = tmp_path / f"store{lazy}", tmp_path / f"run{lazy}"
        pictures(here / "a")
        resumed(out, "--data", str(here), "--size", "8", steps=1)
        resumed(out, "--data", f"{here}/", "--size", "8x8", steps=2)
        moved = here.rename(tmp_path / f"moved{lazy}")
        resumed(out, "--data", str(moved), steps=3)
        assert checkpoint.load(out).step == 3 and checkpoint.load(out).settings["data"] == str(moved)


def pictures(folder, n=6, shade=0, mode="L"):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8), np.uint8)
        image = Image.fromarray(pixels + np.uint8(shade if k == 3 else 0)).convert(mode)
        image.save(folder / f"{k}.png", compress_level=0)


@pytest.mark.parametrize("lazy, change", [
    (False, lambda path: pictures(path, shade=1)), (True, lambda path: pictures(path, n=7)),
    (True, lambda path: (path / "2.png").rename(path / "9.png"))])
def test_changed_data_are_refused_unless_accepted(tmp_path, monkeypatch, refused, capsys, lazy, change):
    if lazy:
        monkeypatch.setattr(data.sets, "IN_MEMORY", 0)
    flags, out = ["--data", str(tmp_path / "pictures")], tmp_path / "run"
    pictures(tmp_path / "pictures")
    resumed(out, *flags, steps=2)
    resumed(out, *flags, steps=3)
    before = (out / "last.safetensors").read_bytes()
    change(tmp_path / "pictures")
    error = refused(train.main, [*FLAGS, *flags, "--steps", "4", "--out", str(out)])
    assert "pictures is not what" in error and "files or pixels differ" in error and "--accept_changes" in error
    assert (out / "last.safetensors").read_bytes() == before
    resumed(out, *flags, "--accept_changes")
    assert "warning: the data set" in capsys.readouterr().out
    resumed(out, *flags, steps=5)                                   # it is the run's data set now
    assert checkpoint.load(out / "last.safetensors").step == 5 and "warning" not in capsys.readouterr().out


def test_a_model_is_tuned_on_pictures_read_as_its_own(tmp_path):
    """Of its size and channels, if no others are asked for."""
    (tmp_path / "colour").mkdir()
    for k in range(3):
        Image.new("RGB", (20 + k, 16), (200, 100, 50)).save(tmp_path / "colour" / f"{k}.png")
    flags = ["--init", "weights/digits.safetensors", "--data", str(tmp_path / "colour"), "--steps", "1", "--batch", "2"]
    train.main([*flags, "--out", str(tmp_path / "tuned")])
    saved = checkpoint.load(tmp_path / "tuned" / "last.safetensors")
    assert saved.data["shape"] == (1, 8, 8) and (saved.settings["size"], saved.settings["channels"]) == ("8x8", 1)
    train.main([*flags, "--size", "16", "--out", str(tmp_path / "larger")])
    assert checkpoint.load(tmp_path / "larger" / "last.safetensors").data["shape"] == (1, 16, 16)
