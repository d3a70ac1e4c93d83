"""The cases that the kernels are compared on, and the comparison: with the plain lines, and with float64.

The tests run NORMS and STEPS; `python -m kernels` prints them, and on a GPU adds the norms of whole networks.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import ddpm
import noise
import samplers
from kernels import group_norm_silu, group_norm_silu_plain, sampling_step
from kernels.group_norm_silu import DTYPES, INTERPRET
from unet import CONFIGS, UNet

KNOWN = {"digits": 8, "fashion": 28, "cifar10": 32, "improved-cifar10": 32}
SIDES = {name: KNOWN.get(name) or int(re.search(r"\d+$", name)[0]) for name in CONFIGS}    # pixels; other names say it
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# Half a unit in the last place; the interpreter rounds to bfloat16 towards zero, which costs up to a whole one.
ROUNDING = {torch.float64: 0., torch.float32: 2**-24, torch.float16: 2**-11,
            torch.bfloat16: 2**-7 if INTERPRET else 2**-8}
TOLERANCE = 4e-6            # of a float32 computation on a whole network's shapes, relative to the largest element


def check_triton() -> None:
    """Raises ValueError where Triton is not installed: the kernels cannot be compared then."""
    if find_spec("triton") is None:
        raise ValueError("Triton is not installed, so there are no kernels to look at; pip install triton, on Linux")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def errors(got: dict[str, Tensor], plain: dict[str, Tensor], true: dict[str, Tensor],
           terms: dict[str, Tensor], tolerance: float = TOLERANCE) -> dict[str, dict]:
    """For each tensor: the kernel's largest error over the largest element (1 if that is less), the same of the plain
    lines, and whether the kernel's is rounding: once to its dtype, and tolerance times the largest element before.

    terms: for sums that may cancel, the sizes of what is added, added up; each is a product rounded to float32.
    """
    report = {}
    for name, want in true.items():
        size, error = want.abs().max(), (got[name].double() - want).abs()
        allowed = (1.01 * ROUNDING[got[name].dtype] * want.abs() + tolerance * (1 + size)
                   + 3 * ROUNDING[torch.float32] * terms.get(name, 0.))
        plain_error = (plain[name].double() - want).abs().max()
        report[name] = {"kernel": (error.max() / size.clamp(min=1)).item(),
                        "plain": (plain_error / size.clamp(min=1)).item(), "ok": bool((error <= allowed).all())}
    return report


def sound(report: dict) -> bool:
    """Whether every error is rounding, a second run gave the same bits, and the results lie as they should."""
    return report["repeats"] and report.get("like x", True) and all(e["ok"] for e in report["errors"].values())


# The norm

class Norm(NamedTuple):
    """One GroupNorm of a U-Net, without its batch."""
    C: int
    H: int
    W: int
    groups: int
    rows: tuple[str, ...]           # which of scale, shift, add it is given
    silu: bool


class NormCase(NamedTuple):
    norm: Norm
    B: int
    dtype: torch.dtype              # of x
    layout: str
    parameters: torch.dtype = torch.float32
    norm_eps: float = 1e-5
    way: str = ""                   # resident, loop or split, whatever the size; else as `plan` decides

    def __str__(self) -> str:
        options = " ".join((*self.norm.rows, *([] if self.norm.silu else ["no silu"])))
        return f"{self.B},{self.norm.C},{self.norm.H},{self.norm.W}/{self.norm.groups} {options}".strip()


ROWS = ("scale", "shift", "add")
WAYS = {"resident": (4096, 4096, 96 * 1024), "loop": (1, 64, 96 * 1024), "split": (1, 64, 0)}     # of Sizes
SHAPES = {"even": (2, 8, 8, 8, 2), "three a group": (1, 6, 7, 5, 2), "twelve a group": (2, 24, 3, 5, 2),
          "one a group": (2, 3, 8, 9, 3), "one group": (1, 10, 11, 3, 1)}                         # B C H W groups


def small_norms() -> list[NormCase]:
    """Every way with every shape; and, two groups of three channels per program, with every choice of arguments."""
    layouts, dtypes = cycle(LAYOUTS), cycle(DTYPES[1:])
    cases = [NormCase(Norm(C, H, W, G, ROWS, True), B, torch.float32, next(layouts), way=way)
             for way, (B, C, H, W, G) in product(WAYS, SHAPES.values())]
    for way, (rows, silu) in product(WAYS, (((), True), (("add",), True), (("scale", "shift"), True), (ROWS, False))):
        dtype = next(dtypes) if rows == () or not silu else torch.float32
        cases.append(NormCase(Norm(12, 4, 7, 4, rows, silu), 2, dtype, next(layouts), torch.float32 if silu else dtype,
                              0.1, way))
    return cases


NORMS = small_norms()


def norms(network: str) -> Counter[Norm]:
    """The distinct norms of a U-Net and how often each occurs, noted down while it runs without numbers."""
    counts, config = Counter(), CONFIGS[network]

    def note(x: Tensor, groups: int, weight: Tensor, bias: Tensor, norm_eps: float, *, silu: bool = True, **rows):
        counts[Norm(*x.shape[1:], groups, tuple(rows), silu)] += 1
        return x

    with torch.device("meta"):
        t = torch.ones(1, dtype=torch.int64)
        xt = torch.empty(1, config.in_channels, SIDES[network], SIDES[network])
        UNet(config, note)(xt, t, t if config.classes else None)
    return counts


def network_norms(networks: list[str]) -> list[NormCase]:
    """Every distinct norm of these U-Nets, in every dtype and layout, at batch 128 or with 2^26 elements."""
    distinct = dict.fromkeys(norm for network in networks for norm in norms(network))
    return [NormCase(norm, max(1, min(128, 2**26 // (norm.C * norm.H * norm.W))), dtype, layout)
            for norm, dtype, layout in product(distinct, DTYPES, LAYOUTS)]


def leaves(norm: Norm, B: int, dtype: torch.dtype, layout: str, device,
           parameters: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Hostile arguments: a mean far from zero that differs between channels, random affine; and dy."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    C, order = norm.C, LAYOUTS[layout]
    image = normal(min(B, 2), C, norm.H, norm.W).repeat(-(-B // 2), 1, 1, 1)[:B]  # two, repeated: they take long
    x = (3 + normal(1, C, 1, 1) + 1.5 * image).to(dtype)
    rows = {"weight": normal(C), "bias": normal(C), **{name: normal(B, C) for name in norm.rows}}
    arguments = {"x": x.to(memory_format=order)} | {name: row.to(parameters) for name, row in rows.items()}
    arguments = {name: leaf.to(device).requires_grad_() for name, leaf in arguments.items()}
    return arguments | {"dy": image.flip(2).to(dtype).to(device, memory_format=order)}


def gradients(function: Callable, leaves: dict[str, Tensor], double: bool = False, **options) -> dict[str, Tensor]:
    """y and the gradient of every leaf, by name."""
    dy = leaves["dy"]
    arguments = {k: v.detach().double().requires_grad_() if double else v for k, v in leaves.items() if k != "dy"}
    y = function(**arguments, **options)
    grads = torch.autograd.grad(y, list(arguments.values()), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{k}": v for k, v in zip(arguments, grads, strict=True)}


@contextlib.contextmanager
def forced(way: str) -> Iterator[None]:
    """Makes small shapes go the way of large ones, and several groups share a program."""
    from kernels import group_norm_silu_triton as fused
    before = fused.FORWARD, fused.BACKWARD
    if way:
        sizes = dict(zip(("resident", "loop", "slab", "programs"), (*WAYS[way], 4), strict=True))
        fused.FORWARD, fused.BACKWARD = (each._replace(**sizes) for each in before)
    try:
        yield
    finally:
        fused.FORWARD, fused.BACKWARD = before


def ways(x: Tensor, groups: int) -> str:
    """How the kernels go through x, forward/backward."""
    from kernels import group_norm_silu_triton as fused
    return "/".join(fused.plan(x.shape, groups, x.element_size(), not x.is_contiguous(), True, sizes).way
                    for sizes in (fused.FORWARD, fused.BACKWARD))


def norm_case(case: NormCase, device: torch.device | str, tolerance: float = TOLERANCE) -> dict:
    """The report of one case. On a GPU it runs twice; the interpreter has but one order."""
    norm, arguments = case.norm, leaves(*case[:4], device, case.parameters)
    x, options = arguments["x"], {"groups": norm.groups, "silu": norm.silu, "norm_eps": case.norm_eps}
    with forced(case.way):
        got, way = gradients(group_norm_silu, arguments, **options), ways(x, norm.groups)
        again = gradients(group_norm_silu, arguments, **options) if x.is_cuda else got
    true = gradients(group_norm_silu_plain, arguments, double=True, **options)
    terms = {"dadd": true["dx"].abs().sum((2, 3))}              # a group of one channel has no gradient of its add
    return {"kernel": "group_norm_silu", "case": str(case), "dtype": name_of(case.dtype), "layout": case.layout,
            "way": way, "repeats": all(torch.equal(got[k], again[k]) for k in got),
            "like x": all(got[k].dtype == x.dtype and got[k].stride() == x.stride() for k in ("y", "dx")),
            "errors": errors(got, gradients(group_norm_silu_plain, arguments, **options), true, terms, tolerance)}


# The sampling step

class StepCase(NamedTuple):
    kind: str                       # in KINDS
    noise: str                      # which of seeds and z is given, or neither
    dtype: torch.dtype              # of the output
    layout: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.noise}"


KINDS = {
    "ancestral": {"eta": 1.}, "beta": {"eta": 1., "variance": "beta"}, "ddim": {}, "2m": {"sampler": "2m"},
    "2m sde": {"sampler": "2m", "eta": 1.}, "heun": {"sampler": "heun"}, "heun churn": {"sampler": "heun", "churn": 1.},
    "unipc": {"sampler": "unipc"}, "unipc-bh1 v": {"sampler": "unipc-bh1", "target": "v"},
    "consistency": {"sampler": "consistency"}, "half v": {"eta": 0.5, "target": "v"},
    "x0 unclipped": {"eta": 1., "target": "x0", "clip": False}, "learned": {"eta": 1., "variance": "learned"},
    "table": {},
}
STEPS = [StepCase(kind, source, *output) for (source, kind), output in zip(product(("seeds", "z", "neither"), KINDS),
                                                                           cycle(product(DTYPES, LAYOUTS)))]


def rows_of(kind: str) -> Tensor:
    if kind == "table":                                                           # of examples/learn_sampler.py
        return samplers.read_table(Path(__file__).parents[1] / "weights/fashion-5.csv", ddpm.cosine_schedule(), "v")
    return samplers.sampler_rows(ddpm.linear_schedule(), samplers.timesteps(1000, 5), **KINDS[kind])


def one_row(**columns: float) -> Tensor:
    """A table of one row: these columns, and zeros."""
    return torch.tensor([[columns.get(name, 0) for name in samplers.COLUMNS]], dtype=torch.float64)


def step_arguments(rows: Tensor, shape, dtype: torch.dtype, layout: str) -> tuple:
    """xt, output (twice the channels for a learned variance), and what the rows read of seeds, x0_prev, x0_prev2."""
    g = torch.Generator().manual_seed(0)
    B, C, *pixels = shape
    needs = samplers.needs(rows)
    xt, x0_prev, x0_prev2 = torch.randn(3, *shape, generator=g).to(rows.device)
    output = torch.randn(B, 2 * C if needs.learned else C, *pixels, generator=g).to(rows.device, dtype)
    seeds = noise.image_seeds(1, torch.arange(B, device=rows.device))
    return (xt, output.to(memory_format=LAYOUTS[layout]), seeds if needs.noise else None,
            x0_prev if needs.x0_prev else None, x0_prev2 if needs.x0_prev2 else None)


def step_case(case: StepCase, shape, device: torch.device | str) -> dict:
    """The report of one case: first, second, third and last step; on a GPU each twice."""
    rows = rows_of(case.kind).to(device)
    xt, output, seeds, *past = step_arguments(rows, shape, case.dtype, case.layout)
    seeds, z = seeds if case.noise == "seeds" else None, torch.randn_like(xt) if case.noise == "z" else None
    tensors = xt, output, *past, z
    doubles = [None if each is None else each.double() for each in tensors]

    def results(step: Callable, k: int, xt, output, x0_prev, x0_prev2, z) -> dict[str, Tensor]:
        xs, x0_hat = step(rows, torch.tensor([k], device=device), xt, output, x0_prev, seeds, z=z, x0_prev2=x0_prev2)
        return {f"xs of step {k}": xs, f"x0_hat of step {k}": x0_hat}

    step_errors, repeats = {}, True
    for k in (0, 1, 2, len(rows) - 1):
        got = results(sampling_step, k, *tensors)
        again = results(sampling_step, k, *tensors) if xt.is_cuda else got
        a, b = (samplers.column(rows, name)[k].abs() for name in ("a", "b"))
        terms = a * doubles[0].abs() + b * doubles[1][:, :shape[1]].abs()         # a xt + b output: 157 of both at T
        step_errors |= errors(got, results(samplers.step, k, *tensors), results(samplers.step, k, *doubles),
                              dict.fromkeys(got, terms))
        repeats &= all(torch.equal(got[name], again[name]) for name in got)
    return {"kernel": "sampling_step", "case": str(case), "dtype": name_of(case.dtype), "layout": case.layout,
            "errors": step_errors, "repeats": repeats}


def noise_case(shape, device: torch.device | str) -> dict:
    """The kernel's noise beside noise.normal's: the words are equal, the normals to a logarithm's last bits."""
    x, i = torch.zeros(shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    seeds = noise.image_seeds(2**31 - 1, torch.arange(2**32 - len(x), 2**32)).to(device)
    got, again = (sampling_step(one_row(s=5, cz=1).to(device), i, x, x, None, seeds)[0] for _ in range(2))
    plain = noise.normal(seeds, 5, shape[1:])
    return {"kernel": "sampling_step", "case": "noise", "dtype": "float32", "layout": "nchw",
            "errors": errors({"z": got}, {"z": plain}, {"z": plain.double()}, {}), "repeats": torch.equal(got, again)}


def comparisons(networks: list[str], device: torch.device) -> list[tuple[str, Callable[[], dict]]]:
    """What is compared: its name, and the function that makes its report. Norms of whole networks only on a GPU."""
    gpu = device.type == "cuda"
    shape = (128, 3, 32, 32) if gpu else (2, 3, 5, 7)
    norm_cases = (*NORMS, *(network_norms(networks) if gpu else ()))
    return [("sampling_step noise", partial(noise_case, shape, device)),
            *((f"sampling_step {case}", partial(step_case, case, shape, device)) for case in STEPS),
            *((f"group_norm_silu {case}", partial(norm_case, case, device)) for case in norm_cases)]
