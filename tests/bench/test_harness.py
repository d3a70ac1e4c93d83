"""`pytest bench` begins with what matters most, ends in time, and loses nothing, whatever ends it."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from bench import __main__ as session
from bench import bench_sampling_loop as loops
from bench import conftest, lines, measure
from tests.forks import run_forked

ROOT = Path(__file__).parents[2]
CASES = """
import os, signal, time
import pytest

@pytest.mark.parametrize("name", ["kills", "hangs", "wrong", "elsewhere", "good"])
def test_case(benchmark, name):
    if name == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs":
        time.sleep(600)
    if name == "elsewhere":
        pytest.skip("not here")
    benchmark.extra_info["error"] = 0.5
    assert name != "wrong", "wrong by 50 %"
    benchmark.group, benchmark.extra_info["calls"] = "work", 10
    benchmark.pedantic(time.sleep, args=(0.01,), rounds=3)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """(*flags, **changes) -> exit status, output and lines of `pytest bench`, whose cases are CASES.

    changes: of names in bench/conftest.py.
    """
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)           # under which nothing is timed
    (tmp_path / "bench_cases.py").write_text(CASES)

    def command(*flags, **changes):
        argv = [str(tmp_path), "-c", str(ROOT / "bench/pytest.ini"), "--rootdir", str(tmp_path), "-p", "bench.conftest",
                "-p", "no:cacheprovider", "--out", str(tmp_path), *flags]
        code = ("import pytest, sys; from bench import conftest; "
                f"vars(conftest).update({changes}); sys.exit(pytest.main({argv}))")
        done = run_forked(["-c", code], cwd=ROOT)
        return done.returncode, done.stdout, lines.read(tmp_path / "cpu/bench.jsonl")
    return command


def name_of(case: str) -> str:
    return re.search(r"\[(.*)\]", case)[1]


@pytest.mark.slow
@pytest.mark.skipif(measure.CUDA, reason="the folder is called as the GPU is")
def test_killed_and_resumed_it_loses_nothing_and_measures_nothing_twice(command):
    status, _, first = command("-k", "not hangs")
    assert status == -9 and [(name_of(line["case"]), line["outcome"]) for line in first] == [("kills", "begun")]
    status, _, second = command("-k", "not hangs")
    outcomes = [f"{name_of(line['case'])} {line['outcome']}" for line in second[1:]]
    assert status == -9 and outcomes == ["wrong begun", "wrong failed", "elsewhere begun", "elsewhere skipped",
                                         "good begun", "good passed", "kills begun"]
    wrong, good = second[2], second[6]
    assert good["us"] < 1000 and good["group"] == "work" and good["name"] == "good" and "commit" in good["stamp"]
    assert wrong["why"].startswith("wrong by 50 %") and "us" not in wrong and wrong["error"] == 0.5
    status, output, third = command("-k", "not hangs")
    assert status == 1 and "3 deselected" in output         # hangs, good, and kills, which has killed twice
    assert [name_of(line["case"]) for line in third[8:]] == ["elsewhere", "elsewhere", "wrong", "wrong"]


@pytest.mark.slow
@pytest.mark.skipif(measure.CUDA, reason="the folder is called as the GPU is")
def test_a_case_without_end_takes_its_process_along(command):
    status, _, begun = command("-k", "hangs", "--minutes", "0.01", VALUE={"": 0.}, GRACE=0.5)
    assert status == -14 and [line["outcome"] for line in begun] == ["begun"]


@pytest.mark.skipif(measure.CUDA, reason="the folder is called as the GPU is")
def test_nothing_begins_that_may_not_end(command):
    status, output, nothing = command("--minutes", "1", "-rs", VALUE={"": 90.})
    assert status == 0 and not nothing and "no time is left for it" in output
    status, _, begun = command("--minutes", "1", "-k", "good or wrong", VALUE={"wrong": 90., "": 5.})
    assert [name_of(line["case"]) for line in begun] == ["good", "good"]


def test_expectations_follow_what_was_measured(tmp_path):
    recorder = conftest.Recorder(tmp_path / "bench.jsonl", 0.)
    guess = conftest.VALUE["test_step"]
    assert recorder.expected("test_step[a]") == guess
    for case, seconds in (("test_step[b]", 2.), ("test_step[c]", 3.), ("test_chain[a]", 100.)):
        recorder.add(case=case, outcome="passed", seconds=seconds)
    assert recorder.expected("test_step[a]") == 3. and recorder.expected("test_step[b]") == 3.


def test_the_most_valuable_comes_first(monkeypatch):
    monkeypatch.setattr(loops, "CUDA", True)
    cases = [f"bench_sampling_loop.py::test_loop[{chain}-{name}]" for chain, name in loops.cases()]
    cases += ["bench_group_norm_silu.py::test_norm[forward-channels_last-cifar10 256x4-triton]",
              "bench_group_norm_silu.py::test_norm[backward-nchw-cifar10 256x4-triton]",
              "bench_profile.py::test_profile[DDIM-100 cifar10 batch 512-graph]",
              "bench_machine.py::test_machine[copy]",
              "bench_training_step.py::test_update[cifar10-128-bf16 compiled kernels]"]
    ordered = [case.split("[")[1] for case in sorted(cases, key=conftest.rank)]
    batch = "DDIM-50 cifar10 batch 512-"
    assert ordered[:9] == ["copy]", *(f"{batch}{name}]" for name in ("graph", "compile", "diffusers nchw",
                           "diffusers channels_last", "diffusers compiled")), "DDIM-100 cifar10 batch 512-graph]",
                           "forward-channels_last-cifar10 256x4-triton]", "cifar10-128-bf16 compiled kernels]"]
    assert ordered.index("DDIM-50 cifar10 batch 1-graph]") < ordered.index(f"{batch}diffusers max-autotune]")
    assert ordered[-1].startswith("DDIM") or "1000" in ordered[-1]


def test_a_lost_gpu_ends_the_process(monkeypatch):
    def lost():
        raise RuntimeError("an illegal memory access was encountered")
    assert conftest.answers()
    monkeypatch.setattr(conftest, "CUDA", True)
    monkeypatch.setattr(conftest.torch.cuda, "synchronize", lost)
    assert not conftest.answers()


def test_the_first_session_goes_on_after_a_crash(tmp_path, monkeypatch):
    """Tests first, then pytest bench for as long as there is time and its process is taken down, then the tables."""
    commands, ends = [], iter([0, -11, session.LOST, None, 1])
    monkeypatch.setattr(session, "pytest", lambda arguments, seconds: (commands.append((arguments, seconds)),
                                                                       next(ends))[1])
    monkeypatch.setattr(session.tables, "main", lambda argv: commands.append((argv, 0)))
    session.main(["--minutes", "9", "--out", str(tmp_path)])
    (tests, seconds), *measured, (tables, _) = commands
    assert tests[0].startswith("tests/kernels") and seconds == 180 and tables == ["--out", str(tmp_path)]
    assert [arguments[:2] for arguments, _ in measured] == [["bench", "--minutes"]] * 4
    assert all(seconds < 600 and float(arguments[2]) < 9 for arguments, seconds in measured)


def test_a_torn_line_is_no_line_and_costs_none(tmp_path):
    path = tmp_path / "new/bench.jsonl"
    lines.append(path, {"case": "one"})
    with path.open("a") as file:
        file.write('{"case": "tw')
    assert lines.read(path) == [{"case": "one"}]
    lines.append(path, {"case": "three"})
    assert [json.loads(line)["case"] for line in path.read_text().splitlines()] == ["one", "three"]


def test_results_are_no_change_of_what_is_measured(monkeypatch, tmp_path):
    def git(*command: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *command], cwd=tmp_path, check=True)

    results = tmp_path / "bench/results/cpu/bench.jsonl"
    lines.append(results, {"a": 1})
    (tmp_path / "ddpm.py").write_text("a\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "a")
    monkeypatch.chdir(results.parent)
    monkeypatch.delenv("COMMIT", raising=False)
    lines.append(results, {"a": 2})
    assert re.fullmatch("[0-9a-f]{7,}", measure.commit.__wrapped__())
    (tmp_path / "ddpm.py").write_text("b\n")
    assert measure.commit.__wrapped__().endswith(" with changes")
