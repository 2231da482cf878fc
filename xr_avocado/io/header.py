"""What a bigWig file's first bytes say, read without the C libraries, which print, fail or crash on what is no bigWig."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

__all__ = ["BigWigError", "check_header"]

_BIGWIG, _BIGBED = 0x888FFC26, 0x8789F2EB
_HEADER = struct.Struct("<IHHQQQHHQQIQ")
_ZOOM = struct.Struct("<IIQQ")
_INDEX_HEADER = 48


class BigWigError(ValueError):
    """A file that cannot be read as the bigWig it should be, or values that cannot be written as one."""


class _Offsets(NamedTuple):
    magic: int
    zooms: int
    tree: int
    records: int
    tables: int


def check_header(path: str | os.PathLike[str]) -> str:
    """Return the path of a whole bigWig file as text; raise where it is anything else.

    Raises
    ------
    BigWigError
        Where there is no such file, it is a folder, a bigBed or of another format, or it was cut short.
    """
    name = os.fspath(path)
    if "://" in name:
        raise BigWigError(f"{name} is a URL: download the file first and give its path")
    if Path(name).is_dir():
        raise BigWigError(f"{name} is a folder, not a bigWig file")
    try:
        with open(name, "rb") as file:
            _check_offsets(name, file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise BigWigError(f"{name} is not there") from None
    except OSError as error:
        raise BigWigError(f"{name} cannot be read: {error.strerror}") from None
    return name


def _check_offsets(name: str, file: BinaryIO, size: int) -> None:
    head = _read_head(name, file.read(_HEADER.size))
    zooms = file.read(_ZOOM.size * head.zooms)
    indices = [head.tables] + [
        fields[3] for fields in _ZOOM.iter_unpack(zooms[: len(zooms) // _ZOOM.size * _ZOOM.size])
    ]
    reached = max(head.tree, head.records, *(index + _INDEX_HEADER for index in indices))
    if len(zooms) < _ZOOM.size * head.zooms or reached > size:
        raise BigWigError(
            f"{name} is truncated: it refers to byte {reached:,} but has {size:,}; copy or download it again"
        )


def _read_head(name: str, head: bytes) -> _Offsets:
    magic = int.from_bytes(head[:4], "little")
    if magic == _BIGBED:
        raise BigWigError(
            f"{name} is a bigBed, which holds intervals, whatever its name; a bigWig of the signal is needed"
        )
    if int.from_bytes(head[:4], "big") == _BIGWIG:
        raise BigWigError(
            f"{name} is a big-endian bigWig, which no reader here knows; write it anew, e.g. with bedGraphToBigWig"
        )
    if magic != _BIGWIG:
        what = "empty" if not head else "not a bigWig (its first bytes are those of another format)"
        raise BigWigError(f"{name} is {what}")
    if len(head) < _HEADER.size:
        raise BigWigError(f"{name} is truncated: it has only {len(head)} bytes; copy or download it again")
    _, _, zooms, tree, records, index, *_ = _HEADER.unpack(head)
    return _Offsets(magic, zooms, tree, records, index)
