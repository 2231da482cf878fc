"""The genome axis in xarray: an index of bins and its coordinates, computed where they are looked at."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.backends import BackendArray
from xarray.core.indexing import (
    ExplicitIndexer,
    IndexingSupport,
    IndexSelResult,
    LazilyIndexedArray,
    explicit_indexing_adapter,
)

from xr_avocado.cube import POSITION
from xr_avocado.genome import GenomeBins, GenomeError

__all__ = ["COLUMNS", "AxisVariable", "GenomeIndex", "coordinate_names", "every_row", "merged_runs", "rows_of_runs"]

COLUMNS = ("chrom", "start", "end")
SHOWN = 10_000
"""Coordinates shorter than this show their values in a repr, as those in memory do."""


class _Column(BackendArray):
    """One column of an axis, computed by row."""

    def __init__(self, bins: GenomeBins, name: str) -> None:
        self.bins, self.name = bins, name
        self.shape = (len(bins),)
        self.dtype = np.dtype(f"<U{max(map(len, bins.chroms), default=1)}") if name == "chrom" else np.dtype(np.int64)

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._take)

    def _take(self, key: tuple[Any, ...]) -> Any:
        rows = key[0]
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self.bins))
            if step == 1:
                # A run of bins is repeats and ranges; looking each row up would take a hundred times as long.
                return getattr(self.bins[first:last], self.name).astype(self.dtype, copy=False)
            rows = np.arange(first, last, step)
        return self.bins.at(rows)[COLUMNS.index(self.name)]


class _LazyColumn(LazilyIndexedArray):
    """A column that shows its first and last values where other lazy arrays show dots."""

    def _repr_inline_(self, max_width: int) -> str:
        from xarray.core.formatting import format_array_flat

        return str(format_array_flat(self, max_width))

    def __deepcopy__(self, memo: dict[int, Any]) -> _LazyColumn:
        return self


class AxisVariable(xr.Variable):
    """A column (``chrom``, ``start`` or ``end``) of a genome axis along a dim.

    Like the variable of a pandas index it is never chunked and never loaded: `Dataset.load`, `Dataset.chunk`, `copy` and dask's
    tokens leave it as it is, so that a genome-wide cube never spells its coordinates out unless their values are asked for.
    """

    __slots__ = ()

    @classmethod
    def of(cls, bins: GenomeBins, name: str, *, dim: str, attrs: Any = None) -> AxisVariable:
        """Make the variable of one column."""
        return cls((dim,), _LazyColumn(_Column(bins, name)), attrs)

    @property
    def _column(self) -> _Column | None:
        return self._data.array if isinstance(self._data, _LazyColumn) else None

    @property
    def _in_memory(self) -> bool:
        # Only the repr asks, and shows the values of what is.
        return super()._in_memory if self._column is None else self.size < SHOWN

    def load(self, **kwargs: Any) -> Any:
        """Return the variable as it is, lazy."""
        return super().load(**kwargs) if self._column is None else self

    async def load_async(self, **kwargs: Any) -> Any:
        """Return the variable as it is, lazy."""
        return self.load(**kwargs)

    def chunk(self, *args: Any, **kwargs: Any) -> Any:
        """Return the variable as it is: there is nothing to chunk."""
        return super().chunk(*args, **kwargs) if self._column is None else self.copy(deep=False)

    def equals(self, other: Any, *args: Any, **kwargs: Any) -> bool:
        """Compare by the axis where both are lazy, else by value."""
        mine, theirs = self._column, getattr(getattr(other, "variable", other), "_column", None)
        if mine is not None and isinstance(theirs, _Column) and mine.name == theirs.name and mine.bins == theirs.bins:
            return bool(self.dims == other.dims)
        return bool(super().equals(other, *args, **kwargs))

    def __dask_tokenize__(self) -> Any:
        from dask.base import normalize_token

        column = self._column
        if column is None:
            return super().__dask_tokenize__()
        return normalize_token((type(self).__name__, self.dims, column.name, column.bins, self._attrs or None))

    def _finalize_indexing_result(self, dims: Any, data: Any) -> Any:
        return xr.Variable(dims, data, self._attrs, self._encoding)


class GenomeIndex(xr.Index):
    """An index of genomic bins along a dim, with the lazy coordinates ``chrom``, ``start`` and ``end``.

    It holds a table of segments (20 bytes each), however many bins there are, and survives whatever keeps the bins in order:
    slices, masks, ascending rows, concatenation. Other orders give plain coordinates. Axes align only if they are equal. xarray
    leaves coordinates of an index out of frames: ``ds.drop_indexes(["chrom", "start", "end"]).to_dataframe()`` has them.

    Parameters
    ----------
    bins
        The bins, one a row of the dim.
    dim
        The dim; ``position_250bp`` has the coordinates ``chrom_250bp``, ``start_250bp`` and ``end_250bp``.
    names
        Names of the coordinates, if not those that follow from the dim.

    Examples
    --------
    >>> bins = GenomeBins([("chr1", 0, 1_000), ("chr2", 0, 1_000)], binsize=25)
    >>> ds = xr.Dataset(coords=xr.Coordinates.from_xindex(GenomeIndex(bins)))
    >>> ds.sel(chrom="chr2", start=slice(90, 110)).start.values.tolist()
    [75, 100]
    """

    def __init__(self, bins: GenomeBins, dim: str = POSITION, names: Sequence[Hashable] | None = None) -> None:
        self.bins, self.dim = bins, str(dim)
        self.names = dict(zip(COLUMNS, names or coordinate_names(self.dim), strict=True))

    def _with(self, bins: GenomeBins) -> GenomeIndex:
        return GenomeIndex(bins, self.dim, tuple(self.names.values()))

    @classmethod
    def from_variables(cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]) -> GenomeIndex:
        """Build the index for ``ds.set_xindex(["chrom", "start", "end"], GenomeIndex, binsize=25)``."""
        if "binsize" not in options or len(variables) != len(COLUMNS):
            raise GenomeError(
                "a genome index stands on the coordinates chrom, start and end, and needs the bin size: "
                "ds.set_xindex(['chrom', 'start', 'end'], GenomeIndex, binsize=25)"
            )
        chrom, start, end = (variable.values for variable in variables.values())
        (dim,) = {str(d) for variable in variables.values() for d in variable.dims}
        return cls(GenomeBins.from_coordinates(chrom, start, end, options["binsize"]), dim, tuple(variables))

    def create_variables(self, variables: Mapping[Any, xr.Variable] | None = None) -> dict[Any, xr.Variable]:
        """Make the three lazy coordinates."""
        given = variables or {}
        return {
            name: AxisVariable.of(self.bins, column, dim=self.dim, attrs=given[name].attrs if name in given else None)
            for column, name in self.names.items()
        }

    # --- rows ----------------------------------------------------------------------------------------------------------

    def isel(self, indexers: Mapping[Any, Any]) -> GenomeIndex | None:
        """Take rows: an index again where they are bins in an order that an axis can have, else None."""
        rows = indexers[self.dim]
        if isinstance(rows, xr.Variable):
            if rows.dims != (self.dim,):
                return None
            rows = rows.values
        if not isinstance(rows, slice) and np.ndim(rows) != 1:
            return None
        try:
            return self._with(self.bins[rows if isinstance(rows, slice) else np.asarray(rows)])
        except GenomeError:
            return None

    def sel(self, labels: dict[Any, Any], method: str | None = None, tolerance: Any = None) -> IndexSelResult:
        """Find the rows for ``chrom=``, and ``start=`` a base, a half-open slice of bases, or one base for each ``chrom``."""
        asked = {column: _plain(labels[name]) for column, name in self.names.items() if name in labels}
        if method is not None or tolerance is not None:
            raise GenomeError("bins are found by the bases they hold; leave method and tolerance out")
        if set(asked) - {"chrom", "start"} or "chrom" not in asked:
            chrom, start, _ = self.names.values()
            raise GenomeError(
                f"select bins by {chrom}, or by {chrom} and {start}: .sel({chrom}='chr1', {start}=slice(0, 1_000)); got {', '.join(map(str, labels))}"
            )
        return IndexSelResult({self.dim: self._rows(asked["chrom"], asked.get("start"))})

    def _rows(self, chrom: Any, start: Any) -> Any:
        if isinstance(chrom, xr.Variable) or isinstance(start, xr.Variable):
            return self._rows_pointwise(chrom, start)
        if isinstance(chrom, slice):
            raise GenomeError(f"chromosomes have no range; give their names instead of {chrom}")
        if np.ndim(chrom):
            if start is not None:
                raise GenomeError("several chromosomes go without start; for several regions use ds.avocado.sel([...])")
            return self._rows_of_chromosomes(chrom)
        if start is None:
            return self.bins.rows(str(chrom))
        if isinstance(start, slice):
            if start.step not in (None, 1):
                raise GenomeError(f"a slice of bases has no step; got {start}")
            ends = (None if base is None else _base(base) for base in (start.start, start.stop))
            return self.bins.rows(str(chrom), *ends)
        base = _base(start)
        return self.bins.rows(str(chrom), base, base + 1).start

    def _rows_of_chromosomes(self, chroms: Sequence[str]) -> slice | np.ndarray:
        runs = [self.bins.rows(str(chrom)) for chrom in chroms]
        return rows_of_runs(np.array([run.start for run in runs]), np.array([run.stop for run in runs]))

    def _rows_pointwise(self, chrom: Any, start: Any) -> xr.Variable:
        if start is None:
            raise GenomeError(
                "one chromosome for each point needs one start for each; to keep chromosomes, give a list of names"
            )
        chrom, start = (v if isinstance(v, xr.Variable) else xr.Variable((), v) for v in (chrom, start))
        chrom, start = chrom.set_dims({**chrom.sizes, **start.sizes}), start.set_dims({**chrom.sizes, **start.sizes})
        first, last = self.bins.overlaps(chrom.values, start.values, start.values + 1)
        for i in np.flatnonzero(first >= last)[:1]:
            raise GenomeError(f"{chrom.values.flat[i]}:{start.values.flat[i]:,} is in no bin of {self.bins!r}")
        return xr.Variable(chrom.dims, first)

    # --- alignment -----------------------------------------------------------------------------------------------------

    def equals(self, other: xr.Index, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Tell whether the other index has the same bins."""
        return isinstance(other, GenomeIndex) and self.dim == other.dim and self.bins == other.bins

    def join(self, other: GenomeIndex, how: str = "inner") -> GenomeIndex:
        """Return this index if the other is equal; axes are never joined in part."""
        self._require_equal(other)
        return self

    def reindex_like(self, other: GenomeIndex, **_: Any) -> dict[Hashable, Any]:
        """Return no indexers if the other index is equal; bins are never filled in."""
        self._require_equal(other)
        return {}

    def _require_equal(self, other: GenomeIndex) -> None:
        if not self.equals(other):
            raise GenomeError(
                f"the genome axes along {self.dim!r} differ: {self.bins!r} and {other.bins!r}; cut both to the same region "
                "with .avocado.sel, or bring them to one bin size with .avocado.coarsen"
            )

    @classmethod
    def concat(
        cls, indexes: Sequence[GenomeIndex], dim: Hashable, positions: Iterable[Iterable[int]] | None = None
    ) -> GenomeIndex:
        """Join axes end to end: adjacent or not, as long as chromosomes stay together and ascend."""
        try:
            return indexes[0]._with(GenomeBins.concat([index.bins for index in indexes]))
        except GenomeError as error:
            raise GenomeError(
                f"cannot concatenate along {dim!r}: {error}. Give the pieces in genome order, without overlap, or drop their "
                f"coordinates first: ds.drop_vars({list(indexes[0].names.values())})"
            ) from None

    def roll(self, shifts: Mapping[Any, int]) -> None:
        """Drop the index: rolled bins are out of order."""

    def rename(self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]) -> GenomeIndex:
        """Follow the new names of the dim and the coordinates."""
        names = tuple(name_dict.get(name, name) for name in self.names.values())
        return GenomeIndex(self.bins, str(dims_dict.get(self.dim, self.dim)), names)

    # --- identity ------------------------------------------------------------------------------------------------------

    def to_pandas_index(self) -> pd.Index:
        """Refuse: an index of a genome is no pandas index."""
        raise TypeError(
            f"{self!r} has no pandas index; ds.drop_indexes({list(self.names.values())}) leaves plain coordinates, which "
            ".to_dataframe() then gives as columns"
        )

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.dim, tuple(self.names.values()), self.bins.__dask_tokenize__())

    def __repr__(self) -> str:
        return f"GenomeIndex({self.bins!r}, dim={self.dim!r})"

    def _repr_inline_(self, max_width: int) -> str:
        return f"GenomeIndex ({len(self.bins):,} bins of {self.bins.binsize} bp, {len(self.bins.chroms)} chromosomes)"


def coordinate_names(dim: str) -> tuple[str, str, str]:
    """Name the coordinates of a dim of bins: ``chrom_250bp``, ``start_250bp`` and ``end_250bp`` for ``position_250bp``."""
    suffix = dim.removeprefix(POSITION) if dim.startswith(POSITION) else f"_{dim}"
    return f"chrom{suffix}", f"start{suffix}", f"end{suffix}"


def merged_runs(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join the runs ``first[i]:last[i]`` that overlap or touch; the others come back ascending."""
    first, last = first[first < last], last[first < last]
    order = np.argsort(first, kind="stable")
    first, reach = first[order], np.maximum.accumulate(last[order])
    apart = np.flatnonzero(first[1:] > reach[:-1]) + 1
    return (first[np.r_[:1, apart]], reach[np.r_[apart - 1, -1]]) if first.size else (first, reach)


def rows_of_runs(first: np.ndarray, last: np.ndarray) -> slice | np.ndarray:
    """Rows in any of the runs ``first[i]:last[i]``, ascending, each once: a slice where they are one run."""
    first, last = merged_runs(first, last)
    if first.size == 1:
        return slice(int(first[0]), int(last[0]))
    return every_row(first, last)


def every_row(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Spell out the rows of the runs ``first[i]:last[i]``, run by run."""
    length = last - first
    return np.arange(length.sum()) + np.repeat(first - np.cumsum(length) + length, length)


def _plain(label: Any) -> Any:
    """A label as a scalar, a slice, a list or, for one label a point, a variable."""
    if isinstance(label, xr.DataArray | xr.Variable):
        return (
            label.variable
            if isinstance(label, xr.DataArray) and label.ndim
            else label
            if label.ndim
            else label.values.item()
        )
    return label.item() if isinstance(label, np.ndarray) and label.ndim == 0 else label


def _base(value: Any) -> int:
    if np.ndim(value) or value != int(value):
        raise GenomeError(f"start is a base, or a slice of bases; got {value!r}")
    return int(value)
