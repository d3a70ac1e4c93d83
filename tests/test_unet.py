import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from kernels import group_norm_silu_plain
from run.memory import Cast, cast, recompute
from tests.helpers import awake
from unet import CONFIGS, Attention, Norm, ResBlock, UNet, UNetConfig, nearest_up, sinusoid

SMALL = UNetConfig(in_channels=3, out_channels=3, D=8, widths=(8, 16), blocks=1, heads=(0, 2, 2), groups=4)


def inputs(config, H=8, W=8):
    labels = torch.arange(2) % config.classes if config.classes else None
    return torch.randn(2, config.in_channels, H, W), torch.tensor([100, 200]), labels


def blocks_of(unet):
    return [block for block in (*unet.downs, *unet.middle, *unet.ups) if isinstance(block, ResBlock)]


PARAMETERS = {"digits": 173_921, "fashion": 999_460, "cifar10": 35_746_307, "lsun256": 113_673_219,
              "improved-cifar10": 52_546_438, "adm64": 295_904_454, "mnist32": 55_852_161, "cars64": 151_634_883,
              "folder128": 63_329_603, "imagenet64": 88_217_219}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_counts(name):
    config = CONFIGS[name]
    size = config.patch * 2 ** (len(config.widths) - 1)
    with torch.device("meta"):
        unet = UNet(config)
        output = unet(*inputs(config, 2 * size, 4 * size))
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS[name]
    assert output.shape == (2, config.out_channels, 2 * size, 4 * size)
    assert config.learns_variance == (name in ("improved-cifar10", "adm64")) == (config.variance == "learned")


@pytest.mark.parametrize("change", [
    {}, {"blocks": 3, "resample": "conv"}, {"resample": "res"}, {"scale_shift": True, "blocks": 2},
    {"scale_shift": True, "resample": "res"}, {"classes": 4, "out_channels": 6}, {"in_channels": 1, "out_channels": 1},
    {"heads": (1, 4, 0)}, {"widths": (8, 12, 16), "heads": (0, 0, 0, 0)}, {"patch": 2}], ids=str)
def test_every_weight_takes_part(change):
    config = replace(SMALL, **change)
    unet = awake(config)
    output = unet(*inputs(config, 8, 12))
    assert output.shape == (2, config.out_channels, 8, 12)
    output.square().sum().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_depends_on_time_and_class():
    unet = awake(replace(SMALL, classes=3))
    xt = torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1)
    one = torch.tensor([1, 1])
    by_time = unet(xt, torch.tensor([400, 401]), one)
    by_class = unet(xt, torch.tensor([400, 400]), torch.tensor([1, 2]))
    assert (by_time[0] - by_time[1]).abs().max() > 1e-4
    assert (by_class[0] - by_class[1]).abs().max() > 1e-3


def test_starts_at_zero_and_passes_its_input_through_the_blocks():
    unet = UNet(SMALL)
    assert unet(*inputs(SMALL)).abs().max() == 0
    block = unet.middle[0]                              # with attention; its input and output are equally wide
    x = torch.randn(2, 16, 4, 4)
    assert_close(block(x, torch.randn(2, 16)), x)


def test_initial_weights_are_glorot_by_part():
    unet = UNet(replace(SMALL, D=32, widths=(32, 64), heads=(0, 1, 1)))
    for part in (*unet.middle[0].attention.qkv.weight.chunk(3), *filter(len, unet.time.weight.split(unet.time_widths))):
        assert_close(part.abs().max(), torch.tensor((6 / sum(part.shape)) ** 0.5), rtol=0.02, atol=0)


def test_forward_is_trunk_of_embed():
    config = replace(SMALL, classes=4)
    unet = awake(config)
    xt, t, labels = inputs(config)
    row = unet.embed(t, labels)
    assert row.shape == (2, sum(unet.time_widths))
    assert_close(unet(xt, t, labels), unet.trunk(xt, row), rtol=0, atol=0)


def test_the_norm_is_its_formula():
    x, (add, scale, shift), (weight, bias) = torch.randn(2, 6, 3, 5) + 2, torch.randn(3, 2, 6), torch.randn(2, 6)
    h = (x + add[:, :, None, None]).double().view(2, 2, 3 * 3 * 5)                 # of 2 groups of 3 channels
    h = (h - h.mean(2, keepdim=True)) / (h.var(2, unbiased=False, keepdim=True) + 0.1).sqrt()
    n = weight[:, None, None] * h.view_as(x) + bias[:, None, None]
    u = n * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    y = group_norm_silu_plain(x, 2, weight, bias, 0.1, scale=scale, shift=shift, add=add)
    assert_close(y, (u / (1 + (-u).exp())).float())


@pytest.mark.parametrize("scale_shift", [False, True])
def test_block_is_the_published_formula(scale_shift):
    """conv1's bias, added before the second norm, is where a convolution with a bias would have put it."""
    config = replace(SMALL, scale_shift=scale_shift)
    block = ResBlock(8, 16, 0, config, group_norm_silu_plain)
    torch.nn.init.normal_(block.conv1.bias), torch.nn.init.normal_(block.norm2.weight)
    x, time = torch.randn(2, 8, 4, 6), torch.randn(2, 32 if scale_shift else 16)
    h = F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-6))
    h = block.conv1(h)
    each = time[:, :, None, None]
    row = time if scale_shift else block.conv1.bias + time                         # as `UNet.embed` has it
    if scale_shift:
        h = F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-6) * (1 + each[:, :16]) + each[:, 16:]
    else:
        h = F.group_norm(h + each, 4, block.norm2.weight, block.norm2.bias, 1e-6)
    assert_close(block(x, row), block.skip(x) + block.conv2(F.silu(h)))


@pytest.mark.parametrize("change", [{}, {"resample": "res"}, {"scale_shift": True}], ids=str)
def test_the_row_is_its_formula(change):
    """The network is told t - 1, scaled; the biases of conv1 are in the row where the time is added."""
    unet = awake(replace(SMALL, classes=3, time_scale=0.25, **change))
    t, labels = torch.tensor([3, 900]), torch.tensor([2, 0])
    angle = (t - 1)[:, None] / 4 * 10000 ** (-torch.arange(4) / 3)
    h = unet.time_out(F.silu(unet.time_in(torch.cat([angle.sin(), angle.cos()], dim=1))))
    row = F.silu(h + unet.classes.weight[labels]) @ unet.time.weight.T + unet.time.bias
    b = torch.cat([block.conv1.bias for block in blocks_of(unet)])
    assert_close(unet.embed(t, labels), row if "scale_shift" in change else row + b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nearest_up_is_torch_s(layout):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    up, true = nearest_up(x), F.interpolate(x, scale_factor=2, mode="nearest")
    assert torch.equal(up, true)
    dy = torch.randn_like(true)
    assert_close(*(torch.autograd.grad(y, x, dy)[0] for y in (up, true)))


def test_attention_is_softmax_of_scaled_products():
    attention = Attention(8, 2, SMALL, group_norm_silu_plain)
    x = torch.randn(2, 8, 3, 5)
    h = F.group_norm(x, 4, eps=1e-6).flatten(2).transpose(1, 2)
    q, k, v = (part.view(2, 15, 2, 4) for part in attention.qkv(h).chunk(3, dim=2))
    weight = torch.einsum("bnhc,bmhc->bhnm", q, k).div(2).softmax(-1)
    out = attention.out(torch.einsum("bhnm,bmhc->bnhc", weight, v).flatten(2))
    assert_close(attention(x), x + out.transpose(1, 2).view_as(x))


@pytest.mark.parametrize("name, side, expected", [
    ("mnist32", 32, {(16, 8)}), ("cifar10", 32, {(16, 1), (4, 1)}),
    ("adm64", 64, {(32, 6), (16, 9), (8, 12)})])
def test_attention_is_at_the_levels_that_heads_names(name, side, expected, monkeypatch):
    """The side of what is attended to, and the number of heads there; the last entry is the middle."""
    seen, forward = [], Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda self, x: seen.append((x.shape[2], self.heads)) or forward(self, x))
    with torch.device("meta"):
        UNet(CONFIGS[name])(*inputs(CONFIGS[name], side, side))
    assert {*seen} == expected and len(seen) >= 2 * CONFIGS[name].blocks + 1


def test_the_norm_is_the_one_given():
    calls = []

    def counted(x, *args, **kwargs):
        calls.append(kwargs.get("silu", True))
        return group_norm_silu_plain(x, *args, **kwargs)

    unet = awake(SMALL, norm=counted)
    unet(*inputs(SMALL)[:2])
    assert len(calls) == sum(isinstance(m, Norm) for m in unet.modules())
    assert calls.count(False) == sum(isinstance(m, Attention) for m in unet.modules()) > 0


def test_patches_are_channels_of_one_pixel():
    config = replace(SMALL, patch=2)
    unet = awake(config)
    folded = UNet(replace(SMALL, in_channels=12, out_channels=12))
    folded.load_state_dict(unet.state_dict())
    xt, t, _ = inputs(config, 8, 12)
    assert_close(unet(xt, t), F.pixel_shuffle(folded(F.pixel_unshuffle(xt, 2), t), 2))


@pytest.mark.parametrize("time_scale", [1., 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_time_is_the_same_whatever_its_dtype(dtype, time_scale):
    unet, t = UNet(replace(CONFIGS["digits"], time_scale=time_scale)), torch.tensor([1, 7, 500, 1000])
    labels = torch.arange(4)
    whole = unet.embed(t, labels)
    assert torch.equal(unet.embed(t.to(dtype), labels), whole)
    between = unet.embed(t.to(dtype) - 0.5, labels)
    assert between.dtype == whole.dtype and (between - whole).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("name, fields", [
    ("improved-cifar10", {"heads": (0, 4, 4, 0, 4), "dropout": 0.3, "freq_shift": 0, "time_scale": 0.25}),
    ("adm64", {"heads": (0, 6, 9, 12, 12), "dropout": 0.1, "freq_shift": 0, "time_scale": 1.}),
    ("mnist32", {"widths": (64, 128, 256, 512), "blocks": 2, "heads": (0, 8, 0, 0, 0), "dropout": 0.1}),
    ("cars64", {"D": 32, "widths": (64, 128, 256, 512, 1024), "blocks": 1}),
    ("folder128", {"D": 64, "widths": (64, 128, 256, 512)})])
def test_networks_of_the_tutorials(name, fields):
    """And of the papers, where the number of parameters does not show."""
    assert fields.items() <= vars(CONFIGS[name]).items()


def test_sinusoid():
    t = torch.tensor([0., 3.])
    assert_close(sinusoid(t, 4, 1)[1], torch.tensor([math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]))
    assert_close(sinusoid(t, 4, 0)[1, :2], torch.tensor([3., 0.03]).sin())
    assert_close(sinusoid(t, 4, 1)[0], torch.tensor([0., 0, 1, 1]))


def test_the_narrowest_sinusoids_are_numbers():
    """D = 2 has one frequency, 1, and no room for the end at 1/10000 that freq_shift 1 asks for."""
    t = torch.tensor([[3.]])
    assert_close(sinusoid(t[0], 2, 0), torch.cat([t.sin(), t.cos()], 1))
    xt, t, _ = inputs(SMALL)
    for change in ({"D": 2, "freq_shift": 0}, {"D": 4}):
        assert awake(replace(SMALL, **change))(xt, t).isfinite().all()


def test_dropout_only_while_training():
    unet, without, (xt, t, _) = awake(replace(SMALL, dropout=0.5)), awake(SMALL).train(), inputs(SMALL)
    assert torch.equal(unet(xt, t), unet(xt, t)) and torch.equal(without(xt, t), without(xt, t))
    unet.train()
    assert (unet(xt, t) - unet(xt, t)).abs().max() > 0


def test_cast_spares_the_norms_and_keeps_the_output():
    unet, (xt, t, _) = awake(SMALL), inputs(SMALL)
    full = unet(xt, t)
    unet.load_state_dict(cast(unet.state_dict(), torch.bfloat16), assign=True)
    assert {p.dtype for n, p in unet.named_parameters() if "norm" in n} == {torch.float32}
    assert {p.dtype for n, p in unet.named_parameters() if "norm" not in n} == {torch.bfloat16}
    half = unet(xt, t)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("wrap", [lambda unet: unet, lambda unet: Cast(unet, torch.bfloat16)], ids=["plain", "cast"])
@pytest.mark.parametrize("resample", ["conv", "res"])
def test_recomputing_changes_no_gradient(resample, wrap):
    """Not by dropout either, which falls where it fell before."""
    config, (xt, t, _), gradients = replace(SMALL, resample=resample, dropout=0.5), inputs(SMALL), []
    for change in (lambda unet: None, recompute):
        unet = awake(config).train()
        names = [*unet.state_dict()]
        change(unet)
        torch.manual_seed(1)
        wrap(unet)(xt, t).float().square().sum().backward()
        assert [*unet.state_dict()] == names
        gradients.append([w.grad for w in unet.parameters()])
    assert all(map(torch.equal, *gradients))


def test_float64_runs_throughout():
    xt, t, _ = inputs(SMALL)
    assert awake(SMALL).double()(xt.double(), t).dtype == torch.float64


def test_conv_end_pads_below_and_right_only():
    unet = awake(replace(SMALL, widths=(8, 8), heads=(0, 0, 0)))
    down = unet.downs[1]
    x = torch.randn(1, 8, 4, 4)
    assert_close(down(x, None), F.conv2d(F.pad(x, (0, 1, 0, 1)), down.weight, down.bias, stride=2))


@pytest.mark.parametrize("change, says", [
    ({"heads": (0, 0)}, "heads is"), ({"resample": "pool"}, "resample is 'pool'"), ({"patch": 0}, "patch is 0"),
    ({"widths": (8, 10)}, r"widths \[10\]"), ({"heads": (0, 3, 0)}, r"\(16, 3\)"),
    ({"D": 7}, "D is 7; it must be even"), ({"D": 2}, "D is 2; it must be at least 4"), ({"D": 0}, "D is 0"),
    ({"heads": (0, -1, 0)}, r"heads \(0, -1, 0\); .* at least 0"), ({"widths": (), "heads": (0,)}, r"widths is \(\)"),
    ({"widths": (0, 8)}, r"widths is \(0, 8\)"), ({"blocks": -1}, "blocks is -1"), ({"classes": -1}, "classes is -1"),
    ({"in_channels": 0}, "in_channels is 0"), ({"norm_eps": -1.}, "norm_eps is -1.0")])
def test_impossible_networks_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **change)


@pytest.mark.parametrize("change, shape, labels, says", [
    ({}, (3, 9, 8), None, "9 x 8 pixels do not halve 1 times; .* 10 x 8"),
    ({}, (1, 8, 8), None, "have 1 channels, the network takes 3"),
    ({"patch": 2}, (3, 8, 6), None, "8 x 6 .* patches of 2 and halve 1 times; .* of 4, 8 x 8 say"),
    ({"widths": (8,), "heads": (0, 0), "patch": 3}, (3, 8, 9), None, "into patches of 3; .* 9 x 9 say"),
    ({}, (3, 8, 8), torch.tensor([0]), "labels are given"),
    ({"classes": 3}, (3, 8, 8), None, "labels are missing")])
def test_wrong_pictures_and_labels_are_refused(change, shape, labels, says):
    with pytest.raises(ValueError, match=says):
        UNet(replace(SMALL, **change))(torch.zeros(1, *shape), torch.tensor([1]), labels)


# Export: of any batch and size

AUTO = torch.export.Dim.AUTO
SHAPES = {"xt": {0: AUTO, 2: AUTO, 3: AUTO}, "t": {0: AUTO}, "labels": {0: AUTO}}
EXPORTED = {"conv": UNetConfig(1, 1, D=8, widths=(8, 16), blocks=1, heads=(0, 2, 2), classes=3, groups=4,
                               scale_shift=True, resample="conv"),
            "conv_end": UNetConfig(1, 2, D=8, widths=(8, 16), blocks=1, heads=(0, 0, 0), classes=3, groups=4),
            "res, patch": UNetConfig(1, 1, D=8, widths=(8, 16), blocks=1, heads=(2, 0, 1), classes=3, groups=4,
                                     resample="res", patch=2)}


def asked(B, H, W):
    xt = torch.randn(B, 1, H, W, generator=torch.Generator().manual_seed(B))
    return xt, torch.arange(B) * 7 + 1, torch.arange(B) % 3


@pytest.mark.parametrize("name", EXPORTED)
def test_torch_exports_the_network(name):
    unet = awake(EXPORTED[name]).requires_grad_(False)
    program = torch.export.export(unet, asked(3, 8, 8), dynamic_shapes=SHAPES)
    for B, H, W in ((1, 8, 8), (5, 16, 8), (2, 8, 24)):
        assert_close(program.module()(*asked(B, H, W)), unet(*asked(B, H, W)), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_has_the_network_s_outputs(name):
    """Evaluated by onnx itself."""
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    unet = awake(EXPORTED[name]).requires_grad_(False)
    program = torch.onnx.export(unet, asked(3, 8, 8), dynamo=True, dynamic_shapes=SHAPES, verbose=False)
    for B, H, W in ((1, 8, 8), (5, 16, 8)):
        given = dict(zip(("xt", "t", "labels"), (x.numpy() for x in asked(B, H, W)), strict=True))
        [output] = evaluator(program.model_proto).run(None, given)
        assert_close(torch.from_numpy(output), unet(*asked(B, H, W)), rtol=1e-4, atol=1e-4)
