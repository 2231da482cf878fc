"""The segments of an axis as plain tuples, and whether they fit the chromosomes of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from xr_avocado.genome import GenomeBins, unknown_chromosome
from xr_avocado.io.header import BigWigError

__all__ = ["check_axis", "segments_of"]


def segments_of(bins: GenomeBins) -> Iterator[tuple[str, int, int, slice]]:
    """Yield chromosome, start, end and rows of each segment."""
    table = bins.segments
    columns = (table[name].tolist() for name in ("chrom", "start", "end"))
    return zip(*columns, bins.segment_slices, strict=True)


def check_axis(bins: GenomeBins, sizes: Mapping[str, int], *, source: str) -> None:
    """Raise where a bin is on a chromosome that is not in ``sizes``, or beyond its end.

    Raises
    ------
    BigWigError
        It names the source of the sizes, the chromosome and what there is.
    """
    for chrom, _, end, _ in segments_of(bins):
        if chrom not in sizes:
            raise BigWigError(f"{source}: {unknown_chromosome(chrom, tuple(sizes))}")
        if end > sizes[chrom]:
            raise BigWigError(
                f"{source}: {chrom} ends at {sizes[chrom]:,}, but bins reach {end:,}: is it from another assembly?"
            )
