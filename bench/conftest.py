"""`pytest bench --minutes 9` measures cases in the order of their value while there is time; repeated, it resumes.

A case is a line of bench/results/<gpu>/bench.jsonl when it begins and when it ends. One that has passed is not measured
again. One that failed, or took its process down, is tried last, and left out once it has taken two down.
"""

import math
import re
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from bench.lines import append, read
from bench.measure import CUDA, RESULTS, machine_name, prepare, stamp

# What occurs in the names of cases, in the order of their value, and the seconds that such a case takes on an H100,
# compilation included: a guess, which decides what is begun, and on which no result depends.
VALUE = {
    "test_machine": 10, "DDIM-50.*batch 512-(graph|compile)": 75, "batch 512-diffusers (nchw|channels_last|comp)": 60,
    "test_profile.*512": 60, "test_norm.*forward.*channels_last": 4, "test_update.*(kernels|diffusers compiled)": 120,
    "test_loop.*batch 1-(graph|diffusers)": 60, "test_norm.*backward.*channels_last": 5, "test_step": 6,
    "test_loop.*max-autotune": 420, "test_loop.*batch 512": 60, "test_update": 60, "test_norm": 5,
    "test_loop.*DDPM-1000": 150, "test_sampler": 60, "": 60}
GRACE = 30.                             # seconds after the deadline at which a case is ended, with the process
CRASHES = 2                             # of a process, after which its case is left out


def pytest_addoption(parser) -> None:
    parser.addoption("--minutes", type=float, default=math.inf, help="no case begins that may end later")
    parser.addoption("--out", default=str(RESULTS), help="the machine's folder is made in this one")


def pytest_configure(config) -> None:
    config.option.benchmark_timer = "bench.measure.clock"
    path = Path(config.getoption("--out"), machine_name(), "bench.jsonl")
    config.pluginmanager.register(Recorder(path, time.monotonic() + 60 * config.getoption("--minutes")))


class Recorder:
    """Chooses the cases, and writes each down as it begins and as it ends. deadline: of time.monotonic."""

    def __init__(self, path: Path, deadline: float):
        self.path, self.deadline, self.lines = path, deadline, read(path)

    def add(self, **line) -> None:
        append(self.path, line)
        self.lines.append(line)

    def expected(self, case: str) -> float:
        """Seconds that a case takes: the most that one of its kind did, or a guess."""
        seconds = [line["seconds"] for line in self.lines if "seconds" in line and rank(line["case"]) == rank(case)]
        return max(seconds, default=guess(case))

    def pytest_collection_modifyitems(self, config, items) -> None:
        known = defaultdict(list)                           # what became of each case, every time
        for line in self.lines:
            known[line["case"]].append(line["outcome"])
        crashes = {case: 2 * outcomes.count("begun") - len(outcomes) for case, outcomes in known.items()}
        done = [item for item in items
                if known[item.nodeid][-1:] == ["passed"] or crashes.get(item.nodeid, 0) >= CRASHES]
        config.hook.pytest_deselected(items=done)
        items[:] = sorted((item for item in items if item not in done),
                          key=lambda item: (known[item.nodeid][-1:] in (["begun"], ["failed"]), rank(item.nodeid)))

    def pytest_runtest_setup(self, item) -> None:
        if time.monotonic() + self.expected(item.nodeid) > self.deadline:
            pytest.skip("no time is left for it; repeat the command")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        """A case that goes on after the deadline, or on a GPU takes four times as long as expected, and a minute, ends
        with its process: a kernel that hangs cannot be ended otherwise."""
        seconds = max(self.expected(item.nodeid), guess(item.nodeid))
        limit = min(4 * seconds + 60 if CUDA else 86400, self.deadline + GRACE - time.monotonic())
        self.add(case=item.nodeid, outcome="begun", time=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
        signal.alarm(math.ceil(limit))
        try:
            prepare()
            return (yield)
        finally:
            signal.alarm(0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call":
            benchmark = item.funcargs["benchmark"]
            times = benchmark.stats and benchmark.stats.stats  # none where it failed, or under xdist
            why = "" if report.passed else " ".join(str(call.excinfo.value).split())[:300]
            calls = benchmark.extra_info.get("calls", 1)
            self.add(case=item.nodeid, outcome=report.outcome, seconds=call.duration, why=why,
                     name=item.callspec.params["name"], group=benchmark.group, **benchmark.extra_info,
                     **({"us": 1e6 * times.median / calls, "p25": 1e6 * times.q1 / calls, "p75": 1e6 * times.q3 / calls}
                        if times else {}), stamp=stamp())
            if CUDA and report.failed:
                torch.cuda.synchronize()                    # raises where the GPU is lost to this process, which ends
        return report


def rank(case: str) -> int:
    """The place of a case's pattern in VALUE."""
    return next(k for k, pattern in enumerate(VALUE) if re.search(pattern, case))


def guess(case: str) -> float:
    """The seconds that VALUE says."""
    return [*VALUE.values()][rank(case)]
