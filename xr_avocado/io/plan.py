"""What a build shall make of a sheet: the labels, the files of each track, and what a store that is there has already."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, DIMS, OBSERVED, SIGNAL, CubeError
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.io.atomic import unfinished
from xr_avocado.io.encoding import CHUNK, PROVENANCE, Precision, precision_of
from xr_avocado.io.sheet import Track, complain, fingerprint

__all__ = ["Plan", "check_same_layout", "make_plan"]

Sources = dict[str, dict[str, list[list[str]]]]


class Plan(NamedTuple):
    """What a store shall hold, and where; ``settings`` is what a track's values follow from, beside its files."""

    target: Path
    bins: GenomeBins
    attrs: dict[str, Any]
    settings: dict[str, Any]
    celltypes: list[str]
    assays: list[str]
    observed: np.ndarray
    sources: Sources
    new: list[Track]

    @property
    def staging(self) -> Path:
        """The folder that gathers what is done until all is."""
        return unfinished(self.target)

    def folder(self, track: Track) -> Path:
        """Where a track is built: named by all that its values follow from, so that a changed file or setting is another track."""
        made_of = [track.celltype, track.assay, self.sources[track.celltype][track.assay], self.settings]
        return self.staging / "tracks" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def make_plan(
    target: Path,
    tracks: Sequence[Track],
    bins: GenomeBins,
    attrs: dict[str, Any],
    *,
    precision: Precision,
    existing: xr.Dataset | None,
) -> Plan:
    """Lay out the store that a sheet's tracks make, together with those of the store that is there.

    Raises
    ------
    CubeError
        Where the store that is there was built with other settings, or holds more than signal.
    SheetError
        Where a file is not the one that a track of that store was built from.
    """
    sources = _sources_of(tracks)
    celltypes, assays, known, had = _contents(target, existing)
    celltypes = list(dict.fromkeys([*celltypes, *(track.celltype for track in tracks)]))
    assays = list(dict.fromkeys([*assays, *(track.assay for track in tracks)]))
    observed = np.zeros((len(celltypes), len(assays)), bool)
    observed[: known.shape[0], : known.shape[1]] = known
    at = [(celltypes.index(track.celltype), assays.index(track.assay)) for track in tracks]
    new = [track for track, pair in zip(tracks, at, strict=True) if not observed[pair]]
    _check_same_files([track for track in tracks if track not in new], sources, had, target)
    observed[tuple(np.array(at).T)] = True
    sources = {c: {**had.get(c, {}), **sources.get(c, {})} for c in celltypes if c in had or c in sources}
    settings = _settings(bins, attrs, precision)
    if existing is not None:
        _check_same(target, existing, bins, attrs, settings)
        settings["chunk"] = int(existing[SIGNAL].encoding["chunks"][-1])
        attrs = {**attrs, **existing.attrs}
    return Plan(target, bins, attrs, settings, celltypes, assays, observed, sources, new)


def _settings(bins: GenomeBins, attrs: dict[str, Any], precision: Precision) -> dict[str, Any]:
    dtype, keepbits = precision_of(precision, attrs["transform"])
    settings = {**bins.to_attrs(), "transform": attrs["transform"], "uncovered": attrs["uncovered"]}
    return {**settings, "dtype": dtype.name, "keepbits": keepbits, "chunk": max(min(CHUNK, len(bins)), 1)}


def _contents(target: Path, existing: xr.Dataset | None) -> tuple[list[str], list[str], np.ndarray, Sources]:
    if existing is None:
        return [], [], np.zeros((0, 0), bool), {}
    more = [str(name) for name in existing.data_vars if name not in (SIGNAL, OBSERVED)]
    if more or SIGNAL not in existing or existing[SIGNAL].dims != DIMS:
        what = f"more than signal ({', '.join(more[:4])})" if more else "no signal as build_cube stores it"
        raise CubeError(f"{target} holds {what}, so no tracks are added to it; build into another store")
    observed = existing[OBSERVED].transpose(CELLTYPE, ASSAY).values
    had = _provenance(target).get("sources", {})
    return existing[CELLTYPE].values.tolist(), existing[ASSAY].values.tolist(), observed, had


def _sources_of(tracks: Sequence[Track]) -> Sources:
    sources: Sources = {}
    for track in tracks:
        files = [[os.path.basename(path), fingerprint(path)] for path in track.paths]
        sources.setdefault(track.celltype, {})[track.assay] = files
    return sources


def _provenance(store: Path) -> dict[str, Any]:
    return json.loads((store / SIGNAL / "zarr.json").read_text())["attributes"].get(PROVENANCE, {})


def _check_same(
    target: Path, existing: xr.Dataset, bins: GenomeBins, attrs: dict[str, Any], settings: dict[str, Any]
) -> None:
    own = {key: existing.attrs.get(key) for key in ("transform", "uncovered")}
    own |= {"bins": bins_of(existing), "dtype": existing[SIGNAL].encoding["dtype"].name}
    own["keepbits"] = _provenance(target).get("keepbits", settings["keepbits"])
    now = {**attrs, **settings, "bins": bins}
    other = [f"{key} {own[key]!r}, not {now[key]!r}" for key in own if own[key] != now[key]]
    if other:
        raise CubeError(
            f"{target} is there and was built with {'; '.join(other)}. Build with the same settings, or into another store"
        )


def _check_same_files(kept: Sequence[Track], sources: Sources, had: Sources, target: Path) -> None:
    changed = []
    for track in kept:
        built_from, now = had.get(track.celltype, {}).get(track.assay), sources[track.celltype][track.assay]
        if built_from is not None and sorted(f for _, f in built_from) != sorted(f for _, f in now):
            changed.append(f"{track}: {', '.join(track.paths)} is not the file it was built from ({built_from[0][0]})")
    complain(
        changed,
        f"{target} is there, and files of its tracks have changed; build into another store, or drop these rows",
    )


def check_same_layout(store: Path, skeleton: Path) -> None:
    """Raise where chunks of one store are no chunks of the other.

    Raises
    ------
    CubeError
        It names what differs.
    """
    had, new = (json.loads((folder / SIGNAL / "zarr.json").read_text()) for folder in (store, skeleton))
    for part in ("data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"):
        if had[part] != new[part]:
            raise CubeError(
                f"{store} stores signal with {part} {had[part]}, but tracks are built with {new[part]}; write the store anew "
                "with to_zarr, or build into another"
            )
