"""convert.py: published files in and out, and the pictures that they make."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import convert
import ddpm
import evaluate
import sample
import train
from convert import from_diffusers
from run import checkpoint
from scores import classes, classifier
from tests.helpers import same_run
from tests.published.networks import CONFIG, OPENAI, assert_published_output, equal, folder, golden_network

DIGITS = "weights/digits.safetensors"


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("pipeline", [True, False])
def test_folders_and_files(tmp_path, kind, pipeline):
    path = folder(tmp_path / "model", kind, pipeline)
    _, arrays = golden_network("diffusers_unet")
    for source in (path, str(next(path.rglob(f"*.{kind}")))):
        unet, schedule, choice = from_diffusers(source)
        assert_published_output(unet, arrays)
        assert choice["variance"] == "beta" and ddpm.schedule_length(schedule) == 500
    assert from_diffusers(path, scheduler={"num_train_timesteps": 7})[2]["variance"] == "beta_tilde"


def sampled(tmp_path, *flags):
    sample.main([*flags, "--n", "2", "--steps", "3", "--eta", "1", "--npz", "--out", str(tmp_path / "out")])
    with np.load(tmp_path / "out" / "pictures.npz") as file:
        return file["arr_0"]


@pytest.mark.parametrize("source", ["diffusers", "openai"])
def test_convert_and_sample_from_are_the_same_pictures(tmp_path, capsys, source):
    path, to = tmp_path / "model", str(tmp_path / "ours.safetensors")
    if source == "diffusers":
        folder(path, "bin")
    else:
        path = tmp_path / "model.pt"
        torch.save(golden_network("guided_unet_adm")[0], path)
        path.with_suffix(".json").write_text(json.dumps(OPENAI["guided_unet_adm"]))
    convert.main(["--source", str(path), "--to", to])
    assert "pictures of 3 x 16 x 16" in capsys.readouterr().out
    pictures = sampled(tmp_path, "--from", str(path))
    assert pictures.shape == (2, 16, 16, 3) and pictures.std() > 10
    assert (pictures == sampled(tmp_path, "--checkpoint", to)).all()
    assert (pictures == sampled(tmp_path, "--from", to)).all()
    last = checkpoint.load(to)
    default = sample.sampler_table(last, sample.Config(eta=1.))
    explicit = sample.sampler_table(last, sample.Config(eta=1., variance=last.settings["variance"]))
    assert_close(default, explicit, rtol=0, atol=0)
    assert last.settings["variance"] == {"diffusers": "beta", "openai": "learned"}[source]
    unclipped = sample.sampler_table(last._replace(settings={**last.settings, "clip_x0": False}), sample.Config())
    clip = ddpm.COLUMNS.index("clip")
    assert (default[:, clip] == 1).all() and unclipped[:, clip].isinf().all()


def test_published_flags_on_the_command_line(tmp_path, refused):
    torch.save(golden_network("guided_unet_improved")[0], tmp_path / "model.pt")
    flags = " ".join(f"--{name} {value}" for name, value in OPENAI["guided_unet_improved"].items())
    convert.main(["--source", str(tmp_path / "model.pt"), "--to", str(tmp_path / "a.safetensors"), "--flags", flags])
    (tmp_path / "flags.json").write_text(json.dumps(OPENAI["guided_unet_improved"]))
    convert.main(["--source", str(tmp_path / "model.pt"), "--to", str(tmp_path / "b.safetensors"), "--flags",
                  str(tmp_path / "flags.json")])
    for path, wrong, says in ((tmp_path / "model.pt", f"{flags} --use_fp16", "pass the published flags"),
                              (tmp_path / "a.safetensors", flags, "only an OpenAI .pt takes them")):
        assert says in refused(convert.main, ["--source", str(path), "--to", str(tmp_path / "c"), "--flags", wrong])
    one, other = (checkpoint.load(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert one.network == other.network and one.data["shape"] == (3, 16, 16)
    equal(one.ema, other.ema)


def test_our_checkpoint_becomes_a_folder_and_comes_back(tmp_path):
    to, back = str(tmp_path / "ours.safetensors"), str(tmp_path / "back.safetensors")
    convert.main(["--source", str(folder(tmp_path / "model")), "--to", to])
    convert.main(["--source", to, "--to", str(tmp_path / "theirs")])
    convert.main(["--source", str(tmp_path / "theirs"), "--to", back])
    one, other = checkpoint.load(to), checkpoint.load(back)
    assert one.network == other.network and one.settings == other.settings and one.data["shape"] == other.data["shape"]
    equal(one.ema, other.ema)
    assert_close(one.beta, other.beta, rtol=0, atol=0)


def test_digits_become_a_folder_and_keep_all_that_they_can(tmp_path, capsys):
    """Null class, names of classes and what the scores need: the pictures and the table are the same."""
    to, folder = str(tmp_path / "back.safetensors"), str(tmp_path / "theirs")
    convert.main(["--source", DIGITS, "--to", folder])
    assert "its README.md says how to sample from it in diffusers" in capsys.readouterr().out
    convert.main(["--source", folder, "--to", to])
    one, other = checkpoint.load(DIGITS), checkpoint.load(to)
    assert (one.network, one.data, one.step) == (other.network, other.data, other.step)
    assert other.settings == {**one.settings, "variance": "beta_tilde", "clip_x0": True}
    for flags in (["--guidance", "2"], ["--labels", "none"], ["--labels", "7,3"]):
        made, *others = (sampled(tmp_path, *source, *flags) for source in (
            ["--checkpoint", DIGITS], ["--checkpoint", to], ["--from", folder]))
        assert all((made == other).all() for other in others)
    tables = []
    for path in (DIGITS, to):
        capsys.readouterr()
        evaluate.main(["classes", "--checkpoint", path, "--n", "30", "--steps", "2"])
        tables.append(capsys.readouterr().out.replace(path, "").split())
    assert tables[0] == tables[1]


def test_a_null_class_that_only_its_author_knows_can_be_said(tmp_path, refused):
    """A class-conditional UNet2DModel does not tell whether its last row is one."""
    one, other = str(tmp_path / "one.safetensors"), str(tmp_path / "other.safetensors")
    convert.main(["--source", DIGITS, "--to", str(tmp_path / "theirs")])
    path = tmp_path / "theirs" / "unet" / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name[1:] != "minimal_diffusion"}
    path.write_text(json.dumps(config))
    convert.main(["--source", str(tmp_path / "theirs"), "--to", one])
    guided = ["--guidance", "2", "--labels", "7"]
    assert "has no null class" in refused(sample.main, ["--checkpoint", one, *guided, "--out", str(tmp_path / "out")])
    checkpoint.main(["--source", one, "--to", other, "--classes", "0,1,2,3,4,5,6,7,8,9"])
    named, digits = (sampled(tmp_path, "--checkpoint", path, *guided) for path in (other, DIGITS))
    assert (named == digits).all()


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_the_readme_of_a_folder_samples_the_classes_in_diffusers(tmp_path, name):
    """With labels, and of the network of Fashion-MNIST with the patch unfolded."""
    pytest.importorskip("diffusers")
    convert.main(["--source", f"weights/{name}.safetensors", "--to", str(tmp_path / "theirs")])
    text = (tmp_path / "theirs" / "README.md").read_text()
    here = {}
    torch.manual_seed(0)
    exec("\n".join(line[4:] for line in text.splitlines() if line.startswith("    ")), here)
    x0, side = here["x0"], {"digits": 8, "fashion": 28}[name]
    assert x0.shape == (10, 1, side, side) and [image.size for image in here["images"]] == [(side, side)] * 10
    weights = classifier.load(classifier.FILES[{"fashion": "fashion-mnist"}.get(name, name)]).weights
    assert classes.agreement(weights, classes.features(weights, x0), here["labels"]) > 0.75
    assert f"- 9: {'boot' if name == 'fashion' else 9}\n- 10: no label\n" in text
    assert f"pictures: 1 x {side} x {side}\n- training: {'20' if name == 'fashion' else '3'},000 steps" in text
    assert text.startswith("---\nlibrary_name: diffusers\ntags: [diffusion, class-conditional]\n---\n")
    assert f"- ema: {checkpoint.load(f'weights/{name}.safetensors').settings['ema']}\n" in text and "/usr" not in text


def test_a_run_s_folder_is_its_checkpoint(tmp_path):
    train.main(["--T", "5", "--batch", "2", "--steps", "1", "--out", str(tmp_path / "run")])
    convert.main(["--source", str(tmp_path / "run"), "--to", str(tmp_path / "x.safetensors")])
    assert checkpoint.load(tmp_path / "x.safetensors").step == 1


# Checkpoints of this project from before safetensors

def write_pickled(path, saved):
    """The .pt that this project wrote then, when all was trained with Adam."""
    adam = {k: {"step": torch.tensor(float(saved.updates)), "exp_avg": saved.exp_avg[name],
                "exp_avg_sq": saved.exp_avg_sq[name]} for k, name in enumerate(saved.exp_avg)}
    shared = {name: getattr(saved, name) for name in ("weights", "ema", "step", "beta", "settings", "data", "versions")}
    del shared["settings"]["optimizer"]
    torch.save({"format": "minimal-diffusion 1", "network": asdict(saved.network), **shared, "history": saved.history,
                "losses": saved.losses, "optimizer": {"state": adam, "param_groups": [{}]} if adam else {}}, path)


def test_a_run_from_before_safetensors_is_converted_and_resumes_to_the_bit(tmp_path, refused):
    flags = ["--T", "20", "--batch", "8", "--final", "1", "--log_every", "5", "--sampling", "importance", "--optimizer",
             "adam", "--out"]
    for name, steps in {"cut": "3", "whole": "6"}.items():
        train.main([*flags, str(tmp_path / name), "--steps", steps])
    new, old = tmp_path / "cut" / "last.safetensors", tmp_path / "cut" / "last.pt"
    write_pickled(old, checkpoint.load(new))
    new.unlink()
    command = f"convert it with: python convert.py --source {old} --to {new}\n"
    assert command in refused(train.main, [*flags, str(tmp_path / "cut"), "--steps", "6"])
    for path in (old, new):
        assert command in refused(sample.main, ["--checkpoint", str(path), "--out", str(tmp_path / "out")])
    convert.main(["--source", str(old), "--to", str(new)])
    train.main(["--resume", str(tmp_path / "cut"), "--steps", "6"])
    same_run(tmp_path / "cut", tmp_path / "whole", log=False)


@pytest.mark.parametrize("source, message", [
    ("nowhere", "no file or folder nowhere"), ("runs/last.pt", "no file or folder runs/last.pt"),
    ("empty", "contains no"),
    ("weights.pt", "weights.pt has no network of diffusers or OpenAI; its weights are named a"),
    ("sizeless", "add sample_size"), ("torn", "cannot read torn/unet/config.json: ")])
def test_unusable_sources_are_one_sentence_and_exit_2(tmp_path, capsys, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    torch.save({"a": torch.zeros(2)}, "weights.pt")
    folder(tmp_path / "sizeless", "bin"), folder(tmp_path / "torn", "bin")
    Path("sizeless/unet/config.json").write_text(json.dumps({**CONFIG, "sample_size": None}))
    Path("torn/unet/config.json").write_text("{")
    for main, flag in ((convert.main, "--source"), (sample.main, "--from")):
        with pytest.raises(SystemExit) as stop:
            main([flag, source])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1
