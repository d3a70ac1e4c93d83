"""Counts the kernels that torch.compile would launch on a GPU, without one: Inductor writes the code, nothing runs.

    python -m bench.launches

Tensors are fake, and the GPU is pretended to be an H200. A line for each graph, of one sampling step (the trunk: the time
path is a table), and of a training step forward and backward: Inductor's own kernels, and calls of convolutions, norms,
matrix products and the rest, each of which is one or a few launches.
"""

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from torch import nn
from torch._inductor import compile_fx, config
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from torch.utils.cpp_extension import TORCH_LIB_PATH, include_paths
from triton.backends.compiler import GPUTarget

from bench.markdown import table
from ddpm import check_choice
from kernels import group_norm_silu
from kernels.compile import COMPILED, rewrite
from kernels.equivalence import SIDES
from run.cli import parse, script
from run.memory import Cast
from unet import CONFIGS, UNet

H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=140 * 2**30, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    L2_cache_size=60 * 2**20, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, gcnArchName="", uuid="", is_integrated=0, is_multi_gpu_board=0)
KINDS = {                                       # of a call in the code that Inductor writes
    "Inductor's": r"\.run\(", "convolutions": r"\bconvolution\w*\(|convolution_backward|slow_conv",
    "norms": r"group_norm_silu", "products": r"extern_kernels\.\w*(mm|dot)\w*\(", "attention": r"scaled_dot_product|attention",
    "other": r"torch\.ops\.|extern_kernels\.|aten\."}


@dataclass(frozen=True)
class Config:
    """Counts the kernels of a sampling step and of a training step."""
    network: str = "cifar10"        # a name in unet.CONFIGS
    batch: int = 128                # pictures


GPU = torch.device("cuda:0")


class Written(BaseException):
    """The code of a graph, thrown past all that would compile it."""


# PyTorch makes a tensor's device the current one before it works on it, even a fake tensor's. This does nothing instead.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::DeviceGuardImplRegistrar no_guard(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
"""


def load_guard() -> None:
    """Compiles GUARD and loads it; the process can never use a real GPU after. Raises OSError without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(GUARD)
        subprocess.run([os.environ.get("CXX", "g++"), "-std=c++20", "-shared", "-fPIC", "-D_GLIBCXX_USE_CXX11_ABI=1",
                        *(f"-I{path}" for path in include_paths()), str(source), f"-L{TORCH_LIB_PATH}", "-lc10",
                        "-o", str(library)], check=True)
        ctypes.CDLL(str(library))


@contextlib.contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """Inside, torch.compile writes code for an H200 into the list, and fake CUDA tensors go through the graphs' lines."""
    written = []

    def compile_to_module(graph: GraphLowering) -> None:
        code, *_ = graph.codegen()
        raise Written(getattr(code, "value", code))

    with contextlib.ExitStack() as stack, FakeTensorMode():
        for name, value in {"is_available": True, "device_count": 1, "current_device": 0, "_lazy_init": None,
                            "get_device_properties": H200, "_get_device_properties": H200,
                            "get_device_capability": (9, 0),
                            "is_bf16_supported": True, "get_rng_state": torch.zeros(16, dtype=torch.uint8),
                            "set_rng_state": None, "_exchange_device": 0, "_maybe_exchange_device": 0,
                            "current_stream": SimpleNamespace(cuda_stream=0)}.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value,
                                                    create=True))
        target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", target))
        for name in ("_subclasses.fake_tensor.init_gpu_context", "_inductor.fx_passes.fuse_attention._sfdp_init",
                     "_inductor.fx_passes.pad_mm._pad_mm_init"):                  # patterns that are not found here
            stack.enter_context(mock.patch(f"torch.{name}"))
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", compile_to_module))
        stack.enter_context(config.patch(force_disable_caches=True, compile_threads=1,
                                         joint_graph_constant_folding=False))
        yield written


def backend(written: list[str], **options) -> Callable:
    """A backend of torch.compile that writes the code and then runs the graph's own lines."""
    def inner(graph: torch.fx.GraphModule, inputs: Sequence, **flags) -> Callable:
        try:
            compile_fx.compile_fx_inner(graph, inputs, **flags)
        except Written as code:
            written.append(str(code))

        def run(arguments: list) -> object:
            return graph(*arguments)
        run._boxed_call = True
        return run
    return lambda graph, inputs: compile_fx.compile_fx(graph, inputs, inner_compile=inner, config_patches=options)


def calls(code: str) -> Counter[str]:
    """How many calls of each kind the code of one graph makes when it runs."""
    body = code[code.index("def call("):]
    lines = [line for line in body.splitlines() if re.search(r"\.run\(|extern_kernels\.|torch\.ops\.|aten\.", line)
             and "assert_" not in line]
    return Counter(next(kind for kind, pattern in KINDS.items() if re.search(pattern, line)) for line in lines)


def pretended(unet: UNet, dtype: torch.dtype) -> UNet:
    """The network on the pretended GPU, in channels_last; a network without memory before."""
    for module in unet.modules():
        for name, w in module._parameters.items():
            if w is not None:
                fake = torch.empty(w.shape, dtype=torch.float32 if "norm" in name else dtype, device=GPU)
                fake = fake.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else fake
                module._parameters[name] = nn.Parameter(fake, requires_grad=w.requires_grad)
    return unet


def sampling(network: str, B: int) -> list[str]:
    """The code of one evaluation of the network, in bf16, its rows looked up before."""
    with torch.device("meta"):
        unet = UNet(CONFIGS[network], group_norm_silu).eval().requires_grad_(False)
    rewrite(unet)
    with pretended_gpu() as written, torch.no_grad():
        pretended(unet, torch.bfloat16)
        xt = torch.empty(B, unet.config.in_channels, SIDES[network], SIDES[network], device=GPU)
        row = torch.empty(B, sum(unet.time_widths), dtype=torch.bfloat16, device=GPU)
        torch.compile(unet.trunk, backend=backend(written), fullgraph=True)(xt, row)
    return written


def training(network: str, B: int, **options) -> list[str]:
    """The code of forward and backward in bf16, with float32 weights."""
    with torch.device("meta"):
        unet = UNet(CONFIGS[network], group_norm_silu)
    with pretended_gpu() as written:
        pretended(unet, torch.float32)
        xt = torch.empty(B, unet.config.in_channels, SIDES[network], SIDES[network], device=GPU)
        t = torch.empty(B, dtype=torch.int64, device=GPU)
        model = torch.compile(Cast(unet, torch.bfloat16), backend=backend(written, **options), fullgraph=True)
        model(xt, t, t if unet.config.classes else None)                          # its backward is written as well
    return written


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("network", config.network, CONFIGS)
    load_guard()
    graphs = {"a sampling step": sampling(config.network, config.batch)}
    for name, options in (("training", {}), ("training, combined", COMPILED)):
        graphs |= dict(zip((f"{name}: forward", f"{name}: backward"), training(config.network, config.batch, **options),
                           strict=True))
    rows = [[name, *(calls(code)[kind] for kind in KINDS), calls(code).total()] for name, code in graphs.items()]
    print(f"{config.network}, batch {config.batch}, torch {torch.__version__}\n\n"
          + table(["", *KINDS, "in all"], rows), end="")


if __name__ == "__main__":
    main()
