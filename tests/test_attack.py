"""The harness of tests/attack sees what it is there to see, and its cases and kills end well."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.attack.__main__ import every_case, lay
from tests.attack.harness import MEMORY, Case, attack
from tests.attack.surroundings import writers
from tests.forks import run_forked

SENTENCE = "train.py: batch is 0; it must be at least 1"


def script(*files: str, says: str = "", status: int = 0) -> None:
    """A script that writes files, prints on stderr, and exits."""
    for name in files:
        Path(name).write_text("new")
    print(says, file=sys.stderr)
    sys.exit(status)


@pytest.mark.parametrize("run, ends", [
    (partial(script), ("ok",)), (partial(script, says=SENTENCE, status=2), ("sentence",)),
    (partial(int, "x"), ("traceback",)), (partial(script, says=SENTENCE, status=1), ("traceback",)),
    (partial(script, status=2), ("traceback",)),
    (partial(script, says=f"{SENTENCE}\n{SENTENCE}", status=2), ("traceback",)),
    (partial(signal.raise_signal, signal.SIGKILL), ("crash",)), (partial(script, "last.txt"), ("ok",)),
    (partial(script, "x", says=SENTENCE, status=2), ("sentence",)),
    (partial(script, "last.txt", says="Traceback"), ("traceback", "lost")),
    (partial(os.unlink, "last.txt"), ("ok", "lost")), (partial(script, "new.png"), ("ok", "lost")),
    (partial(os.mkdir, "trap-was-here"), ("ok", "lost")),
    (partial(script, "last.txt", says=SENTENCE, status=2), ("sentence", "lost")),
    (partial(script, "x.tmp", says=SENTENCE, status=2), ("sentence", "lost")),
    (partial(bytearray, 2 * MEMORY), ("traceback",))], ids=range(16))
def test_ends_are_told_apart(run, ends, capsys):
    [end] = attack([Case("a kind", "a name", {"last.txt": b"saved"}, run)])
    assert end.ends == ends
    assert ("a kind: a name: " in capsys.readouterr().out) == bool({*ends} - {"ok", "sentence"})


def test_expected_sentences_and_hangs():
    cases = [Case("", says, {}, partial(script, says=SENTENCE, status=2), says) for says in ("batch", "nothing")]
    cases.append(Case("", "silent", {}, partial(script), "batch"))
    assert [end.ends for end in attack(cases, jobs=1)] == [("sentence",), *[("traceback",)] * 2]
    assert [end.ends for end in attack([Case("", "", {}, partial(time.sleep, 1000))], limit_s=0.5)] == [("hang",)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    lay(folder)
    return folder


@pytest.mark.slow
def test_every_case_ends_well(base):
    cases = every_case(base)
    ends = attack(cases)
    assert len(ends) >= 700 and [(end.case.kind, end.case.name, end.said) for end in ends if not end.well] == []


def test_a_case_of_each_kind_ends_well(base):
    """All are played by `python -m tests.attack`, and in the slow tier."""
    cases = {case.kind: case for case in every_case(base) if case.kind != "streams"}
    ends = attack([*cases.values()])
    assert [(end.case.kind, end.case.name, end.said) for end in ends if not end.well] == []


@pytest.mark.slow
def test_what_is_attacked_would_work(base):
    """Where no disk is full and no link in the way, the flags are right and every file is written."""
    ends = attack([Case("undisturbed", name, *each) for name, each in writers(base).items()])
    assert {end.case.name: end.said for end in ends if end.ends != ("ok",)} == {}


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--kills 50 --steps 900", "--soak --kills 8 --steps 400 --wait 8"])
def test_a_run_survives_being_killed(flags):
    done = run_forked(["-m", "tests.kills", *flags.split()])
    assert done.returncode == 0 and "the same end" in done.stdout, done
