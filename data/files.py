"""Files that are read and written so that nothing saved is lost: whole files are written through here alone."""

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

NO_DESCRIPTORS = errno.EMFILE, errno.ENFILE             # no fault of the file that is being opened


@contextlib.contextmanager
def reading(path: str | Path, mend: str = "use another file") -> Iterator[None]:
    """Turns whatever is raised inside, by any reader of a damaged or hostile file, into a ValueError that names it.

    mend: what to do about it, the end of the sentence. A ValueError that names the file already passes unchanged, as
    does the lack of file descriptors.
    """
    try:
        yield
    except Exception as error:
        named = isinstance(error, ValueError) and re.search(rf"(?<!\w){re.escape(str(path))}(?!\w)", str(error))
        if named or getattr(error, "errno", 0) in NO_DESCRIPTORS:
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"cannot read {path}: {reason}; {mend}") from error


class Watched:
    """A binary file that remembers why a write failed: torch's zip writer replaces the reason with a RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str):
        return getattr(self.file, name)


@contextlib.contextmanager
def writing(path: str | Path, previous: Path | None = None, check: Callable[[], None] = lambda: None,
            sync: bool = True) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends: whole, or not at all.

    It is written as NAME.tmp in the same folder, which is made if need be; a symbolic link of that name is removed,
    not followed. With `sync`, file and folder reach the disk before the block returns. If anything is raised, NAME.tmp
    is removed and `path` stays as it was; a full disk is an OSError that says so, and so is a folder, a device or a
    pipe under the name. previous: the name that what `path` was gets, in the same folder; at every moment there is a
    whole file of the name `path`. check: called when all is written; what it raises leaves `path` as it was.
    """
    path, watched = Path(path), None
    temporary = path.parent / f"{path.name}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(path)
        temporary.unlink(missing_ok=True)
        with open(temporary, "w+b", opener=new_file) as file:
            watched = Watched(file)
            yield watched
            file.flush()
            if sync:
                os.fsync(file.fileno())
        check()
        if previous and path.exists():
            add_name(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        if watched:
            temporary.unlink(missing_ok=True)
        reason = getattr(watched, "error", None) or error
        if not isinstance(reason, OSError):
            raise
        raise OSError(f"cannot write {path}: {reason.strerror or reason}; what was there is unchanged") from error
    if sync:
        sync_folder(path.parent)


def check_writable(path: str | Path) -> Path:
    """The path, if `writing` can begin to write there; what is there stays. Raises OSError."""
    class Enough(Exception):
        pass

    with contextlib.suppress(Enough), writing(path):
        raise Enough
    return Path(path)


def check_replaceable(path: Path) -> None:
    """Raises OSError for a folder, a device or a pipe: a file must not take its place."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise OSError("there is a folder" if stat.S_ISDIR(mode) else "there is no file but a device or a pipe")


def add_name(path: Path, second: Path) -> None:
    """Gives the file a second name, taken from whatever had it; a copy where the file system knows no hard links."""
    temporary = second.with_name(f"{second.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        with path.open("rb") as file, writing(second) as copy:
            shutil.copyfileobj(file, copy)
        return
    try:
        os.replace(temporary, second)
    finally:                                            # still there if both names were this file's already, or
        temporary.unlink(missing_ok=True)               # if a folder has the second


def new_file(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses existing files and symbolic links."""
    return os.open(path, flags | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)


def sync_folder(folder: Path) -> None:
    """Makes a rename or a new name in this folder survive a crash of the machine, where the system can."""
    with contextlib.suppress(OSError):                  # Windows, and some network file systems, open no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
