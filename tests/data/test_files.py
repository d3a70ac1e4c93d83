"""data/files.py: files replaced whole or not at all, and one sentence for files that cannot be read."""

import errno
import os

import pytest

from data.files import reading, writing


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "x.pt"
    for content in (b"one", b"two"):
        with writing(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["x.pt"]


def test_a_folder_under_the_previous_name_stays_and_nothing_else_is_left(tmp_path):
    path, previous = tmp_path / "x.pt", tmp_path / "previous.pt"
    path.write_bytes(b"old")
    previous.mkdir()
    with pytest.raises(OSError, match="cannot write .*x.pt: Is a directory"), writing(path, previous) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old" and {*tmp_path.iterdir()} == {path, previous}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    with pytest.raises(error), writing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


@pytest.mark.largest_file(4096)
def test_a_full_disk_is_one_sentence(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"^cannot write .*x.pt: File too large; what was there is unchanged"), \
            writing(path) as file:
        file.write(bytes(10000))
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_what_was_there_can_keep_another_name(tmp_path, monkeypatch):
    """By a second name for one file, or by a copy where there are none; the first name is never free."""
    path, previous = tmp_path / "last", tmp_path / "previous"
    for k, content in enumerate((b"one", b"two", b"three", b"four")):
        if k == 3:
            monkeypatch.setattr(os, "link", lambda *names: os.unlink(os.devnull + "/none"))
        with writing(path, previous) as file:
            file.write(content)
    assert (previous.read_bytes(), path.read_bytes()) == (b"three", b"four")
    os.unlink(previous)
    monkeypatch.undo()
    os.link(path, previous)                             # as when a process dies between the two renames
    with writing(path, previous) as file:
        file.write(b"five")
    assert (previous.read_bytes(), path.read_bytes()) == (b"four", b"five") and len([*tmp_path.iterdir()]) == 2


def test_a_check_that_fails_leaves_what_was_there(tmp_path):
    def check():
        assert path.with_name("x.pt.tmp").read_bytes() == b"new"
        raise ValueError("not now")

    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="not now"), writing(path, tmp_path / "previous", check) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_symbolic_links_are_not_followed(tmp_path):
    other, path = tmp_path / "other", tmp_path / "x.pt"
    other.write_bytes(b"precious")
    for link in (path, tmp_path / "x.pt.tmp"):
        os.symlink(other, link)
    with writing(path) as file:
        file.write(b"new")
    assert other.read_bytes() == b"precious" and path.read_bytes() == b"new" and not path.is_symlink()


def test_whatever_a_reader_raises_becomes_a_sentence():
    with pytest.raises(ValueError, match="cannot read x.pt: 'key'; use another file"), reading("x.pt"):
        raise KeyError("key")
    with pytest.raises(ValueError, match="cannot read x.pt: IndexError; train it again"), \
            reading("x.pt", "train it again"):
        raise IndexError
    with pytest.raises(ValueError, match="^x.pt is too large$"), reading("x.pt"):
        raise ValueError("x.pt is too large")


@pytest.mark.parametrize("name", ["folder", "pipe"])
def test_folders_pipes_and_devices_are_not_replaced(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    what = {"folder": "a folder", "pipe": "no file but a device or a pipe"}[name]
    with pytest.raises(OSError, match=f"cannot write .*: there is {what}; what was there"), writing(tmp_path / name):
        raise AssertionError("the block was entered")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_lack_of_descriptors_is_no_fault_of_the_file():
    with pytest.raises(OSError, match="Too many"), reading("x.pt"):
        raise OSError(errno.EMFILE, "Too many open files", "x.pt")
