"""Image files as uint8 tensors: of every common format, kind of pixel and size, damaged ones refused by name."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
CHANNELS = {"1": 1, "L": 1, "I;16": 1, "RGB": 3, "P": 3, "CMYK": 3, "YCbCr": 3, "RGBA": 4, "LA": 4, "PA": 4}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@contextlib.contextmanager
def open_image(file, name: str = "") -> Iterator[Image.Image]:
    """The image in a file, its pixels unread. Raises ValueError, naming it, for whatever is wrong with it."""
    try:
        if isinstance(file, (str, Path)):
            require_file(Path(file))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                yield image
    except Exception as error:                          # Pillow raises many kinds for damaged files
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot read the image {name or file}: {reason}; mend or remove it") from None


def require_file(path: Path) -> Path:
    """The path of a file. Raises ValueError for what is none: a pipe would be waited for without end."""
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    return path


def read_header(path: Path) -> tuple[int, tuple[int, int]]:
    """Channels and (H, W) of an image file, its pixels unread."""
    with open_image(path) as image:
        mode, size, transparent = image.mode, image.size, image.mode == "P" and "transparency" in image.info
    if mode not in CHANNELS:
        raise ValueError(f"{path} has pixels of kind {mode!r}; convert it to grey, RGB or RGBA")
    return 4 if transparent else CHANNELS[mode], size[::-1]


def read_image(file, shape: tuple[int, int, int], fit: str, name: str = "") -> Tensor:
    """The image as uint8 (C, H, W), whatever size it has. file: a path, or open, with a name for errors."""
    with open_image(file, name) as image:
        image = image.point(lambda v: v / 257).convert("L") if image.mode == "I;16" else image
        image = image.convert(MODES[shape[0]])
    return to_tensor(fit_to_size(image, shape[1:], fit))


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
