"""The harness of tests/attack.py: it sees what it is there to see, and a few of its cases end well."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import attack
from tests.hostile.case import Case, foundations
from tests.hostile.surroundings import writers

ROOT = Path(__file__).parents[1]


def arrange() -> list[str]:
    """Files that are there before."""
    Path("precious").write_text("precious")
    Path("last.txt").write_text("saved")
    return []


def say(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    raise SystemExit(code)


SENTENCE = "train.py: batch is 0; it must be at least 1"


def change_and_say(name: str) -> None:
    Path(name).write_text("new")
    say(SENTENCE, 2)


@pytest.mark.parametrize("main, ends", [
    (lambda flags: print("done"), ("ok",)), (lambda flags: say(SENTENCE, 2), ("sentence",)),
    (lambda flags: {}["missing"], ("traceback",)), (lambda flags: say(SENTENCE, 1), ("traceback",)),
    (lambda flags: say("", 2), ("traceback",)), (lambda flags: say(f"{SENTENCE}\n{SENTENCE}", 2), ("traceback",)),
    (lambda flags: os.kill(os.getpid(), signal.SIGKILL), ("crash",)), (lambda flags: time.sleep(60), ("hang",)),
    (lambda flags: Path("last.txt").write_text("new"), ("ok",)), (lambda flags: change_and_say("x"), ("sentence",)),
    (lambda flags: Path("precious").write_text("new"), ("ok", "lost")),
    (lambda flags: Path("last.txt").unlink(), ("ok", "lost")),
    (lambda flags: Path("new.png").write_bytes(b"no picture"), ("ok", "lost")),
    (lambda flags: change_and_say("last.txt"), ("sentence", "lost")),
    (lambda flags: change_and_say("x.tmp"), ("sentence", "lost"))], ids=range(15))
def test_ends_are_told_apart(main, ends, capsys):
    [end] = attack.attack([Case("a kind", "a name", main, arrange)], limit=3)
    assert end.ends == ends
    assert ("a kind: a name: " in capsys.readouterr().out) == bool({*ends} - {"ok", "sentence"})


def test_memory_is_limited():
    [end] = attack.attack([Case("", "", lambda flags: bytearray(2 * attack.MEMORY), arrange)], limit=30)
    assert end.ends == ("traceback",) and "MemoryError" in end.said


def test_a_full_disk_is_made():
    [end] = attack.attack([Case("", "", lambda flags: Path("x").write_bytes(bytes(200)), arrange, disk=100)], limit=30)
    assert end.ends == ("traceback",) and "File too large" in end.said


def test_what_is_attacked_would_work(tmp_path):
    """Where no disk is full and no link in the way, the flags are right and every file is written."""
    [made] = attack.attack([foundations(tmp_path)], limit=300)
    ends = attack.attack([Case("undisturbed", name, *each) for name, each in writers(tmp_path).items()])
    assert made.ends == ("ok",) and {end.case.name: end.said for end in ends if end.ends != ("ok",)} == {}


def test_one_case_of_each_kind_ends_well():
    """All are played by hand: python -m tests.attack."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.attack", "--few"], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
    *kinds, total = done.stdout.splitlines()[1:]
    assert len(kinds) >= 12 and total.split()[:2] == ["all", str(len(kinds))]
