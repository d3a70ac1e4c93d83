"""Published networks: golden outputs, every tensor and every setting accounted for, and diffusers itself."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import convert
import ddpm
import published.diffusers
import published.openai
from convert import from_diffusers, from_openai, to_diffusers
from published.names import DIFFUSERS, export_weights
from tests.published.networks import CONFIG, OPENAI, assert_published_output, equal, folder, golden_network
from unet import CONFIGS, UNet, UNetConfig

SMALL = UNetConfig(D=32, widths=(32, 64), blocks=1, heads=(0, 1, 1))
SMALLS = {
    "plain": SMALL, "no middle attention": replace(SMALL, heads=(0, 1, 0)), "conv": replace(SMALL, resample="conv"),
    "res": replace(SMALL, resample="res"), "scale_shift": replace(SMALL, scale_shift=True, heads=(2, 4, 4)),
    "classes": replace(SMALL, classes=5), "learned": replace(SMALL, out_channels=6), "freq_shift": replace(
        SMALL, freq_shift=0, norm_eps=1e-5, groups=8, blocks=2), "gray": replace(SMALL, in_channels=1, out_channels=1),
    "patch": replace(SMALL, out_channels=6, patch=2)}


@torch.no_grad()
def perturbed(network, seed=0):
    """The network with random perturbations, so that no weight is zero or one and every path has an effect."""
    torch.manual_seed(seed)
    for p in network.parameters():
        p.add_(0.05 * torch.randn_like(p))
    return network.eval()


# The golden networks

def test_diffusers():
    weights, arrays = golden_network("diffusers_unet")
    unet, schedule, choice = from_diffusers(weights, CONFIG)
    assert_published_output(unet, arrays)
    assert {p.dtype for p in unet.parameters()} == {torch.float32} and not unet.training
    assert choice == {"target": "eps", "variance": "beta_tilde", "clip": True}
    assert_close(schedule, ddpm.linear_schedule(), rtol=0, atol=0)


@pytest.mark.parametrize("name, flags", OPENAI.items())
def test_openai(name, flags):
    weights, arrays = golden_network(name)
    unet, schedule, choice = from_openai(weights, flags)
    assert_published_output(unet, arrays, arrays["labels"] if unet.config.classes else None)
    assert choice == {"target": "eps", "variance": "learned", "clip": True}
    assert ddpm.schedule_length(schedule) == flags.get("diffusion_steps", 1000)
    as_text = {key: str(value) for key, value in flags.items()} | {"batch_size": "4", "num_samples": "100"}
    assert from_openai(weights, as_text)[0].config == unet.config


def test_the_input_weights_are_not_modified():
    weights = {name: w.float() for name, w in golden_network("guided_unet_improved")[0].items()}
    before = {name: w.clone() for name, w in weights.items()}
    perturbed(from_openai(weights, OPENAI["guided_unet_improved"])[0])
    equal(weights, before)


def test_old_attention_names_and_cosines_first():
    weights, arrays = golden_network("diffusers_unet")
    new = {"to_q": "query", "to_k": "key", "to_v": "value", r"to_out\.0": "proj_attn"}
    for ours, old in new.items():
        weights = {re.sub(rf"\.{ours}\.", f".{old}.", name): w for name, w in weights.items()}
    assert any("proj_attn" in name for name in weights) and not any("to_" in name for name in weights)
    assert_published_output(from_diffusers(weights, CONFIG)[0], arrays)
    layer = "time_embedding.linear_1.weight"
    weights[layer] = weights[layer].roll(16, dims=1)
    assert_published_output(from_diffusers(weights, {**CONFIG, "flip_sin_to_cos": True})[0], arrays)


@pytest.mark.parametrize("flags, schedule, choice", [
    ({}, ddpm.linear_schedule(), {"variance": "learned"}),
    ({"diffusion_steps": 4000}, ddpm.linear_schedule(4000, 2.5e-5, 5e-3), {}),
    ({"diffusion_steps": "100", "noise_schedule": "cosine"}, ddpm.cosine_schedule(100), {"target": "eps"}),
    ({"predict_xstart": "True"}, ddpm.linear_schedule(), {"target": "x0"})])
def test_openai_s_process(flags, schedule, choice):
    weights, _ = golden_network("guided_unet_improved")
    _, result, choices = from_openai(weights, OPENAI["guided_unet_improved"] | flags)
    assert_close(result, schedule)
    assert choice.items() <= choices.items()


def openai_config(**flags):
    return published.openai.openai_config(published.openai.flag_values({}, flags))


def test_published_openai_flags_are_our_configs():
    imagenet64 = {"attention_resolutions": "32,16,8", "class_cond": True, "diffusion_steps": 1000, "dropout": 0.1,
                  "image_size": 64, "learn_sigma": True, "noise_schedule": "cosine", "num_channels": 192,
                  "num_head_channels": 64, "num_res_blocks": 3, "resblock_updown": True, "use_fp16": True,
                  "use_new_attention_order": True, "use_scale_shift_norm": True}
    assert openai_config(**imagenet64) == CONFIGS["adm64"]
    cifar10 = {"image_size": 32, "num_channels": 128, "num_res_blocks": 3, "learn_sigma": True, "dropout": 0.3,
               "diffusion_steps": 4000, "noise_schedule": "cosine"}
    assert openai_config(**cifar10) == replace(CONFIGS["improved-cifar10"], time_scale=0.25)
    assert openai_config(**cifar10, rescale_timesteps=False).time_scale == 1


@pytest.mark.parametrize("size, widths", [
    (512, (128, 256, 256, 512, 512, 1024, 1024)), (256, (256, 256, 512, 512, 1024, 1024)),
    (128, (256, 256, 512, 768, 1024)), (64, (256, 512, 768, 1024)), (32, (256, 512, 512, 512))])
def test_channel_mult_by_image_size(size, widths):
    config = openai_config(image_size=size, num_channels=256, num_head_channels=64, attention_resolutions="32,16,8")
    assert config.widths == widths and config.D == 256
    assert [size >> level in (32, 16, 8) for level in range(len(widths))] == [h > 0 for h in config.heads[:-1]]
    assert config.heads[-1] == widths[-1] // 64


@pytest.mark.parametrize("flags, variance", [({}, "beta"), ({"sigma_small": True}, "beta_tilde")])
def test_a_fixed_variance_is_the_large_one_by_default(flags, variance):
    weights, _ = golden_network("guided_unet_improved")
    for kind in ("weight", "bias"):
        weights[f"out.2.{kind}"] = weights[f"out.2.{kind}"][:3]
    flags = {**OPENAI["guided_unet_improved"], "learn_sigma": False, **flags}
    assert from_openai(weights, flags)[2]["variance"] == variance


# Every tensor is accounted for

def test_missing_extra_and_misshaped_tensors_are_listed():
    weights, _ = golden_network("guided_unet_adm")
    inside, (first, *_, last) = "output_blocks.1.1.qkv.weight", weights
    wrong = {**weights, inside: weights[inside].repeat(2, 1, 1), f"{inside}.more": torch.zeros(2)}
    del wrong[last]
    with pytest.raises(ValueError) as error:
        from_openai(wrong, OPENAI["guided_unet_adm"])
    text = str(error.value)
    assert f"1 missing: {last};" in text and f"1 extra: {inside}.more;" in text
    assert f"1 misshaped: {inside} {tuple(wrong[inside].shape)} for" in text and first not in text


def test_of_many_that_do_not_fit_two_of_each_are_named_and_the_sentence_is_whole(tmp_path, refused):
    folder(tmp_path / "model", "bin")
    config = {**CONFIG, "block_out_channels": [64, 128], "layers_per_block": 2}
    (tmp_path / "model" / "unet" / "config.json").write_text(json.dumps(config))
    text = refused(convert.main, ["--source", str(tmp_path / "model"), "--to", str(tmp_path / "x.safetensors")])
    assert re.search(r"settings: 64 missing: down_blocks[^,;]*, down_blocks[^,;]* and 62 more; 143 misshaped: "
                     r"conv_in.bias \(32,\) for \(64,\), [^;]* and 141 more; correct its config.json, or", text), text


# Weights under the names of wrappers and of training programs

def wrapped(weights, prefix):
    return {f"{prefix}{name}": w for name, w in weights.items()}


@pytest.mark.parametrize("wrap, said", [
    (lambda w: wrapped(w, "module."), "took the 144 weights named module.*\n"),
    (lambda w: wrapped(w, "_orig_mod.module."), "took the 144 weights named _orig_mod.module.*\n"),
    (lambda w: {"state_dict": wrapped(w, "unet."), "epoch": 3},
     "took the 144 weights named state_dict.unet.*, left out 1 other: epoch\n"),
    (lambda w: {"model": {k: 2 * v for k, v in w.items()}, "ema": w, "optimizer": {"state": {0: {"step": 1}}}},
     "took the 144 weights named ema.*, left out 145 others: model.conv_in.bias, model.conv_in.weight and 143 more\n"),
    (lambda w: w, "")])
def test_prefixes_are_stripped_and_said(capsys, wrap, said):
    weights, arrays = golden_network("diffusers_unet")
    weights = dict(sorted(weights.items()))
    assert_published_output(from_diffusers(wrap(weights), CONFIG, {"clip_sample": True})[0], arrays)
    assert capsys.readouterr().err == (said and f"note: {said}")


def test_prefixes_of_openai_s_weights(capsys):
    weights, arrays = golden_network("guided_unet_improved")
    content = {**wrapped(weights, "model.diffusion_model."), "first_stage_model.a": torch.zeros(2)}
    assert_published_output(from_openai(content, OPENAI["guided_unet_improved"])[0], arrays)
    assert "weights named model.diffusion_model.*, left out 1 other: first_stage" in capsys.readouterr().err


def test_no_kind_of_tensor_can_be_left_out_or_bent():
    weights, _ = golden_network("guided_unet_adm")
    kinds = {re.sub(r"blocks\.\d+", "", key): key for key in weights}
    assert len(kinds) > 40
    for key in kinds.values():
        for others in ({k: w for k, w in weights.items() if k != key}, weights | {key: weights[key].flatten()[:-1]}):
            with pytest.raises(ValueError, match=re.escape(key)):
                from_openai(others, OPENAI["guided_unet_adm"])


# Settings that are refused

@pytest.mark.parametrize("change, message", [
    ({"act_fn": "relu"}, "act_fn 'relu'"), ({"center_input_sample": True}, "center_input_sample True"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'"), ({"mid_block_type": None}, "mid_block_type"),
    ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor"), ({"downsample_padding": 2}, "downsample_padding 2"),
    ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types"), ({"time_embedding_dim": 64}, "time_embedd"),
    ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types"),
    ({"class_embed_type": "timestep"}, "class_embed_type"), ({"_class_name": "UNet2DConditionModel"}, "_class_name"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"), ({"upsample_type": "resnet"}, "up"),
    ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups None")])
def test_other_unet2dmodels_are_refused(change, message):
    with pytest.raises(ValueError, match=f"config.json has {message}"):
        from_diffusers({}, {**CONFIG, **change})


@pytest.mark.parametrize("change", [{"act_fn": "swish"}, {"time_embedding_dim": 128}, {"attn_norm_num_groups": 32}])
def test_other_words_for_the_same_network(change):
    weights, arrays = golden_network("diffusers_unet")
    assert_published_output(from_diffusers(weights, {**CONFIG, **change})[0], arrays)


@pytest.mark.parametrize("change, message", [
    ({"thresholding": True}, "thresholding True"), ({"clip_sample_range": 2.0}, "clip_sample_range 2.0"),
    ({"rescale_betas_zero_snr": True}, "rescale"), ({"variance_type": "learned"}, "variance_type 'learned'"),
    ({"beta_schedule": "laplace"}, "beta_schedule"), ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name"),
    ({"prediction_type": "flow"}, "prediction_type 'flow'")])
def test_other_schedulers_are_refused(change, message):
    with pytest.raises(ValueError, match=f"scheduler_config.json has {message}"):
        published.diffusers.from_scheduler_config(change)


@pytest.mark.parametrize("kind, settings, target, clip", [
    ("DDPM", {}, "eps", True), ("DDPM", {"beta_schedule": "sigmoid", "prediction_type": "sample"}, "x0", True),
    ("DDIM", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False,
              "clip_sample_range": 3.}, "v", False),
    ("DDPM", {"num_train_timesteps": 50, "trained_betas": [0.01] * 50}, "eps", True), ("PNDM", {}, "eps", False),
    ("DDIMParallel", {"beta_schedule": "squaredcos_cap_v2"}, "eps", True),
    ("DPMSolverMultistep", {"beta_schedule": "scaled_linear", "beta_end": 0.012}, "eps", False),
    ("UniPCMultistep", {"prediction_type": "v_prediction"}, "v", False), ("EulerDiscrete", {}, "eps", False)])
def test_every_scheduler_of_the_same_process_is_taken(kind, settings, target, clip):
    """Its alpha_bar is that of diffusers."""
    theirs = getattr(pytest.importorskip("diffusers"), f"{kind}Scheduler")(**settings)
    schedule, choice = published.diffusers.from_scheduler_config({**theirs.config, "_class_name": f"{kind}Scheduler"})
    assert choice == {"target": target, "variance": "beta_tilde" if "variance_type" in theirs.config and kind == "DDPM"
                      else "", "clip": clip}
    assert_close(schedule.alpha_bar[1:].float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_a_network_that_learns_its_variance_says_so_where_the_scheduler_does_not():
    config = {**CONFIG, "out_channels": 6}
    weights = export_weights(UNet(published.diffusers.from_model_config(config)), DIFFUSERS)
    for scheduler in (None, {"_class_name": "DDIMScheduler"}, {"variance_type": "learned_range"}):
        assert from_diffusers(weights, config, scheduler)[2]["variance"] == "learned"
    assert from_diffusers(weights, config, {"variance_type": "fixed_large"})[2]["variance"] == "beta"
    with pytest.raises(ValueError, match="variance_type is learned_range, but the network has 3 outputs for 3 ch"):
        from_diffusers(golden_network("diffusers_unet")[0], CONFIG, {"variance_type": "learned_range"})


@pytest.mark.parametrize("flags, message", [
    ({"image_size": 48}, "image_size 48"), ({"num_heads_upsample": 2}, "num_heads_upsample is 2"),
    ({"large_size": 256}, "flags have large_size"), ({"learn_sigma": "maybe"}, "learn_sigma is 'maybe'"),
    ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt'"), ({"num_heads": "many"}, "num_heads is 'many'")])
def test_other_flags_are_refused(flags, message):
    weights, _ = golden_network("guided_unet_improved")
    flags = {**OPENAI["guided_unet_improved"], "channel_mult": "" if "image_size" in flags else "1,2", **flags}
    with pytest.raises(ValueError, match=message):
        from_openai(weights, flags)


@pytest.mark.parametrize("change, message", [
    ({"time_scale": 0.25}, "time_scale is 0.25"), ({"D": 64}, "D is 64"),
    ({"heads": (2, 2, 2)}, r"heads are \[16, 32\]")])
def test_networks_without_an_equivalent_unet2dmodel_are_not_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        to_diffusers(UNet(replace(SMALL, **change)), ddpm.linear_schedule(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_page_names_the_networks_without_one():
    def converts(config):
        try:
            return bool(published.diffusers.to_model_config(config))
        except ValueError:
            return False
    text = Path("docs/convert.md").read_text().split("of the named networks:")[1].split(")")[0]
    assert {*text.replace(",", "").split()} == {name for name, config in CONFIGS.items() if not converts(config)}


# Round trip

CHOICE = {"target": "v", "variance": "beta", "clip": False}


@pytest.mark.parametrize("name, config", SMALLS.items())
def test_ours_to_diffusers_to_ours_is_exact(tmp_path, name, config):
    """And diffusers computes the same output."""
    unet, schedule = perturbed(UNet(config)), ddpm.cosine_schedule(50)
    to_diffusers(unet, schedule, tmp_path, **CHOICE, size=(16, 24))
    again, same_schedule, choice = from_diffusers(tmp_path)
    assert again.config == config and choice == CHOICE
    equal(unet.state_dict(), again.state_dict())
    assert_close(same_schedule, schedule, rtol=0, atol=0)
    assert published.read(str(tmp_path)).data["shape"] == (config.in_channels, 16, 24)
    model = pytest.importorskip("diffusers").DDPMPipeline.from_pretrained(tmp_path).unet
    x, t = torch.randn(2, config.in_channels, 16, 24), torch.tensor([1, 1000])
    labels = torch.tensor([0, 4]) if config.classes else None
    with torch.no_grad():
        theirs = model(torch.pixel_unshuffle(x, config.patch), t - 1, class_labels=labels).sample
        assert_close(torch.pixel_shuffle(theirs, config.patch), unet(x, t, labels), rtol=1e-5, atol=1e-5)
    equal(dict(model.state_dict()), export_weights(unet, DIFFUSERS))


# Comparison with diffusers

CIFAR10 = {"act_fn": "silu", "attention_head_dim": None, "block_out_channels": [128, 256, 256, 256],
           "center_input_sample": False, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
           "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "in_channels": 3,
           "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-6, "norm_num_groups": 32,
           "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
           "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}


@pytest.mark.slow
def test_the_cifar10_network_has_the_output_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    model = perturbed(diffusers.UNet2DModel(**CIFAR10))
    unet, _, _ = from_diffusers(model.state_dict(), CIFAR10)
    assert unet.config == replace(CONFIGS["cifar10"], dropout=0.)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 977])
    with torch.no_grad():
        output = unet(x, t + 1)
        assert_close(output, model(x, t).sample, rtol=1e-5, atol=1e-5 * output.abs().max().item())
        x, unet, model = x.double(), unet.double(), model.double()
        assert_close(unet(x, t + 1), model(x, t).sample, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def trajectory(unet, schedule, steps, **choice):
    """Every x_s of our sampler, on the noise that a diffusers pipeline samples from the same generator."""
    generator = torch.Generator().manual_seed(0)
    rows = ddpm.sampler_rows(schedule, ddpm.timesteps(len(schedule.beta) - 1, steps, "leading"), **choice)
    xt = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    for k, (t, s) in enumerate(rows[:, :2].long().tolist()):
        z = torch.randn(xt.shape, generator=generator, dtype=xt.dtype) if choice["eta"] and s else None
        xt, _ = ddpm.step(rows, torch.tensor([k]), xt, unet(xt, torch.full((2,), t)), z=z)
        yield xt


@pytest.mark.parametrize("kind, eta, settings, choice", [
    ("DDPMPipeline", 1., {}, {"variance": "beta_tilde", "clip": True}),
    ("DDPMPipeline", 1., {"clip_sample": False}, {"clip": False}),
    ("DDPMPipeline", 1., {"variance_type": "fixed_large"}, {"variance": "beta"}),
    ("DDPMPipeline", 1., {"variance_type": "learned_range"}, {"variance": "learned"}),
    ("DDPMPipeline", 1., {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, {"target": "v"}),
    ("DDPMPipeline", 1., {"prediction_type": "sample"}, {"target": "x0"}),
    ("DDIMPipeline", 0., {}, {}), ("DDIMPipeline", 0., {"clip_sample": False}, {}),
    ("DDIMPipeline", 0., {"prediction_type": "v_prediction"}, {}),
    ("DDIMPipeline", 1., {"beta_schedule": "scaled_linear"}, {})])
def test_a_full_chain_equals_the_pipeline_s(kind, eta, settings, choice):
    diffusers = pytest.importorskip("diffusers")
    learned = settings.get("variance_type") == "learned_range"
    model = perturbed(diffusers.UNet2DModel(**{**CONFIG, "out_channels": 6 if learned else 3})).double()
    scheduler = diffusers.DDPMScheduler(**settings)
    unet, schedule, choices = from_diffusers(model.state_dict(), dict(model.config), dict(scheduler.config))
    unet.double()
    assert choice.items() <= choices.items()
    pipeline = getattr(diffusers, kind)(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    step, chain = pipeline.scheduler.step, []

    def recorded(*args, **kwargs):
        result = step(*args, **kwargs)
        chain.append(result.prev_sample)
        return result

    pipeline.scheduler.step = recorded
    more = {"eta": eta, "use_clipped_model_output": True} if kind == "DDIMPipeline" else {}
    images = pipeline(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=50,
                      output_type="np", **more).images
    ours = list(trajectory(unet, schedule, 50, eta=eta, **choices))
    for xs, theirs in zip(ours, chain, strict=True):
        assert_close(xs, theirs, rtol=0, atol=1e-4 * max(1, theirs.abs().max().item()))
    assert_close((ours[-1] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), torch.from_numpy(images), rtol=0, atol=1e-4)
