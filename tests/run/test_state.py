"""run/state.py: however a run ends, what was trained is saved where it can be, and what was saved stays."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import data
import ddpm
import train
from run import checkpoint, folder
from run.cli import command
from tests.forks import forked, run_forked
from tests.helpers import same_run

ROOT = Path(__file__).parents[2]
FLAGS = ["--T", "20", "--batch", "8", "--warmup", "2", "--final", "1", "--log_every", "2", "--sample_every", "1000000"]
ENDLESS = ["--steps", "1000000", "--save_every", "1000000"]
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")


def run(out, *flags):
    train.main([*FLAGS, "--out", str(out), *flags])


@contextlib.contextmanager
def started(out, *flags, until="log.jsonl", before=None):
    """train.py as a process that leads a group of its own, as a shell's and a scheduler's jobs do."""
    with forked(["train.py", *FLAGS, "--out", str(out), *flags], before=before) as process:
        if until:
            process.until((out / until).exists)
        yield process


def sentence(process):
    """What a process says that must end in one sentence with exit status 2; and its standard output."""
    assert process.wait() == 2 and "Traceback" not in process.stderr, process.stderr
    return process.stderr.splitlines()[-1], process.stdout


def workers(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


# Signals

@pytest.mark.parametrize("stop, count", [("SIGTERM", 2), ("SIGINT", 0), ("SIGHUP", 0)])
def test_a_signal_to_the_whole_group_ends_the_run_with_a_checkpoint(tmp_path, stop, count):
    """As Ctrl-C, a closed terminal and most schedulers send it: to the workers, too."""
    with started(tmp_path, *ENDLESS, "--workers", str(count)) as process:
        os.killpg(process.pid, getattr(signal, stop))
        assert process.wait() == 0, process.stderr
        step = checkpoint.load(tmp_path / "last.safetensors").step
        assert f"stopped at step {step};" in process.stdout and step > 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As nohup does."""
    with started(tmp_path, *ENDLESS, before=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        size = (tmp_path / "log.jsonl").stat().st_size
        process.until(lambda: (tmp_path / "log.jsonl").stat().st_size > size + 1000)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0 and "stopped at step" in process.stdout


@pytest.mark.parametrize("where", ["forward", "backward", "sampling"])
def test_a_signal_is_obeyed_within_a_step(tmp_path, monkeypatch, capsys, where):
    """A step may take minutes: what is computed then is left, and the step before it saved, to resume to the bit."""
    flags = ["--steps", "6", "--sample_every", "3"]
    run(tmp_path / "whole", *flags)
    objective, sample, calls = train.objective, ddpm.sample, []

    def interrupted(config, schedule, denoise, *batch):
        def later(xt, t):
            output = denoise(xt, t)
            if calls.count("objective") == 4 and where == "backward":
                output.register_hook(lambda _: os.kill(os.getpid(), signal.SIGTERM))
            return output

        calls.append("objective")
        if calls.count("objective") == 4 and where == "forward":
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(config, schedule, later, *batch)

    def sampled(*args):
        for state in sample(*args):
            calls.append("sample")
            if where == "sampling":
                os.kill(os.getpid(), signal.SIGTERM)
            yield state

    with monkeypatch.context() as patch:
        patch.setattr(train, "objective", interrupted)
        patch.setattr(ddpm, "sample", sampled)
        run(tmp_path / "cut", *flags)
    cut = tmp_path / "cut"
    assert calls.count("objective") == (3 if where == "sampling" else 4)
    assert calls.count("sample") == (1 if where == "sampling" else 20)
    assert checkpoint.load(cut).step == 3
    assert f"stopped at step 3; to resume, repeat the command, or: {command('train.py', '--resume', cut)}\n" in (
        capsys.readouterr().out)
    train.main(["--resume", str(cut)])
    same_run(cut, tmp_path / "whole")
    assert (cut / "samples" / "000003.png").exists()


def test_a_signal_in_the_first_step_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "objective", lambda *args, old=train.objective: (
        os.kill(os.getpid(), signal.SIGTERM), old(*args))[1])
    run(tmp_path, "--steps", "3")
    assert "stopped at step 0; nothing is saved yet" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps, seconds, told", [
    (20, 2., "about 28 seconds for the 14 steps that are left"), (25, 0.4, "about 2 seconds for the 5 steps that"),
    (20, 0.1, ""), (30, 600., "about 5 hours for the 29 steps that are left"),
    (5, 40000., "warning: about 44 hours for the 4 steps that are left; fewer --steps, or a smaller --network"),
    (7, 40000., "warning: about 3 days for the 6 steps that are left; fewer --steps, or a smaller --network")])
def test_the_time_that_is_left_is_told_and_a_day_is_a_warning(tmp_path, capsys, steps, seconds, told):
    """Once, after 20 steps or ten seconds."""
    config = train.Config(T=20, batch=2, steps=steps, sample_every=100, out=str(tmp_path))
    started = train.start(config, data.load("digits"))
    train.train(started, clock=(seconds * tick for tick in range(100)).__next__)
    said = [line for line in capsys.readouterr().out.splitlines() if "that are left" in line]
    assert len(said) == bool(told) and "".join(said).startswith(told)


# Workers

@linux
def test_a_worker_that_dies_ends_the_run_with_a_checkpoint(tmp_path):
    with started(tmp_path, *ENDLESS, "--workers", "2") as process:
        os.kill(workers(process)[0], signal.SIGKILL)
        error, output = sentence(process)
    assert "the 2 processes that load images failed: " in error and "--workers 0" in error
    step = checkpoint.load(tmp_path / "last.safetensors").step
    assert step > 0 and f"step {step} is saved" in output


@linux
@pytest.mark.slow
def test_workers_end_with_the_run_and_free_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PATIENCE", 600)                    # it is not for want of speed that it may fail
    with started(tmp_path, *ENDLESS, "--workers", "2", "--save_every", "2") as process:
        pids = workers(process)
        process.kill()
        process.wait()
        run(tmp_path, "--steps", "1")
        end = time.monotonic() + 600
        while not all(map(gone, pids)) and time.monotonic() < end:
            time.sleep(0.1)                                         # they look for their parent every five seconds
        assert pids and all(map(gone, pids))


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("count", [0, 1])
def test_a_picture_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, refused, count):
    """And what was trained until then is saved."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(40):
        Image.effect_noise((8, 8), 50).save(pictures / f"{k:02}.png")
    monkeypatch.setattr("data.sets.IN_MEMORY", 0)
    flags = ["--data", str(pictures), "--out", str(tmp_path / "run"), "--workers", str(count), "--batch", "4"]
    run(tmp_path / "run", *flags, "--steps", "1")
    (pictures / "17.png").write_bytes((pictures / "17.png").read_bytes()[:80])
    error = refused(train.main, [*FLAGS, *flags, "--steps", "10", "--accept_changes"])
    assert "17.png" in error and "Caught" not in error and error.count("train.py:") == 1
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").step >= 1


@pytest.mark.slow
@pytest.mark.skipif(subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0
                    if shutil.which("unshare") else True, reason="cannot mount a /dev/shm of its own")
@pytest.mark.parametrize("size, works", [("128k", True), ("4k", False)])
def test_a_small_shared_memory_does_not_hang(tmp_path, size, works):
    """As a container's: batches do not go through it; where not even a semaphore fits, --workers 0 is named."""
    command = (f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} train.py {' '.join(FLAGS)} "
               f"--steps 3 --batch 1024 --workers 2 --out {tmp_path}")
    result = subprocess.run(["unshare", "-rm", "sh", "-c", command], cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == (0 if works else 2), result.stderr
    assert works or "--workers 0" in result.stderr and "Traceback" not in result.stderr


# Errors

def test_an_error_between_updates_is_saved_and_resumed_bitwise(tmp_path, monkeypatch, capsys):
    run(tmp_path / "whole", "--steps", "6")
    objective, calls = train.objective, []

    def fails(*args):
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("a bug")
        return objective(*args)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a bug"):
        patch.setattr(train, "objective", fails)
        run(tmp_path / "cut", "--steps", "6")
    assert "step 3 is saved" in capsys.readouterr().out
    run(tmp_path / "cut", "--steps", "6")
    same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("name", ["update_average", "learning_rate"])
def test_half_an_update_is_never_saved(tmp_path, monkeypatch, capsys, name):
    """Weights of one step and their average of another would be resumed as if nothing had happened."""
    run(tmp_path, "--steps", "2")
    before, function = (tmp_path / "last.safetensors").read_bytes(), getattr(train, name)

    def fails(*args):
        if any(type(each) is int and each == 4 for each in args):
            raise RuntimeError("in the middle")
        return function(*args)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="in the middle"):
        patch.setattr(train, name, fails)
        run(tmp_path, "--steps", "6")
    assert (tmp_path / "last.safetensors").read_bytes() == before and "is saved" not in capsys.readouterr().out


# Full disks

@pytest.mark.parametrize("limit, flags, name", [
    (10**6, ["--save_every", "1"], "last.safetensors"), (1200, ["--log_every", "1", "--steps", "20"], "log.jsonl"),
    (1000, ["--log_every", "100", "--sample_every", "1"], "samples/000003.png")])
def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_is_resumed(tmp_path, limit, flags, name):
    """No file may grow beyond the limit: what a full disk does, done by the kernel."""
    run(tmp_path, "--steps", "2", "--log_every", "100")
    before = (tmp_path / "last.safetensors").read_bytes()
    limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    with started(tmp_path, "--steps", "6", *flags, until="", before=limited) as process:
        error, _ = sentence(process)
    assert error.startswith("train.py: cannot write ") and "File too large" in error
    assert (tmp_path / "last.safetensors").read_bytes() == before and not list(tmp_path.rglob("*.tmp"))
    assert folder.read_log(tmp_path)
    run(tmp_path, "--steps", "6")
    assert checkpoint.load(tmp_path / "last.safetensors").step == 6


# One folder, one job

def impatient():
    folder.PATIENCE = 0


def test_the_folder_is_taken_before_its_checkpoint_is_read(tmp_path, monkeypatch):
    """Data may take long to read; a job that ran to its end meanwhile would be overwritten."""
    load, ended = train.data.load, []

    def slow(*args):
        ended.append(run_forked(["train.py", *FLAGS, "--out", str(tmp_path), "--steps", "2"], before=impatient))
        return load(*args)

    monkeypatch.setattr(train.data, "load", slow)
    run(tmp_path, "--steps", "3")
    assert ended[0].returncode == 2 and "another process writes into" in ended[0].stderr
    assert checkpoint.load(tmp_path / "last.safetensors").step == 3


def test_a_folder_made_anew_under_a_job_is_left_to_the_new_one(tmp_path):
    out = tmp_path / "run"
    with started(out, *ENDLESS) as old:
        out.rename(tmp_path / "gone")
        run(out, "--steps", "4", "--save_every", "2")
        error, _ = sentence(old)
    assert f"{out} is no longer this job's" in error
    assert checkpoint.load(out / "last.safetensors").step == 4
    assert [line["step"] for line in folder.read_log(out)] == [2, 4, 4]
