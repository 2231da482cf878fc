"""Chromosome lengths of an assembly, by name or from a file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xr_avocado.genome import GenomeError

__all__ = ["assembly_name", "chromosome_sizes"]


def chromosome_sizes(genome: str | Path | Mapping[str, int]) -> dict[str, int]:
    """Look up chromosome lengths: an assembly that bioframe knows ("hg19", "mm10"), a ``chrom.sizes`` file, or a mapping.

    Raises
    ------
    GenomeError
        Where the name is neither an assembly nor a readable two-column file, or a length is none.

    Examples
    --------
    >>> chromosome_sizes("hg19")["chr21"]
    48129895
    """
    if isinstance(genome, Mapping):
        return _checked([str(chrom) for chrom in genome], list(genome.values()), "genome")
    if not isinstance(genome, str | os.PathLike):
        raise GenomeError(
            f"genome is the name of an assembly, a chrom.sizes file, or a mapping from chromosome to length; got {genome!r}"
        )
    if os.path.isfile(genome):
        return _read_sizes(Path(genome))
    from bioframe import assembly_info

    try:
        if not re.fullmatch(r"[\w.-]+", str(genome)):
            # bioframe puts the name into an expression that it has pandas evaluate.
            raise ValueError("no name of an assembly")
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
    return Path(genome).name.split(".")[0] if os.path.isfile(genome) else str(genome)


def _read_sizes(path: Path) -> dict[str, int]:
    try:
        table = pd.read_csv(path, sep=r"\s+", header=None, comment="#", usecols=[0, 1], dtype={0: str, 1: np.int64})
    except (ValueError, OSError) as error:
        raise GenomeError(
            f"{path} is not a chrom.sizes file (one line a chromosome, its name and its length): {error}"
        ) from None
    return _checked(table[0].str.removeprefix("\ufeff").tolist(), table[1].tolist(), str(path))


def _checked(chroms: list[str], sizes: list[Any], source: str) -> dict[str, int]:
    if not chroms:
        raise GenomeError(f"{source} has no chromosomes; give one or more names with their lengths in bp")
    for chrom, size in zip(chroms, sizes, strict=True):
        if isinstance(size, bool) or not isinstance(size, Integral) or not 0 < int(size) < 1 << 32:
            raise GenomeError(
                f"{source}: {chrom} has the length {size!r}; a length is a whole number of bp from 1 to 2**32 - 1"
            )
    if repeated := [chrom for chrom, number in Counter(chroms).items() if number > 1]:
        raise GenomeError(f"{source}: {repeated[0]} is there more than once")
    return {chrom: int(size) for chrom, size in zip(chroms, sizes, strict=True)}
