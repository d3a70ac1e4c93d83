"""data/image_files.py: what picture files say besides pixels, and which files are opened at all."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.testing import assert_close

import data
from data import image_files
from tests.helpers import png_chunk

LANDSCAPE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
LANDSCAPE[:4, :6] = 0                                   # which corner is up can be seen


# Formats

def test_every_promised_format_is_opened_under_any_promised_name(tmp_path):
    for suffix, form in image_files.SUFFIXES.items():
        Image.new("L", (4, 4), 7).save(tmp_path / f"{suffix[1:]}.png", form)
    assert len(data.load(str(tmp_path)).images) == len(image_files.SUFFIXES)


# EXIF

def with_orientation(path: Path, k: int, form: str, **options) -> None:
    exif = Image.Exif()
    exif[0x112] = k
    Image.fromarray(LANDSCAPE).save(path, form, exif=exif, **options)


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_photographs_stand_upright(tmp_path, form, k):
    """Against Pillow's own function; TIFFs are turned by Pillow itself."""
    path = tmp_path / f"x.{form.lower()}"
    with_orientation(path, k, form, **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(path) as image:
        expected = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)
    loaded = data.load(str(tmp_path))
    assert loaded.shape == tuple(expected.shape) == ((3, 12, 8) if k >= 5 else (3, 8, 12))
    assert_close(loaded.images[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_with_damaged_exif_is_taken_as_it_lies(tmp_path, form):
    Image.fromarray(LANDSCAPE).save(tmp_path / f"x.{form.lower()}", form, exif=b"Exif\0\0no tiff!")
    assert data.load(str(tmp_path)).shape == (3, 8, 12)


# 16 bits, and transparent colours

@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_rounded_to_eight(tmp_path, form):
    values = np.array([[0, 128, 129, 4660, 65406, 65407, 65535]])
    for k, kind in enumerate(["<u2", ">u2"] if form == "TIFF" else ["<u2"]):
        Image.fromarray(values.astype(kind)).save(tmp_path / f"{k}.{form.lower()}", form)
    for picture in data.load(str(tmp_path)).images:
        assert picture[0, 0].tolist() == [0, 0, 1, 18, 254, 255, 255]


def png(rows: list[bytes], width: int, depth: int, colour: int, key: bytes) -> bytes:
    """A PNG of these rows, `depth` bits a channel, colour type `colour`, whose transparent colour is `key`."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"tRNS", key)
            + png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("content, pixels", [
    (png([bytes([10, 200])], 2, 8, 0, b"\0\x0a"), [[10, 10, 10, 0], [200, 200, 200, 255]]),
    (png([bytes([1, 2, 3, 1, 2, 4])], 2, 8, 2, b"\0\1\0\2\0\3"), [[1, 2, 3, 0], [1, 2, 4, 255]]),
    (png([b"\x40"], 2, 1, 0, b"\0\1"), [[0, 0, 0, 255], [255, 255, 255, 0]]),
    (png([b"\x9f"], 2, 4, 0, b"\0\x09"), [[153, 153, 153, 0], [255, 255, 255, 255]]),
    (png([b"\x12\xb5\xff\xff"], 2, 16, 0, b"\x12\xb5"), [[19, 19, 19, 0], [255, 255, 255, 255]]),
    (png([b"\1\2\3\4\5\6\7\x08\x09\x0a\x0b\x0c"], 2, 16, 2, b"\1\2\3\4\5\6"), [[1, 3, 5, 0], [7, 9, 11, 255]])],
    ids=["grey", "colour", "1 bit", "4 bits", "16 bits of grey", "16 bits of colour"])
def test_a_transparent_colour_becomes_an_alpha_channel(tmp_path, content, pixels):
    (tmp_path / "x.png").write_bytes(content)
    loaded = data.load(str(tmp_path))
    assert loaded.shape == (4, 1, 2) and loaded.images[0, :, 0].T.tolist() == pixels


# What is no picture

def test_hidden_files_and_macos_folders_are_no_classes(tmp_path):
    for name in ("cat/1.png", "dog/2.png", "__MACOSX/cat/1.png", ".git/3.png", "cat/.thumbs/4.png", "dog/._2.png"):
        path = tmp_path / ".data" / name                # the folder asked for may be hidden itself
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(LANDSCAPE).save(path)
    loaded = data.load(str(tmp_path / ".data"))
    assert loaded.classes == ("cat", "dog") and len(loaded.images) == 2
