"""Launches are counted on a CPU: Inductor writes its code for a pretended GPU, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.launches import KINDS, calls

ROOT = Path(__file__).parents[2]


def test_calls_are_told_apart():
    code = """
def call(args):
    # Topologically Sorted Source Nodes: [h], Original ATen: [aten.convolution]
    buf0 = extern_kernels.convolution(arg1, arg2, stride=(1, 1))
    assert_size_stride(buf0, (2, 8), (8, 1), 'torch.ops.aten.convolution.default')
    triton_poi_fused_convolution_0.run(buf0, arg3, 32, stream=raw_stream0)
    buf1 = torch.ops.minimal_diffusion.group_norm_silu_backward.default(buf0, convolution_3)
    buf2 = torch.ops.aten.convolution_backward.default(buf1)
    buf3 = torch.ops.aten._scaled_dot_product_flash_attention.default(buf2)
    extern_kernels.addmm(arg4, buf3, arg5, out=buf4)

def benchmark_compiled_module():
    triton_poi_fused_convolution_0.run()
"""
    assert dict(calls(code)) == {"Inductor's": 1, "norms": 1, "convolutions": 2, "products": 1, "attention": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_what_would_be_launched():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    said = subprocess.run([sys.executable, "-m", "bench.launches", "--network", "digits", "--batch", "8"], cwd=ROOT,
                          env=environment, text=True, capture_output=True, timeout=500)
    assert said.returncode == 0, said.stderr[-2000:]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in said.stdout.splitlines() if "|" in line]
    counts = {name: dict(zip((*KINDS, "in all", "atomic adds"), map(int, numbers), strict=True))
              for name, *numbers in rows[2:]}
    assert len(counts) == 5
    for name, count in counts.items():
        assert count["norms"] == 17 and count["convolutions"] >= 25, name           # the network's own
    assert counts["sampling"]["convolutions"] == 25 and counts["sampling"]["products"] == 0       # no time path
    for half in ("forward", "backward"):
        assert counts[f"training, combined, {half}"]["in all"] < 0.8 * counts[f"training, {half}"]["in all"]
    assert counts["training, backward"]["atomic adds"] <= 1  # the class table's, not nearest-up's
