"""run/folder.py: one job per folder, and a log that no line and no full disk can spoil."""

import json
import shutil
from functools import partial

import pytest
from PIL import Image

from run import folder
from tests.forks import run_forked

LINE = {"step": 3, "loss": 0.5, "quarters": [1, None, 0.25, 0.125], "norm": 1.0}


def lock_and_leave(path):
    folder.PATIENCE = 0
    with folder.lock(path):
        pass


def is_locked(path) -> bool:
    """Whether another process finds the folder locked."""
    ended = run_forked(partial(lock_and_leave, path))
    assert ended.returncode == 0 or "another process writes into" in ended.stderr, ended.stderr
    return ended.returncode != 0


def test_a_folder_is_one_job_s_until_it_ends(tmp_path):
    with folder.lock(tmp_path / "new") as check:
        check()
        assert is_locked(tmp_path / "new")
    assert not is_locked(tmp_path / "new") and not any((tmp_path / "new").iterdir())


@pytest.mark.parametrize("change", [
    shutil.rmtree, lambda out: ((out / ".lock").unlink(), (out / ".lock").touch()),
    lambda out: out.rename(out.with_name("moved"))])
def test_a_folder_that_was_taken_away_is_noticed_and_left_alone(tmp_path, change):
    out = tmp_path / "run"
    with folder.lock(out) as check:
        change(out)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match="run is no longer this job's: its .lock was removed or replaced; .*--out"):
            check()
    assert sorted(tmp_path.rglob("*")) == before


def test_half_a_line_of_a_killed_process_is_skipped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "step": 4}) + "\n" + '{"step": 5, "lo')
    assert [line["step"] for line in folder.read_log(tmp_path)] == [3, 4]
    folder.truncate_log(tmp_path, 3)
    assert path.read_text() == json.dumps(LINE) + "\n" and folder.read_log(tmp_path) == [LINE]
    path.write_text("a note\n" + json.dumps(LINE) + "\n")
    with pytest.raises(ValueError, match="cannot read .*log.jsonl: .*; correct or remove it"):
        folder.read_log(tmp_path)


@pytest.mark.parametrize("loss", [0, -1, 1e308, float("nan"), float("inf")])
def test_every_number_can_be_drawn(tmp_path, curves, loss):
    for step in (1, 2, 2**31 - 1):
        folder.append_log(tmp_path, {"step": step, "loss": loss, "simple": loss, "quarters": [loss, None, 1, loss]})
    folder.append_log(tmp_path, {**LINE, "step": 5})                # without the parts of the first line
    for step in (1, 5):
        folder.append_log(tmp_path, {"step": step, "FD": loss, "agree": loss})
    folder.plot_log(tmp_path)
    assert Image.open(tmp_path / "loss.png").width > 1500 and len(folder.read_log(tmp_path)) == 6


@pytest.mark.largest_file(200)
def test_a_line_that_does_not_fit_is_a_sentence_and_skipped(tmp_path):
    folder.append_log(tmp_path, LINE)
    folder.append_log(tmp_path, LINE)
    with pytest.raises(OSError, match="cannot write .*log.jsonl: File too large"):
        folder.append_log(tmp_path, LINE)
    assert folder.read_log(tmp_path) == [LINE, LINE]
    with pytest.raises(OSError, match="cannot write .*loss.png: File too large"):
        folder.plot_log(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["log.jsonl"]
