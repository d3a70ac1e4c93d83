"""Files that are read and written so that nothing saved is lost: whole files are written through here alone."""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

SILENT = os.environ.get("RANK", "0") != "0"             # of several processes the first alone speaks
NO_DESCRIPTORS = errno.EMFILE, errno.ENFILE             # no fault of the file that is being opened


def say(text: str) -> None:
    """A note on stderr about files, once for all processes of a run."""
    if not SILENT:
        print(f"note: {text}", file=sys.stderr)


def some(items: Sequence, n: int = 5) -> str:
    """The first n of the items, separated by commas, and how many more there are."""
    rest = f" and {len(items) - n} more" if len(items) > n else ""
    return ", ".join(map(str, items[:n])) + rest


@contextlib.contextmanager
def reading(path: str | Path, remedy: str = "use another file") -> Iterator[None]:
    """Turns whatever a reader of a damaged file raises inside into a ValueError that names the file.

    remedy: the end of the sentence. A ValueError that names the file already passes unchanged, as does the lack of
    file descriptors.
    """
    try:
        yield
    except Exception as error:
        named = isinstance(error, ValueError) and re.search(rf"(?<!\w){re.escape(str(path))}(?!\w)", str(error))
        if named or getattr(error, "errno", 0) in NO_DESCRIPTORS:
            raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ValueError(f"cannot read {path}: {reason}; {remedy}") from error


@contextlib.contextmanager
def writing(path: str | Path, previous: Path | None = None, sync: bool = True) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends: whole, or not at all.

    It is written as NAME.tmp in the same folder, which is made if need be. With `sync`, file and folder reach the disk
    before the block returns. If anything is raised, NAME.tmp is removed and `path` stays as it was. A full disk is an
    OSError that says so, and so is a folder, a device or a pipe under the name.
    previous: the file that `path` was gets this name, in the same folder; `path` itself is a whole file all the time.
    """
    path = Path(path)
    temporary = path.parent / f"{path.name}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(f"there is {'a folder' if path.is_dir() else 'no file but a device or a pipe'}")
        temporary.unlink(missing_ok=True)
        try:
            with open(temporary, "xb+") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            if previous and path.exists():
                add_name(path, previous)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)           # there is none any more if all went well
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}; what was there is unchanged") from error
    if sync:
        sync_folder(path.parent)


def check_writable(path: str | Path) -> Path:
    """The path, if `writing` can begin to write there; what is there stays. Raises OSError."""
    class Enough(Exception):
        pass

    with contextlib.suppress(Enough), writing(path):
        raise Enough
    return Path(path)


def add_name(path: Path, second: Path) -> None:
    """Gives the file a second name, taken from whatever had it; a copy where the file system knows no hard links."""
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:
        shutil.copyfile(path, second)


def sync_folder(folder: Path) -> None:
    """Makes a rename or a new name in this folder survive a crash of the machine, where the system can."""
    with contextlib.suppress(OSError):                  # Windows, and some network file systems, open no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
