"""Genomic intervals as users have them, in and out: region strings, BED files, frames, PyRanges."""

from __future__ import annotations

from xr_avocado.genome import GenomeError

__all__ = ["parse_region"]


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
        raise GenomeError(f"{region!r} is not a region: write 'chr1:1,000-2,000', 'chr1:5Mb-' or 'chr2' ({error})") from None
    if end is not None and end <= (start or 0):
        raise GenomeError(f"region {region!r} is empty: its start must be below its end (0-based, half-open)")
    return chrom, start, end
