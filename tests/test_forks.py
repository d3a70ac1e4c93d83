"""The fork server of tests/forks.py stands in for fresh Pythons: output, exit status, folder, environment, signals."""

import resource
import signal
from functools import partial

import pytest

from tests.forks import forked, run_forked

SHOW = "import os, sys; print(os.getcwd(), os.environ.get('SHOWN'), sys.argv[1:]); print('y' * 10**6, file=sys.stderr)"


def test_a_fork_is_like_a_process_of_its_own(tmp_path, monkeypatch):
    """And much output is read, and counts as no file. How forks end, tests/test_attack.py tests."""
    monkeypatch.setenv("SHOWN", "changed")
    done = run_forked(["-c", SHOW, "a"], cwd=tmp_path,
                      before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100, 100)))
    assert (done.returncode, done.stdout, len(done.stderr)) == (0, f"{tmp_path} changed ['a']\n", 10**6 + 1)


def test_a_running_fork_is_seen_signalled_and_not_left_behind():
    with forked(["-c", "import time; print('begun', flush=True); time.sleep(1000)"]) as process:
        process.until(lambda: process.stdout)
        with pytest.raises(AssertionError, match="ended with 0"), forked(["-c", ""]) as other:
            other.until(lambda: False)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    with forked(["-c", "import time; time.sleep(1000)"]) as process:
        assert process.poll() is None
    assert process.poll() == -signal.SIGKILL
