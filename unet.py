"""The U-Net of the whole family: DDPM, improved DDPM, guided diffusion differ in UNetConfig alone.

Letters: B C H W; D width of the sinusoid (the embedding is 4D wide); N = H*W tokens; S width of the row of
all time projections. The network is two functions, `embed(t, labels) -> row (B, S)` and
`trunk(xt, row) -> output`, so that the rows of a whole chain can be computed once and looked up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetConfig:
    """How one network differs from another. Raises ValueError for what does not fit together."""
    in_channels: int = 3                     # channels of x_t
    out_channels: int = 3                    # of the output; twice as many for a learned variance
    D: int = 128                             # width of the sinusoidal embedding of t
    widths: tuple = (128, 256, 256, 256)     # channels of each level, from full resolution down
    blocks: int = 2                          # residual blocks a level going down; one more going up
    heads: tuple = (0, 1, 0, 0, 1)           # attention heads of each level, then of the middle; 0 is none
    classes: int = 0                         # rows of the class table; a null class is the last, if trained
    scale_shift: bool = False                # time scales and shifts the second norm, instead of adding before it
    resample: str = "conv_end"               # "conv" padded all round, "conv_end" as Ho et al., or "res" blocks
    groups: int = 32                         # of every GroupNorm
    dropout: float = 0.
    norm_eps: float = 1e-6                   # stabiliser of every GroupNorm
    freq_shift: int = 1                      # frequencies end at 10000^-1 exactly (1) or one step before (0)
    time_scale: float = 1.                   # the network's time input is (t - 1) * time_scale
    patch: int = 1                           # squares of patch x patch pixels are channels of one pixel to the network

    def __post_init__(self):
        if len(self.heads) != len(self.widths) + 1:
            raise ValueError(f"heads is {self.heads}; {len(self.widths)} widths need {len(self.widths) + 1} entries, "
                             f"one for each level and one for the middle")
        for name, least in {"in_channels": 1, "out_channels": 1, "D": 2 + 2 * self.freq_shift, "blocks": 0,
                            "classes": 0, "groups": 1, "patch": 1, "norm_eps": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.D % 2:
            raise ValueError(f"D is {self.D}; it must be even, half sines and half cosines")
        if not self.widths or min(self.widths) < 1 or min(self.heads) < 0:
            raise ValueError(f"widths is {self.widths} and heads {self.heads}; there must be a width, all widths at "
                             f"least 1 and all heads at least 0")
        if self.resample not in ("conv", "conv_end", "res"):
            raise ValueError(f"resample is {self.resample!r}; it must be conv, conv_end or res")
        if uneven := [w for w in self.widths if w % self.groups]:
            raise ValueError(f"widths {uneven} do not divide into {self.groups} groups; change groups or widths")
        if uneven := [(w, h) for w, h in zip(self.widths + self.widths[-1:], self.heads, strict=True) if h and w % h]:
            raise ValueError(f"(width, heads) {uneven} do not divide; change heads or widths")

    @property
    def learns_variance(self) -> bool:
        """Whether the output's second half is the v of a learned variance (`ddpm.step`)."""
        return self.out_channels == 2 * self.in_channels

    @property
    def variance(self) -> str:
        """The default variance of a sampler's steps."""
        return "learned" if self.learns_variance else "beta_tilde"


def group_norm_silu_plain(x: Tensor, groups: int, weight: Tensor, bias: Tensor, norm_eps: float = 1e-5, *,
                          scale: Tensor | None = None, shift: Tensor | None = None, add: Tensor | None = None,
                          silu: bool = True) -> Tensor:
    """silu(group_norm(x + add) * (1 + scale) + shift), in x's dtype and layout (Wu & He 2018).

    x: (B, C, H, W). weight, bias: (C,). scale, shift, add: (B, C) with any batch stride, 0 included.
    Computed in float32, or float64 for float64 x, whatever the dtype of x.
    """
    def each(c: Tensor) -> Tensor:
        return c[:, :, None, None].to(h.dtype)

    h = x.to(torch.promote_types(x.dtype, torch.float32))
    if add is not None:
        h = h + each(add)
    h = torch.group_norm(h, groups, weight.to(h.dtype), bias.to(h.dtype), norm_eps)
    if scale is not None:
        h = h * (1 + each(scale))
    if shift is not None:
        h = h + each(shift)
    return (F.silu(h) if silu else h).to(x.dtype)


class Norm(nn.Module):
    """GroupNorm, then SiLU unless silu=False, by the U-Net's `norm` function."""

    def __init__(self, channels: int, config: UNetConfig, norm: Callable):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.groups, self.norm_eps, self.norm = config.groups, config.norm_eps, norm

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        return self.norm(x, self.groups, self.weight, self.bias, self.norm_eps, **kwargs)


class Down(nn.Conv2d):
    """Halves H and W by a strided 3x3 convolution, padded all round or, as Ho et al., at the end only."""
    time_width, resamples = 0, True

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__(channels, channels, 3, stride=2)
        self.pad = (0, 1, 0, 1) if config.resample == "conv_end" else (1, 1, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pad))                                # B C H/2 W/2


def nearest_up(x: Tensor) -> Tensor:
    """Every pixel as 2x2 pixels. Compiled, its gradient is a sum, where F.interpolate's is scattered by atomics."""
    B, C, H, W = x.shape
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(B, C, 2 * H, 2 * W)


class Up(nn.Conv2d):
    """Doubles H and W: nearest neighbour, then a 3x3 convolution."""
    time_width, resamples = 0, True

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(nearest_up(x))                                     # B C 2H 2W


class Attention(nn.Module):
    """Self-attention over the N pixels, added to its input (Ho et al. 2020, appendix B)."""

    def __init__(self, channels: int, heads: int, config: UNetConfig, norm: Callable):
        super().__init__()
        self.heads = heads
        self.norm = Norm(channels, config, norm)
        self.qkv = nn.Linear(channels, 3 * channels)                              # rows in (qkv, head, width) order
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(x, silu=False).flatten(2).transpose(1, 2)                   # B N C
        qkv = self.qkv(h).view(B, H * W, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                      # B heads N C/heads
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return x + self.out(h).transpose(1, 2).view(B, C, H, W)


class ResBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, dropout, conv, + input; then attention, if it has heads.

    resample ("down", "up" or none) changes H and W after the first SiLU and on the skip (Dhariwal & Nichol
    2021, section 3). conv1's bias rides with the time into the second norm, where adding costs nothing; where the time
    is added too it is part of `time` (`UNet.embed`), so that one sum is taken for all blocks.
    """

    def __init__(self, channels: int, width: int, heads: int, config: UNetConfig, norm: Callable, resample: str = ""):
        super().__init__()
        self.scale_shift, self.resamples = config.scale_shift, bool(resample)
        self.time_width = 2 * width if config.scale_shift else width
        self.norm1 = Norm(channels, config, norm)
        self.resample = {"": nn.Identity(), "down": nn.AvgPool2d(2), "up": nearest_up}[resample]
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = Norm(width, config, norm)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        self.attention = Attention(width, heads, config, norm) if heads else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.resample(self.norm1(x))                                          # B C H W
        h = F.conv2d(h, self.conv1.weight, padding=1)                             # B width H W
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)                                   # B width
            h = self.norm2(h, add=self.conv1.bias.expand(x.shape[0], -1), scale=scale, shift=shift)
        else:
            h = self.norm2(h, add=time)
        h = self.conv2(self.dropout(h))
        return self.attention(self.skip(self.resample(x)) + h)                    # B width H W


class UNet(nn.Module):
    """x_t, t (and labels) -> the network's output, (B, out_channels, H, W) (Ho et al. 2020, appendix B).

    norm: `group_norm_silu_plain`, or the fused op of the same signature.
    """

    def __init__(self, config: UNetConfig, norm: Callable = group_norm_silu_plain):
        super().__init__()
        self.config = config
        D, widths, (*heads, middle_heads) = config.D, config.widths, config.heads

        def resampler(kind: type, width: int) -> nn.Module:
            if config.resample == "res":
                return ResBlock(width, width, 0, config, norm, resample=kind.__name__.lower())
            return kind(width, config)

        self.time_in, self.time_out = nn.Linear(D, 4 * D), nn.Linear(4 * D, 4 * D)
        self.classes = nn.Embedding(config.classes, 4 * D) if config.classes else None
        self.fold = nn.PixelUnshuffle(config.patch) if config.patch > 1 else nn.Identity()
        self.unfold = nn.PixelShuffle(config.patch) if config.patch > 1 else nn.Identity()
        self.first = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()

        skips = [C := widths[0]]                                                  # channels of each skip, and of h
        for level, width in enumerate(widths):
            if level > 0:
                self.downs.append(resampler(Down, C))
                skips.append(C)
            for _ in range(config.blocks):
                self.downs.append(ResBlock(C, width, heads[level], config, norm))
                skips.append(C := width)

        self.middle = nn.ModuleList([ResBlock(C, C, middle_heads, config, norm), ResBlock(C, C, 0, config, norm)])

        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.ups.append(resampler(Up, C))
            for _ in range(config.blocks + 1):
                self.ups.append(ResBlock(C + skips.pop(), width, heads[level], config, norm))
                C = width

        self.norm = Norm(C, config, norm)
        self.last = nn.Conv2d(C, config.out_channels * config.patch**2, 3, padding=1)
        self.time_widths = [block.time_width for block in (*self.downs, *self.middle, *self.ups)]
        self.time = nn.Linear(4 * D, sum(self.time_widths))                       # every block's, side by side
        initialise(self)

    def forward(self, xt: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """xt: (B, C, H, W). t: (B,), in 1..T. labels: int64 (B,), if there are classes. Raises ValueError."""
        check_size(self.config, *xt.shape[1:])
        return self.trunk(xt, self.embed(t, labels))

    def embed(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The row (B, S): every block's projection of the time and the class, plus conv1's bias where it is added."""
        if (labels is None) != (self.classes is None):
            raise ValueError(f"the network has {self.config.classes} classes, but labels are "
                             f"{'missing' if labels is None else 'given'}; pass labels to networks with classes only")
        t = ((t - 1) * self.config.time_scale).float()                            # published networks count from 0
        h = sinusoid(t, self.config.D, self.config.freq_shift)                    # B D
        h = self.time_out(F.silu(self.time_in(h.to(self.time_in.weight.dtype))))  # B 4D
        if labels is not None:
            h = h + self.classes(labels)
        row = self.time(F.silu(h))                                                # B S
        if self.config.scale_shift:
            return row
        blocks = (*self.downs, *self.middle, *self.ups)
        return row + torch.cat([block.conv1.bias for block in blocks if block.time_width])

    def trunk(self, xt: Tensor, row: Tensor) -> Tensor:
        """The path of the picture: x_t and the row -> the output."""
        time = iter(row.split(self.time_widths, dim=1))
        h = self.first(self.fold(xt.to(self.first.weight.dtype)))                 # B C H/patch W/patch
        skips = [h]
        for block in self.downs:
            h = block(h, next(time))
            skips.append(h)
        for block in self.middle:
            h = block(h, next(time))
        for block in self.ups:
            h = block(h if block.resamples else torch.cat([h, skips.pop()], dim=1), next(time))
        assert not skips
        return self.unfold(self.last(self.norm(h)))                               # B out_channels H W


def check_size(config: UNetConfig, C: int, H: int, W: int) -> None:
    """Raises ValueError unless pictures (C, H, W) pass through the network and back at their own size."""
    if config.in_channels != C:
        raise ValueError(f"the pictures have {C} channels, the network takes {config.in_channels}; change in_channels")
    halvings = len(config.widths) - 1
    unit = config.patch * 2**halvings
    if H % unit or W % unit:
        ways = [f"divide into patches of {config.patch}"] * (config.patch > 1) + [f"halve {halvings} times"] * (
            halvings > 0)
        raise ValueError(f"{H} x {W} pixels do not {' and '.join(ways)}; pad or resize to multiples of {unit}, "
                         f"{math.ceil(H / unit) * unit} x {math.ceil(W / unit) * unit} say")


def sinusoid(t: Tensor, D: int, freq_shift: int) -> Tensor:
    """Sines, then cosines, of t at D/2 frequencies from 1 to 1/10000: (B, D) float32 (Vaswani et al. 2017, 3.5)."""
    half = D // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / (half - freq_shift))
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@torch.no_grad()
def initialise(unet: UNet) -> None:
    """Glorot uniform and biases 0; what ends a residual branch, and the network, starts at 0 (Ho et al. 2020, code)."""
    for module in unet.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in unet.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.conv2.weight)
        if isinstance(module, Attention):
            nn.init.zeros_(module.out.weight)
            for part in module.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part)
    for part in filter(len, unet.time.weight.split(unet.time_widths)):
        nn.init.xavier_uniform_(part)
    nn.init.zeros_(unet.last.weight)


CIFAR10 = UNetConfig()

CONFIGS = {
    # 0.17 M parameters: small enough for two CPU cores, class-conditional with a null class
    "digits": UNetConfig(1, 1, D=16, widths=(16, 32), blocks=1, heads=(0, 0, 0), classes=11, scale_shift=True,
                         resample="conv", groups=8, norm_eps=1e-5),
    # 1.0 M: 28 x 28 pixels in an hour or two of a CPU core (docs/fashion.md says why this one)
    "fashion": UNetConfig(1, 1, D=32, widths=(32, 64), blocks=2, heads=(0, 0, 1), classes=11, scale_shift=True,
                          resample="conv", groups=8, norm_eps=1e-5, patch=2),
    # Ho et al. 2020: CIFAR-10, 35.7 M, and 256 x 256 LSUN and CelebA-HQ, 113.7 M
    "cifar10": replace(CIFAR10, dropout=0.1),
    "lsun256": replace(CIFAR10, widths=(128, 128, 256, 256, 512, 512), heads=(0, 0, 0, 0, 1, 0, 1)),
    # Nichol & Dhariwal 2021: CIFAR-10 with a learned variance and T = 4000, its time input in thousandths of the chain
    "improved-cifar10": replace(CIFAR10, out_channels=6, blocks=3, heads=(0, 4, 4, 0, 4), scale_shift=True,
                                resample="conv", dropout=0.3, norm_eps=1e-5, freq_shift=0, time_scale=0.25),
    # Dhariwal & Nichol 2021: class-conditional ImageNet at 64 x 64, 64 channels a head
    "adm64": replace(CIFAR10, out_channels=6, D=192, widths=(192, 384, 576, 768), blocks=3, heads=(0, 6, 9, 12, 12),
                     classes=1000, scale_shift=True, resample="res", dropout=0.1, norm_eps=1e-5, freq_shift=0),
    # the sizes of four well-known tutorials: MNIST padded to 32 x 32, Stanford Cars at 64 x 64, a folder at
    # 128 x 128, ImageNet at 64 x 64
    "mnist32": UNetConfig(1, 1, D=64, widths=(64, 128, 256, 512), heads=(0, 8, 0, 0, 0), dropout=0.1),
    "cars64": UNetConfig(D=32, widths=(64, 128, 256, 512, 1024), blocks=1, heads=(0, 0, 0, 0, 0, 0)),
    "folder128": UNetConfig(D=64, widths=(64, 128, 256, 512), heads=(0, 0, 0, 4, 4), scale_shift=True, groups=8,
                            resample="conv", norm_eps=1e-5),
    "imagenet64": UNetConfig(D=128, widths=(128, 256, 384, 512), heads=(0, 0, 8, 8, 8), resample="conv", dropout=0.1),
}
