"""One writer at a time: of two processes that would write the same store, the second is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xr_avocado.cube import CubeError
from xr_avocado.io.atomic import telling

__all__ = ["lock_of", "only_one"]


@contextmanager
def only_one(target: Path) -> Iterator[None]:
    """Hold the right to write ``target`` while the block runs; the lock ends with the process, however it ends.

    Raises
    ------
    CubeError
        Where another process, or thread, holds it.
    """
    path = lock_of(target)
    with telling(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _lock(path, target)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)


def lock_of(target: Path) -> Path:
    """Name the file that whoever writes ``target`` holds."""
    return target.with_name(f".{target.name}.lock")


def _lock(path: Path, target: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _taken(descriptor):
            os.close(descriptor)
            raise CubeError(
                f"another process is writing {target}: wait until it has ended and call again, or choose another name"
            )
        try:
            # Who held it before may have removed the file between our opening and locking it.
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: as if there were none.
        return True
    return True
