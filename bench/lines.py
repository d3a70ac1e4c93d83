"""Result files: one line of JSON for each case, added as it comes; the last line of a case counts."""

import json
import os
from pathlib import Path


def read(path: Path) -> dict[str, dict]:
    """The last line of every case, by name; one that a killed process left unended is none."""
    text = path.read_text().splitlines(keepends=True) if path.exists() else ()
    lines = [json.loads(line) for line in text if line.endswith("\n")]
    return {line["case"]: line for line in lines}


def append(path: Path, line: dict) -> None:
    """Adds a line that survives whatever happens next; what a killed process left unended is cut off before."""
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        if whole < file.tell():
            file.truncate(whole)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def by_page(folder: Path, pages: tuple[str, ...]) -> dict[str, dict[str, dict]]:
    """The lines of a GPU's folder by page: a line says its own, or its file's name is that; all pages have `machine`.

    Where two files hold the same case, the one that did not fail counts, else the later one by name.
    """
    found = {page: {} for page in pages}
    for path in sorted(folder.glob("*.jsonl")):
        for case, line in read(path).items():
            for page in pages if case == "machine" and "page" in line else [line.get("page", path.stem)]:
                if page in found and ("failed" not in line or "results" not in found[page].get(case, {})):
                    found[page][case] = line
    return {page: lines for page, lines in found.items() if lines.keys() - {"machine"}}
