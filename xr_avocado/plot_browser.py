"""A figure of exported tracks for pyGenomeTracks: its configuration, which people edit by hand."""

from __future__ import annotations

import os
from configparser import ConfigParser
from pathlib import Path

import pandas as pd

from xr_avocado.cube import ASSAY, CELLTYPE, CubeError
from xr_avocado.io.atomic import local_path, replacing
from xr_avocado.plot_style import COLORS, INK, OTHER_COLORS

__all__ = ["browser_tracks"]

PALETTE = (*COLORS.values(), *OTHER_COLORS)


def browser_tracks(
    files: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    genes: str | os.PathLike[str] | None = None,
    height: float = 2.0,
) -> Path:
    """Write a pyGenomeTracks configuration of bigWig files: a row a track, a color an assay, from 0 upwards.

    Then ``pyGenomeTracks --tracks tracks.ini --region chr1:1000000-1200000 -o figure.pdf`` draws any region of them. Files are named
    relative to the configuration where they lie beside or below it, so that a folder can be moved as a whole.

    Parameters
    ----------
    files
        A frame of celltype, assay and path, as ``.avocado.to_bigwig`` returns it.
    path
        The file to write, such as ``imputed/tracks.ini``; it is complete or absent.
    genes
        A BED or GTF file to draw below.
    height
        Of a track, in cm.

    Returns
    -------
    The path written.

    Raises
    ------
    CubeError
        Where the frame has no rows or lacks a column.

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = cube.avocado.to_bigwig(folder, variable="signal", tracks=[("C1", "DNase")], progress=False)
    ...     xa.plot.browser_tracks(files, f"{folder}/tracks.ini").read_text().splitlines()[:3]
    ['[C1 DNase]', 'file = C1.DNase.signal.bw', 'title = C1 DNase']
    """
    if missing := [name for name in (CELLTYPE, ASSAY, "path") if name not in getattr(files, "columns", ())]:
        raise CubeError(
            f"files need the columns celltype, assay and path, as to_bigwig returns them; no {missing[0]!r}"
        )
    if files.empty:
        raise CubeError("there is no file to draw")
    target = local_path(path, "the configuration is")
    assays = list(dict.fromkeys(files[ASSAY]))
    # Labels and paths may hold a percent sign, which is no reference to anything here.
    ini = ConfigParser(interpolation=None)
    for celltype, assay, file in files[[CELLTYPE, ASSAY, "path"]].itertuples(index=False):
        ini[f"{celltype} {assay}"] = {
            "file": _beside(file, target),
            "title": f"{celltype} {assay}",
            "height": f"{height:g}",
            "color": PALETTE[assays.index(assay) % len(PALETTE)],
            "min_value": "0",
            "summary_method": "mean",
            "file_type": "bigwig",
        }
    ini["spacer"] = {"height": "0.2"}
    if genes is not None:
        ini["genes"] = {"file": _beside(genes, target), "title": "genes", "height": "2", "color": INK, "fontsize": "8"}
    ini["x-axis"] = {}
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as out:
        ini.write(out)
    return target


def _beside(file: str | os.PathLike[str], target: Path) -> str:
    whole = Path(os.path.abspath(file))
    return str(whole.relative_to(target.parent) if whole.is_relative_to(target.parent) else whole)
