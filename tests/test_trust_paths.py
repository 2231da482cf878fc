"""Every function that takes a path, given one that cannot be: an error of ours that names it, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tiny import CONFIG, QUIET

import xr_avocado as xa
from xr_avocado import datasets, plot, tasks
from xr_avocado.assembly import chromosome_sizes
from xr_avocado.cube import CubeError
from xr_avocado.demo import run_demo
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.intervals import as_frame
from xr_avocado.io.bigwig import BigWigError, chromosomes, write_bins
from xr_avocado.io.sheet import SheetError, read_sheet

SIZES = {"chr1": 20_010}
GENES = pd.DataFrame({"chrom": ["chr1"] * 2, "start": [1_000, 9_000], "end": [2_000, 12_000], "strand": "+"})
OURS = (CubeError, GenomeError, SheetError, BigWigError)


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return datasets.simulate(n_celltypes=3, n_assays=3, chromsizes=SIZES)


@pytest.fixture(scope="module")
def fitted(cube: xr.Dataset) -> xr.Dataset:
    return cube.avocado.fit("small", epochs=1, **QUIET).avocado.impute()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test, with what may be in the way."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("dear to me")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def there(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


Write = Callable[[xr.Dataset, Any], Any]
NEW = datasets.simulate(n_celltypes=4, n_assays=3, chromsizes=SIZES)
SHEET = pd.DataFrame({"celltype": ["C1"], "assay": ["A"], "path": ["x.bw"]})
WRITERS: dict[str, Write] = {
    "build_cube": lambda ds, path: xa.build_cube(SHEET, path, genome=SIZES, **QUIET),
    "to_zarr": lambda ds, path: ds.avocado.to_zarr(path, **QUIET),
    "fit": lambda ds, path: ds.avocado.fit(config=CONFIG, epochs=1, store=path, **QUIET),
    "extend": lambda ds, path: ds.avocado.extend(NEW, epochs=1, store=path, **QUIET),
    "to_bigwig": lambda ds, path: ds.avocado.to_bigwig(path, variable="signal", **QUIET),
    "to_chromhmm": lambda ds, path: ds.avocado.to_chromhmm(path, variable="signal", **QUIET),
    "to_keras": lambda ds, path: ds.avocado.to_keras(path, **QUIET),
    "segment": lambda ds, path: ds.avocado.segment(2, bed=path, **QUIET),
    "report": lambda ds, path: ds.avocado.report(path, **QUIET),
    "search": lambda ds, path: ds.avocado.search(1, file=path, **QUIET),
    "demo": lambda ds, path: run_demo(path, **QUIET),
    "browser_tracks": lambda ds, path: plot.browser_tracks(SHEET, path),
    "write_bins": lambda ds, path: write_bins(path, GenomeBins([("chr1", 0, 100)], 25), np.ones(4), SIZES, **QUIET),
}
OPTIONAL = {"segment", "search", "fit", "extend"}
"""What None is nothing wrong for."""
NOWHERE: dict[str, Any] = {
    "a folder that cannot be made": "/proc/none/x",
    "a folder below a file": "file/deeper/x",
    "a file as its folder": "file/x",
    "links in a circle": "loop/x",
    "a name too long": "x" * 300,
    "a folder's name too long": "x" * 300 + "/y",
    "a zero byte": "a\0b",
    "nothing": "",
    "a URL": "s3://bucket/x",
    "a number": 7,
    "bytes": b"x",
}


@pytest.mark.parametrize("where", NOWHERE)
@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_is_told_before_any_work(fitted, elsewhere, name, where, monkeypatch):
    monkeypatch.setattr("xr_avocado.model.training.Trainer.step", lambda *_, **__: pytest.fail("it trained first"))
    monkeypatch.setattr("xr_avocado.segment._trained", lambda *_: pytest.fail("it looked for states first"))
    monkeypatch.setattr("xr_avocado.report._page", lambda *_: pytest.fail("it drew the page first"))
    path, before = NOWHERE[where], there(elsewhere)
    with pytest.raises(OURS) as error:
        WRITERS[name](fitted, path)
    says = str(error.value)
    if isinstance(path, str) and path and "\0" not in path and "://" not in path:
        assert path[:250] in says and "cannot be written: " in says and "; " in says, says
    else:
        assert "written to a path of this machine; got " in says, says
    assert there(elsewhere) == before


READERS: dict[str, Write] = {
    "build_cube's sheet": lambda ds, path: xa.build_cube(path, "new.zarr", genome=SIZES, **QUIET),
    "a sheet's path": lambda ds, path: xa.build_cube(SHEET.assign(path=path), "new.zarr", genome=SIZES, **QUIET),
    "build_cube's genome": lambda ds, path: xa.build_cube(SHEET, "new.zarr", genome=path, **QUIET),
    "read_sheet": lambda ds, path: read_sheet(path),
    "chromosome_sizes": lambda ds, path: chromosome_sizes(path),
    "open_cube": lambda ds, path: xa.open_cube(path),
    "read_keras": lambda ds, path: xa.read_keras(path),
    "chromosomes": lambda ds, path: chromosomes(path),
    "open_dataset": lambda ds, path: xr.open_dataset(path, engine="bigwig"),
    "sel": lambda ds, path: ds.avocado.sel(Path(path)),
    "as_frame": lambda ds, path: as_frame(Path(path)),
    "evaluate's genes": lambda ds, path: ds.avocado.evaluate(annotations={"genes": Path(path)}, **QUIET),
    "evaluate's folder": lambda ds, path: ds.avocado.evaluate(methods={"theirs": Path(path)}, **QUIET),
    "report's genes": lambda ds, path: ds.avocado.report("x.html", genes=Path(path), **QUIET),
    "plot.tracks' genes": lambda ds, path: ds.avocado.plot.tracks("chr1:0-9,000", genes=Path(path)),
    "peaks": lambda ds, path: ds.avocado.variable_loci(peaks={("C1", "H3K4me3"): Path(path)}, **QUIET),
    "expression's track": lambda ds, path: tasks.expression(path, genes=GENES),
    "expression's genes": lambda ds, path: tasks.expression(ds.signal[0, 0], genes=Path(path)),
    "replication_timing": lambda ds, path: tasks.replication_timing(Path(path)),
    "fire": lambda ds, path: tasks.fire(Path(path)),
    "interactions": lambda ds, path: tasks.interactions(Path(path)),
}
MISSING: dict[str, str] = {
    "a file that is not there": "none.x",
    "a folder that is not there": "/proc/none/x",
    "a file as its folder": "file/x",
    "a folder": "folder",
    "links in a circle": "loop",
    "a name too long": "x" * 300,
    "a zero byte": "a\0b",
    "bytes of no format": "noise",
    "an empty file": "empty",
}


@pytest.mark.parametrize("where", MISSING)
@pytest.mark.parametrize("name", READERS)
def test_what_cannot_be_read_is_told_with_its_name(fitted, elsewhere, name, where):
    (elsewhere / "folder").mkdir()
    (elsewhere / "empty").touch()
    (elsewhere / "noise").write_bytes(np.random.default_rng(0).bytes(3_000))
    before, path = there(elsewhere), MISSING[where]
    with pytest.raises((*OURS, ValueError)) as error:
        READERS[name](fitted, path)
    assert "xr_avocado" in str(error.traceback[-1].path), f"raised in {error.traceback[-1].path}: {error.value!r}"
    assert path[:250] in str(error.value) or repr(path)[1:-1] in str(error.value), str(error.value)
    assert there(elsewhere) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else for a while")
@pytest.mark.parametrize("name", [name for name in READERS if name.split("'")[0] not in ("build_cube", "a sheet")])
def test_what_may_not_be_read_is_told_with_its_name(fitted, elsewhere, name):
    """To root nothing is locked: for a while we are nobody, who may not enter this folder."""
    elsewhere.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises((*OURS, ValueError)) as error:
            READERS[name](fitted, "file")
    finally:
        os.seteuid(0)
    assert "xr_avocado" in str(error.traceback[-1].path), f"raised in {error.traceback[-1].path}: {error.value!r}"
    assert "file" in str(error.value), str(error.value)
