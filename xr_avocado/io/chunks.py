"""The chunks of a store on disk, distrusted: each is compared with its checksum, and how many there are is written down."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from xr_avocado.cube import ASSAY, CELLTYPE, CubeError

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["COUNTED", "CheckedStore", "count_chunks"]

COUNTED = "chunks_written"
"""The attribute of a stored array that says how many chunks it has: by track, or in all. Empty chunks have no file."""
METADATA = "zarr.json"


class CheckedStore(LocalStore):
    """A folder of zarr arrays in which a chunk that is damaged or gone is an error that names it.

    Without it zarr would tell of a wrong checksum and not of the file, and would read a missing chunk as missing values.
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file; None where it is not there and need not be.

        Raises
        ------
        CubeError
            Where it is a chunk that is damaged or gone.
        """
        value = await super().get(key, prototype, byte_range)
        array, is_chunk, place = key.rpartition("/c/")
        if is_chunk and value is None:
            _check_absent(self.root / array, place)
        elif is_chunk and value is not None and byte_range is None and _described(self.root / array)[0]:
            _check_sum(self.root / key, value)
        return value


def _described(array: Path) -> tuple[bool, dict[str, int]]:
    found = (array / METADATA).stat()
    return _read_description(array / METADATA, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _read_description(path: Path, *_: int) -> tuple[bool, dict[str, int]]:
    """Tell whether chunks end with a checksum, and how many there are; as of the file of this time and place."""
    metadata = json.loads(path.read_text())
    return metadata["codecs"][-1]["name"] == "crc32c", metadata["attributes"].get(COUNTED, {})


def _check_sum(path: Path, value: Buffer) -> None:
    import google_crc32c

    data: Any = value.as_numpy_array()
    if len(data) < 4 or google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:].tobytes(), "little"):
        raise CubeError(f"{path} is damaged: its contents do not have the checksum they were written with; {_ADVICE}")


def _check_absent(array: Path, place: str) -> None:
    _, counts = _described(array)
    group = "" if "" in counts else "/".join(place.split("/")[:2])
    there = len(_chunks(array / "c" / group)) if group in counts else 0
    if there < counts.get(group, 0):
        raise CubeError(f"{array} has {there:,} of the {counts[group]:,} chunks it was written with; {_ADVICE}")


_ADVICE = "copy the store again, or take the tracks out of it with sel"


def count_chunks(store: Path) -> None:
    """Write down how many chunks the arrays of a finished store have."""
    for path in store.glob(f"*/{METADATA}"):
        metadata = json.loads(path.read_text())
        by_track = (metadata.get("dimension_names") or [])[:2] == [CELLTYPE, ASSAY] and len(metadata["shape"]) > 2
        chunks = [chunk.relative_to(path.parent / "c").parts for chunk in _chunks(path.parent / "c")]
        counts = Counter("/".join(place[:2]) if by_track else "" for place in chunks)
        metadata.setdefault("attributes", {})[COUNTED] = dict(sorted(counts.items()))
        path.write_text(json.dumps(metadata, indent=2))


def _chunks(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name.isdecimal()]
