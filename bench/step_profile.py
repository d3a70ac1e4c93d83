"""Where the time of one sampling step goes, kernel by kernel."""

from collections import deque
from itertools import islice

import torch
from torch.profiler import ProfilerActivity, profile

from bench import bench_sampling_loop as loops
from bench.measure import CUDA, device, in_turn

REPLAYS = 10


def profiled(chain: loops.Chain) -> dict:
    """Microseconds of a step of our fastest loop, and of each kernel in it: [launches, microseconds] a step."""
    steps = loops.ours("graph" if CUDA else "eager", chain).start()

    def run() -> None:
        deque(islice(steps, REPLAYS), maxlen=0)

    run()
    times = in_turn({"step": (run, REPLAYS)}, 5)["step"]
    with profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as seen:
        run()
        if CUDA:
            torch.cuda.synchronize()
    events = [e for e in seen.key_averages() if e.device_type.name.lower() == device().type]
    kernels = {e.key: (e.self_device_time_total if CUDA else e.self_cpu_time_total, e.count) for e in events}
    return times | {"kernels": {name: [count / REPLAYS, us / REPLAYS] for name, (us, count) in
                                sorted(kernels.items(), key=lambda each: -each[1][0])}}
