"""Sound files of pictures in every format, and some that lie about their size."""

import io
import re
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from data import image_files
from tests.helpers import png_chunk


def image_bytes(suffix: str, mode: str, **options) -> bytes:
    """A picture of 8 x 9 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, image_files.CHANNELS[mode]), np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :4])
    file = io.BytesIO()
    (image.convert(mode) if mode != "I;16" else Image.fromarray(pixels[..., 0].astype(np.uint16))).save(
        file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()


FRAMES = {"save_all": True, "append_images": [Image.new("L", (8, 9), k) for k in range(2)]}
IMAGES = {(suffix, mode): image_bytes(suffix, mode, **options) for suffix, mode, options in [
    (".png", "RGB", {}), (".png", "P", {"transparency": 3}), (".png", "I;16", {}), (".png", "1", {}),
    (".png", "LA", {}), (".jpg", "RGB", {}), (".jpeg", "CMYK", {"progressive": True}),
    (".webp", "RGBA", {"lossless": True}), (".webp", "RGB", {}), (".bmp", "RGB", {}), (".bmp", "P", {}),
    (".gif", "P", FRAMES), (".tif", "RGB", {}), (".tiff", "L", {"compression": "tiff_lzw"}),
    (".tif", "RGBA", {"compression": "tiff_adobe_deflate"}), (".tiff", "RGB", {"compression": "jpeg"}),
    (".ppm", "RGB", {}), (".pgm", "L", {})]}


def png_of(W: int, H: int) -> bytes:
    """A grey PNG that says it is of this size, and begins with a million zeros."""
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8, 0, 0, 0, 0))
            + png_chunk(b"IDAT", zlib.compress(bytes(10**6))) + png_chunk(b"IEND", b""))


def npz(save=np.savez, images=None, labels=None) -> bytes:
    """Three pictures and their labels."""
    file = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8) if images is None else images
    save(file, arr_0=images, arr_1=np.array([0, 2, 1]) if labels is None else labels)
    return file.getvalue()


def npz_with_header(shape, descr="|u1", content=bytes(64)) -> bytes:
    """An .npz whose arr_0 says that it is of this shape, over 64 bytes of pixels."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + content)
    return file.getvalue()


def zip_bomb() -> bytes:
    """An .npz whose arr_0, and the archive, too, says that it has 2 GB of pixels, in 64 kB."""
    raw = bytearray(npz_with_header((2000, 1000, 1000), content=bytes(2**26)))
    for mark, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<I", raw, raw.index(mark) + place, 2 * 10**9 + 100)
    return bytes(raw)


def encrypted(archive: bytes) -> bytes:
    """As if every entry were encrypted."""
    raw = bytearray(archive)
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        for entry in re.finditer(re.escape(mark), archive):
            raw[entry.start() + flags] |= 1
    return bytes(raw)
