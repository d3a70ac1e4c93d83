"""Image files as uint8 tensors: of every common format, kind of pixel and size, damaged ones refused by name."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.Image import Transpose
from torch import Tensor

from data.files import reading

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF",
            ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}
FORMATS = sorted({*SUFFIXES.values()})                  # no others are tried: for an EPS, Pillow starts Ghostscript
CHANNELS = {"1": 1, "L": 1, "I;16": 1, "RGB": 3, "P": 3, "CMYK": 3, "YCbCr": 3, "RGBA": 4, "LA": 4, "PA": 4}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TURNS = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
         6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}     # by EXIF's orientation
KEY_SCALES = {"L;2": 85, "L;4": 17, "I;16B": 1 / 257, "RGB;16B": 1 / 256}              # of a PNG's transparent colour
ZEROS = 256                                             # bytes in a row that no camera's compressed pixels have


class Damage(UserWarning):
    """A picture was read, but something is wrong with its file: args are its name and what is wrong."""
    def __str__(self) -> str:
        return ": ".join(self.args)


@contextlib.contextmanager
def open_image(file: str | Path | BinaryIO, name: str = "") -> Iterator[Image.Image]:
    """The image in a file, its pixels unread. Raises ValueError, naming it, for whatever is wrong with it.

    What Pillow warns of becomes one `Damage` warning, except that the picture is large.
    """
    name = str(name or file)
    with warnings.catch_warnings(record=True) as caught, reading(f"the image {name}", "mend or remove it"):
        warnings.simplefilter("always")
        if isinstance(file, (str, Path)):
            require_file(Path(file))
        with Image.open(file, formats=FORMATS) as image:
            yield image
    if found := [w for w in caught if w.category is not Image.DecompressionBombWarning]:
        warnings.warn(Damage(name, " ".join(str(found[0].message).split())), stacklevel=3)


@contextlib.contextmanager
def damage_counted(where: str) -> Iterator[None]:
    """Prints how many of the pictures read inside may be damaged, and the first of them, instead of each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Damage)
        yield
    if found := {w.message.args[0]: w.message for w in reversed(caught) if w.category is Damage}:
        print(f"warning: {len(found)} pictures of {where} may be damaged, look at them; the first: {found[min(found)]}",
              file=sys.stderr)


def require_file(path: Path) -> Path:
    """The path of a file. Raises OSError for what is none: a pipe would be waited for without end."""
    if not path.is_file():
        raise OSError(f"{path} is no file")
    return path


def visible(folder: Path, pattern: str) -> list[Path]:
    """What matches the pattern at any depth, sorted, but nothing hidden and none of macOS's __MACOSX folders."""
    def shown(path: Path) -> bool:
        return not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)

    return sorted(filter(shown, folder.rglob(pattern)))


def read_header(path: Path) -> tuple[int, tuple[int, int]]:
    """Channels and (H, W) of an image file as `read_image` turns it, its pixels unread."""
    with open_image(path) as image:
        mode, (W, H), transparent = image.mode, image.size, "transparency" in image.info
        sideways = orientation(image) >= 5
    if mode not in CHANNELS:
        raise ValueError(f"{path} has pixels of kind {mode!r}; convert it to grey, RGB or RGBA")
    return 4 if transparent else CHANNELS[mode], (W, H) if sideways else (H, W)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, where it precedes the pixels; 1 for TIFF, which Pillow turns itself."""
    if image.format == "TIFF":
        return 1
    try:
        Image.Exif().load(image.info.get("exif", b""))                            # raises what Pillow passes over
        found = Image.Image.getexif(image).get(Base.Orientation, 1)               # a PNG's own would read its pixels
    except Exception as error:                                                    # damaged in one of many ways
        warnings.warn(f"EXIF cannot be read: {error}", Damage, stacklevel=2)
        return 1
    return found if found in TURNS else 1


def read_image(file: str | Path | BinaryIO, shape: tuple[int, int, int], fit: str, name: str = "") -> Tensor:
    """The image as uint8 (C, H, W), upright, whatever size it has. file: a path, or open, with a name for errors."""
    with open_image(file, name) as image:
        if image.format in ("JPEG", "MPO") and has_lost_pixels(file):
            warnings.warn("a part of its compressed pixels is zero", Damage, stacklevel=2)
        turn = TURNS.get(orientation(image))
        image = eight_bits(image).convert(MODES[shape[0]])
    return to_tensor(fit_to_size(image.transpose(turn) if turn is not None else image, shape[1:], fit))


def eight_bits(image: Image.Image) -> Image.Image:
    """The image, with 16 bits of grey rounded to 8, and with an alpha channel if one colour of it is transparent."""
    key = image.info.get("transparency")
    if isinstance(key, (int, tuple)) and image.format == "PNG":
        scale = KEY_SCALES.get(image.tile[0][3], 1)                             # Pillow scales the pixels alone
        key = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else int(key * scale)
    image = image.point(lambda v: v / 257).convert("L") if image.mode == "I;16" else image
    if key is None:
        return image
    image.info["transparency"] = key
    return image.convert("RGBA")


def has_lost_pixels(file: str | Path | BinaryIO) -> bool:
    """Whether a JPEG's compressed pixels are zero for a while, as where a disk or a download lost them.

    libjpeg makes grey or stripes of them without a word. Large even areas of optimised files can be zero as well.
    """
    raw = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
    at = 2                                                                        # segment after segment to the scan
    while raw[at:at + 1] == b"\xff" and raw[at + 1:at + 2] != b"\xda":
        at += 2 + int.from_bytes(raw[at + 2:at + 4], "big")
    end = raw.find(b"\xff\xd9", at)
    return raw.find(bytes(ZEROS), at, end if end > 0 else len(raw)) > 0


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as uint8 (C, H, W)."""
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W) as a picture: grey, RGB or RGBA."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).contiguous().cpu().numpy())


def fit_to_size(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """The picture at this (H, W): resized and cropped at the centre, or padded with black."""
    H, W = size
    if image.size == (W, H):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (W, H), Image.Resampling.BICUBIC)
    if image.width > W or image.height > H:
        raise ValueError(f"a picture of {image.height}x{image.width} pixels cannot be padded to {H}x{W}; "
                         f"choose a larger --size, or --fit crop")
    left, top = (W - image.width) // 2, (H - image.height) // 2
    return image.crop((-left, -top, W - left, H - top))
