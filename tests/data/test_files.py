"""data/files.py: files replaced whole or not at all, and one sentence for files that cannot be read."""

import errno
import os
import zipfile

import pytest
import torch

from data.files import load_tensors, reading, writing


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "x.pt"
    for content in (b"one", b"two"):
        with writing(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    with pytest.raises(error), writing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_one_sentence(tmp_path, small_files):
    """torch.save alone raises a RuntimeError that does not say why."""
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"^cannot write .*x.pt: File too large; what was there is unchanged"), \
            writing(path) as file:
        torch.save(torch.zeros(10000), file)
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


# Files of tensors

def test_tensors_and_plain_values_are_read(tmp_path):
    content = {"a": torch.randn(3), "b": [1, "x", {"c": torch.zeros(2, 2)}], "alias": torch.arange(4)[1:3]}
    torch.save(content, tmp_path / "x.pt")
    for mmap in (False, True):
        loaded = load_tensors(tmp_path / "x.pt", mmap)
        assert str(loaded) == str(content)


class Trap:
    def __reduce__(self):
        return exec, ("raise AssertionError('a pickle was run')",)


@pytest.mark.parametrize("content", [
    {"a": torch.ones(3).to_sparse()}, {"a": torch.empty(3, device="meta")}, [{"b": torch.zeros(1).expand(10**6)}],
    Trap(), {"a": Trap()}, b"", b"\x80\x02.",
    b"\x80\x02]\x94h\x00a.", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."])
@pytest.mark.filterwarnings("ignore")
def test_files_of_anything_else_are_refused(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt is damaged or contains more than tensors; use another file"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("spoil", ["flipped", "packed", "cut"])
def test_damaged_and_packed_files_of_tensors_are_refused(tmp_path, spoil):
    """torch itself looks at neither the checksums nor the packing: what is packed could be as large as it likes."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    raw = bytearray((tmp_path / "whole.pt").read_bytes())
    if spoil == "packed":
        with zipfile.ZipFile(tmp_path / "whole.pt") as whole, \
                zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in whole.infolist():
                packed.writestr(entry.filename, whole.read(entry))
    else:
        raw[len(raw) // 2] ^= 1
        (tmp_path / "x.pt").write_bytes(raw if spoil == "flipped" else raw[:-100])
    with pytest.raises(ValueError, match="x.pt is damaged"):
        load_tensors(tmp_path / "x.pt")
