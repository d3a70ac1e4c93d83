"""Files, settings and hubs that are damaged or mean harm: one sentence each, and nothing is run or written."""

import json
import pickle
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import convert
import ddpm
import published
import published.files
from convert import from_diffusers
from tests.helpers import Trap
from tests.published.networks import OPENAI, assert_published_output, folder, golden_network


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(Trap(), 2), "evil", "list", "cut"],
                         ids=["empty", "text", "pickle", "evil", "list", "cut"])
def test_files_that_are_no_weights_are_refused_and_never_run(tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    else:
        torch.save({"evil": {"a": Trap()}, "list": [torch.zeros(2)], "cut": {"a": torch.zeros(9)}}[content], name)
    if content == "cut":
        Path(name).write_bytes(Path(name).read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"cannot read {name}: "):
        published.read(name)
    assert not Path("trap-was-here").exists()


# Where the parts of a model lie

@pytest.mark.parametrize("source", [
    ".", "unet", "unet_ema", "checkpoint-500", "checkpoint-500/unet", "checkpoint-500/unet_ema", "checkpoint-9",
    "checkpoint-500/unet_ema/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_every_part_of_a_training_run_has_the_run_s_scheduler(tmp_path, monkeypatch, capsys, source):
    run = folder(tmp_path / "run")
    for place in ("unet_ema", "checkpoint-500/unet", "checkpoint-500/unet_ema", "checkpoint-9/unet_ema"):
        shutil.copytree(run / "unet", run / place)
    (run / "scheduler" / "scheduler_config.json").write_text(json.dumps({
        "num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction",
        "clip_sample": False, "variance_type": "fixed_large"}))
    for here, name in ((run, source), (run.parent, f"run/{source}"), (run / source, ".")):
        if here.is_dir():
            monkeypatch.chdir(here)
            saved = published.read(name)
            assert (saved.settings["target"], saved.variance, saved.clip) == ("v", "beta", False)
            assert_close(saved.beta, ddpm.cosine_schedule(500).beta[1:], rtol=0, atol=0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (3 if source in (".", "checkpoint-500") else 0)           # where there are two to choose from
    assert all(re.fullmatch(r"note: taking (.*)unet; the averaged weights are in \1unet_ema", line) for line in said)


def test_a_model_of_latents_is_refused(tmp_path):
    path = folder(tmp_path / "model")
    (path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"], "vqvae": []}))
    for source in (path, path / "unet"):
        with pytest.raises(ValueError, match="is part of a pipeline with a vqvae: it makes latents, not pictures"):
            published.read(str(source))


def test_a_scheduler_that_is_assumed_is_said_in_one_line(tmp_path, capsys):
    path = folder(tmp_path / "model", pipeline=False)
    (path / "scheduler_config.json").unlink()
    saved = published.read(str(path))
    assert_close(saved.beta, ddpm.linear_schedule(1000).beta[1:], rtol=0, atol=0)
    assert (saved.settings["target"], saved.variance, saved.clip) == ("eps", "beta_tilde", True)
    assert capsys.readouterr().err == ("note: no scheduler_config.json beside or above the weights; assuming a linear "
                                       "schedule, T = 1000, target eps and clipping\n")


def test_shards_and_variants(tmp_path):
    weights, arrays = golden_network("diffusers_unet")
    home = folder(tmp_path / "model") / "unet"
    (home / "diffusion_pytorch_model.safetensors").rename(home / "diffusion_pytorch_model.fp16.safetensors")
    assert_published_output(from_diffusers(tmp_path / "model")[0], arrays)
    save_file(weights, home / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(ValueError, match="contains .*fp16.safetensors and .*non_ema.safetensors; name one of these"):
        from_diffusers(tmp_path / "model")
    for path in home.glob("*.safetensors"):
        path.unlink()
    for k in range(2):
        save_file(dict([*weights.items()][k::2]), home / f"diffusion_pytorch_model-0000{k + 1}-of-00002.safetensors")
    assert_published_output(from_diffusers(tmp_path / "model")[0], arrays)


def test_the_names_of_tensors_tell_whose_they_are(tmp_path, refused):
    """Not the suffix: people save diffusers' weights as .pt and OpenAI's as .safetensors."""
    weights, flags = golden_network("guided_unet_improved")[0], json.dumps(OPENAI["guided_unet_improved"])
    save_file({name: w.contiguous() for name, w in weights.items()}, tmp_path / "openai.safetensors")
    (tmp_path / "openai.json").write_text(flags)
    home = folder(tmp_path / "model", pipeline=False)
    torch.save({"state_dict": golden_network("diffusers_unet")[0]}, home / "unet.pt")
    saved = {name: published.read(str(tmp_path / name)) for name in ("openai.safetensors", "model/unet.pt")}
    assert saved["openai.safetensors"].variance == "learned" and len(saved["model/unet.pt"].beta) == 500
    (home / "config.json").unlink()
    text = refused(convert.main, ["--source", str(home), "--to", str(tmp_path / "x.safetensors")])
    assert "put its config.json beside them" in text
    (tmp_path / "openai.json").unlink()
    assert "pass the published flags" in refused(convert.main, ["--source", str(tmp_path / "openai.safetensors")])


# The hub, replaced by a stub

def test_a_hub_id_is_fetched(tmp_path, monkeypatch):
    path, requests = folder(tmp_path / "cache", "bin", pipeline=False), []

    def fetch(name, allow_patterns):
        requests.append((name, allow_patterns))
        return str(path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fetch))
    assert_published_output(from_diffusers("google/ddpm-cifar10-32")[0], golden_network("diffusers_unet")[1])
    assert published.read("google/ddpm-cifar10-32").data["name"] == "google/ddpm-cifar10-32"
    assert requests == [("google/ddpm-cifar10-32", ["*.json", "*.safetensors", "*.bin"])] * 2


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("bad id")])
def test_an_unreachable_hub_is_a_sentence(tmp_path, monkeypatch, error):
    def fetch(name, allow_patterns):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fetch))
    with pytest.raises(ValueError, match=f"download from the hub failed .*{str(error).splitlines()[0]}.*other means"):
        published.files.locate("google/ddpm-cifar10-32")


def test_a_package_that_is_not_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="install it with: pip install huggingface_hub"):
        published.files.locate("google/ddpm-cifar10-32")
