"""Counts the kernels that torch.compile would launch on a GPU, without one: Inductor writes the code, nothing runs.

    python -m bench.launches

Graphs are traced with fake tensors on a CPU and handed to Inductor as those of a pretended H200. A line for each: one
evaluation of the sampling network, whose time path is a table, and a training step forward and backward. A call of a
convolution, a norm or a matrix product is one or a few launches; Inductor's own kernels are one each.
"""

import contextlib
import copy
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
from torch import Tensor, nn
from torch._inductor import compile_fx
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map
from torch.utils.cpp_extension import TORCH_LIB_PATH, include_paths
from triton.backends.compiler import GPUTarget

from bench.markdown import table
from ddpm import check_choice
from kernels.compile import COMBINED, rewrite
from kernels.equivalence import SIDES
from kernels.group_norm_silu import forward_op
from run.cli import parse, script
from run.memory import Cast
from unet import CONFIGS, Norm, UNet

GPU = torch.device("cuda:0")
H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=140 * 2**30, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    L2_cache_size=60 * 2**20, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, gcnArchName="", uuid="", is_integrated=0, is_multi_gpu_board=0)
KINDS = {                                       # of a call in the code that Inductor writes, the first that fits
    "Inductor's": r"\.run\(", "norms": r"ops\.minimal_diffusion\.group_norm", "convolutions": r"convolution",
    "products": r"extern_kernels\.\w*(mm|dot)\w*\(", "attention": r"attention", "other": r""}


@dataclass(frozen=True)
class Config:
    """Counts the kernels of a sampling step and of a training step."""
    network: str = "cifar10"        # a name in unet.CONFIGS
    batch: int = 128                # pictures


# A GPU for Inductor

# PyTorch makes a tensor's device the current one before it works on it, a fake tensor's too. Here it does nothing.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::DeviceGuardImplRegistrar no_guard(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
"""


def load_guard() -> None:
    """Compiles GUARD and loads it; the process can use no real GPU after that."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(GUARD)
        subprocess.run([os.environ.get("CXX", "g++"), "-std=c++20", "-shared", "-fPIC", "-D_GLIBCXX_USE_CXX11_ABI=1",
                        *(f"-I{path}" for path in include_paths()), str(source), f"-L{TORCH_LIB_PATH}", "-lc10",
                        "-o", str(library)], check=True)
        ctypes.CDLL(str(library))


class Written(BaseException):
    """The code of a graph, thrown past all that would compile it."""


def throw_code(graph: GraphLowering) -> None:
    code, *_ = graph.codegen()
    raise Written(getattr(code, "value", code))


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside, Inductor finds an H200, and throws the code that it would compile."""
    cuda = {"is_available": True, "device_count": 1, "current_device": 0, "_lazy_init": None, "_exchange_device": 0,
            "get_device_properties": H200, "_get_device_properties": H200, "get_device_capability": (9, 0),
            "is_bf16_supported": True, "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
            "_maybe_exchange_device": 0, "current_stream": SimpleNamespace(cuda_stream=0)}
    driver = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value, create=True))
        for name in ("_subclasses.fake_tensor.init_gpu_context", "_inductor.fx_passes.pad_mm._pad_mm_init",
                     "_inductor.fx_passes.fuse_attention._sfdp_init"):            # patterns that do not occur here
            stack.enter_context(mock.patch(f"torch.{name}"))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", driver))
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", throw_code))
        yield


def moved(value):
    """A fake tensor, or a device, on the pretended GPU; anything else as it is."""
    if isinstance(value, FakeTensor):
        with value.fake_mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
    return GPU if isinstance(value, torch.device) else value


def backend(written: list[str], **options) -> Callable:
    """A backend of torch.compile that adds the code for the GPU to `written`, and then runs the graph's own lines."""
    def inner(graph: torch.fx.GraphModule, inputs: Sequence, **flags) -> Callable:
        theirs = copy.deepcopy(graph)
        for node in theirs.graph.nodes:
            node.args, node.kwargs = (tree_map(moved, part) for part in (node.args, node.kwargs))
            if "val" in node.meta:
                node.meta["val"] = tree_map(moved, node.meta["val"])
        try:
            compile_fx.compile_fx_inner(theirs, [moved(each) for each in inputs], **flags)
        except Written as code:
            written.append(str(code))

        def run(arguments: list) -> object:
            return graph(*arguments)
        run._boxed_call = True
        return run

    settings = {"force_disable_caches": True, "joint_graph_constant_folding": False, "compile_threads": 1, **options}
    return lambda graph, inputs: compile_fx.compile_fx(graph, inputs, inner_compile=inner, config_patches=settings)


def calls(code: str) -> Counter[str]:
    """How many calls of each kind the code of one graph makes when it runs."""
    lines = [line for line in code[code.index("def call("):code.index("\ndef benchmark")].splitlines()
             if re.search(r"^[^#]*(\.run\(|extern_kernels\.|torch\.ops\.|aten\.)", line) and "assert_" not in line]
    return Counter(next(kind for kind, pattern in KINDS.items() if re.search(pattern, line)) for line in lines)


# The graphs

def fused_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, norm_eps: float, *, scale: Tensor | None = None,
               shift: Tensor | None = None, add: Tensor | None = None, silu: bool = True) -> Tensor:
    """kernels.group_norm_silu as on a GPU, though the graph is traced on a CPU."""
    return forward_op(x, weight, bias, scale, shift, add, groups, norm_eps, silu)[0]


def fill(unet: UNet, dtype: torch.dtype) -> UNet:
    """Gives a network without memory fake weights in channels_last, in dtype but for the norms."""
    for module in unet.modules():
        for name, w in module._parameters.items():
            if w is not None:
                fake = torch.empty(w.shape, dtype=torch.float32 if isinstance(module, Norm) else dtype)
                fake = fake.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else fake
                module._parameters[name] = nn.Parameter(fake)
    return unet


def sampling(network: str, B: int) -> list[str]:
    """The code of one evaluation of the network, in bf16, its rows looked up before."""
    with torch.device("meta"):
        unet, written = UNet(CONFIGS[network], fused_norm).eval(), []
    rewrite(unet, pad=True)
    with FakeTensorMode(), torch.no_grad():
        xt = torch.empty(B, unet.config.in_channels, SIDES[network], SIDES[network])
        row = torch.empty(B, sum(unet.time_widths), dtype=torch.bfloat16)
        torch.compile(fill(unet, torch.bfloat16).trunk, backend=backend(written), fullgraph=True)(xt, row)
    return written


def training(network: str, B: int, **options) -> list[str]:
    """The code of forward and backward in bf16, with float32 weights."""
    with torch.device("meta"):
        unet, written = UNet(CONFIGS[network], fused_norm), []
    with FakeTensorMode():
        xt = torch.empty(B, unet.config.in_channels, SIDES[network], SIDES[network])
        t = torch.ones(B, dtype=torch.int64)
        model = Cast(fill(unet, torch.float32), torch.bfloat16)
        output = torch.compile(model, backend=backend(written, **options), fullgraph=True)(
            xt, t, t if unet.config.classes else None)
        output.float().square().mean().backward()
    return written


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("network", config.network, CONFIGS)
    load_guard()
    with pretended_gpu():
        graphs = {"sampling": sampling(config.network, config.batch)[0]}
        for name, options in (("training", {}), ("training, combined", COMBINED)):
            codes = training(config.network, config.batch, **options)
            graphs |= dict(zip((f"{name}, forward", f"{name}, backward"), codes, strict=True))
    rows = [[name, *(calls(code)[kind] for kind in KINDS), calls(code).total(), code.count("atomic_add(")]
            for name, code in graphs.items()]
    print(f"{config.network}, batch {config.batch}, torch {torch.__version__}\n\n"
          + table(["", *KINDS, "in all", "atomic adds"], rows), end="")


if __name__ == "__main__":
    main()
