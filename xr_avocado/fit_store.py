"""The store that training ends in: what it is a fit of, the checkpoints beside it until then, opened where it is done."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, FITTED, POSITION, SIGNAL, CubeError, Experiment
from xr_avocado.index import bins_of
from xr_avocado.io.atomic import fitting, local_path, remove
from xr_avocado.io.checkpoint import Checkpoint, check_same
from xr_avocado.io.lock import lock_of, only_one
from xr_avocado.io.zarr import check_replaceable, open_cube, write_cube

__all__ = ["FitStore", "identity"]

SAMPLE_TRACKS, SAMPLE_BINS = 16, 4096
"""Of a cube's signal, what a checksum reads to tell it from another cube's of the same labels and bins."""
INTERRUPTED = "interrupted"


def identity(ds: xr.Dataset, tracks: list[Experiment]) -> dict[str, Any]:
    """Say which cube this is, as JSON can: labels, bins, transform, and a checksum of some of its signal."""
    bins = bins_of(ds)
    segments = json.dumps(bins.segments.values.tolist()).encode()
    return {
        "celltypes": [str(label) for label in ds[CELLTYPE].values],
        "assays": [str(label) for label in ds[ASSAY].values],
        "bins": f"{len(bins):,} bins of {bins.binsize} bp, {hashlib.sha256(segments).hexdigest()[:12]}",
        "transform": ds.attrs.get("transform", "none"),
        "signal": _checksum(ds, tracks),
    }


def _checksum(ds: xr.Dataset, tracks: list[Experiment]) -> str:
    """Checksum of a run of bins in the middle, of tracks spread evenly: reads at most one chunk of each."""
    first = max(0, (ds.sizes[POSITION] - SAMPLE_BINS) // 2)
    signal = ds[SIGNAL].isel({POSITION: slice(first, first + SAMPLE_BINS)})
    code = 0
    for i in np.unique(np.linspace(0, len(tracks) - 1, SAMPLE_TRACKS).astype(int)):
        values = np.asarray(signal.sel(tracks[i]._asdict()).values, np.float32)
        code = zlib.crc32(values.tobytes(), code)
    return f"{code:08x}"


class FitStore:
    """A store that training is to end in, and the folder of checkpoints beside it.

    Parameters
    ----------
    store
        The folder to write.
    about
        What the fit is of and how it is made; it becomes part of ``attrs["avocado"]``.
    minutes
        Least time between checkpoints.
    overwrite
        Replace a store, and checkpoints, that are of another call.

    Raises
    ------
    CubeError
        Where ``store`` is no path of this machine.
    """

    def __init__(
        self, store: str | os.PathLike[str], about: Mapping[str, Any], *, minutes: float, overwrite: bool
    ) -> None:
        if not minutes >= 0:
            raise ValueError(f"checkpoint_minutes is the time between two checkpoints, at least 0; got {minutes!r}")
        self.path, self.about, self.minutes = local_path(store, "a fit is"), json.loads(json.dumps(about)), minutes
        self.folder, self.overwrite = fitting(self.path), overwrite
        self.finished: xr.Dataset | None = None
        """The fitted cube, where the same call was finished before."""

    @contextmanager
    def alone(self) -> Iterator[FitStore]:
        """Look at what is there, and let nobody else write it until the block ends.

        Raises
        ------
        CubeError
            Where what is there is of another call, or no store, or another process is at work on it.
        """
        if os.path.exists(self.path) and not (self.overwrite or self.folder.exists() or lock_of(self.path).exists()):
            # Many may open what is finished, also where nothing can be written.
            self.finished = self._look()
            if self.finished is not None:
                yield self
                return
        with only_one(self.path):
            self.finished = self._look()
            yield self

    def checkpoint(self, part: str) -> Checkpoint:
        """Name the checkpoint of a part of the training."""
        return Checkpoint(self.folder / part, self.about, minutes=self.minutes)

    def write(self, ds: xr.Dataset, *, interrupted: bool, progress: bool) -> xr.Dataset:
        """Write the fitted cube and open it; checkpoints stay where training was interrupted, so that it can go on."""
        fitted = ds.attrs[FITTED] | ({INTERRUPTED: True} if interrupted else {})
        stored = write_cube(ds.assign_attrs({FITTED: fitted}), self.path, progress=progress)
        if not interrupted:
            remove(self.folder)
        return stored

    def _look(self) -> xr.Dataset | None:
        check_replaceable(self.path)
        try:
            kept = [Checkpoint(path, self.about).check() for path in self.folder.glob("*") if path.suffix != ".part"]
            there = self._opened() if os.path.exists(self.path) and not self.overwrite else None
        except CubeError:
            if not self.overwrite:
                raise
            remove(self.folder)
            return None
        if there is None or there.attrs[FITTED].get(INTERRUPTED):
            return None
        if kept:
            # Killed between writing the store and removing what led to it.
            remove(self.folder)
        return there

    def _opened(self) -> xr.Dataset:
        there = open_cube(self.path)
        if FITTED not in there.attrs:
            raise CubeError(
                f"{self.path} is there already and holds no model; choose another store, or give overwrite=True"
            )
        before = there.attrs[FITTED]
        check_same(self.path, {name: before.get(name) for name in self.about}, self.about)
        return there
