"""What an export has done so far, kept beside its files, so that the same call goes on where a killed one stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from xr_avocado.cube import CubeError
from xr_avocado.io.atomic import remove, replacing, sweep, telling, unfinished
from xr_avocado.io.checkpoint import read_array

__all__ = ["Unfinished"]

_IDENTITY, _VALUES = "identity", "values"

logger = logging.getLogger("xr_avocado")


class Unfinished:
    """A folder beside ``target`` with the names of the files that are complete, and with pieces that were computed for the others.

    Parameters
    ----------
    target
        What is written last, when all is done.
    identity
        Text that is the same where the same is exported in the same way; what another call left is thrown away.
    """

    def __init__(self, target: Path, identity: str) -> None:
        self.home, self.folder = target.parent, unfinished(target)
        note = self.folder / _IDENTITY
        if not note.is_file() or note.read_bytes() != identity.encode():
            remove(self.folder)
            with telling(target):
                self.folder.mkdir(parents=True)
                note.write_text(identity)

    def is_done(self, path: Path) -> bool:
        """Tell whether a file was finished by an earlier call; else remove what that one left of it."""
        if (self.folder / f"{path.name}.done").exists() and path.exists():
            return True
        sweep(path)
        return False

    def mark(self, path: Path) -> None:
        """Note that a file is complete."""
        (self.folder / f"{path.name}.done").touch()

    def piece(self, group: Sequence[tuple[str, str]], rows: slice, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Give the values of a piece: those that were kept, whole as their checksum tells, or else compute and keep them."""
        path = self._pieces(group) / f"{rows.start}.npz"
        if path.exists():
            try:
                return read_array(path, _VALUES)
            except CubeError:
                logger.warning("%s is damaged: what it held is computed anew", path)
        values = compute()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_VALUES: values})
        return values

    def drop_pieces(self, group: Sequence[tuple[str, str]]) -> None:
        """Remove the pieces of a group whose files are complete."""
        remove(self._pieces(group))

    def _pieces(self, group: Sequence[tuple[str, str]]) -> Path:
        return self.folder / f"{sha256(repr(list(group)).encode()).hexdigest()[:16]}.pieces"

    def close(self) -> None:
        """Remove the folder: all is done."""
        remove(self.folder)
