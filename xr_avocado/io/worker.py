"""The process that builds tracks: ``python -m xr_avocado.io.worker``.

It reads one job a line, and writes ``{}`` after each chunk of it and ``{"error": ...}`` at its end. It is a process of its own, rather
than a pool's, so that a crash, a hang or a lack of memory costs one track and names its file, so that scripts need no
``if __name__ == "__main__"``, and so that it ends at once when the build is killed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from xr_avocado.genome import GenomeBins
from xr_avocado.io.atomic import replacing
from xr_avocado.io.bigwig import BigWig, Uncovered
from xr_avocado.io.encoding import compressors, narrow
from xr_avocado.transforms import transform_named

__all__ = ["build_track", "main"]


def build_track(
    paths: Sequence[str], folder: Path, bins: GenomeBins, settings: dict[str, Any], on_chunk: Callable[[], None]
) -> None:
    """Read one track's files into a zarr array of one track, chunk by chunk; the folder is complete or absent.

    ``on_chunk`` is called after each chunk.

    Raises
    ------
    ValueError
        Where a file cannot be read, or its signal has no image under the transform.
    """
    import zarr

    dtype, chunk = np.dtype(settings["dtype"]), settings["chunk"]
    with ExitStack() as opened:
        files = [opened.enter_context(BigWig(path)) for path in paths]
        array = zarr.create_array(
            opened.enter_context(replacing(folder)),
            shape=(1, 1, len(bins)),
            chunks=(1, 1, chunk),
            dtype=dtype,
            compressors=compressors(dtype),
            fill_value=dtype.type(np.nan),
            config={"write_empty_chunks": False},
        )
        for first in range(0, len(bins), chunk):
            rows = slice(first, min(first + chunk, len(bins)))
            signal = _signal(files, bins[rows], settings["uncovered"])
            values = _transformed(signal, settings["transform"], bins[rows])
            array[0, 0, rows] = narrow(values, dtype=dtype, keepbits=settings["keepbits"])
            on_chunk()


def _signal(files: Sequence[BigWig], bins: GenomeBins, uncovered: Uncovered) -> np.ndarray:
    """The mean over replicates, of those that cover a bin."""
    total, number = np.zeros(len(bins)), np.zeros(len(bins))
    for file in files:
        means = file.means(bins, uncovered=uncovered)
        covered = ~np.isnan(means)
        total += np.where(covered, means, 0)
        number += covered
    return np.divide(total, number, out=np.full(len(bins), np.nan), where=number > 0)


def _transformed(signal: np.ndarray, transform: str, bins: GenomeBins) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        values = transform_named(transform).forward(signal)
    for i in np.flatnonzero(np.isfinite(signal) & ~np.isfinite(values))[:1]:
        (chrom,), (start,), _ = bins.at(np.array([i]))
        raise ValueError(
            f"the signal is {signal[i]:g} at {chrom}:{start:,}, which transform={transform!r} cannot take; use 'arcsinh' or 'none'"
        )
    return values


def main() -> None:
    """Answer jobs until the input ends; then end at once, even amid one."""
    replies, sys.stdout = sys.stdout, sys.stderr
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    bins = GenomeBins(settings["segments"], settings["binsize"])
    while True:
        job = json.loads(lines.get())
        _answer(job, bins, settings, replies)


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _answer(job: dict[str, Any], bins: GenomeBins, settings: dict[str, Any], replies: TextIO) -> None:
    def tell(**what: Any) -> None:
        replies.write(json.dumps(what) + "\n")
        replies.flush()

    try:
        build_track(job["paths"], Path(job["folder"]), bins, settings, on_chunk=tell)
        error = None
    except Exception as caught:  # noqa: BLE001  (whatever it is, it is told to the build, which names the track)
        error = str(caught) if isinstance(caught, ValueError) else f"{type(caught).__name__}: {caught}"
    tell(error=error)


if __name__ == "__main__":
    main()
