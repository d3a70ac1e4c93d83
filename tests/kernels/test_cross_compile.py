"""Without a GPU: what the launchers of the named U-Nets launch compiles for three of them, and how much it takes.

The launchers run on meta tensors while every launch is recorded instead of made; then each distinct kernel is compiled
to machine code, in a process without the interpreter. `PYTHONPATH=. python tests/kernels/test_cross_compile.py 90`
prints the table for sm_90, a line of JSON per kernel.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from samplers import COLUMNS

ROOT = Path(__file__).parents[2]
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}          # bytes of shared memory a program may have
CIFAR10 = [(128, 32), (256, 32), (384, 32), (128, 16), (256, 16), (384, 16), (512, 16), (256, 8), (512, 8), (256, 4),
           (512, 4)]                                                # channels, height = width
LSUN256 = [(128, 256), (256, 64), (768, 32)]
TYPES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
         torch.int64: "*i64"}


def norms(fused) -> None:
    """Launches both directions in bfloat16 for every shape and layout, and in float32 with every optional argument."""
    for B, shapes in ((128, CIFAR10), (1, CIFAR10[:1]), (16, LSUN256)):
        for C, H in shapes:
            norm(fused, B, C, H, torch.bfloat16, torch.contiguous_format)
            norm(fused, B, C, H, torch.bfloat16, torch.channels_last)
    for C, H in ((256, 32), (512, 64)):
        norm(fused, 128, C, H, torch.float32, torch.channels_last, rows=3)


def norm(fused, B: int, C: int, H: int, dtype: torch.dtype, order: torch.memory_format, rows: int = 1) -> None:
    record.name = f"({B}, {C}, {H}, {H}) {dtype} {order}"
    x, y, dy, dx = (torch.empty(B, C, H, H, dtype=dtype, device="meta", memory_format=order) for _ in range(4))
    mean, rstd, weight, bias, dweight, dbias, *given = (torch.empty(s, device="meta") for s in
                                                        ((B, 32), (B, 32), C, C, C, C, *[(B, C)] * rows))
    given = [None] * (3 - rows) + given                                                     # scale, shift, add
    last = order == torch.channels_last
    fused.forward(x, y, mean, rstd, weight, bias, *given, 1e-5, True, last)
    fused.backward(dy, x, mean, rstd, weight, bias, *given, True, last, dx, dweight, dbias, *given)


def steps(fused) -> None:
    rows, i, seeds = (torch.empty(s, dtype=d, device="meta") for s, d in
                      (((9, len(COLUMNS)), torch.float64), (1, torch.int64), (8, torch.int64)))
    x = torch.empty(8, 3, 32, 32, device="meta")
    for channels, dtype, order, past in ((3, torch.bfloat16, torch.channels_last, (None, None)),
                                         (6, torch.bfloat16, torch.channels_last, (None, None)),
                                         (6, torch.float32, torch.contiguous_format, (x, None)),
                                         (3, torch.bfloat16, torch.channels_last, (x, x))):
        record.name = f"step {channels} {dtype} {order}"
        output = torch.empty(8, channels, 32, 32, dtype=dtype, device="meta", memory_format=order)
        fused.step(rows, i, x, output, *past, seeds, None, x, None if past[0] is None else x)


def record(self, *args, grid, warmup, num_warps, **kwargs) -> None:
    """Takes the place of a launch: notes the kernel and what it would have been compiled for."""
    signature, constants, aligned = {}, {}, []
    for k, param in enumerate(self.params):
        value = args[k] if k < len(args) else kwargs[param.name]
        if param.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = TYPES[value.dtype]
            aligned.append(k)
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        else:
            signature[param.name] = "i32" if value < 2**31 else "i64"
            aligned += [k] * (value % 16 == 0)
    key = json.dumps([self.__name__, signature, constants, aligned, num_warps])
    record.found.setdefault(key, (self, signature, constants, aligned, num_warps, []))[-1].append(record.name)


def compile_all(arch: int) -> list[dict]:
    """A line a kernel: what for, its constants, and what it takes of a multiprocessor."""
    import triton  # here, not above: by now the environment says that it shall compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from kernels import group_norm_silu_triton, sampling_step_triton
    record.found, JITFunction.run = {}, record
    norms(group_norm_silu_triton)
    steps(sampling_step_triton)
    table = []
    for fn, signature, constants, aligned, num_warps, names in record.found.values():
        attrs = {(k,): [["tt.divisibility", 16]] for k in aligned}
        built = triton.compile(ASTSource(fn, signature, constants, attrs), target=GPUTarget("cuda", arch, 32),
                               options={"num_warps": num_warps})
        table.append({"kernel": fn.__name__, "names": names, "warps": num_warps, "shared": built.metadata.shared,
                      **{k: v for k, v in constants.items() if isinstance(v, int) and k.isupper()},
                      **usage(built.asm["cubin"]), "min.NaN": "min.NaN" in built.asm["ptx"]})
    return table


def usage(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of its stack, where spilled registers go."""
    from triton import knobs
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name], check=True,
                              capture_output=True, text=True).stdout
    return {k.lower(): int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


@pytest.fixture(scope="module")
def tables() -> dict[int, list[dict]]:
    """The table of each GPU, made in parallel where there are cores to spare."""
    def table(arch: int) -> list[dict]:
        done = subprocess.run([sys.executable, __file__, str(arch)], cwd=ROOT, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        return dict(zip(SHARED, pool.map(table, SHARED), strict=True))


@pytest.mark.parametrize("arch", SHARED)
def test_every_launch_compiles_and_fits(arch, tables):
    for line in tables[arch]:
        cosine = 32 if line["kernel"] == "step_kernel" else 0           # cosf's stack for angles that never come
        assert line["stack"] <= cosine and line["local"] == 0, f"spills: {line}"
        assert line["shared"] <= SHARED[arch], f"too much shared memory: {line}"
        assert line["reg"] * line["warps"] * 32 <= 65536, f"too many registers to start: {line}"


def test_every_way_is_among_them(tables):
    found = {(line["kernel"], line.get("RESIDENT")) for line in tables[90]}
    for direction in ("forward", "backward"):
        assert {(f"{direction}_kernel", True), (f"{direction}_kernel", False)} <= found
        assert {(f"{direction}_{part}_kernel", None) for part in ("part", "merge", "apply")} <= found


@pytest.mark.parametrize("arch", SHARED)
def test_the_clip_keeps_nan(arch, tables):
    """Plain min and max turn a NaN into the bound, in hardware though not in the interpreter."""
    assert all(line["min.NaN"] for line in tables[arch] if line["kernel"] == "step_kernel")


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    for line in compile_all(int(sys.argv[1])):
        print(json.dumps(line))
