"""Files and folders that are complete or absent: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xr_avocado.cube import CubeError

__all__ = [
    "file_to_write",
    "fitting",
    "folder_to_write",
    "former",
    "link_tree",
    "local_path",
    "remove",
    "replacing",
    "swap_in",
    "sweep",
    "telling",
    "unfinished",
]


ADVICE = {
    errno.ENOSPC: "make room and call again, or write to another disk",
    errno.EDQUOT: "make room and call again, or write to another disk",
    errno.EROFS: "write to another place",
    errno.EACCES: "write to a folder that you may write to",
    errno.EPERM: "write to a folder that you may write to",
    errno.EIO: "the disk fails: write to another",
    errno.EEXIST: "a part of its path is a file: choose another name",
    errno.ENOTDIR: "a part of its path is a file: choose another name",
    errno.EISDIR: "a folder is there: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "its folder cannot be made: write to another place",
    errno.ELOOP: "its path is links that lead in a circle: choose another name",
}
"""What to do where a disk does not take what is written, by what it says."""


@contextmanager
def telling(target: Path) -> Iterator[None]:
    """Turn an error of the disk into one that names what was to be written and says what to do.

    Raises
    ------
    CubeError
        Where the disk is full, read-only, not ours or broken.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in ADVICE or not _is_about(error, Path(os.path.abspath(target))):
            raise
        raise CubeError(f"{target} cannot be written: {os.strerror(error.errno)}; {ADVICE[error.errno]}") from error


def _is_about(error: OSError, target: Path) -> bool:
    """Tell whether an error may be of writing ``target``: it names no file, or one beside or above it, and none that is read.

    What is not there was to be read, unless it is the target or a folder above it.
    """
    missing = error.errno == errno.ENOENT
    if not isinstance(error.filename, str | os.PathLike):
        return not missing
    named = Path(os.path.abspath(error.filename))
    return target.is_relative_to(named) or (named.is_relative_to(target.parent) and not missing)


def file_to_write(path: str | os.PathLike[str], what: str) -> Path:
    """Check, before any long work, that a file can be written at a path; ``what`` it holds is for the message.

    Raises
    ------
    CubeError
        Where it is no path of this machine, a folder, or in a folder that cannot be written.
    """
    target = local_path(path, what)
    if os.path.isdir(target):
        raise CubeError(f"{target} cannot be written: {os.strerror(errno.EISDIR)}; {ADVICE[errno.EISDIR]}")
    _try(target, told=target)
    return target


def folder_to_write(path: str | os.PathLike[str], what: str) -> Path:
    """Make a folder, and check, before any long work, that files can be written there; ``what`` they hold is for the message.

    Raises
    ------
    CubeError
        Where it is no path of this machine, a file, or cannot be written.
    """
    target = local_path(path, what)
    _try(target / "x", told=target)
    return target


def local_path(path: str | os.PathLike[str], what: str) -> Path:
    """Give the absolute path that a user means; ``what`` is to be written there is for the message.

    Raises
    ------
    CubeError
        Where it is none of this machine.
    """
    if not isinstance(path, str | os.PathLike) or "://" in str(path) or "\0" in str(path) or not str(path):
        raise CubeError(f"{what} written to a path of this machine; got {path!r}")
    return Path(os.path.abspath(path))


def _try(target: Path, *, told: Path) -> None:
    """Make the folder of a target, and a file in it of as long a name as the target has until it is whole."""
    temporary = _temporary(target)
    with telling(told):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what lies there when the block ends takes its place, and after an error nothing does.

    Raises
    ------
    CubeError
        Where the disk is full, read-only, not ours or broken.
    """
    target = Path(path)
    temporary = _temporary(target)
    with telling(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            swap_in(temporary, target)
        finally:
            remove(temporary)


def swap_in(temporary: Path, target: Path) -> None:
    """Move a finished file or folder to its place, in place of the one there; that stays where the move fails, or is of the other kind."""
    if not (target.is_dir() and temporary.is_dir() and not target.is_symlink()):
        os.replace(temporary, target)
        return
    old = former(temporary)
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise
    remove(old)


def sweep(target: Path) -> None:
    """Remove the temporary files that a killed process left beside ``target``."""
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp*"):
        # What was there before a replacement that was interrupted is no temporary file.
        if temporary.suffix == ".old":
            continue
        remove(temporary)


def former(temporary: Path) -> Path:
    """Name the place of a folder for the instant between its leaving and its successor's coming."""
    return temporary.with_name(temporary.name + ".old")


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link_tree(source: Path, target: Path) -> None:
    """Give a folder's files a second name under ``target``, without a copy where the file system can."""
    shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def unfinished(target: Path) -> Path:
    """Name the folder beside ``target`` in which its build gathers what is done."""
    return target.with_name(f".{target.name}.building")


def fitting(target: Path) -> Path:
    """Name the folder beside ``target`` in which its training keeps how far it is."""
    return target.with_name(f".{target.name}.fitting")
