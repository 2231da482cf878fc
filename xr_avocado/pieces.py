"""Long tracks in pieces: temporary files for what memory has no room for, and exact ranks and largest values."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import numpy as np

__all__ = ["PIECE", "average_ranks", "check_room", "empty", "nth_largest", "pieces_of"]

PIECE = 1 << 22
"""Bins held at a time; arrays of more lie in temporary files."""
SAMPLE = 1 << 16
"""Values drawn to divide a long track into ranges of values of about equal size."""


def pieces_of(n: int) -> list[slice]:
    """Divide n rows into pieces; there is one at least, which may be empty."""
    return [slice(i, min(i + PIECE, n)) for i in range(0, max(n, 1), PIECE)]


def empty(n: int, dtype: Any) -> np.ndarray:
    """Make an array to be filled: in memory for one piece, else in a temporary file that goes when the array does.

    Raises
    ------
    OSError
        Where the folder for temporary files is full.
    """
    dtype = np.dtype(dtype)
    if n <= PIECE:
        return np.empty(n, dtype)
    with tempfile.TemporaryFile() as file:
        # A file with holes would kill the process where the disk is full; this is an error that can be read.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n * dtype.itemsize)
        return np.memmap(file, dtype, shape=(n,)).view(np.ndarray)


def check_room(n: int, bytes_a_bin: int) -> None:
    """Raise OSError where the folder for temporary files has no room for arrays of n rows that memory will not hold."""
    folder, need = tempfile.gettempdir(), n * bytes_a_bin if n > PIECE else 0
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            f"{n:,} bins need {need / 1e9:.1f} GB of temporary files, and {folder} has {free / 1e9:.1f} GB left: name a "
            "larger disk in the environment variable TMPDIR, compare fewer methods, or cut the cubes to a chromosome"
        )


def nth_largest(values: np.ndarray, n: int) -> Any:
    """Find the n-th largest value, n from 1; holds n values and a piece."""
    largest = values[:0]
    for rows in pieces_of(values.size):
        largest = np.concatenate([largest, values[rows]])
        if largest.size > n:
            largest = np.partition(largest, largest.size - n)[largest.size - n :]
    return largest.min()


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Rank values from 1, equal ones at the mean of their ranks: float64.

    More than a piece is divided into ranges of values, about half a piece each, that are sorted one by one; a value so
    frequent that it would fill a range has one of its own and needs no sort. Holds some 40 bytes for each bin of a piece.
    """
    if values.size <= PIECE:
        return _ranks_of_piece(values)
    splits = _splits(values)
    ranges, ranks = empty(values.size, np.uint16), empty(values.size, np.float64)
    count = np.zeros(2 * splits.size + 1, np.int64)
    for rows in pieces_of(values.size):
        # Range 2i + 1 is the value of split i, and range 2i what lies between it and the split before.
        i = np.searchsorted(splits, values[rows])
        within = 2 * i + (np.append(splits, np.nan)[i] == values[rows])
        ranges[rows] = within
        count += np.bincount(within, minlength=count.size)
    below = np.cumsum(count) - count
    for rows in pieces_of(values.size):
        ranks[rows] = (below + (count + 1) / 2)[ranges[rows]]
    for between in np.flatnonzero(count[::2]) * 2:
        at = np.concatenate([rows.start + np.flatnonzero(ranges[rows] == between) for rows in pieces_of(values.size)])
        ranks[at] = below[between] + _ranks_of_piece(values[at])
    return ranks


def _splits(values: np.ndarray) -> np.ndarray:
    """Values that divide a track into ranges of about half a piece each."""
    drawn = np.sort(values[np.sort(np.random.default_rng(0).integers(values.size, size=SAMPLE))])
    ranges = 2 * -(-values.size // PIECE)
    return np.unique(drawn[np.linspace(0, SAMPLE - 1, ranges + 1).astype(int)[1:-1]])


def _ranks_of_piece(values: np.ndarray) -> np.ndarray:
    order, ordered = _sorted(values)
    new = np.append(True, ordered[1:] != ordered[:-1])[: values.size]
    first = np.append(np.flatnonzero(new), values.size)
    ranks = np.empty(values.size)
    ranks[order] = np.repeat((first[:-1] + 1 + first[1:]) / 2, np.diff(first))
    return ranks


def _sorted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort values: the row of each, and what is as large where they are as large."""
    if values.dtype != np.float32:
        order = np.argsort(values)
        return order, values[order]
    # With a negative number's bits flipped, and the sign of others, bits are in the order of the numbers. A row packed
    # below them is sorted along, several times as fast as argsort. Adding 0 makes -0 equal to 0.
    bits = (values + np.float32(0)).view(np.uint32)
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    packed = (bits.astype(np.uint64) << np.uint64(32)) | np.arange(values.size, dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64((1 << 32) - 1)).astype(np.int64), packed >> np.uint64(32)
