"""pretrained and roadmap_pilot: published models and tracks, fetched once and kept."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.assembly import chromosome_sizes
from xr_avocado.cube import ASSAY, CELLTYPE, DIMS, OBSERVED, SIGNAL, CubeError
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins
from xr_avocado.io.atomic import replacing
from xr_avocado.io.download import DownloadError, Remote, cache_folder, fetch, get_json
from xr_avocado.pilot import CHECKSUMS, REGIONS
from xr_avocado.weights import read_keras

__all__ = ["MODELS", "pretrained", "roadmap_pilot"]

ZENODO = "https://zenodo.org"
ORIGINAL = "https://raw.githubusercontent.com/jmschrei/avocado/HEAD/data"
PILOT = "pilot"


class Published(NamedTuple):
    """A model's record on Zenodo, and its assembly."""

    record: int
    genome: str


MODELS: Mapping[str, Published] = {
    "roadmap-hg19": Published(4774412, "hg19"),
    "encode2018core-hg38": Published(4774521, "hg38"),
}


def pretrained(
    model: str,
    *,
    chrom: str | Sequence[str],
    regions: Any = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Fetch a published model from Zenodo, once, and open it as a fitted cube without signal.

    Each chromosome is two files, of hundreds of megabytes or more. They are checked against the record's checksums and kept; a
    download that broke off goes on where it stopped with the next call, and nothing half-written lies under a file's name. What was
    fetched before opens without a network. Genome factors stay in the files and are read where they are asked for.

    Parameters
    ----------
    model
        ``"roadmap-hg19"`` (127 cell types x 24 assays, the model of the Avocado paper) or ``"encode2018core-hg38"``.
    chrom
        A chromosome, or several, which open as one cube; or ``"pilot"``, where the record has it: the model of the ENCODE pilot
        regions that the others started from.
    regions
        With ``"pilot"``: what the rows of its array are (BED file, PyRanges, frame), as ``read_keras`` takes it. The record does not say;
        without it positions are rows of the array, as bins of a chromosome called ``"pilot"``.
    cache
        Folder to keep the files in; by default the one of the environment variable ``XR_AVOCADO_CACHE``, or the system's own.
    progress
        Show a progress bar a file.

    Returns
    -------
    A fitted cube, as ``read_keras`` gives it.

    Raises
    ------
    CubeError
        Where the model or the chromosome is not one that there is, or a file is not what it should be.
    DownloadError
        Where a file cannot be fetched.

    References
    ----------
    Schreiber et al. 2020, doi:10.1186/s13059-020-01977-6 (Roadmap) and doi:10.1186/s13059-020-01978-5 (ENCODE).

    Examples
    --------
    >>> import xr_avocado as xa
    >>> model = xa.datasets.pretrained("roadmap-hg19", chrom="chr21")  # doctest: +SKIP
    >>> model.avocado.impute("E003", "H3K9ac").avocado.sel("chr21:33Mb-34Mb").imputed.plot()  # doctest: +SKIP
    """
    if not isinstance(model, str) or model not in MODELS:
        raise CubeError(f"{model!r} is not a published model; there are {', '.join(map(repr, MODELS))}")
    chroms = list(chrom) if isinstance(chrom, Sequence) and not isinstance(chrom, str) else [chrom]
    _check_chromosomes(chroms, regions)
    record, genome = MODELS[model]
    folder = cache_folder(cache) / model
    listed = _listing(record, folder)
    names = [f"avocado-{c}" for c in chroms]
    files = [_listed(listed, f"{name}{suffix}", model, record) for name in names for suffix in (".json", ".h5")]
    for file in files:
        fetch(file, folder, progress=progress)
    paths = [folder / name for name in names]
    if chroms == [PILOT]:
        return read_keras(paths, chrom=PILOT) if regions is None else read_keras(paths, genome=genome, regions=regions)
    return read_keras(paths, genome=genome, chrom=chroms)


def _check_chromosomes(chroms: Sequence[str], regions: Any) -> None:
    if not chroms or (PILOT in chroms and len(chroms) > 1) or (regions is not None and chroms != [PILOT]):
        raise CubeError(
            f"chrom is a chromosome, several of them, or {PILOT!r} alone, which regions= goes with; got {', '.join(map(str, chroms)) or 'none'}"
        )
    for c in chroms:
        if c != PILOT and not re.fullmatch(r"chr\w{1,2}", str(c)):
            raise CubeError(f"{c!r} is not a chromosome as the published models name them: chr1, chr2, …, or {PILOT!r}")


def _listing(record: int, folder: Path) -> dict[str, Remote]:
    """List the files of a record, by name; a published record never changes, so what was read once is kept."""
    kept = folder / f"record-{record}.json"
    with suppress(OSError, ValueError):
        return _files(json.loads(kept.read_text("utf-8")), record)
    answer = get_json(f"{ZENODO}/api/records/{record}")
    files = _files(answer, record)
    try:
        with replacing(kept) as temporary:
            temporary.write_text(json.dumps(answer), "utf-8")
    except OSError as error:
        raise DownloadError(f"{folder} cannot be written to ({error}); give another folder with cache=") from None
    return files


def _files(answer: Any, record: int) -> dict[str, Remote]:
    """Read a record as Zenodo's interface gives it, before 2023 and since."""
    try:
        found = {}
        for entry in answer["files"]:
            name = entry["key"] if "key" in entry else entry["filename"]
            checksum, size = str(entry["checksum"]), entry["size"] if "size" in entry else entry["filesize"]
            checksum = checksum if ":" in checksum else f"md5:{checksum}"
            found[str(name)] = Remote(name, f"{ZENODO}/records/{record}/files/{name}?download=1", checksum, int(size))
    except (LookupError, TypeError, ValueError) as error:
        raise DownloadError(
            f"what {ZENODO} says of record {record} cannot be understood ({error!r}): fetch its files by other means and open them with "
            "xr_avocado.read_keras"
        ) from None
    return found


def _listed(files: Mapping[str, Remote], name: str, model: str, record: int) -> Remote:
    if name in files:
        return files[name]
    there = sorted(n.removeprefix("avocado-").removesuffix(".h5") for n in files if re.fullmatch(r"avocado-\w+\.h5", n))
    raise CubeError(f"{model} (Zenodo record {record}) has no {name}; chrom= is one of {', '.join(there) or 'none'}")


def roadmap_pilot(*, cache: str | os.PathLike[str] | None = None, progress: bool = True) -> xr.Dataset:
    """Fetch the tracks that the original Avocado repository comes with, once, and give them as a cube.

    Five cell types (E003 H1, E017 IMR90, E065 aorta, E116 GM12878, E117 HeLa-S3) x five marks of Roadmap Epigenomics: -log10 p values,
    arcsinh transformed, hg19, on the 42 ENCODE pilot regions of the autosomes; every one of the 25 was observed. Each file is
    checked against its checksum and kept. In memory: 113 MB.

    Parameters
    ----------
    cache
        Folder to keep the files in; by default the one of the environment variable ``XR_AVOCADO_CACHE``, or the system's own.
    progress
        Show a progress bar.

    Returns
    -------
    A cube: ``signal`` (5 x 5 x 1,126,469, float32) and ``observed``.

    Raises
    ------
    DownloadError
        Where a file cannot be fetched.

    References
    ----------
    github.com/jmschrei/avocado, folder ``data`` (Apache-2.0).

    Examples
    --------
    >>> import xr_avocado as xa
    >>> xa.datasets.roadmap_pilot().sizes["position"]  # doctest: +SKIP
    1126469
    """
    folder = cache_folder(cache) / "roadmap-pilot"
    bins = GenomeBins(REGIONS, 25)
    celltypes, assays = (sorted({pair[i] for pair in CHECKSUMS}) for i in (0, 1))
    signal = np.full((len(celltypes), len(assays), len(bins)), np.nan, np.float32)
    observed = np.zeros(signal.shape[:2], bool)
    for (celltype, assay), checksum in tqdm(
        CHECKSUMS.items(), desc="roadmap pilot", unit="track", disable=not progress
    ):
        name = f"{celltype}.{assay}.pilot.arcsinh.npz"
        at = celltypes.index(celltype), assays.index(assay)
        signal[at] = _track(fetch(Remote(name, f"{ORIGINAL}/{name}", checksum), folder, progress=False), len(bins))
        observed[at] = True
    cube = xr.Dataset(
        {SIGNAL: (DIMS, signal, {"long_name": "signal", "units": "-log10 p"}), OBSERVED: ((CELLTYPE, ASSAY), observed)},
        coords={CELLTYPE: celltypes, ASSAY: assays},
        attrs={
            "genome": "hg19",
            "chromsizes": chromosome_sizes("hg19"),
            "binsize": 25,
            "transform": "arcsinh",
            "uncovered": "zero",
        },
    )
    return assign_bins(cube, bins)


def _track(path: Path, length: int) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            track = arrays["arr_0"]
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise CubeError(f"{path} holds no track ({error}): remove it and call again") from None
    if track.shape != (length,):
        raise CubeError(
            f"{path} has the shape {track.shape}, but the pilot regions have {length:,} bins: remove it and call again"
        )
    return track
