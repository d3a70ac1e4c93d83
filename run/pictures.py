"""Pictures for people to look at: grids, strips of the reverse chain, the chain as a film, and figures."""

import functools
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data import to_pixels
from data.files import check_writable, writing
from data.image_files import SUFFIXES, to_image, with_channels

WRITTEN = ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"
FRAMES, GREYS = 40, 16              # of a film, at most: 100 digits then take under 2 MB
SIZES = 14, 12, 10                  # of heads, in pixels: the first at which all of them fit
MOST = 40                           # columns of a grid with heads, and rows of a strip


class Samples(NamedTuple):
    """Sampled pictures, and what is known of them."""
    n: int                          # how many pictures
    x: Tensor | None                # (n, C, H, W) in [-1, 1]; None for pictures that an earlier run sampled
    labels: Tensor | None           # (n,) int64; the null class is the last
    classes: tuple[str, ...]        # the name of every class but the null class
    states: dict[int, Tensor]       # x_t at the times kept, and x_0
    seconds: float                  # without compilation
    evaluations: int                # network evaluations (NFE)


def concatenate(batches: Sequence[Samples]) -> Samples:
    """All batches as one."""
    first = batches[0]
    states = {t: torch.cat([batch.states[t] for batch in batches]) for t in first.states}
    labels = None if first.labels is None else torch.cat([batch.labels for batch in batches])
    return Samples(len(states[0]), states[0], labels, first.classes, states,
                   sum(batch.seconds for batch in batches), sum(batch.evaluations for batch in batches))


def grid(x: Tensor, columns: int, heads: Sequence[str] = ()) -> Image.Image:
    """Pictures (N, C, H, W) in [-1, 1] row by row on white; `heads` are written above the columns, each within its own.

    Heads that are too wide are written smaller, then shortened in the middle.
    """
    tiles = [with_channels(to_image(p), 3) for p in to_pixels(x)]   # transparent ones on white
    factor = math.ceil(64 / min(tiles[0].size))                     # small pictures are enlarged smoothly
    tiles = [tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.BICUBIC) for tile in tiles]
    gap, top = 4, 24 if heads else 4
    w, h = tiles[0].width + gap, tiles[0].height + gap
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * w + gap, top + rows * h), "white")
    for k, tile in enumerate(tiles):
        sheet.paste(tile, (gap + k % columns * w, top + k // columns * h))
    draw, heads = ImageDraw.Draw(sheet), [" ".join(head.split()) for head in heads[:columns]]
    for size in SIZES:
        if all(font(head, size).getlength(head) <= tiles[0].width for head in heads):
            break
    for k, head in enumerate(heads):
        draw.text((gap + k * w + tiles[0].width // 2, top // 2), shortened(head, font(head, size), tiles[0].width),
                  fill="black", font=font(head, size), anchor="mm")
    return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, its middle left out as far as need be: class names often differ only at their ends."""
    short, kept = text, len(text)
    while kept and font.getlength(short) > width:
        kept -= 1
        short = f"{text[:(kept + 1) // 2]}…{text[len(text) - kept // 2:]}"
    return short


def font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that has these characters, or if none has, Pillow's own."""
    file = font_file(text)
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@functools.cache
def font_file(text: str) -> str | None:
    """A font that has all of these characters: "" is Pillow's own, for ASCII; else one of matplotlib's or the system's.

    None if there is none.
    """
    if text.isascii():
        return ""
    from matplotlib.font_manager import fontManager
    fonts = sorted(fontManager.ttflist, key=lambda each: (each.name != "DejaVu Sans", each.style, each.weight != 400))
    return next((each.fname for each in fonts if not each.name.startswith("Last Resort")    # which has only boxes
                 and characters(each.fname).issuperset(map(ord, text))), None)


@functools.cache
def characters(file: str) -> frozenset[int]:
    """What a font has; nothing, if it is damaged or was removed since matplotlib made its list."""
    from matplotlib.ft2font import FT2Font
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def class_heads(classes: Sequence[str], labels: Sequence[int]) -> tuple[str, ...]:
    """What to write above these labels: the class's name, or its number where no font here has the name's characters.

    The label after the last class is no label.
    """
    return tuple("none" if k == len(classes) else f"class {k}" if font_file(classes[k]) is None else classes[k]
                 for k in labels)


def side_by_side(columns: Sequence[Tensor], heads: Sequence[str]) -> Image.Image:
    """A grid of these columns, each of pictures (N, C, H, W) in [-1, 1], their heads above them."""
    return grid(torch.stack(list(columns), dim=1).flatten(0, 1), len(columns), heads)


def columns(samples: Samples) -> tuple[int, tuple[str, ...]]:
    """Columns of the samples' grid, and their heads: one per class, if every row repeats the same labels, and few."""
    labels = [] if samples.labels is None else samples.labels.tolist()
    row = list(dict.fromkeys(labels))
    if not 2 <= len(row) <= MOST or labels != [row[k % len(row)] for k in range(len(labels))]:
        return math.ceil(len(samples.x) ** 0.5), ()
    return len(row), class_heads(samples.classes, row)


def nearest(t: int, times: Sequence[int]) -> int:
    """The one of these times that is nearest to t."""
    return min(times, key=lambda visited: abs(visited - t))


def strip(samples: Samples, times: Sequence[int]) -> Image.Image:
    """The first samples, one per row, at these times of the reverse chain."""
    rows = min(len(samples.x), max(1, len(samples.classes)), MOST)
    x = torch.stack([samples.states[t][:rows] for t in times], dim=1).flatten(0, 1)
    return grid(x, len(times), [f"t = {t:.6g}" for t in times])


def kept_times(snapshots: Sequence[int], gif: bool, times: Sequence[int]) -> set[int]:
    """Of the times that a chain visits, those whose x_t a strip of the snapshots, or a film, shows.

    A film's frames are evenly spaced, x_0 not counted.
    """
    frames = times[::math.ceil(len(times) / FRAMES)] if gif else []
    return {*frames, *(nearest(t, times) for t in snapshots)}


def save(image: Image.Image, path: str | Path, sync: bool = True, **options) -> None:
    """Writes a picture whole or not at all, in the format that its name ends in."""
    content = io.BytesIO()
    image.save(content, picture_format(path), **options)
    with writing(path, sync=sync) as file:
        file.write(content.getvalue())


def picture_format(path: str | Path) -> str:
    """The format that a picture's name ends in. Raises ValueError for another name."""
    suffix = Path(path).suffix.lower()
    if suffix not in WRITTEN:
        raise ValueError(f"{path} is no name of a picture; let it end in {' '.join(WRITTEN)}")
    return SUFFIXES[suffix]


def save_film(frames: Iterable[tuple[str, Image.Image]], path: Path, milliseconds: int, colours: int) -> None:
    """Writes sheets at half their size, each with its text below, as a GIF that repeats, the last held for two seconds.

    Few colours a frame keep the file small: noise does not compress.
    """
    film = []
    for text, sheet in frames:
        half = sheet.reduce(2)
        frame = Image.new("RGB", (half.width, half.height + 20), "white")
        frame.paste(half)
        ImageDraw.Draw(frame).text((half.width // 2, half.height + 9), text, fill="black", font=font(text, SIZES[0]),
                                   anchor="mm")
        film.append(frame.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
        palette, white = film[-1].getpalette(), 3 * film[-1].getpixel((0, frame.height - 1))
        film[-1].putpalette([*palette[:white], 255, 255, 255, *palette[white + 3:]])     # not nearly white
    save(film[0], path, save_all=True, append_images=film[1:], loop=0,            # Pillow merges equal frames
         duration=[milliseconds] * (len(film) - 1) + [2000])


def film(samples: Samples, path: Path) -> None:
    """The reverse chain of all samples."""
    frames = ((f"t = {t:.6g}", grid(samples.states[t], columns(samples)[0])) for t in sorted(samples.states)[::-1])
    save_film(frames, path, 150, GREYS if samples.x.shape[1] == 1 else 4 * GREYS)


def progress(folder: Path, step: int, path: Path) -> None:
    """The grids STEP.png in the folder, up to this step, the latest among them: the same noise as training went on."""
    steps = {int(p.stem): p for p in folder.glob("*.png") if p.stem.isdecimal() and int(p.stem) <= step}
    chosen = sorted(steps)[::-math.ceil(len(steps) / FRAMES)][::-1]
    save_film(((f"step {k}", opened(steps[k])) for k in chosen), path, 250, 4 * GREYS)


def opened(path: Path) -> Image.Image:
    """A picture file as it looks on white."""
    with Image.open(path) as image:
        return with_channels(image, 3)


def picture_path(out: str) -> Path:
    """Where a picture will go: what could not be written is refused now, and one already there is left alone."""
    picture_format(out)
    return check_writable(out)


def figure_path(out: str) -> Path:
    """Where a figure will go: what could not be written is refused now, and a picture already there is left alone."""
    from matplotlib.figure import Figure
    Figure().savefig(io.BytesIO(), format=Path(out).suffix[1:] or None)
    return check_writable(out)


def panels(rows: int, columns: int, size: tuple[float, float], grid: bool = False, **options):
    """A matplotlib figure of this size in inches and its panels; grid: with faint lines; options of Figure.subplots."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for panel in figure.axes if grid else ():
        panel.grid(alpha=0.3)
    return figure, axes


def save_figure(figure, path: str | Path, dpi: int) -> None:
    """Writes a matplotlib figure, in the format that its name ends in: whole, or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:] or None, dpi=dpi)
    with writing(path) as file:
        file.write(content.getvalue())


def channel_statistics(name: str, x: Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of x (N, C, H, W), by name: a colour cast shows here."""
    channels = x.transpose(0, 1).flatten(1)
    return {f"{name}_mean": channels.mean(1).tolist(), f"{name}_std": channels.std(1).tolist()}
