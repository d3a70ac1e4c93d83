"""Where the time of one step of our fastest sampling loop goes, kernel by kernel."""

from collections import deque
from itertools import islice

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bench.bench_sampling_loop import Chain, ours
from bench.measure import CUDA, device

CHAINS = [Chain("cifar10", B, 100, 0.) for B in (512, 128, 1)] if CUDA else [Chain("digits", 4, 100, 0.)]
STEPS = 10


@pytest.mark.parametrize("name", ["graph" if CUDA else "eager"])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_profile(benchmark, name, chain):
    """The benchmark's time is that of a step; `kernels` has the launches and microseconds of each kernel in it."""
    steps = ours(name, chain).start()

    def run() -> None:
        deque(islice(steps, STEPS), maxlen=0)

    benchmark.group = f"profile {chain.network} batch {chain.B}"
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    with profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as profiler:
        run()
        if CUDA:
            torch.cuda.synchronize()
    events = [e for e in profiler.key_averages() if e.device_type.name.lower() == device().type]
    kernels = {e.key: [e.count / STEPS, (e.self_device_time_total if CUDA else e.self_cpu_time_total) / STEPS]
               for e in events}
    benchmark.extra_info |= {"calls": STEPS, "network": chain.network, "B": chain.B,
                             "kernels": dict(sorted(kernels.items(), key=lambda kernel: -kernel[1][1]))}
