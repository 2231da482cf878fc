"""Damaged bigWig files: valid ones cut, flipped and overwritten, and what reading one of them comes to."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyBigWig

from xr_avocado.genome import GenomeBins
from xr_avocado.io.bigwig import BigWigError, chromosomes, read_bins
from xr_avocado.io.header import read_header, read_index
from xr_avocado.io.sheet import SheetError, axis_of

RIGHT, ERROR, UNDETECTABLE, WRONG = "right result", "clear error", "undetectable by the format", "wrong"
WORDS = (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""What a field is overwritten with: bounds at which careless code breaks."""


class Whole(NamedTuple):
    """A valid file, and what it holds."""

    name: str
    content: bytes
    sizes: dict[str, int]
    means: np.ndarray
    unchecked: range
    """Bytes that no checksum covers and nothing else tells of: records that are not compressed."""


def whole(path: Path) -> Whole:
    sizes = chromosomes(path)
    means = read_bins(path, GenomeBins.from_chromsizes(sizes, 200))
    with path.open("rb") as file:
        header = read_header(str(path), file)
        blocks = read_index(str(path), file, header, np.array(list(sizes.values())))
    raw = () if header.compressed else (int(blocks["offset"].min()), int((blocks["offset"] + blocks["size"]).max()))
    return Whole(path.name, path.read_bytes(), sizes, means, range(*raw) if raw else range(0))


def write_samples(folder: Path) -> list[Path]:
    """Write small valid files of every kind of record, of many chromosomes, of deep trees, and without compression."""
    rng = np.random.default_rng(0)
    few, many = {"chr1": 60_000, "chr2": 9_013, "chrM": 310}, {f"chr{i}": 400 + i for i in range(300)}
    return [
        _fixed(folder / "fixed.bw", few, rng),
        _bedgraph(folder / "bedgraph.bw", few, rng),
        _variable(folder / "variable.bw", few, rng),
        _bedgraph(folder / "300-chromosomes.bw", many, rng),
        uncompressed(_bedgraph(folder / "bedgraph.bw", few, rng), folder / "uncompressed.bw"),
    ]


def _handle(path: Path, sizes: dict[str, int]) -> pyBigWig.pyBigWig:
    handle = pyBigWig.open(str(path), "w")
    handle.addHeader(list(sizes.items()))
    return handle


def _fixed(path: Path, sizes: dict[str, int], rng: np.random.Generator) -> Path:
    handle = _handle(path, sizes)
    for chrom, size in sizes.items():
        handle.addEntries(chrom, 0, values=rng.gamma(0.5, 4, size // 25), span=25, step=25)
    handle.close()
    return path


def _bedgraph(path: Path, sizes: dict[str, int], rng: np.random.Generator) -> Path:
    handle = _handle(path, sizes)
    for chrom, size in sizes.items():
        edges = np.unique(rng.integers(0, size, size // 10))
        starts, ends = edges[:-1:2], edges[1::2]
        n = min(len(starts), len(ends))
        handle.addEntries(
            [chrom] * n, starts[:n].tolist(), ends=ends[:n].tolist(), values=rng.gamma(0.5, 4, n).tolist()
        )
    handle.close()
    return path


def _variable(path: Path, sizes: dict[str, int], rng: np.random.Generator) -> Path:
    handle = _handle(path, sizes)
    for chrom, size in sizes.items():
        starts = np.flatnonzero(rng.random((size - 7) // 9) < 0.6) * 9
        handle.addEntries(chrom, starts, values=rng.gamma(0.5, 4, len(starts)), span=7)
    handle.close()
    return path


def uncompressed(path: Path, target: Path) -> Path:
    """Write a file's blocks anew without compression, behind its end, and point its index to them."""
    content = bytearray(path.read_bytes())
    (index,) = struct.unpack_from("<Q", content, 24)
    struct.pack_into("<I", content, 52, 0)
    for at in leaf_entries(content, index + 48):
        offset, size = struct.unpack_from("<QQ", content, at + 16)
        raw = zlib.decompress(content[offset : offset + size])
        struct.pack_into("<QQ", content, at + 16, len(content), len(raw))
        content += raw
    target.write_bytes(content)
    return target


def leaf_entries(content: bytes, node: int) -> Iterator[int]:
    """Where the entries of an index's leaves lie."""
    leaf, _, count = struct.unpack_from("<BBH", content, node)
    for i in range(count):
        if leaf:
            yield node + 4 + 32 * i
        else:
            yield from leaf_entries(content, struct.unpack_from("<Q", content, node + 4 + 24 * i + 16)[0])


def mutants(one: Whole, count: int, seed: int) -> Iterator[tuple[str, bytes, set[int]]]:
    """Make so many mutants of a file: what was done, the bytes, and which of them are others now."""
    rng = np.random.default_rng(seed)
    content, n = one.content, len(one.content)
    kinds = ("bit flipped", "byte flipped", "field overwritten", "4 KiB zeroed", "4 KiB swapped", "cut")
    for kind in rng.choice(kinds, count, p=[0.3, 0.25, 0.25, 0.05, 0.05, 0.1]):
        new = bytearray(content)
        # Half in the first and last parts, where the structure lies that everything hangs on.
        at = int(rng.integers(0, n if rng.random() < 0.5 else min(n, 700)))
        if kind == "bit flipped":
            new[at] ^= 1 << int(rng.integers(8))
        elif kind == "byte flipped":
            new[at] ^= int(rng.integers(1, 256))
        elif kind == "field overwritten":
            at = at // 4 * 4
            new[at : at + 4] = struct.pack("<I", int(rng.choice(WORDS)))[: n - at]
        elif kind == "4 KiB zeroed":
            at = at // 4096 * 4096
            new[at : at + 4096] = bytes(min(4096, n - at))
        elif kind == "4 KiB swapped":
            a, b = (int(x) for x in rng.integers(0, max(n - 4096, 1), 2))
            new[a : a + 4096], new[b : b + 4096] = content[b : b + 4096], content[a : a + 4096]
            del new[n:]
        else:
            del new[at:]
        yield (
            str(kind),
            bytes(new),
            {i for i in range(min(len(new), n)) if new[i] != content[i]} if kind != "cut" else set(),
        )


def outcome(one: Whole, path: Path, changed: set[int]) -> tuple[str, str]:
    """Check and read a mutant as a build does; tell what it came to, and a word on it."""
    chroms = pd.DataFrame([(c, 0, n) for c, n in one.sizes.items()], columns=["chrom", "start", "end"])
    try:
        bins, _ = axis_of(chroms, 200, one.sizes, {str(path): chromosomes(path)}, [])
        means = read_bins(path, bins)
    except (BigWigError, SheetError) as error:
        return (ERROR, "") if os.fspath(path) in str(error) else (WRONG, f"an error without the file's name: {error}")
    except Exception as error:  # noqa: BLE001  (that it is no other is what is tested)
        return WRONG, f"{type(error).__name__}: {error}"
    if np.array_equal(means, one.means, equal_nan=True):
        return RIGHT, ""
    return (UNDETECTABLE, "") if changed and all(i in one.unchecked for i in changed) else (WRONG, "other values")
