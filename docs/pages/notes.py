"""The notes: Markdown files beside this one, one per page. Those of a source explain it, definition by definition."""

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Notes(NamedTuple):
    """A Markdown file: `# title`, what comes first, then for a source `## name` or `## name, name` and its note."""
    title: str
    head: str
    notes: list[tuple[tuple[str, ...], str]]


def read(page: str) -> Notes:
    """The notes of a page, ddpm say. Raises ValueError if the file is missing or has no title."""
    path = FOLDER / f"{page}.md"
    if not path.is_file():
        raise ValueError(f"no notes {path}; write them: a title, what the file is for, and a note per definition")
    title, _, text = path.read_text(encoding="utf-8").partition("\n")
    if not title.startswith("# "):
        raise ValueError(f"{path} begins with {title!r}; it must begin with a title, as: # The mathematics")
    head, *parts = re.split(r"^## +(.+)\n", text, flags=re.M)
    notes = [(tuple(re.split(r", *", names.strip())), note) for names, note in zip(*[iter(parts)] * 2, strict=True)]
    return Notes(title[2:].strip(), head, notes)
