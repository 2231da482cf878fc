"""Observed tracks along the genome, for who asks for one run of positions after the other: each chunk of a store is read once."""

from __future__ import annotations

import threading
from typing import Any

import dask
import dask.array as da
import numpy as np

__all__ = ["TrackReader", "read_tracks"]

VALUES = 1 << 25
"""Values (tracks x positions) of a run of positions, at most: 128 MB."""
KEPT = 1 << 27
"""Values of all runs that are kept, at most: what is asked for may reach into the run before and the next."""
LONGEST = 1 << 20
"""Positions of a run, at most: those of a chunk that this package writes."""
SMALL = 64
"""A part of a run so many times as short is read by itself: who looks at a region does not want the rest."""


class TrackReader:
    """Tracks of a lazy cube, brought to memory a run of positions at a time.

    A store is decoded chunk by chunk, and imputation goes along the genome in smaller steps, several times where not all pairs fit one step.
    So a run of whole chunks stays in memory until the runs after it are asked for. Where a chunk of all tracks is too large for that, a run
    is a part of one, and the chunk is read as often as it has parts. Several threads may ask.

    Memory: up to 512 MB, beside what is still in use of what was given out.

    Parameters
    ----------
    signal
        Cell types x assays x positions.
    cells
        Indices of the tracks on the first two axes.
    """

    def __init__(self, signal: Any, cells: tuple[np.ndarray, ...]) -> None:
        self.signal, self.cells = signal, cells
        self.kept: dict[int, np.ndarray] = {}
        self.lock = threading.Lock()
        self.starts = np.array(_starts(signal.chunks[2], max(1, min(LONGEST, VALUES // max(1, len(cells[0]))))))

    def read(self, rows: slice) -> np.ndarray:
        """Give a run of positions, as float32: tracks x positions."""
        first, last = np.searchsorted(self.starts, [rows.start, rows.stop - 1], side="right") - 1
        if first == last and SMALL * (rows.stop - rows.start) < self._rows(first).stop - self._rows(first).start:
            with self.lock:
                if first not in self.kept:
                    return self._stacked(rows)
        parts = []
        for number in range(first, last + 1):
            start = int(self.starts[number])
            parts.append(self._run(number)[:, max(rows.start - start, 0) : rows.stop - start])
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _rows(self, number: int) -> slice:
        ends = np.append(self.starts[1:], self.signal.shape[2])
        return slice(int(self.starts[number]), int(ends[number]))

    def _run(self, number: int) -> np.ndarray:
        with self.lock:
            if number not in self.kept:
                # Before the next one is read, so that there are never more.
                while self.kept and self._kept_with(number) > KEPT:
                    del self.kept[next(iter(self.kept))]
                self.kept[number] = self._stacked(self._rows(number))
            # The one that was asked for last goes last.
            self.kept[number] = self.kept.pop(number)
            return self.kept[number]

    def _kept_with(self, number: int) -> int:
        rows = self._rows(number)
        return sum(run.size for run in self.kept.values()) + len(self.cells[0]) * (rows.stop - rows.start)

    def _stacked(self, rows: slice) -> np.ndarray:
        return read_tracks(self.signal, self.cells, rows)


def read_tracks(signal: Any, cells: tuple[np.ndarray, ...], rows: slice) -> np.ndarray:
    """Bring tracks of a run of positions to memory: tracks x positions, float32."""
    pieces = [signal[int(c), int(a), rows] for c, a in zip(*cells, strict=True)]
    if isinstance(signal, da.Array):
        # In a dask task already, so without starting other threads.
        pieces = dask.compute(*pieces, scheduler="synchronous")
    return np.stack([np.asarray(piece, np.float32) for piece in pieces])


def _starts(chunks: tuple[int, ...], most: int) -> list[int]:
    """Where runs begin: of whole chunks as far as they are no longer than that, else of equal parts of a chunk."""
    starts, end = [0], 0
    for length in chunks:
        if end + length - starts[-1] > most and end > starts[-1]:
            starts.append(end)
        parts = -(-length // most)
        starts += [end + part * length // parts for part in range(1, parts)]
        end += length
    return starts
