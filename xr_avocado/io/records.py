"""The records of a bigWig file: blocks unpacked and checked, and averaged over bins."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO, NamedTuple

import numpy as np

from xr_avocado.io.header import damaged, read_at

__all__ = ["LARGEST", "Records", "bin_means", "join", "read_block"]

_BLOCK = struct.Struct("<IIIIIBBH")
_BEDGRAPH, _VARIABLE, _FIXED = (
    np.dtype([("start", "<u4"), ("end", "<u4"), ("value", "<f4")]),
    np.dtype([("start", "<u4"), ("value", "<f4")]),
    np.dtype([("value", "<f4")]),
)
_KINDS = {1: _BEDGRAPH, 2: _VARIABLE, 3: _FIXED}
LARGEST = _BLOCK.size + 0xFFFF * _BEDGRAPH.itemsize
"""Bytes of a block that is unpacked: it counts its records in 16 bits."""


class Records(NamedTuple):
    """Runs of bases that have one value each, in order and apart."""

    start: np.ndarray
    end: np.ndarray
    value: np.ndarray


def read_block(name: str, file: BinaryIO, block: np.void, *, compressed: bool) -> Records:
    """Read the records of one block, as the index says where they are.

    Raises
    ------
    BigWigError
        Where they cannot be unpacked, their checksum is another, or they overlap, are out of order, or not where the index says.
    """
    offset, size = int(block["offset"]), int(block["size"])
    if size > 2 * LARGEST:
        raise damaged(name, f"a block of records has {size:,} bytes, more than there can be")
    data = read_at(name, file, offset, size)
    records = _decoded(_unpacked(name, data, offset) if compressed else data, int(block["chrom"]))
    first, last = int(block["start"]), int(block["end"])
    if records is None or not _fits(records, first, last):
        raise damaged(
            name,
            f"the records at byte {offset:,} overlap, are out of order, or are not those of bases {first:,}-{last:,} that its index has there",
        )
    return records


def _unpacked(name: str, data: bytes, offset: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        # zlib compares the checksum of what it unpacked.
        out = unpacker.decompress(data, LARGEST)
    except zlib.error as error:
        raise damaged(name, f"the records at byte {offset:,} cannot be unpacked ({error})") from None
    if not unpacker.eof or unpacker.unused_data:
        raise damaged(name, f"the records at byte {offset:,} are not as long as its index says")
    return out


def _decoded(data: bytes, chrom: int) -> Records | None:
    if len(data) < _BLOCK.size:
        return None
    own, start, _, step, span, kind, _, count = _BLOCK.unpack_from(data)
    dtype = _KINDS.get(kind)
    if dtype is None or own != chrom or len(data) != _BLOCK.size + count * dtype.itemsize:
        return None
    table = np.frombuffer(data, dtype, offset=_BLOCK.size)
    starts = start + step * np.arange(count, dtype=np.int64) if kind == 3 else table["start"].astype(np.int64)
    ends = table["end"].astype(np.int64) if kind == 1 else starts + span
    return Records(starts, ends, table["value"])


def _fits(records: Records, first: int, last: int) -> bool:
    start, end, _ = records
    if not len(start):
        return True
    return bool((start < end).all() and (start[1:] >= end[:-1]).all() and start[0] >= first and end[-1] <= last)


def join(name: str, read: list[Records]) -> Records:
    """Put the records of consecutive blocks together.

    Raises
    ------
    BigWigError
        Where blocks overlap.
    """
    if not read:
        return Records(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    records = Records(*map(np.concatenate, zip(*read, strict=True)))
    overlap = records.start[1:] < records.end[:-1]
    for i in np.flatnonzero(overlap)[:1]:
        raise damaged(name, f"its records overlap near base {records.start[i]:,}")
    return records


def bin_means(records: Records, start: int, width: int, count: int, *, zero: bool) -> np.ndarray:
    """Average records over ``count`` bins of ``width`` bp from base ``start``.

    Sums each bin's own records, in float64, rather than differences of a running sum, which would carry the largest value's rounding
    along. Holds some 100 bytes a record.

    Parameters
    ----------
    records
        Runs of bases, of any part of the chromosome.
    start, width, count
        The bins.
    zero
        Count bases without a finite value as 0; otherwise leave them out, and a bin of nothing else is NaN.

    Returns
    -------
        One float64 a bin.
    """
    finite = np.isfinite(records.value)
    first, last = np.maximum(records.start, start), np.minimum(records.end, start + width * count)
    keep = finite & (first < last)
    first, last, value = first[keep] - start, last[keep] - start, records.value[keep].astype(np.float64)
    bins, reached = first // width, (last - 1) // width
    if (bins < reached).any():
        pieces = reached - bins + 1
        which = np.repeat(np.arange(len(bins)), pieces)
        bins = bins[which] + np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        first, last = np.maximum(first[which], bins * width), np.minimum(last[which], bins * width + width)
        value = value[which]
    length = (last - first).astype(np.float64)
    total = np.bincount(bins, length * value, count)
    if zero:
        return total / width
    covered = np.bincount(bins, length, count)
    return np.divide(total, covered, out=np.full(count, np.nan), where=covered > 0)
