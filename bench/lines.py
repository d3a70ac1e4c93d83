"""Result files: lines of JSON, added as they come."""

import json
import os
from pathlib import Path


def read(path: Path) -> list[dict]:
    """The lines of the file, none if there is none; one that a killed process left unended does not count."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def append(path: Path, line: dict) -> None:
    """Adds a line that survives whatever happens next; what a killed process left unended is cut off before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
