"""The fork server of tests/forks.py stands in for fresh Pythons: output, exit status, folder, environment, signals."""

import resource
import signal
from functools import partial

import pytest

from tests.forks import forked, run_forked

SHOW = "import os, sys; print(os.getcwd(), os.environ.get('SHOWN'), sys.argv[1:]); print('y' * 10**6, file=sys.stderr)"


def test_a_fork_is_like_a_process_of_its_own(tmp_path, monkeypatch):
    """And much output is read, and counts as no file."""
    monkeypatch.setenv("SHOWN", "changed")
    done = run_forked(["-c", SHOW, "a"], cwd=tmp_path,
                      before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100, 100)))
    assert (done.returncode, done.stdout, len(done.stderr)) == (0, f"{tmp_path} changed ['a']\n", 10**6 + 1)


@pytest.mark.parametrize("run, status, says", [
    (["-c", "1 / 0"], 1, "ZeroDivisionError"), (["-c", "import os; os.kill(os.getpid(), 9)"], -signal.SIGKILL, ""),
    (["sample.py", "--steps", "0"], 2, "sample.py: steps is 0"), (["-m", "run.checkpoint"], 2, "checkpoint.py: "),
    (partial(int, "x"), 1, "ValueError")], ids=range(5))
def test_how_a_fork_ends(run, status, says):
    done = run_forked(run)
    assert done.returncode == status and says in done.stderr


def test_a_running_fork_is_seen_signalled_and_not_left_behind():
    with forked(["-c", "import time; print('begun', flush=True); time.sleep(1000)"]) as process:
        process.until(lambda: process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    with forked(["-c", "import time; time.sleep(1000)"]) as process:
        assert process.poll() is None
        with pytest.raises(AssertionError, match="ended with 0"), forked(["-c", ""]) as other:
            other.until(lambda: False)
    assert process.poll() == -signal.SIGKILL
