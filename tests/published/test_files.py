"""Files, settings and hubs that are damaged or mean harm: one sentence each, and nothing is run or written."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import published
import published.files
from convert import from_diffusers
from tests.helpers import Trap
from tests.published.networks import assert_published_output, folder, golden_network


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
