"""run/folder.py: one job per folder, and a log that no line and no full disk can spoil."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from run import folder

ROOT = Path(__file__).parents[2]
LINE = {"step": 3, "loss": 0.5, "quarters": [1, None, 0.25, 0.125], "norm": 1.0}


def held(path) -> bool:
    """Whether another process finds the folder locked."""
    script = f"import pathlib; from run import folder\nwith folder.lock(pathlib.Path({str(path)!r})): pass"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 or "another process writes into" in result.stderr, result.stderr
    return result.returncode != 0


def test_a_folder_is_one_job_s_until_it_ends(tmp_path):
    with folder.lock(tmp_path / "new") as check:
        check()
        assert held(tmp_path / "new")
    assert not held(tmp_path / "new") and not any((tmp_path / "new").iterdir())


@pytest.mark.parametrize("change", [
    lambda out: (out / ".lock").unlink(), shutil.rmtree, lambda out: (shutil.rmtree(out), out.mkdir()),
    lambda out: ((out / ".lock").unlink(), (out / ".lock").touch()), lambda out: out.rename(out.with_name("moved")),
    lambda out: ((out / ".lock").unlink(), os.symlink("elsewhere", out / ".lock"))])
def test_a_folder_that_was_taken_away_is_noticed_and_left_alone(tmp_path, change):
    out = tmp_path / "run"
    with folder.lock(out) as check:
        change(out)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match="run is no longer this job's: its .lock was removed or replaced; .*--out"):
            check()
    assert sorted(tmp_path.rglob("*")) == before


def test_the_lock_is_a_file_of_its_own(tmp_path):
    """No link is followed, nothing is truncated, and no pipe waited for."""
    other = tmp_path / "precious"
    other.write_text("precious")
    os.symlink(other, tmp_path / ".lock")
    with pytest.raises(OSError), folder.lock(tmp_path):
        pass
    assert other.read_text() == "precious"
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").write_text("left by another program")
    with folder.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == "left by another program"
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError), folder.lock(tmp_path):
        pass


@pytest.mark.parametrize("line", [
    "", "  ", "nonsense", "[1]", "3", "null", "{}", '{"step": "3"}', '{"step": true}', '{"step": -1}', '{"step": 1e3}',
    '{"step": 1' + "0" * 400 + "}", '{"step": 1' + "0" * 5000 + "}", "[" * 100000, '{"a":' * 100000,
    '{"step": 3, "loss": 1}', '{"step": 3, "loss": "1", "quarters": [1, 1, 1, 1]}',
    '{"step": 3, "loss": 1, "quarters": [1, 1, 1]}', '{"step": 3, "loss": 1, "quarters": "1111"}',
    '{"step": 3, "loss": 1, "quarters": [1, 1, 1, {}]}', '{"step": 3, "loss": [1], "quarters": [1, 1, 1, 1]}',
    '{"step": 3, "loss": 1' + "0" * 400 + ', "quarters": [1, 1, 1, 1]}', '{"step": 3, "loss": true, "quarters": []}',
    '{"step": 3, "loss": 1, "simple": {}, "quarters": [1, 1, 1, 1]}', '{"step": 3, "FD": "1"}',
    '{"step": 3, "FD": 1, "agree": null}', "\udcff\udcfe", "{\0}", '{"step": 3'])
def test_lines_that_are_none_are_skipped_with_one_warning(tmp_path, capsys, line):
    text = json.dumps(LINE) + "\n" + line + "\n" + line + "\n" + json.dumps({**LINE, "step": 4}) + "\n"
    (tmp_path / "log.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    assert [each["step"] for each in folder.read_log(tmp_path)] == [3, 4]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "log.jsonl that are no lines of a log were skipped: 2" in said
    folder.truncate_log(tmp_path, 3)
    capsys.readouterr()
    assert folder.read_log(tmp_path) == [LINE] and not capsys.readouterr().out
    folder.plot_log(tmp_path)
    assert Image.open(tmp_path / "loss.png").width > 100


@pytest.mark.parametrize("loss", [0, -1, 1e308, -1e308, 2**62, float("nan"), float("inf"), 5e-324])
def test_every_number_can_be_drawn(tmp_path, curves, loss):
    for step in (1, 2, 2**31 - 1):
        folder.append_log(tmp_path, {"step": step, "loss": loss, "simple": loss, "quarters": [loss, None, 1, loss]})
    folder.append_log(tmp_path, {**LINE, "step": 5})                # without the parts of the first line
    for step in (1, 5):
        folder.append_log(tmp_path, {"step": step, "FD": loss, "agree": loss})
    folder.plot_log(tmp_path)
    assert Image.open(tmp_path / "loss.png").width > 1500 and len(folder.read_log(tmp_path)) == 6


def test_a_log_that_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="cannot read .*log.jsonl: it is no file; remove it"):
        folder.truncate_log(tmp_path, 3)


def test_the_log_is_a_file_of_its_own(tmp_path):
    other = tmp_path / "precious"
    other.write_text(json.dumps(LINE) + "\n")
    os.symlink(other, tmp_path / "log.jsonl")
    with pytest.raises(OSError):
        folder.append_log(tmp_path, LINE)
    folder.truncate_log(tmp_path, 3)                                # as resuming does: now it is
    folder.append_log(tmp_path, LINE)
    assert other.read_text() == json.dumps(LINE) + "\n" and folder.read_log(tmp_path) == [LINE, LINE]


@pytest.mark.largest_file(200)
def test_a_line_that_does_not_fit_leaves_the_log_as_it_was(tmp_path):
    folder.append_log(tmp_path, LINE)
    folder.append_log(tmp_path, LINE)
    with pytest.raises(OSError, match="cannot write .*log.jsonl: File too large; what was there is unchanged"):
        folder.append_log(tmp_path, LINE)
    assert folder.read_log(tmp_path) == [LINE, LINE] and (tmp_path / "log.jsonl").read_bytes().endswith(b"\n")
    with pytest.raises(OSError, match="cannot write .*loss.png: File too large"):
        folder.plot_log(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["log.jsonl"]
