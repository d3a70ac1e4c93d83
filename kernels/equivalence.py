"""What `python -m kernels` compares: the kernels, the plain lines, and float64, on the shapes of the named U-Nets."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

import ddpm
import noise
import samplers
from kernels import group_norm_silu, group_norm_silu_plain, sampling_step
from kernels.group_norm_silu import DTYPES, INTERPRET, backward_op, forward_op
from schedules import TARGETS
from unet import CONFIGS, UNet

KNOWN = {"digits": 8, "fashion": 28, "cifar10": 32, "improved-cifar10": 32}
SIDES = {name: KNOWN.get(name) or int(re.search(r"\d+$", name)[0]) for name in CONFIGS}    # pixels; other names say it
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# Half a unit in the last place; the interpreter rounds to bfloat16 towards zero, which costs up to a whole one.
ROUNDING = {torch.float64: 0., torch.float32: 2**-24, torch.float16: 2**-11,
            torch.bfloat16: 2**-7 if INTERPRET else 2**-8}
TOLERANCE = 4e-6            # of a float32 computation, relative to the largest element


class Norm(NamedTuple):
    """One GroupNorm of a U-Net, without its batch."""
    C: int
    H: int
    W: int
    groups: int
    rows: tuple[str, ...]           # which of scale, shift, add it is given
    silu: bool


def norms(network: str) -> Counter[Norm]:
    """The distinct norms of a U-Net and how often each occurs, noted down while it runs without numbers."""
    found, config = Counter(), CONFIGS[network]

    def note(x: Tensor, groups: int, weight: Tensor, bias: Tensor, norm_eps: float, *, silu: bool = True, **rows):
        found[Norm(*x.shape[1:], groups, tuple(rows), silu)] += 1
        return x

    with torch.device("meta"):
        t = torch.ones(1, dtype=torch.int64)
        xt = torch.empty(1, config.in_channels, SIDES[network], SIDES[network])
        UNet(config, note)(xt, t, t if config.classes else None)
    return found


def cropped(found: list[Norm]) -> list[Norm]:
    """For the interpreter: 4 groups and 16 x 16 pixels at most; the largest group also at 32 x 32, for the longer ways.
    """
    largest = max(found, key=lambda norm: norm.C // norm.groups * norm.H * norm.W)
    return list(dict.fromkeys(norm._replace(C=norm.C // norm.groups * min(norm.groups, 4), groups=min(norm.groups, 4),
                                            H=min(norm.H, side), W=min(norm.W, side))
                              for norm, side in [*((norm, 16) for norm in found), (largest, 32)]))


def leaves(norm: Norm, B: int, dtype: torch.dtype, layout: str, device) -> dict[str, Tensor]:
    """Hostile arguments: a mean far from zero that differs between channels, random affine; and dy."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    C, order = norm.C, LAYOUTS[layout]
    image = normal(min(B, 2), C, norm.H, norm.W).repeat(-(-B // 2), 1, 1, 1)[:B]  # two, repeated: they take long
    x = (3 + normal(1, C, 1, 1) + 1.5 * image).to(dtype)
    found = {"x": x.to(memory_format=order), "weight": normal(C), "bias": normal(C),
             **{name: normal(B, C) for name in norm.rows}}
    found = {name: leaf.to(device).requires_grad_() for name, leaf in found.items()}
    return found | {"dy": image.flip(2).to(dtype).to(device, memory_format=order)}


def gradients(function: Callable, leaves: dict[str, Tensor], double: bool = False, **options) -> dict[str, Tensor]:
    """y and the gradient of every leaf, by name."""
    dy = leaves["dy"]
    given = {k: v.detach().double().requires_grad_() if double else v for k, v in leaves.items() if k != "dy"}
    y = function(**given, **options)
    grads = torch.autograd.grad(y, list(given.values()), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{k}": v for k, v in zip(given, grads, strict=True)}


def errors(got: dict[str, Tensor], plain: dict[str, Tensor], true: dict[str, Tensor],
           tolerance: float = TOLERANCE, terms: Tensor | float = 0.) -> dict[str, dict]:
    """Of each tensor: the kernel's largest error over the largest element, the plain lines' own, and whether the
    kernel's is rounding: once to its dtype, and `tolerance` of the largest element (1 if that is less) before.

    terms: the sizes of two products whose sum may cancel, added up; each and its factors are rounded to float32.
    """
    found = {}
    for name, want in true.items():
        size, away = want.abs().max(), (got[name].double() - want).abs()
        allowed = (1.01 * ROUNDING[got[name].dtype] * want.abs() + tolerance * (1 + size)
                   + 3 * ROUNDING[torch.float32] * terms)
        own = (plain[name].double() - want).abs().max()
        found[name] = {"kernel": (away.max() / size).item(), "plain": (own / size).item(),
                       "ok": bool((away <= allowed).all())}
    return found


def way(x: Tensor, groups: int, layout: str) -> str:
    """How the kernels go through x, forward/backward."""
    from kernels import group_norm_silu_triton as triton_file
    plans = (triton_file.plan(x.shape, groups, x.element_size(), layout == "channels_last", sizes)
             for sizes in (triton_file.FORWARD, triton_file.BACKWARD))
    return "/".join("split" if p.chunk else "resident" if p.pixels >= x[0, 0].numel() else "loop" for p in plans)


def norm_cases(networks: list[str], device: torch.device) -> Iterator[dict]:
    """A report a norm, dtype and layout, each as it is done."""
    found = {}
    for network in networks:
        for norm in norms(network) if device.type == "cuda" else cropped(list(norms(network))):
            found.setdefault(norm, []).append(network)
    for (norm, names), dtype, layout in product(found.items(), DTYPES, LAYOUTS):
        yield {"kernel": "group_norm_silu", "networks": names, **norm_case(norm, dtype, layout, device)}


def norm_case(norm: Norm, dtype: torch.dtype, layout: str, device: torch.device) -> dict:
    """On a GPU at batch 128, or as many images as make 2^26 elements; interpreted, two."""
    B = max(1, min(128, 2**26 // (norm.C * norm.H * norm.W))) if device.type == "cuda" else 2
    given = leaves(norm, B, dtype, layout, device)
    options = {"groups": norm.groups, "silu": norm.silu}
    got, again = (gradients(group_norm_silu, given, **options) for _ in range(2))
    found = errors(got, gradients(group_norm_silu_plain, given, **options),
                   gradients(group_norm_silu_plain, given, double=True, **options))
    report = {"case": f"{B},{norm.C},{norm.H},{norm.W} {'+'.join(norm.rows)}{'' if norm.silu else ' no silu'}",
              "dtype": name_of(dtype), "layout": layout, "way": way(given["x"], norm.groups, layout), "errors": found,
              "repeats": all(torch.equal(got[k], again[k]) for k in got)}
    return report | (norm_times(norm, given) if device.type == "cuda" else {})


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def norm_times(norm: Norm, given: dict[str, Tensor]) -> dict:
    """Forward and backward, on the same memory again and again: microseconds and useful GB/s."""
    x, weight, bias, *rows = (None if v is None else v.detach() for v in
                              map(given.get, ("x", "weight", "bias", "scale", "shift", "add")))
    forward = partial(forward_op, x, weight, bias, *rows, norm.groups, 1e-5, norm.silu)
    _, *stats = forward()
    backward = partial(backward_op, given["dy"], x, *stats, weight, bias, *rows, norm.silu)
    size = x.numel() * x.element_size()
    return times(forward, 2 * size) | {f"{k} back": v for k, v in times(backward, 3 * size).items()}


def times(run: Callable, size: int) -> dict[str, float]:
    """Median over replays of a CUDA graph of many calls, so without launches, but with a warm cache."""
    from triton.testing import do_bench_cudagraph
    ms = do_bench_cudagraph(run, quantiles=[0.5])
    return {"us": 1e3 * ms, "GB/s": size / ms / 1e6}


# The sampling step

SAMPLERS = {"ancestral": {"eta": 1.}, "beta": {"eta": 1., "variance": "beta"}, "ddim": {}, "eta 0.5": {"eta": 0.5},
            "2m": {"sampler": "2m"}, "2m sde": {"sampler": "2m", "eta": 1.}, "unipc": {"sampler": "unipc"},
            "heun churn": {"sampler": "heun", "churn": 1.}, "consistency": {"sampler": "consistency"},
            "learned": {"eta": 1., "variance": "learned"}}
ONLY_NOISE = [[7, 5, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]]                               # a row whose x_s is the noise


def step_cases(device: torch.device) -> Iterator[dict]:
    """One report per kind of row, over first, middle and last step, and dtype and layout of the output.

    Interpreted, the kinds take the dtypes and layouts in turn.
    """
    shape = (128, 3, 32, 32) if device.type == "cuda" else (2, 3, 8, 6)
    outputs = list(product(DTYPES, LAYOUTS))
    for n, (sampler, target, clip) in enumerate(product(SAMPLERS, TARGETS, (True, False))):
        choice = SAMPLERS[sampler] | {"target": target, "clip": clip}
        rows = samplers.sampler_rows(ddpm.linear_schedule(), samplers.timesteps(1000, 5), **choice).to(device)
        for dtype, layout in outputs if device.type == "cuda" else [outputs[n % len(outputs)]]:
            yield {"kernel": "sampling_step", "case": f"{sampler} {target}{' clip' if clip else ''}",
                   "dtype": name_of(dtype), "layout": layout, **step_case(rows, shape, dtype, layout)}
    yield {"kernel": "sampling_step", "case": "noise", "dtype": "float32", "layout": "nchw",
           **noise_case(shape, device)}


def step_arguments(rows: Tensor, shape, dtype: torch.dtype, layout: str) -> tuple:
    """xt, output (twice the channels for a learned variance), and what the rows read of seeds, x0_prev, x0_prev2."""
    g = torch.Generator().manual_seed(0)
    B, C, *pixels = shape
    noisy, second, third, learned = samplers.needs(rows)
    xt, x0_prev, x0_prev2 = torch.randn(3, *shape, generator=g).to(rows.device)
    output = torch.randn(B, 2 * C if learned else C, *pixels, generator=g).to(rows.device, dtype)
    seeds = noise.image_seeds(1, torch.arange(B, device=rows.device))
    return (xt, output.to(memory_format=LAYOUTS[layout]), seeds if noisy else None, x0_prev if second else None,
            x0_prev2 if third else None)


def step_case(rows: Tensor, shape, dtype: torch.dtype, layout: str) -> dict:
    xt, output, seeds, *past = step_arguments(rows, shape, dtype, layout)
    given = xt, output, *past
    doubles = [None if each is None else each.double() for each in given]
    found, repeats = {}, True
    for k in (0, len(rows) // 2, len(rows) - 1):
        i = torch.tensor([k], device=rows.device)
        results = (step(rows, i, x, out, prev, seeds, x0_prev2=prev2) for step, (x, out, prev, prev2) in
                   ((sampling_step, given), (sampling_step, given), (samplers.step, given), (samplers.step, doubles)))
        got, again, plain, true = (dict(zip(("xs", "x0_hat"), each, strict=True)) for each in results)
        a, b = (rows[k, samplers.COLUMNS.index(name)].abs() for name in ("a", "b"))
        terms = a * doubles[0].abs() + b * doubles[1][:, :shape[1]].abs()         # a xt + b output: 157 of both at T
        found |= {f"{name} at s = {rows[k, 1]:.0f}": e for name, e in errors(got, plain, true, terms=terms).items()}
        repeats &= all(torch.equal(got[name], again[name]) for name in got)
    report = {"errors": found, "repeats": repeats}
    if not rows.is_cuda:
        return report
    i = torch.tensor([len(rows) // 2], device=rows.device)
    size = xt.numel() * (8 + output.element_size() * output.shape[1] // xt.shape[1] + 4 * (2 - past.count(None)))
    return report | times(lambda: sampling_step(rows, i, xt, output, past[0], seeds, x0_prev2=past[1], keep_x0=False),
                          size)


def noise_case(shape, device: torch.device) -> dict:
    """The kernel's noise beside noise.normal's: the words are equal, the normals to a logarithm's last bits."""
    x, i = torch.zeros(shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    seeds = noise.image_seeds(2**31 - 1, torch.arange(2**32 - len(x), 2**32)).to(device)
    row = torch.tensor(ONLY_NOISE, dtype=torch.float64, device=device)
    got, again = (sampling_step(row, i, x, x, None, seeds)[0] for _ in range(2))
    plain = noise.normal(seeds, 5, shape[1:])
    return {"errors": errors({"z": got}, {"z": plain}, {"z": plain.double()}), "repeats": torch.equal(got, again)}
