"""data/files.py: files replaced whole or not at all, and one sentence for files that cannot be read."""

import errno
import os

import pytest

from data.files import check_writable, reading, writing


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    return path


def is_unchanged(path, *others):
    """Whether the file is as it was, and alone but for these."""
    return path.read_bytes() == b"old" and {*path.parent.iterdir()} == {path, *others}


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "x.bin"
    for content in (b"one", b"two"):
        with writing(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(path, error):
    with pytest.raises(error), writing(path) as file:
        file.write(b"half")
        raise error
    assert is_unchanged(path) and check_writable(path) == path and is_unchanged(path)


@pytest.mark.largest_file(4096)
def test_a_full_disk_is_one_sentence(path):
    with pytest.raises(OSError, match=r"^cannot write .*x.bin: File too large; what was there is unchanged"), \
            writing(path) as file:
        file.write(bytes(10000))
    assert is_unchanged(path)


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
    os.link(path, previous)                             # as when a process dies before the new file takes its place
    with writing(path, previous) as file:
        file.write(b"five")
    assert (previous.read_bytes(), path.read_bytes()) == (b"four", b"five") and len([*tmp_path.iterdir()]) == 2


def test_whatever_a_reader_raises_becomes_a_sentence():
    for error, remedy, says in [(KeyError("key"), (), "cannot read x.pt: 'key'; use another file"),
                                (IndexError(), ["train it again"], "cannot read x.pt: IndexError; train it again"),
                                (ValueError("x.pt is too large"), (), "^x.pt is too large$"),
                                (OSError(errno.EMFILE, "Too many open files"), (), "Too many open files$")]:
        with pytest.raises((ValueError, OSError), match=says), reading("x.pt", *remedy):
            raise error
