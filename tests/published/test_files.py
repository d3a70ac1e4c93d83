"""Files, settings and hubs that are damaged or mean harm: one sentence each, and nothing is run or written."""

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import convert
import published
import published.diffusers
import published.files
import published.openai
from convert import from_diffusers
from run import checkpoint
from tests.helpers import Trap
from tests.published.networks import CONFIG, OPENAI, assert_published_output, folder, golden_network


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 99, pickle.dumps(Trap(), 2), "evil", "list", "cut"],
                         ids=["empty", "text", "zeros", "pickle", "evil", "list", "cut"])
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


# Wrong settings: each is one sentence with the file's name, and nothing is written

WRONG = [None, True, "x", -1, 0, 1.5, 10**30, float("nan"), [], [1], {}, [[1, 2], [3]]]


def refused_or_written(capsys, flags, name):
    """Runs convert.py: it writes a checkpoint that can be loaded, or ends in one sentence that names the file."""
    try:
        convert.main([*flags, "--to", "new.safetensors"])
    except SystemExit as stop:
        error = capsys.readouterr().err
        assert stop.code == 2 and error.count("\n") == 1 and name in error and len(error) < 1000, error
        assert not Path("new.safetensors").exists()
    else:
        checkpoint.load("new.safetensors")
        Path("new.safetensors").unlink()


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_wrong_settings_of_a_network(tmp_path, monkeypatch, capsys, value):
    monkeypatch.chdir(tmp_path)
    path = folder(tmp_path / "model", "bin") / "unet" / "config.json"
    for key in sorted({*CONFIG, *published.diffusers.MODEL, "sample_size"} - {"_diffusers_version"}):
        path.write_text(json.dumps({**CONFIG, key: value}))
        refused_or_written(capsys, ["--source", "model"], "model")


@pytest.mark.parametrize("key", ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
                                 "clip_sample", "variance_type", "prediction_type", "thresholding"])
def test_wrong_schedules(tmp_path, monkeypatch, capsys, key):
    monkeypatch.chdir(tmp_path)
    path = folder(tmp_path / "model", "bin") / "scheduler" / "scheduler_config.json"
    for value in [*WRONG, [0.5, float("nan")], [1e-4] * 10]:
        path.write_text(json.dumps({key: value}))
        refused_or_written(capsys, ["--source", "model"], "model")


@pytest.mark.parametrize("key", published.openai.FLAGS)
def test_wrong_flags(tmp_path, monkeypatch, capsys, key):
    monkeypatch.chdir(tmp_path)
    torch.save(golden_network("guided_unet_improved")[0], "m.pt")
    for value in [*WRONG, "1,x", "0", "-1,2", "nan,inf", "0,0"]:
        Path("m.json").write_text(json.dumps({**OPENAI["guided_unet_improved"], key: value}))
        refused_or_written(capsys, ["--source", "m.pt"], "m.pt")


@pytest.mark.parametrize("content", ["", "[]", "[" * 10**5, "{}", '{"sample_size": 16}'], ids=range(5))
def test_wrong_json(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    path = folder(tmp_path / "model", "bin") / "unet" / "config.json"
    path.write_text(content)
    refused_or_written(capsys, ["--source", "model"], "model")


@pytest.mark.parametrize("spoil", [
    lambda w: dict.fromkeys(w, 3), lambda w: dict(enumerate(w.values())),
    lambda w: {name: t.cfloat() for name, t in w.items()}, lambda w: {**w, "conv_in.weight": None}], ids=range(4))
def test_wrong_tensors(tmp_path, monkeypatch, refused, spoil):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "model", "bin")
    torch.save(spoil(golden_network("diffusers_unet")[0]), "model/unet/diffusion_pytorch_model.bin")
    error = refused(convert.main, ["--source", "model", "--to", "new.safetensors"])
    assert "model" in error and error.count("\n") == 1 and not Path("new.safetensors").exists()


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


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("bad id"), ConnectionError("offline")])
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
