"""Many tracks written side by side while others are computed: pieces handed to writers through short queues."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from xr_avocado.genome import GenomeBins
from xr_avocado.io.atomic import sweep
from xr_avocado.io.bigwig_writer import as_float32
from xr_avocado.io.header import BigWigError
from xr_avocado.io.writer import Pieces, write_tracks

__all__ = ["Writers", "writer_count"]

WAITING = 1
"""Pieces that wait for a writer, beside the one that it writes."""
WORTH_A_PROCESS = 1 << 23
"""Values of an export from which on processes are started: some ten seconds of writing, against one to start."""
FINISHING = 14
"""Bytes a bin that libBigWig takes while it makes a file's zoom levels."""
UNKNOWN_MEMORY = 1 << 33

Inverse = Callable[[np.ndarray], np.ndarray]


def writer_count(n_tracks: int, n_bins: int, n_jobs: int | None) -> int:
    """Number of processes to write with, 0 for a thread: those asked for; else the cores, as far as half of the memory bears them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_jobs is None:
        small = n_tracks * n_bins < WORTH_A_PROCESS
        n_jobs = 0 if small else max(1, min(cores, _memory() // 2 // (FINISHING * n_bins)))
    return min(n_jobs, n_tracks)


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MEMORY


class Writers:
    """Tracks being written: each of a few writers has a share of them, and a thread that feeds it.

    Leaving the block waits until all files are complete; after an error no file is there that was not complete before.

    Parameters
    ----------
    paths
        Where each track goes.
    bins, sizes
        Its axis, and the lengths of chromosomes.
    inverses
        For each track, what brings its values to the units of the file.
    step
        Bins of a piece, as in ``written_rows``.
    n_jobs
        Processes; 0 writes in a thread of this one.
    done
        Called, in another thread, with the path of each file that is complete.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        bins: GenomeBins,
        sizes: Mapping[str, int],
        inverses: Sequence[Inverse],
        *,
        step: int,
        n_jobs: int,
        done: Callable[[Path], object],
    ) -> None:
        job = {"sizes": dict(sizes), "step": step, **bins.to_attrs()}
        shares = [slice(k, None, max(n_jobs, 1)) for k in range(max(n_jobs, 1))]
        lane = _Apart if n_jobs else _Lane
        self.lanes = [lane(share, paths[share], inverses[share], job, done) for share in shares]

    def __enter__(self) -> Writers:
        for lane in self.lanes:
            lane.start()
        return self

    def add(self, rows: slice, values: np.ndarray) -> None:
        """Hand a piece to the writers (tracks x bins); waits where they are behind."""
        for lane in self.lanes:
            lane.pieces.put((rows, values[lane.share]))
            if lane.error is not None:
                raise lane.error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self.lanes:
            if error is not None:
                lane.stop()
            lane.pieces.put(None)
        try:
            for lane in self.lanes:
                lane.join()
        except BaseException:
            for lane in self.lanes:
                lane.stop()
            raise
        for lane in self.lanes:
            if error is None and lane.error is not None:
                raise lane.error


class _Stopped(Exception):
    """The export ended before all values were there."""


class _Lane(threading.Thread):
    """A thread that writes a share of the tracks, a piece at a time."""

    def __init__(
        self,
        share: slice,
        paths: Sequence[Path],
        inverses: Sequence[Inverse],
        job: dict[str, Any],
        done: Callable[[Path], object],
    ) -> None:
        super().__init__(daemon=True)
        self.share, self.paths, self.inverses, self.job, self.done = share, paths, inverses, job, done
        self.pieces: queue.Queue[tuple[slice, np.ndarray] | None] = queue.Queue(WAITING)
        self.error: BaseException | None = None
        self.ended = self.stopped = False

    def run(self) -> None:
        try:
            self.write(self._converted())
        except BaseException as error:  # noqa: BLE001  (it is raised where the next piece is handed over)
            self.error = error
            # Whoever hands over another piece must not wait for ever.
            while not self.ended:
                self._next()

    def _next(self) -> tuple[slice, np.ndarray] | None:
        piece = self.pieces.get()
        self.ended = piece is None
        return piece

    def _converted(self) -> Pieces:
        while (piece := self._next()) is not None:
            rows, values = piece
            # In float64: a float32 sinh of float32 is off by more than float32 has to be.
            tracks = [
                as_float32(inverse(track.astype(np.float64)), rows)
                for inverse, track in zip(self.inverses, values, strict=True)
            ]
            yield rows, np.stack(tracks)
        if self.stopped:
            raise _Stopped

    def write(self, pieces: Pieces) -> None:
        """Write the files."""
        write_tracks(self.paths, GenomeBins.from_attrs(self.job), self.job["sizes"], pieces, self.done)

    def stop(self) -> None:
        """Write no more."""
        self.stopped = True


class _Apart(_Lane):
    """One that has a process write."""

    process: subprocess.Popen[bytes] | None = None

    def write(self, pieces: Pieces) -> None:
        """Hand all pieces to the process, and wait until it has finished the files."""
        with tempfile.TemporaryFile() as complaints, _started(complaints) as process:
            self.process = process
            try:
                self._send(process, pieces)
                self._follow(process, complaints)
            except BaseException:
                process.kill()
                process.wait()
                for path in self.paths:
                    sweep(path)
                raise

    def _send(self, process: subprocess.Popen[bytes], pieces: Pieces) -> None:
        assert process.stdin is not None
        # A process that failed has told why: that is read next.
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({**self.job, "paths": [str(path) for path in self.paths]}).encode() + b"\n")
            for _, values in pieces:
                process.stdin.write(values.tobytes())
            process.stdin.close()

    def _follow(self, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
        assert process.stdout is not None
        left = set(self.paths)
        for message in map(json.loads, process.stdout):
            if "error" in message:
                raise BigWigError(message["error"])
            left.remove(path := Path(message["done"]))
            self.done(path)
        if code := process.wait():
            complaints.seek(0)
            words = complaints.read().decode(errors="replace").strip().splitlines()
            why = (
                words[-1]
                if words
                else "perhaps for lack of memory: try fewer n_jobs"
                if code == -9
                else "no reason told"
            )
            raise BigWigError(f"the process that wrote {min(left, default='')} ended with status {code}: {why}")

    def stop(self) -> None:
        """Write no more, and end the process."""
        super().stop()
        if self.process is not None:
            self.process.kill()


def _started(complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "xr_avocado.io.writer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
    )
