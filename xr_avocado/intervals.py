"""Genomic intervals as users have them, in and out: region strings, BED files, frames, PyRanges."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pandas as pd

from xr_avocado.genome import GenomeError, unknown_chromosome

if TYPE_CHECKING:
    from pyranges import PyRanges

__all__ = ["as_frame", "is_region", "parse_region", "text_lines", "to_pyranges"]

_PYRANGES = {"Chromosome": "chrom", "Start": "start", "End": "end", "Strand": "strand"}
_BED = ("chrom", "start", "end", "name", "score", "strand")
LARGEST = 1 << 30
"""Characters of text that are read of a file, at most."""
_WHOLE = 1 << 40
"""The end of a chromosome whose length nobody gave: beyond any, and far from where int64 overflows."""


def parse_region(region: str) -> tuple[str, int | None, int | None]:
    """Read ``"chr1:1,000-2,000"``, ``"chr1:1kb-2Mb"``, ``"chr1:5Mb-"`` or ``"chr2"`` (bioframe's grammar).

    Raises
    ------
    GenomeError
        Where the text is none of these, or the region is empty.

    Examples
    --------
    >>> parse_region("chr1:1,000-2kb")
    ('chr1', 1000, 2000)
    """
    from bioframe.core.stringops import parse_region_string

    try:
        chrom, start, end = parse_region_string(region.strip())
    except ValueError as error:
        raise GenomeError(
            f"{region!r} is not a region: write 'chr1:1,000-2,000', 'chr1:5Mb-' or 'chr2' ({error})"
        ) from None
    if end is not None and end <= (start or 0):
        raise GenomeError(f"region {region!r} is empty: its start must be below its end (0-based, half-open)")
    return chrom, start, end


def is_region(x: Any) -> TypeGuard[str]:
    """Tell a region string from the path of a file, which may be a string too."""
    return isinstance(x, str) and not _is_path(x)


def as_frame(intervals: Any, *, sizes: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Read intervals of any kind into one frame: ``chrom`` (str), ``start``, ``end`` (int64), then all other columns.

    Parameters
    ----------
    intervals
        PyRanges (0.1 or pyranges1), a bioframe frame, the path of a BED file (plain or gzipped, 3 columns or more) or of a
        tab-separated table with a header, a region string, a list of region strings, or ``(chrom, start, end)`` rows.
    sizes
        Chromosome lengths, for regions without an end; without them such a region ends at 2**40.

    Returns
    -------
        One row an interval, in the order given, 0-based and half-open.

    Raises
    ------
    GenomeError
        Where columns are missing, there is no interval, or one has no whole numbers, starts below 0 or ends at its start.

    Examples
    --------
    >>> as_frame(["chr1:1kb-2kb", "chr2"], sizes={"chr2": 500}).values.tolist()
    [['chr1', 1000, 2000], ['chr2', 0, 500]]
    """
    if isinstance(intervals, Path) or (isinstance(intervals, str) and _is_path(intervals)):
        return _checked(_read_bed(Path(intervals)), str(intervals))
    if isinstance(intervals, str):
        return _of_regions([intervals], sizes)
    if hasattr(intervals, "df"):
        return _checked(pd.DataFrame(intervals.df), "the PyRanges")
    if isinstance(intervals, pd.DataFrame):
        return _checked(pd.DataFrame(intervals), "the table")
    rows = _rows(intervals)
    if rows and all(isinstance(row, str) for row in rows):
        return _of_regions(rows, sizes)
    if any(isinstance(row, str) or len(row) != 3 for row in rows):
        raise GenomeError(f"rows of intervals are (chrom, start, end) or all region strings; got {rows[0]!r}, …")
    return _checked(pd.DataFrame(rows, columns=list(_BED[:3])), "the list")


def _rows(intervals: Any) -> list[Any]:
    try:
        rows = list(intervals)
    except TypeError:
        raise GenomeError(
            "intervals are a region string, a list of them, PyRanges, a frame with chrom, start, end, or the path of a BED file; "
            f"got {type(intervals).__name__}"
        ) from None
    one = len(rows) == 3 and isinstance(rows[0], str) and not any(isinstance(value, str) for value in rows[1:])
    return [tuple(rows)] if one else rows


def _of_regions(regions: list[str], sizes: Mapping[str, int] | None) -> pd.DataFrame:
    rows = []
    for chrom, start, end in map(parse_region, regions):
        if end is None and sizes is not None and chrom not in sizes:
            raise GenomeError(unknown_chromosome(chrom, tuple(sizes)))
        rows.append((chrom, start or 0, end if end is not None else sizes[chrom] if sizes is not None else _WHOLE))
    return _checked(pd.DataFrame(rows, columns=list(_BED[:3])), "the list of regions")


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or Path(text).suffix.lower() in _SUFFIXES or os.path.isfile(text)


_GTF = (".gtf", ".gff", ".gff3")
_SUFFIXES = (*_GTF, ".bed", ".gz", ".bgz", ".tsv", ".txt", ".narrowpeak", ".broadpeak", ".bedgraph", ".bed3", ".bed6")


def _read_bed(path: Path) -> pd.DataFrame:
    lines = _interval_lines(path)
    if not lines:
        raise GenomeError(f"{path} holds no intervals")
    sep = "\t" if "\t" in lines[0] else r"\s+"
    names = _header(lines[0].split("\t"))
    text = io.StringIO("\n".join(lines[1:] if names else lines))
    try:
        table = pd.read_csv(
            text,
            sep=sep,
            header=None,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            dtype={0: str} if not names else None,
        )
    except ValueError as error:
        raise GenomeError(f"{path} is not a BED file, one interval a line: {str(error).strip()}") from None
    if not names:
        names = [*_BED[: table.shape[1]], *(f"column{i + 1}" for i in range(len(_BED), table.shape[1]))]
    if len(names) != table.shape[1] or len(names) < 3:
        raise GenomeError(f"{path} has {table.shape[1]} columns; a BED file has chrom, start, end, then any others")
    return table.set_axis(names, axis=1)


def _interval_lines(path: Path) -> list[str]:
    if {suffix.lower() for suffix in path.suffixes} & set(_GTF):
        raise GenomeError(f"{path} is GTF or GFF, which is 1-based: read it with pyranges.read_gtf and give its result")
    return [line for line in text_lines(path) if line.strip() and not line.startswith(("#", "track", "browser"))]


def text_lines(path: str | os.PathLike[str]) -> list[str]:
    """Read the lines of a text file, plain or gzipped, of at most 1 GB; they are held in memory.

    Raises
    ------
    GenomeError
        Where there is no such file, it is no text, or it unpacks to more.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise GenomeError(f"{path} is a folder or a pipe; intervals are read from a file")
    lines, left = [], LARGEST
    try:
        with open(path, "rb") as file:
            opener = gzip.open if file.read(2) == b"\x1f\x8b" else open
        with opener(path, "rt", encoding="utf-8-sig") as file:
            # A little gzip may hold a lot, also in one line.
            while line := file.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise GenomeError(
                        f"{path} holds more than {LARGEST:,} characters of text: cut it to what is needed"
                    )
                lines.append(line.rstrip("\r\n"))
    except GenomeError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise GenomeError(f"there is no file {str(path)!r}") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise GenomeError(f"{path} cannot be read as text, plain or gzipped: {error}") from None
    return lines


def _header(fields: list[str]) -> list[str] | None:
    named = {_PYRANGES.get(field, field) for field in fields}
    return fields if {"chrom", "start", "end"} <= named else None


def _checked(table: pd.DataFrame, source: str) -> pd.DataFrame:
    if table.empty:
        raise GenomeError(f"{source} holds no intervals")
    if "Chromosome" in table.columns:
        table = table.rename(columns=_PYRANGES)
    missing = [column for column in ("chrom", "start", "end") if column not in table.columns]
    if missing:
        raise GenomeError(
            f"{source} has no column {' or '.join(missing)}; it has {', '.join(map(str, table.columns))}. Name the columns chrom, "
            "start, end (0-based, half-open), or Chromosome, Start, End"
        )
    frame = table.reset_index(drop=True)
    start, end = (_whole(frame, column, source) for column in ("start", "end"))
    chrom = frame["chrom"].astype(object)
    _complain(frame, (chrom.isna() | (chrom == "")).to_numpy(), source, "has no chromosome")
    _complain(frame, start < 0, source, "starts below 0")
    _complain(frame, end <= start, source, "does not start below its end: coordinates are 0-based and half-open, so subtract 1 "
              "from the starts of a 1-based table")  # fmt: skip
    frame = frame.assign(chrom=chrom.astype(str), start=start, end=end)
    return frame[["chrom", "start", "end", *(c for c in frame.columns if c not in ("chrom", "start", "end"))]]


def _whole(frame: pd.DataFrame, column: str, source: str) -> np.ndarray:
    number = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    _complain(
        frame, ~(np.abs(number) < 2**53) | (number != np.floor(number)), source, f"has no whole number as its {column}"
    )
    return number.astype(np.int64)


def _complain(frame: pd.DataFrame, bad: np.ndarray, source: str, what: str) -> None:
    for i in np.flatnonzero(bad)[:1]:
        row = frame.iloc[i]
        raise GenomeError(f"interval {i + 1} of {source}, {row['chrom']}:{row['start']}-{row['end']}, {what}")


def to_pyranges(frame: pd.DataFrame) -> PyRanges:
    """Make PyRanges (0.1) of a frame with chrom, start, end: these renamed, and ``strand``, all other columns as they are.

    PyRanges orders its rows by chromosome. It copies the frame.

    Examples
    --------
    >>> to_pyranges(as_frame("chr1:10-20")).df.values.tolist()
    [['chr1', 10, 20]]
    """
    from pyranges import PyRanges

    back = {ours: theirs for theirs, ours in _PYRANGES.items()}
    return PyRanges(_checked(frame, "the frame").rename(columns=back), int64=True)
