"""What a bigWig file says of itself before its records: header, chromosomes, index; nothing in it is believed unchecked."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = [
    "BLOCK",
    "BigWigError",
    "Header",
    "check_whole",
    "damaged",
    "read_at",
    "read_chromosomes",
    "read_header",
    "read_index",
]

_BIGWIG, _BIGBED = 0x888FFC26, 0x8789F2EB
_TREE, _INDEX = 0x78CA8C91, 0x2468ACE0
_HEADER = struct.Struct("<IHHQQQHHQQIQ")
_ZOOM = struct.Struct("<IIQQ")
_TREE_HEADER = struct.Struct("<IIIIQQ")
_INDEX_HEADER = struct.Struct("<IIQIIIIQII")
_NODE = struct.Struct("<BBH")
_CHROMOSOME = struct.Struct("<II")
_COUNT = struct.Struct("<Q")

_SPAN = [("chrom", "<u4"), ("start", "<u4"), ("last_chrom", "<u4"), ("end", "<u4"), ("offset", "<u8")]
_BRANCH = np.dtype(_SPAN)
BLOCK = np.dtype([*_SPAN, ("size", "<u8")])
"""A block of records in the index: the bases it spans on one chromosome, and where its bytes lie."""


class BigWigError(ValueError):
    """A file that cannot be read as the bigWig it should be, or values that cannot be written as one."""


class Header(NamedTuple):
    """Where the parts of a file lie, in bytes, and whether its records are compressed."""

    tree_at: int
    records_at: int
    index_at: int
    compressed: bool


def read_header(name: str, file: BinaryIO) -> Header:
    """Read the header of a whole bigWig file.

    Raises
    ------
    BigWigError
        Where it is a bigBed or of another format, or was cut short.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEADER.size)
    _check_kind(name, head)
    _, _, levels, tree, records, index, _, _, _, _, buffer, _ = _HEADER.unpack(head)
    zooms = file.read(_ZOOM.size * levels)
    ends = [
        fields[3] + _INDEX_HEADER.size for fields in _ZOOM.iter_unpack(zooms[: len(zooms) // _ZOOM.size * _ZOOM.size])
    ]
    reached = max(tree, records, index + _INDEX_HEADER.size if index else 0, *ends, 0)
    if len(zooms) < _ZOOM.size * levels or reached > size:
        raise BigWigError(
            f"{name} is truncated: it refers to byte {reached:,} but has {size:,}; copy or download it again"
        )
    return Header(tree, records, index, buffer > 0)


def check_whole(path: Path) -> None:
    """Raise where a file that was written is not whole: its header, chromosomes or index cannot be read.

    Raises
    ------
    BigWigError
        It says what is missing.
    """
    name = os.fspath(path)
    with path.open("rb") as file:
        header = read_header(name, file)
        sizes = read_chromosomes(name, file, header)
        read_index(name, file, header, np.array(list(sizes.values()), np.int64))
        # The last thing that is written, by this library at least.
        if read_at(name, file, os.fstat(file.fileno()).st_size - 4, 4) != _BIGWIG.to_bytes(4, "little"):
            raise BigWigError(f"{name} is truncated: it does not end as it was written")


def _check_kind(name: str, head: bytes) -> None:
    magic = int.from_bytes(head[:4], "little")
    if magic == _BIGBED:
        raise BigWigError(
            f"{name} is a bigBed, which holds intervals, whatever its name; a bigWig of the signal is needed"
        )
    if int.from_bytes(head[:4], "big") == _BIGWIG:
        raise BigWigError(
            f"{name} is a big-endian bigWig, which is not read here; write it anew, e.g. with bedGraphToBigWig"
        )
    if head[:2] == b"\x1f\x8b":
        raise BigWigError(f"{name} is compressed with gzip, whatever its name; unpack it: gunzip -c FILE > FILE.bw")
    if magic != _BIGWIG:
        what = "empty" if not head else "not a bigWig (its first bytes are those of another format)"
        raise BigWigError(f"{name} is {what}")
    if len(head) < _HEADER.size:
        raise BigWigError(f"{name} is truncated: it has only {len(head)} bytes; copy or download it again")


def damaged(name: str, what: str) -> BigWigError:
    """Make the error of a file that contradicts itself."""
    return BigWigError(f"{name} is damaged: {what}; copy or download it again")


def read_at(name: str, file: BinaryIO, offset: int, size: int) -> bytes:
    """Read so many bytes from a place of a file; threads may do so side by side.

    Raises
    ------
    BigWigError
        Where the file ends before, or the disk fails.
    """
    try:
        data = os.pread(file.fileno(), size, offset)
    except (OSError, OverflowError) as error:
        raise BigWigError(f"{name} cannot be read at byte {offset:,}: {error}") from None
    if len(data) < size:
        raise BigWigError(
            f"{name} is truncated: it refers to byte {offset + size:,} but ends before; copy or download it again"
        )
    return data


def read_chromosomes(name: str, file: BinaryIO, header: Header) -> dict[str, int]:
    """Read the chromosomes and their lengths in bp, in the file's order, which is that of their numbers.

    Raises
    ------
    BigWigError
        Where the list contradicts itself.
    """
    magic, _, key, value, count, _ = _TREE_HEADER.unpack(read_at(name, file, header.tree_at, _TREE_HEADER.size))
    most = os.fstat(file.fileno()).st_size // (key + value) if value else 0
    if magic != _TREE or value != _CHROMOSOME.size or not 0 < key < 1 << 12 or count > most:
        raise damaged(name, "its list of chromosomes cannot be read")
    found: dict[int, tuple[str, int]] = {}
    for leaf, entries in _nodes(name, file, header.tree_at + _TREE_HEADER.size, key + value, count):
        for at in range(0, len(entries) if leaf else 0, key + value):
            number, length = _CHROMOSOME.unpack_from(entries, at + key)
            found[number] = (entries[at : at + key].rstrip(b"\0").decode("utf-8", "replace"), length)
    sizes = dict(found[number] for number in sorted(found))
    if sorted(found) != list(range(count)) or len(sizes) < count or "" in sizes or 0 in sizes.values():
        raise damaged(name, f"its list of {count:,} chromosomes does not add up")
    return sizes


def _nodes(name: str, file: BinaryIO, root: int, width: int, count: int) -> Iterator[tuple[bool, bytes]]:
    """Walk a tree of chromosomes, breadth first; one that has more entries than it says, or circles, ends."""
    todo, left = [root], 2 * count + 64
    while todo:
        offset = todo.pop(0)
        leaf, _, entries = _NODE.unpack(read_at(name, file, offset, _NODE.size))
        data = read_at(name, file, offset + _NODE.size, entries * width)
        left -= max(entries, 1)
        if left < 0 or leaf > 1:
            raise damaged(name, "its list of chromosomes does not end")
        if not leaf:
            todo += [_COUNT.unpack_from(data, at + width - 8)[0] for at in range(0, len(data), width)]
        yield bool(leaf), data


def read_index(name: str, file: BinaryIO, header: Header, lengths: np.ndarray) -> np.ndarray:
    """Read the index: every block of records, in the order of the genome.

    All of it is read and compared with itself and with the chromosomes, so that a damaged one is no silent loss of records. 32 bytes
    a block: 8 MB for a human genome in records of 25 bp.

    Parameters
    ----------
    name, file, header
        The file.
    lengths
        Length of each chromosome, by number.

    Returns
    -------
        One ``BLOCK`` a block.

    Raises
    ------
    BigWigError
        Where blocks are fewer or more than the file says, out of order, or lie beyond a chromosome or the file.
    """
    (said,) = _COUNT.unpack(read_at(name, file, header.records_at, _COUNT.size))
    if header.index_at == 0 and said == 0:
        return np.empty(0, BLOCK)
    magic, _, count, *_ = _INDEX_HEADER.unpack(read_at(name, file, header.index_at, _INDEX_HEADER.size))
    size = os.fstat(file.fileno()).st_size
    if magic != _INDEX or count != said or count > size // BLOCK.itemsize:
        raise damaged(name, "its index cannot be read")
    blocks = _leaves(name, file, header.index_at + _INDEX_HEADER.size, count)
    if len(blocks) != count:
        raise damaged(name, f"its index has {len(blocks):,} of {count:,} blocks of records")
    _check_blocks(name, blocks, lengths, header.records_at + _COUNT.size, size)
    return blocks


def _leaves(name: str, file: BinaryIO, root: int, count: int) -> np.ndarray:
    parts = []
    todo: list[tuple[int, np.void | None]] = [(root, None)]
    left = 2 * count + 64
    while todo:
        offset, parent = todo.pop()
        leaf, _, entries = _NODE.unpack(read_at(name, file, offset, _NODE.size))
        dtype = BLOCK if leaf else _BRANCH
        table = np.frombuffer(read_at(name, file, offset + _NODE.size, entries * dtype.itemsize), dtype)
        left -= max(entries, 1)
        if left < 0 or leaf > 1 or (parent is not None and entries and not _within(table, parent)):
            raise damaged(name, "its index contradicts itself")
        if leaf:
            parts.append(table)
        else:
            # The last in, the first out: blocks come in the order of the genome.
            todo += [(int(entry["offset"]), entry) for entry in table[::-1]]
    return np.concatenate(parts) if parts else np.empty(0, BLOCK)


def _within(table: np.ndarray, parent: np.void) -> bool:
    first = (table["chrom"][0], table["start"][0]) >= (parent["chrom"], parent["start"])
    ends = table["last_chrom"].astype(np.uint64) << np.uint64(32) | table["end"]
    return bool(first and ends.max() <= (int(parent["last_chrom"]) << 32 | int(parent["end"])))


def _check_blocks(name: str, blocks: np.ndarray, lengths: np.ndarray, first: int, size: int) -> None:
    chrom, start, end = (blocks[column].astype(np.int64) for column in ("chrom", "start", "end"))
    offset, length = (blocks[column].astype(np.float64) for column in ("offset", "size"))
    if (chrom != blocks["last_chrom"]).any() or (chrom >= len(lengths)).any() or (start >= end).any():
        raise damaged(name, "its index names places that there are not")
    for i in np.flatnonzero(end > lengths[chrom])[:1]:
        raise damaged(
            name,
            f"it has signal up to base {end[i]:,} of a chromosome that ends at {lengths[chrom[i]]:,} by its header",
        )
    if (offset < first).any() or (length < 1).any():
        raise damaged(name, "its index points at what are no records")
    if (offset + length > size).any():
        raise BigWigError(
            f"{name} is truncated: it refers to byte {int((offset + length).max()):,} but has {size:,}; copy or download it again"
        )
    # Empty blocks, which some writers leave, repeat the place of the one before.
    further = (start[1:] >= start[:-1]) & (end[1:] >= end[:-1])
    if not ((chrom[1:] > chrom[:-1]) | ((chrom[1:] == chrom[:-1]) & further)).all():
        raise damaged(name, "its blocks of records are not in order")
