"""train.py and sample.py by torchrun, on CPUs: several processes do what one does."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import data
import sample
import train
from run import checkpoint, folder, processes, state

ROOT = Path(__file__).parents[2]
FLAGS = ["--T", "20", "--batch", "8", "--steps", "4", "--warmup", "2", "--log_every", "1", "--sample_every", "100",
         "--save_every", "2", "--null", "0.3", "--flip"]
IMPORTANCE = ["--T", "2", "--loss", "bound", "--sampling", "importance", "--accumulate", "2", "--batch", "16",
              "--steps", "5"]


def torchrun(n, script, *flags, meeting=("--standalone",)):
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={n}",
                             "--", script, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finished(process):
    said, error = process.communicate(timeout=6000)
    assert process.returncode == 0, error
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process without torchrun, and its folder as it was after step 2."""
    out = tmp_path_factory.mktemp("alone")
    save = state.save

    def keeps(run):
        save(run)
        if run.progress.step == 2:
            shutil.copytree(out / "whole", out / "half")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "save", keeps)
        train.main([*FLAGS, "--out", str(out / "whole")])
    return out


def assert_same_run(out, other, rtol):
    curves = [[line["loss"] for line in folder.read_log(each) if "loss" in line] for each in (out, other)]
    assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=rtol, atol=0)
    ours, theirs = (checkpoint.load(each / "last.safetensors") for each in (out, other))
    assert ours.step == theirs.step
    for name in ("weights", "ema"):
        assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-3, atol=10 * rtol)
    return ours, theirs


@pytest.mark.parametrize("n, begun", [(2, ""), *(pytest.param(*more, marks=pytest.mark.slow) for more in (
    (1, ""), (4, "half")))])
def test_the_curve_does_not_depend_on_the_number_of_processes(tmp_path, alone, n, begun):
    """Nor does it after resuming a checkpoint of another number."""
    out = tmp_path / "out"
    if begun:
        shutil.copytree(alone / begun, out)
    said = finished(torchrun(n, "train.py", *FLAGS, "--out", str(out)))
    assert said.count("parameters") == 1 and ("last.safetensors at step 2" in said) == bool(begun)
    assert_same_run(out, alone / "whole", rtol=1e-4)
    assert [line["step"] for line in folder.read_log(out)] == [1, 2, 3, 4, 4]     # by one process, once


@pytest.mark.slow
def test_three_processes_resume_bitwise(tmp_path):
    """Of more than two the order of adding shows, and must not change by resuming."""
    flags = [*FLAGS, "--batch", "9", "--warmup", "1", "--final", "1"]          # a rate that does not ask for the end
    for name, ends in {"whole": "6", "cut": "3"}.items():
        finished(torchrun(3, "train.py", *flags, "--steps", ends, "--out", str(tmp_path / name)))
    finished(torchrun(3, "train.py", *flags, "--steps", "6", "--out", str(tmp_path / "cut")))
    ours, theirs = (checkpoint.load(tmp_path / name / "last.safetensors") for name in ("cut", "whole"))
    assert_close(ours.weights, theirs.weights, rtol=0, atol=0)


@pytest.mark.slow
def test_two_machines_are_one(tmp_path, alone):
    """The command that processes.py names for several, given twice on this one."""
    meeting = ["--nnodes=2", "--rdzv-id=7", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    both = [torchrun(2, "train.py", *FLAGS, "--out", str(tmp_path), meeting=meeting) for _ in range(2)]
    said = "".join(map(finished, both))
    assert said.count("on 4 x cpu") == 1
    assert_same_run(tmp_path, alone / "whole", rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [IMPORTANCE, ["--optimizer", "adam"]], ids=["importance and parts", "adam"])
def test_they_are_shared_too(tmp_path, flags):
    train.main([*FLAGS, *flags, "--out", str(tmp_path / "one")])
    finished(torchrun(2, "train.py", *FLAGS, *flags, "--out", str(tmp_path / "two")))
    ours, theirs = assert_same_run(tmp_path / "two", tmp_path / "one", rtol=1e-3)
    if flags is IMPORTANCE:
        assert not ours.history.isnan().any()
        assert_close(ours.history, theirs.history, rtol=1e-3, atol=0)


def test_parts_are_averaged_over_processes_once_a_step(monkeypatch):
    """Of two processes each has half the batch; between its parts nothing is sent."""
    run = train.start(replace(train.Config(), T=20, batch=8, accumulate=3), data.load("digits"))
    quiet = []

    class Model(torch.nn.Module):
        def forward(self, *inputs):
            quiet.append(self.silent)
            return run.unet(*inputs)

        silent = False

        @contextlib.contextmanager
        def no_sync(self):
            self.silent = True
            yield
            self.silent = False

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "all_gather", lambda part, dim: torch.cat([part, part], dim))
    pixels, labels = data.Batches(run.dataset, 8, 0, False, processes.local_slice(8))[1]
    assert len(pixels) == len(labels) == 4
    train.update(run, Model(), 1, pixels, labels)
    assert quiet == [True, False]                                   # 4 pictures in 3 parts: two of two


def test_shares_are_the_batch(monkeypatch):
    dataset = data.load("digits")
    whole, labels = data.Batches(dataset, 12, 0, True)[3]
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(data.Batches(dataset, 12, 0, True, processes.local_slice(12))[3])
    assert_close(torch.cat([x for x, _ in parts]), whole)
    assert_close(torch.cat([y for _, y in parts]), labels)


@pytest.mark.parametrize("config, says", [
    ({"batch": 6}, "for 4 processes it must be a multiple of 4"),
    ({"batch": 8, "accumulate": 3}, "accumulate is 3; it must be at most 2")])
def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, config, says):
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    with pytest.raises(ValueError, match=says):
        train.check(train.Config(**config))


def workers(process):
    """Process id by rank, of those torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [re.search(rb"\0RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes()) for pid in children]
    return {int(rank[1]): int(pid) for rank, pid in zip(ranks, children, strict=True) if rank}


def started(out, *flags):
    process = torchrun(2, "train.py", *FLAGS, "--steps", "100000", "--save_every", "100000", "--out", str(out), *flags)
    while not (out / "log.jsonl").exists():
        assert process.poll() is None
    return process


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_dead_process_ends_the_job_and_is_named(tmp_path):
    process = started(tmp_path, "--dtype", "bf16")
    os.kill(workers(process)[1], signal.SIGKILL)
    _, error = process.communicate(timeout=600)
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in error and "rank      : 1" in error
    assert checkpoint.load(tmp_path / "last.safetensors").step > 0           # saved by the one that is left


@pytest.mark.slow
def test_a_signal_to_torchrun_ends_all_with_a_checkpoint(tmp_path):
    process = started(tmp_path)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    step = checkpoint.load(tmp_path / "last.safetensors").step
    assert f"stopped at step {step};" in said
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == step


@pytest.mark.slow
def test_pictures_do_not_depend_on_the_number_of_processes(tmp_path):
    flags = ["--n", "13", "--batch", "4", "--steps", "3", "--eta", "1", "--npz"]
    said = finished(torchrun(2, "sample.py", *flags, "--out", str(tmp_path / "two")))
    assert said.count("13 pictures in") == 1
    sample.main([*flags, "--out", str(tmp_path / "one")])
    two, one = (np.load(tmp_path / name / "pictures.npz") for name in ("two", "one"))
    assert (two["arr_1"] == one["arr_1"]).all() and two["arr_0"].shape == (13, 8, 8, 1)
    assert abs(two["arr_0"].astype(int) - one["arr_0"]).max() <= 1  # rounding, at most
