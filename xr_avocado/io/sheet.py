"""The sheet of a build: which file holds which experiment, and whether the files can be built from."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from xr_avocado.cube import ASSAY, CELLTYPE
from xr_avocado.genome import GenomeBins, unknown_chromosome
from xr_avocado.io.bigwig import chromosomes
from xr_avocado.io.header import BigWigError

__all__ = ["SheetError", "Track", "axis_of", "fingerprint", "inspect_files", "read_sheet"]

PATH = "path"
COLUMNS = (CELLTYPE, ASSAY, PATH)


class SheetError(ValueError):
    """A sheet, or files that it names, from which no cube can be built; the message lists all that is wrong."""


class Track(NamedTuple):
    """One experiment and its files: one, or its replicates."""

    celltype: str
    assay: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.celltype} {self.assay}"


def read_sheet(sheet: Any, *, replicates: Literal["mean"] | None = None) -> list[Track]:
    """Read a sheet: a TSV or CSV file, or a frame, with the columns ``celltype``, ``assay`` and ``path``.

    Labels are taken as they are written. Paths are relative to the folder of the sheet, those of a frame to the current one.

    Raises
    ------
    SheetError
        Where columns or cells are missing, or an experiment has several files and ``replicates`` is not ``"mean"``.
    """
    if replicates not in (None, "mean"):
        raise ValueError(f"replicates must be 'mean', to average files of one experiment, or None; got {replicates!r}")
    table, folder, name = _table(sheet)
    table = table[list(COLUMNS)].map(lambda cell: "" if pd.isna(cell) else str(cell).strip())
    table = table.reset_index(drop=True)
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise SheetError(f"{name} has no rows; give one for each bigWig file")
    problems = [
        f"row {i + 1} has no {', '.join(column for column in COLUMNS if not row[column])}"
        for i, row in zip(table.index, table.to_dict("records"), strict=True)
        if not all(row.values())
    ]
    files: dict[tuple[str, str], list[str]] = {}
    for celltype, assay, path in table.itertuples(index=False):
        files.setdefault((celltype, assay), []).append(_located(path, folder))
    for (celltype, assay), paths in files.items():
        if len(set(paths)) < len(paths):
            problems.append(f"{celltype} {assay} has the same file twice: {max(paths, key=paths.count)}")
        elif len(paths) > 1 and replicates is None:
            problems.append(
                f"{celltype} {assay} has {len(paths)} files; average them with replicates='mean', or keep one"
            )
    complain(problems, f"{name} cannot be used")
    return [Track(celltype, assay, tuple(paths)) for (celltype, assay), paths in files.items()]


def _located(path: str, folder: Path) -> str:
    # A URL stays one, so that the error which tells that it has to be downloaded shows it as it is.
    return path if "://" in path else os.path.abspath(folder / Path(path).expanduser())


def _table(sheet: Any) -> tuple[pd.DataFrame, Path, str]:
    if isinstance(sheet, pd.DataFrame):
        table, folder, name = sheet, Path.cwd(), "the sheet"
    elif isinstance(sheet, str | os.PathLike):
        table, folder, name = _read(Path(sheet)), Path(sheet).resolve().parent, os.fspath(sheet)
    else:
        raise SheetError(f"a sheet is the path of a TSV or CSV file, or a frame; got {type(sheet).__name__}")
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise SheetError(
            f"{name} has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. A sheet has the columns "
            f"{', '.join(COLUMNS)}, and one row a bigWig file"
        )
    for column in COLUMNS:
        if list(table.columns).count(column) > 1:
            raise SheetError(f"{name} has more than one column {column}; keep one")
    return table, folder, name


def _read(path: Path) -> pd.DataFrame:
    if os.path.exists(path) and not os.path.isfile(path):
        raise SheetError(
            f"{path} is a folder or a pipe; a sheet is a TSV or CSV file with the columns {', '.join(COLUMNS)}"
        )
    try:
        with path.open(encoding="utf-8-sig") as file:
            sep = "\t" if "\t" in file.readline() else ","
        with warnings.catch_warnings():
            # Of rows that are longer than the header pandas would drop cells.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise SheetError(
            f"there is no sheet {path}: give a TSV or CSV file with the columns {', '.join(COLUMNS)}"
        ) from None
    except UnicodeDecodeError as error:
        raise SheetError(
            f"{path} is not UTF-8 text ({error}): save it as UTF-8, e.g. as 'CSV UTF-8' in Excel"
        ) from None
    except pd.errors.ParserWarning:
        raise SheetError(f"{path} has rows with more cells than its first line has columns") from None
    except (ValueError, OSError, pd.errors.EmptyDataError) as error:
        raise SheetError(f"{path} is no TSV or CSV file: {str(error).strip()}") from None
    return table.rename(columns=str.strip)


def inspect_files(tracks: Iterable[Track]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Open every file once: the chromosomes of those that are whole bigWigs, and what is wrong with the others."""
    found: dict[str, dict[str, int]] = {}
    problems = []
    for path in dict.fromkeys(path for track in tracks for path in track.paths):
        try:
            found[path] = chromosomes(path)
        except BigWigError as error:
            problems.append(str(error))
    return found, problems


def axis_of(
    regions: pd.DataFrame | None,
    binsize: int,
    sizes: Mapping[str, int],
    found: Mapping[str, Mapping[str, int]],
    problems: list[str],
) -> tuple[GenomeBins, list[str]]:
    """Lay out the bins of a build: of the regions, or of the whole chromosomes that all files have.

    Regions are sorted by chromosome, in the assembly's order, and merged where they overlap.

    Returns
    -------
        The bins, and the chromosomes of the assembly that are left out since a file lacks them.

    Raises
    ------
    SheetError
        Where a file lacks a chromosome or has it in another length; with the problems found so far.
    """
    left_out: list[str] = []
    if regions is None:
        shared = [chrom for chrom in sizes if all(chrom in own for own in found.values())]
        left_out = [chrom for chrom in sizes if chrom not in shared]
        wanted = shared
        for path, own in found.items() if not shared else ():
            problems = [
                *problems,
                *([] if set(own) & set(sizes) else [f"{path}: {unknown_chromosome(next(iter(sizes)), tuple(own))}"]),
            ]
        if not shared and not problems:
            problems = [*problems, "there is no chromosome of the assembly that all files have"]
        bins = GenomeBins.from_chromsizes({chrom: sizes[chrom] for chrom in shared}, binsize)
    else:
        bins = GenomeBins.from_regions(_in_genome_order(regions, sizes), binsize, sizes)
        wanted = list(bins.chroms)
    problems = [*problems, *(p for path, own in found.items() for p in _misfits(path, own, wanted, sizes))]
    complain(problems, "these files cannot be built from")
    return bins, left_out


def _misfits(path: str, own: Mapping[str, int], wanted: Iterable[str], sizes: Mapping[str, int]) -> list[str]:
    missing = [chrom for chrom in wanted if chrom not in own]
    other = [chrom for chrom in wanted if chrom in own and own[chrom] != sizes[chrom]]
    problems = [f"{path}: {unknown_chromosome(chrom, tuple(own))}" for chrom in missing[:1]]
    return problems + [
        f"{path}: {chrom} is {own[chrom]:,} long there and {sizes[chrom]:,} in the assembly: is it from another assembly?"
        for chrom in other[:1]
    ]


def _in_genome_order(regions: pd.DataFrame, sizes: Mapping[str, int]) -> pd.DataFrame:
    order = {chrom: i for i, chrom in enumerate(sizes)}
    rank = regions["chrom"].map(order).fillna(len(order))
    table = regions.assign(rank=rank).sort_values(["rank", "chrom", "start", "end"], kind="stable")
    merged: list[list[Any]] = []
    for chrom, start, end in table[["chrom", "start", "end"]].itertuples(index=False):
        if merged and merged[-1][0] == chrom and start < merged[-1][2]:
            merged[-1][2] = max(merged[-1][2], end)
        else:
            merged.append([chrom, start, end])
    return pd.DataFrame(merged, columns=["chrom", "start", "end"])


def complain(problems: list[str], what: str) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        more = f"\n  … and {len(problems) - 50} more" if len(problems) > 50 else ""
        raise SheetError(f"{what}:\n" + "\n".join(f"  {problem}" for problem in problems[:50]) + more)


def fingerprint(path: str) -> str:
    """Tell files apart by their length, first and last bytes; a bigWig's first bytes hold the sums of its values."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(1 << 16)
        file.seek(max(size - (1 << 16), 0))
        return hashlib.sha256(b"%d" % size + head + file.read()).hexdigest()[:16]
