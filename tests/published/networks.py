"""Published networks of random weights, whose outputs are golden numbers, and the files that hold them."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.helpers import golden

CONFIG = json.loads((Path(__file__).parents[1] / "golden" / "diffusers_unet_config.json").read_text())
PUBLISHED = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2",
             "attention_resolutions": "8", "learn_sigma": True}
OPENAI = {
    "guided_unet_improved": {**PUBLISHED, "num_heads": 4},
    "guided_unet_adm": {**PUBLISHED, "class_cond": True, "resblock_updown": True, "num_head_channels": 32},
    "guided_unet_new_order": {**PUBLISHED, "num_channels": 64, "channel_mult": "0.5,1", "num_heads": 2,
                              "use_scale_shift_norm": False, "resblock_updown": True, "diffusion_steps": 4000,
                              "use_new_attention_order": True}}


def golden_network(name):
    """The weights, and all other arrays."""
    arrays = golden(name)
    return ({key.removeprefix("weights/"): w for key, w in arrays.items() if key.startswith("weights/")},
            {key: w for key, w in arrays.items() if not key.startswith("weights/")})


@torch.no_grad()
def assert_published_output(unet, arrays, labels=None):
    assert_close(unet(arrays["x"], arrays["t"] + 1, labels), arrays["y"], rtol=1e-5, atol=1e-5)


def equal(one, other):
    assert one.keys() == other.keys()
    for name, w in one.items():
        assert_close(w, other[name], rtol=0, atol=0)


def folder(path, kind="safetensors", pipeline=True):
    """The golden network as a diffusers folder."""
    weights, _ = golden_network("diffusers_unet")
    home = path / "unet" if pipeline else path
    home.mkdir(parents=True)
    (home / "config.json").write_text(json.dumps(CONFIG))
    if kind == "bin":
        torch.save(weights, home / "diffusion_pytorch_model.bin")
    else:
        pytest.importorskip("safetensors.torch").save_file(weights, home / "diffusion_pytorch_model.safetensors")
    scheduler = path / "scheduler" / "scheduler_config.json" if pipeline else path / "scheduler_config.json"
    scheduler.parent.mkdir(exist_ok=True)
    scheduler.write_text(json.dumps({"variance_type": "fixed_large", "num_train_timesteps": 500, "clip_sample": True}))
    return path
