"""Checkpoints of long work: arrays and JSON in one file that is replaced whole and checked when it is read; no pickle."""

from __future__ import annotations

import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xr_avocado.cube import CubeError
from xr_avocado.io.atomic import telling

__all__ = ["Checkpoint", "Saved", "check_same", "read_array"]

FORMAT = 2
HEADER = "header"
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    OSError,
    ValueError,
    RuntimeError,
    MemoryError,
)
"""What reading a damaged zip or npy raises."""
SHOWN = 60
"""Characters of a value that a message about it shows."""


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: arrays by name, and what JSON can say."""

    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


class Checkpoint:
    """One file in which long work keeps how far it is: an npz of arrays and a JSON header.

    A save writes beside the file, flushes to the disk, and renames: whatever kills the process, and whenever, the file is the last
    whole one. zip keeps a checksum of every array, which reading checks.

    Parameters
    ----------
    path
        The file.
    about
        What the work is of (settings, seed, labels), as JSON can say it; a file about something else is refused.
    minutes
        Least time from one save to the next; 0 saves whenever asked.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     work = Checkpoint(f"{folder}/work", about={"seed": 0})
    ...     work.save({"total": np.arange(3)}, {"step": 7})
    ...     Checkpoint(f"{folder}/work", about={"seed": 0}).load().state
    {'step': 7}
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any], *, minutes: float = 10.0) -> None:
        self.path, self.about, self.minutes = Path(path), json.loads(json.dumps(about)), minutes
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, arrays: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Replace what is kept; arrays are numpy's, or what becomes one without a copy.

        Raises
        ------
        CubeError
            Where the disk does not take it; what was kept before is kept.
        """
        # zip's list of what it holds has no checksum: one that lost an entry reads as if it never was there.
        header = json.dumps({"format": FORMAT, "about": self.about, "state": state, "arrays": list(arrays)}).encode()
        temporary = self.path.with_name(f"{self.path.name}.part")
        with telling(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    np.savez(file, allow_pickle=False, **{HEADER: np.frombuffer(header, np.uint8)}, **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        _flush_folder(self.path.parent)
        self._saved = time.monotonic()

    def load(self) -> Saved | None:
        """Read what is kept, None where nothing is; memory: the arrays once.

        Raises
        ------
        CubeError
            Where the file is damaged, of a newer version, or about other work; the message says what differs.
        """
        return self._read(arrays=True)

    def check(self) -> Saved | None:
        """Read as ``load`` does, without the arrays: whether there is a checkpoint, and of this work."""
        return self._read(arrays=False)

    def _read(self, *, arrays: bool) -> Saved | None:
        if not self.path.exists():
            return None
        with _opened(self.path) as file:
            header = json.loads(file[HEADER].tobytes())
            _check_format(self.path, header)
            check_same(self.path, header["about"], self.about)
            found = {name: file[name] for name in header["arrays"]} if arrays else {}
            return Saved(found, header["state"])


def read_array(path: Path, name: str) -> np.ndarray:
    """Read one array of a checkpoint.

    Raises
    ------
    CubeError
        Where the file is damaged, or gone.
    """
    with _opened(path) as file:
        return file[name]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # numpy leaves a damaged file open where it opened it itself.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield file
    except CubeError:
        raise
    except DAMAGE as error:
        raise CubeError(
            f"the checkpoint {path} is damaged ({error}): remove it and call again; what it held is done anew"
        ) from None


def check_same(path: str | os.PathLike[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise, and say what differs, where work kept at a path is not the work that a call asks for.

    Raises
    ------
    CubeError
        Where something does.
    """
    differ = [f"{name} was {_short(a)}, now {_short(b)}" for name, a, b in _differing(before, now)]
    if differ:
        raise CubeError(
            f"{path} is of another call: {'; '.join(differ)}. Call as before to go on with it, choose another store, "
            "or give overwrite=True to start anew"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name the entries that differ, before and now; mappings are gone into."""
    found: list[tuple[str, Any, Any]] = []
    for name in sorted({*before, *now}):
        a, b = before.get(name), now.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differing(a, b)
        elif a != b:
            found.append((name, a, b))
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _check_format(path: Path, header: Mapping[str, Any]) -> None:
    if header["format"] != FORMAT:
        raise CubeError(
            f"the checkpoint {path} has format {header['format']}, this version reads {FORMAT}: continue with the "
            "version that began it, or remove it to start anew"
        )


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
