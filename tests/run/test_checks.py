"""run/checks.py: files of tensors, and of anything else."""

import zipfile
from pathlib import Path

import pytest
import torch

from run.checks import load, load_tensors
from tests.helpers import Trap


def test_tensors_and_plain_values_are_read(tmp_path):
    content = {"a": torch.randn(3), "b": [1, "x", {"c": torch.zeros(2, 2)}], "alias": torch.arange(4)[1:3]}
    torch.save(content, tmp_path / "x.pt")
    assert str(load_tensors(tmp_path / "x.pt")) == str(content)
    assert str(load(tmp_path / "x.pt", mmap=True)) == str(content)


@pytest.mark.parametrize("content", [
    {"a": torch.ones(3).to_sparse()}, {"a": torch.empty(3, device="meta")}, [{"b": torch.zeros(1).expand(10**6)}],
    Trap(), {"a": Trap()}, b"", b"\x80\x02.",
    b"\x80\x02]\x94h\x00a.", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."])
@pytest.mark.filterwarnings("ignore")
def test_files_of_anything_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt is damaged or contains more than tensors; use another file"):
        load_tensors(tmp_path / "x.pt")
    assert not Path("trap-was-here").exists()


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
