"""Chromosome lengths of an assembly, by name or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from xr_avocado.genome import GenomeError

__all__ = ["assembly_name", "chromosome_sizes"]


def chromosome_sizes(genome: str | Path | Mapping[str, int]) -> dict[str, int]:
    """Look up chromosome lengths: an assembly that bioframe knows ("hg19", "mm10"), a ``chrom.sizes`` file, or a mapping.

    Raises
    ------
    GenomeError
        Where the name is neither an assembly nor a readable two-column file.

    Examples
    --------
    >>> chromosome_sizes("hg19")["chr21"]
    48129895
    """
    if isinstance(genome, Mapping):
        return {str(chrom): int(size) for chrom, size in genome.items()}
    if Path(genome).is_file():
        return _read_sizes(Path(genome))
    from bioframe import assembly_info

    try:
        return {str(chrom): int(size) for chrom, size in assembly_info(str(genome)).chromsizes.items()}
    except ValueError:
        raise GenomeError(
            f"genome {str(genome)!r} is neither a file nor an assembly known to bioframe (hg19, hg38, mm10, …); "
            "give a chrom.sizes file: one line a chromosome, its name and its length"
        ) from None


def assembly_name(genome: str | Path | Mapping[str, int]) -> str:
    """Name an assembly as a cube's attributes do: by what was asked for, or by the file it was read from."""
    if isinstance(genome, Mapping):
        return "custom"
    return Path(genome).name.split(".")[0] if Path(genome).is_file() else str(genome)


def _read_sizes(path: Path) -> dict[str, int]:
    try:
        table = pd.read_csv(path, sep=r"\s+", header=None, comment="#", usecols=[0, 1], dtype={0: str, 1: np.int64})
    except ValueError as error:
        raise GenomeError(
            f"{path} is not a chrom.sizes file (one line a chromosome, its name and its length): {error}"
        ) from None
    return dict(zip(table[0], table[1].tolist(), strict=True))
