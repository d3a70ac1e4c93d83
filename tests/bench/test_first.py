"""The first half hour on a GPU: what comes first, what is never begun, and that no end of any kind loses a result."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from bench import half_hour, lines, packages, runner, suite, tables
from bench.expected import SECONDS, expected, kind
from bench.worker import worker

ROOT = Path(__file__).parents[2]


def in_file(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results(path: Path) -> list[str]:
    """The cases that ended with a result, as often as they did."""
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [line["case"] for line in map(json.loads, whole) if "failed" not in line]


@pytest.fixture
def command(tmp_path):
    """Starts `bench.first --smoke` in a process group of its own; what must be compiled, which takes minutes, fails."""
    started = []

    def start() -> subprocess.Popen:
        environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}
        environment.pop("TRITON_INTERPRET", None)
        process = subprocess.Popen([sys.executable, "-m", "bench.first", "--smoke", "--out", str(tmp_path)], cwd=ROOT,
                                   env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_killed_twice_it_loses_nothing_and_measures_nothing_twice(command, tmp_path):
    path = tmp_path / half_hour.gpu_name() / "first.jsonl"
    for more in (3, 2):
        process, before = command(), len(results(path))
        while len(results(path)) < before + more:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        ended = time.monotonic() + 20
        while any(Path("/proc", pid, "stat").read_text().split()[4] == str(process.pid)     # its group
                  for pid in os.listdir("/proc") if pid.isdigit() and Path("/proc", pid, "stat").exists()):
            assert time.monotonic() < ended, "a process of the killed command still runs"
            time.sleep(0.1)
    said, _ = command().communicate(timeout=300)
    done, last = results(path), lines.read(path)
    uncompiled = {name for name, line in last.items() if "no compiled frames" in line.get("failed", "")}
    assert len(done) == len(set(done)) and {*done, *uncompiled} == half_hour.in_order(True, tmp_path).keys()
    assert len(done) > 12 and "machine" in done
    assert len(list(path.parent.iterdir())) <= 8 and path.stat().st_size < 2**20
    assert "passed" in said and "| images/s |" in said and f"{len(uncompiled)} of {len(last)} cases have no" in said
    tables.write_tables(path.parent)
    assert all((path.parent / f"{page}.md").exists() for page in ("tests", "loops", "kernels", "profile", "same"))


def test_the_most_valuable_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(half_hour.cases, "installed", lambda name: True)
    ordered = half_hour.in_order(False, tmp_path)
    names = [*ordered]
    assert len(names) == sum(map(len, (suite.cases(False), half_hour.cases.loop_cases(False),
                                       half_hour.cases.kernel_cases(False), half_hour.cases.profile_cases(False),
                                       half_hour.cases.same_cases(False, Path("x"), tmp_path)))) - 2   # machine, thrice
    batch = "DDIM-50 cifar10 batch 512: "
    first = ["machine", *(batch + who for who in ("graph", "compile", "diffusers nchw", "diffusers channels_last",
                                                  "diffusers compiled", "diffusers max-autotune"))]
    assert all(name.startswith("tests") for name in names[:3]) and names[3:10] == first
    order = [names.index(name) for name in (
        "cifar10 batch 512", "cifar10 forward channels_last 256x4", "training cifar10 batch 128: bf16 compiled kernels",
        "DDIM-50 cifar10 batch 1: graph", "cifar10 backward channels_last 256x4",
        "step with noise nchw 128x3x32x32", "tests: test_conv_tail", "tail batch 512 512->256x16",
        "lsun256 forward nchw 256x32")]
    assert order == sorted(order)
    assert ordered["machine"][0] == "loops" and ordered["cifar10 batch 512"][0] == "profile"


@pytest.mark.parametrize("minutes", [25., 60.])
def test_parts_end_well_inside_ten_minutes(minutes, tmp_path, monkeypatch):
    monkeypatch.setattr(half_hour.cases, "installed", lambda name: True)
    names = [*half_hour.in_order(False, tmp_path)]
    plan = half_hour.parts(names, minutes)
    seconds = [sum(SECONDS[kind(name)] for name in part) for part in plan]
    assert all(each <= 60 * half_hour.PART - half_hour.START for each in seconds) and sum(seconds) > 55 * minutes
    assert [part.count("machine") for part in plan] == [1] * len(plan)
    planned = [name for part in plan for name in part if name != "machine"]
    assert len(planned) == len(set(planned)) and set(names[:10]) <= {"machine", *planned}


@pytest.mark.parametrize("flags, says", [
    (["--part", "99"], "part is 99; it must be between 0 and"), (["--minutes", "nan"], "minutes is nan")])
def test_wrong_flags_are_one_sentence(flags, says, refused, tmp_path):
    assert says in refused(half_hour.main, ["--smoke", "--out", str(tmp_path), *flags])


def test_nothing_begins_that_may_not_end(tmp_path, monkeypatch):
    path, calls = tmp_path / "first.jsonl", []
    monkeypatch.setattr(runner, "expected", lambda name, lines: {"long": 50., "short": 5.}[name])
    cases = {"long": partial(calls.append, "long"), "short": partial(calls.append, "short")}
    assert runner.run(path, cases, time.monotonic() + 20) == 1 and calls == ["short"]
    assert runner.run(path, cases, time.monotonic() + 60) == 0 and calls == ["short", "long"]


def test_a_case_has_the_time_that_is_left_and_no_more(tmp_path):
    limits = []

    def call(case, seconds: float) -> dict:
        limits.append(seconds)
        return {"results": {}}
    runner.run(tmp_path / "a.jsonl", {"machine": dict}, time.monotonic() + 1000, call=call)
    runner.run(tmp_path / "b.jsonl", {"machine": dict}, time.monotonic() + 15, call=call)
    assert limits[0] == 4 * SECONDS[kind("machine")] + 60 and 44 < limits[1] < 46


def test_what_failed_is_tried_last(tmp_path):
    path, calls = tmp_path / "first.jsonl", []
    lines.append(path, {"case": "one", "seconds": 0, "failed": "begun, and never ended"})
    cases = {name: lambda name=name: calls.append(name) or {} for name in ("one", "two", "three")}
    assert runner.run(path, cases, time.monotonic() + 1000, known={"three": {"seconds": 1, "results": {}}}) == 0
    assert calls == ["two", "one"]


def test_expectations_follow_what_was_measured():
    guess = SECONDS[kind("step a")]
    assert expected("step a", {}) == guess
    seen = {"step b": {"seconds": 2 * guess}, "step c": {"seconds": guess / 2}, "machine": {"seconds": 1.}}
    assert expected("step a", seen) == 2 * guess
    assert expected("chain", {"machine": {"seconds": 1.}}) == SECONDS[kind("chain")]             # never less untried
    assert expected("chain", {"machine": {"seconds": 3 * SECONDS["^machine"]}}) == 3 * SECONDS[kind("chain")]
    assert expected("step a", {"step a": {"seconds": 500., "failed": "ended after 500 s"}}) == 500.


def test_a_torn_line_is_no_line_and_costs_none(tmp_path):
    path = tmp_path / "first.jsonl"
    lines.append(path, {"case": "one"})
    with path.open("a") as file:
        file.write('{"case": "tw')
    assert lines.read(path).keys() == {"one"}
    lines.append(path, {"case": "three"})
    assert [line["case"] for line in in_file(path)] == ["one", "three"]


def nothing() -> None:
    pass


def test_a_case_that_ends_its_process_takes_no_other_with_it():
    with worker(nothing) as call:
        pid = call(partial(os.getpid), 60)["results"]
        assert pid != os.getpid() and call(partial(os.getpid), 60)["results"] == pid
        assert call(partial(os._exit, 7), 60) == {"failed": "its process ended with 7"}
        assert call(partial(time.sleep, 60), 0.1) == {"failed": "ended after 0 s"}
        assert call(partial(divmod, 1, 0), 60)["failed"].startswith("ZeroDivisionError")
        assert call(partial(os.getpid), 60)["results"] != pid


def test_lines_of_one_file_make_all_pages(tmp_path):
    for line in ({"case": "machine", "page": "loops", "seconds": 1, "results": {"n": 1}},
                 {"case": "step a", "page": "kernels", "seconds": 1, "results": {"n": 2}}):
        lines.append(tmp_path / "first.jsonl", line)
    for line in ({"case": "step a", "seconds": 1, "failed": "later"}, {"case": "step b", "seconds": 1, "results": {}}):
        lines.append(tmp_path / "kernels.jsonl", line)
    found = lines.by_page(tmp_path, ("loops", "kernels", "same"))
    assert found.keys() == {"kernels"} and found["kernels"].keys() == {"machine", "step a", "step b"}
    assert found["kernels"]["step a"]["results"] == {"n": 2}


def test_missing_packages_are_named_exactly(monkeypatch):
    packages.unmet.cache_clear()
    there = packages.version
    gone = {"diffusers", "ema-pytorch", "pytest-benchmark"}
    monkeypatch.setattr(packages, "version", lambda name: None if name in gone else there(name) or "99")
    monkeypatch.setattr(packages.metadata, "requires", lambda name: ["accelerate>=1", 'x; extra == "y"', "torch<1"])
    said = packages.check()
    assert said[0] == "pytest-benchmark missing: the tests are left out" and said[1].startswith("diffusers==")
    assert "torch<1 missing" in said[1] and "ema-pytorch==" in said[2] and "x" not in packages.unmet("diffusers")
    assert said[-1].startswith("to have them: python -m pip download --no-deps -d wheels diffusers==")
    assert not packages.installed("diffusers compiled") and suite.cases(False) == {}
    gone |= {"torch", "pytest"}
    with pytest.raises(ValueError, match="torch, pytest missing; nothing can be measured"):
        packages.check()
    packages.unmet.cache_clear()


def test_the_tests_of_a_case_are_counted_and_their_failures_named(tmp_path):
    path = tmp_path / "test_three.py"
    path.write_text("import time\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n"
                    "def test_slow(): time.sleep(60)\n")
    found = suite.suite([str(path), "--rootdir", str(tmp_path), "-k", "good or bad", "-o", "addopts="])
    assert found["passed"] == 1 and [*found["failures"].values()] == ["assert 1 == 2"]
    assert found["failed"] == "1 of 2 tests fail"
    found = suite.suite([str(path), "--rootdir", str(tmp_path), "-k", "slow", "-o", "addopts="], seconds=8.)
    assert found["failed"].startswith("ended after 8 s in ") and found["failed"].endswith("test_slow")
    assert suite.suite([str(tmp_path / "none.py")])["failed"].startswith("no test ran: ")
