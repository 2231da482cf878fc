"""The process that writes tracks: ``python -m xr_avocado.io.writer``, which reads a job's line, then values, and tells each file's end.

It is a process of its own since libBigWig keeps Python's lock while it compresses and makes zoom levels: in threads, one file after
the other would be written, and nothing computed meanwhile. It ends at once when the export is killed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from xr_avocado.genome import GenomeBins
from xr_avocado.io.atomic import sweep
from xr_avocado.io.bigwig_writer import track_writer, written_rows

__all__ = ["main", "write_tracks"]

Pieces = Iterator[tuple[slice, np.ndarray]]
"""Rows, in the order of ``written_rows``, and their values: tracks x bins."""


def write_tracks(
    paths: Sequence[Path], bins: GenomeBins, sizes: Mapping[str, int], pieces: Pieces, done: Callable[[Path], object]
) -> None:
    """Write tracks side by side as their values come, then finish one file after the other, telling each."""
    with ExitStack() as all_files:
        files = [all_files.enter_context(ExitStack()) for _ in paths]
        writers = [file.enter_context(track_writer(path, bins, sizes)) for file, path in zip(files, paths, strict=True)]
        for rows, values in pieces:
            for writer, track in zip(writers, values, strict=True):
                writer.add(rows, track)
        for file, path in zip(files, paths, strict=True):
            file.close()
            done(path)


def main() -> None:
    """Write one job's tracks; where the values end too early, leave nothing and end at once."""
    replies, sys.stdout = sys.stdout, sys.stderr
    job = json.loads(sys.stdin.buffer.readline())
    bins = GenomeBins(job["segments"], job["binsize"])
    paths = [Path(path) for path in job["paths"]]

    def reply(**message: str) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        pieces = _pieces(sys.stdin.buffer, paths, written_rows(bins, job["sizes"], step=job["step"]))
        write_tracks(paths, bins, job["sizes"], pieces, lambda path: reply(done=str(path)))
    except Exception as caught:  # noqa: BLE001  (whatever it is, it is told to the export)
        reply(error=str(caught) if isinstance(caught, ValueError) else f"{type(caught).__name__}: {caught}")


def _pieces(values: BinaryIO, paths: Sequence[Path], pieces: Iterator[slice]) -> Pieces:
    for rows in pieces:
        shape = (len(paths), rows.stop - rows.start)
        raw = values.read(4 * shape[0] * shape[1])
        if len(raw) < 4 * shape[0] * shape[1]:
            for path in paths:
                sweep(path)
            # An exception would first have libBigWig make the zoom levels of files that nobody wants.
            os._exit(1)
        yield rows, np.frombuffer(raw, np.float32).reshape(shape)


if __name__ == "__main__":
    main()
