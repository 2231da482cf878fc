"""Exports of many imputed tracks: one pass over the genome, bounded, and gone on with after a kill."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyBigWig
import pytest
import xarray as xr

from xr_avocado import datasets
from xr_avocado.io import bigwig_writer, export
from xr_avocado.io.bigwig import read_bins
from xr_avocado.io.header import BigWigError
from xr_avocado.predictors import ContextPredictor, FactorPredictor, Predictor

FACTORS = {"epochs": 1, "nodes": 8, "layers": 1, "batch": 8_000, "average": True, "context": False}
CONTEXT = {
    "epochs": 1,
    "context_members": 1,
    "context_samples": 2_000,
    "context_units": 4,
    "context_nodes": 8,
    "context_assay_factors": 2,
}


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    cube = datasets.simulate(n_celltypes=3, n_assays=3, chromsizes={"chr1": 500_010, "chr2": 300_007})
    return cube.avocado.hold_out([("C1", "H3K4me3"), ("C2", "H3K27ac"), ("C3", "H3K4me1")])


@pytest.fixture(scope="module", params=[FACTORS, CONTEXT], ids=["factors", "context"])
def full(cube: xr.Dataset, request: pytest.FixtureRequest) -> xr.Dataset:
    return cube.avocado.fit(config=request.param, progress=False).avocado.impute()


@pytest.fixture(autouse=True)
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even these small cubes come in four pieces."""
    monkeypatch.setattr(export, "PIECE", 1 << 13)
    monkeypatch.setattr(export, "SHORTEST", 1 << 10)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Tracks and bins of each call of a predictor."""
    calls: list[tuple[int, int]] = []

    def spied(kind: type[Predictor]) -> None:
        plain = kind.predict

        def predict(self: Predictor, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
            calls.append((len(celltype), rows.stop - rows.start))
            return plain(self, celltype, assay, rows)

        monkeypatch.setattr(kind, "predict", predict)

    spied(FactorPredictor)
    spied(ContextPredictor)
    yield calls


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_all_tracks_are_computed_in_one_pass(full, computed, tmp_path):
    files = full.avocado.to_bigwig(tmp_path, progress=False)
    assert {n for n, _ in computed} == {9} == {len(files)}
    assert sum(bins for _, bins in computed) == full.sizes["position"]
    values = full.imputed.values
    for k, (celltype, assay) in enumerate(np.ndindex(3, 3)):
        back = np.arcsinh(read_bins(files.path[k], full.avocado.bins))
        np.testing.assert_allclose(back, values[celltype, assay], rtol=1e-5, atol=1e-6)


def test_tracks_of_any_choice_and_order_are_those_asked_for(full, computed, tmp_path):
    tracks = [("C3", "H3K4me1"), ("C1", "H3K4me1"), ("C2", "H3K4me3")]
    files = full.avocado.to_bigwig(tmp_path, tracks=tracks, untransform=False, progress=False)
    assert sum(n * bins for n, bins in computed) == 3 * full.sizes["position"]
    for (celltype, assay), path in zip(tracks, files.path, strict=True):
        expected = full.imputed.sel(celltype=celltype, assay=assay).values
        np.testing.assert_allclose(read_bins(path, full.avocado.bins), expected, rtol=1e-5, atol=1e-6)


def test_single_tracks_are_sliced_as_numpy_slices_them(full):
    pair = {"celltype": ("track", [2, 0, 1]), "assay": ("track", [1, 1, 0])}
    lazy, whole = full.imputed.isel(pair), full.imputed.values[[2, 0, 1], [1, 1, 0]]
    assert lazy.dims == ("track", "position")
    for step in (np.s_[1], np.s_[:, 5:9_000:7], np.s_[::-1, -4:], np.s_[[2, 0], 3:6], np.s_[:, 17]):
        np.testing.assert_allclose(lazy.data[step].compute(), whole[step], atol=1e-5)


@pytest.mark.parametrize("full", [FACTORS], indirect=True)
def test_processes_write_what_a_thread_writes(full, tmp_path):
    full.avocado.to_bigwig(tmp_path / "thread", n_jobs=0, progress=False)
    full.avocado.to_bigwig(tmp_path / "processes", n_jobs=2, progress=False)
    assert hashes(tmp_path / "thread") == hashes(tmp_path / "processes")


@pytest.mark.parametrize("n_jobs", [0, 1])
def test_an_interrupted_export_goes_on(full, computed, tmp_path, monkeypatch, n_jobs):
    full.avocado.to_bigwig(tmp_path / "whole", progress=False)
    once, add = len(computed), export.Writers.add
    computed.clear()

    def interrupted(self, rows, values):
        if rows.start >= 1 << 14:
            raise KeyboardInterrupt
        add(self, rows, values)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(export.Writers, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            full.avocado.to_bigwig(out, n_jobs=n_jobs, progress=False)
    assert [p.name for p in out.iterdir()] == [".samples.tsv.building"], "no file, and no half of one"
    full.avocado.to_bigwig(out, n_jobs=n_jobs, progress=False)
    assert len(computed) == once, "no piece was computed twice"
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.parametrize("full", [FACTORS], indirect=True)
def test_a_piece_that_was_damaged_in_between_is_noticed_and_computed_anew(
    full, computed, tmp_path, monkeypatch, caplog
):
    full.avocado.to_bigwig(tmp_path / "whole", progress=False)
    once, add = len(computed), export.Writers.add
    computed.clear()

    def interrupted(self, rows, values):
        if rows.start >= 1 << 14:
            raise KeyboardInterrupt
        add(self, rows, values)

    out, kept = tmp_path / "out", tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr(export.Writers, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            full.avocado.to_bigwig(out, n_jobs=0, progress=False)
    shutil.copytree(out, kept)
    (name, *_) = sorted(path.relative_to(out) for path in out.rglob("*.npz"))
    whole = (out / name).read_bytes()
    changes = {
        f"a bit at {at}": _flipped(whole, at) for at in np.linspace(300, len(whole) - 300, 5).astype(int).tolist()
    }
    for what, content in {**changes, "cut": whole[:1000], "empty": b"", "of another format": b"\x93NUMPY" * 99}.items():
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        (out / name).write_bytes(content)
        computed.clear()
        caplog.clear()
        full.avocado.to_bigwig(out, n_jobs=0, progress=False)
        assert hashes(out) == hashes(tmp_path / "whole"), what
        assert f"{name.name} is damaged: what it held is computed anew" in caplog.text, what
        assert len(computed) == once - len(list(kept.rglob("*.npz"))) + 1, what


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def test_files_that_are_complete_are_kept(full, computed, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOGETHER", 4)
    full.avocado.to_bigwig(tmp_path / "whole", progress=False)
    close, closed = bigwig_writer.TrackWriter.close, []

    def breaks(self):
        closed.append(self)
        if len(closed) == 6:
            raise OSError("no space left")
        close(self)

    with monkeypatch.context() as patch:
        patch.setattr(bigwig_writer.TrackWriter, "close", breaks)
        with pytest.raises(OSError, match="no space left"):
            full.avocado.to_bigwig(tmp_path / "out", progress=False)
    there = {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.bw")}
    assert len(there) == 5 and not list((tmp_path / "out").glob(".*.tmp"))
    computed.clear()
    full.avocado.to_bigwig(tmp_path / "out", progress=False)
    assert there.items() <= {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.bw")}.items()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert sum(n * bins for n, bins in computed) == full.sizes["position"], "only the last group was computed"


def test_what_another_export_left_is_not_gone_on_with(cube, full, tmp_path, monkeypatch):
    def interrupted(self, rows, values):
        if rows.start >= 1 << 14:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export.Writers, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            full.avocado.to_bigwig(tmp_path / "out", progress=False)
    config = {**full.attrs["avocado"]["config"], "epochs": 1}
    other = cube.avocado.fit(config=config, seed=7, progress=False).avocado.impute()
    files = other.avocado.to_bigwig(tmp_path / "out", untransform=False, progress=False)
    np.testing.assert_allclose(
        read_bins(files.path[0], cube.avocado.bins), other.imputed[0, 0].values, rtol=1e-5, atol=1e-6
    )


def test_a_part_has_another_identity(full):
    whole = full.imputed.data.identity
    assert whole == full.imputed.transpose("celltype", "assay", "position").data.identity
    for part in (full.avocado.sel("chr1"), full.isel(celltype=[0, 1]), full.isel(position=slice(1, None))):
        assert part.imputed.data.identity != whole


@pytest.mark.slow
@pytest.mark.parametrize("full", [FACTORS], indirect=True)
def test_an_export_killed_alone_takes_its_writers_along_and_goes_on(full, tmp_path):
    store, out = tmp_path / "fitted.zarr", tmp_path / "out"
    full.drop_vars(["imputed", "imputed_tracks"]).avocado.to_zarr(store, precision="float32", progress=False)
    code = (
        "import time, xr_avocado as xa; from xr_avocado.io import export; export.PIECE = 1 << 12; export.SHORTEST = 1;"
        "add = export.Writers.add; export.Writers.add = lambda *a: (time.sleep(0.2), add(*a));"
        f"xa.open_cube({str(store)!r}).avocado.impute().avocado.to_bigwig({str(out)!r}, n_jobs=2, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    pieces = lambda: list(out.glob(".samples.tsv.building/*.pieces/*.npz"))
    while process.poll() is None and len([p for p in pieces() if not p.name.startswith(".")]) < 3:
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        # A writer that is closing a file notices when that is done; on a busy machine that takes a while.
        for _ in range(600):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert not list(out.glob("*.bw")) and not list(out.glob(".*.tmp")), "neither files nor halves of files"
    kept = pieces()[0]
    with np.load(kept) as piece:
        changed = np.full_like(piece["values"], 3.0)
    with kept.open("wb") as file:
        np.savez(file, values=changed)
    again = subprocess.run([sys.executable, "-c", code.replace("0.2", "0")], check=False, timeout=120)
    assert again.returncode == 0
    assert sorted(p.suffix for p in out.iterdir()) == [".bw"] * 9 + [".tsv"]
    first = int(kept.stem)
    found = np.arcsinh(read_bins(out / "C1.H3K4me3.imputed.bw", full.avocado.bins))
    np.testing.assert_allclose(found[first : first + 4], 3.0, rtol=1e-5)
    elsewhere = first - 9 if first else (1 << 13) + 9
    expected = full.imputed[0, 0, elsewhere : elsewhere + 5]
    np.testing.assert_allclose(found[elsewhere : elsewhere + 5], expected, atol=1e-3)


@pytest.mark.parametrize("full", [FACTORS], indirect=True)
def test_a_writer_that_dies_is_told(full, tmp_path, monkeypatch):
    add = export.Writers.add

    def killing(self, rows, values):
        if rows.start:
            self.lanes[0].process.send_signal(signal.SIGKILL)
        add(self, rows, values)

    monkeypatch.setattr(export.Writers, "add", killing)
    with pytest.raises(BigWigError, match="ended with status -9"):
        full.avocado.to_bigwig(tmp_path, n_jobs=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [".samples.tsv.building"]


@pytest.mark.parametrize("full", [FACTORS], indirect=True)
@pytest.mark.parametrize("n_jobs", [0, 1])
def test_a_value_that_no_file_can_hold_is_told(full, tmp_path, n_jobs):
    huge = full.assign(imputed=full.imputed.where(full.start != 250_000, 500.0))
    with pytest.raises(BigWigError, match="is more than a bigWig can hold"):
        huge.avocado.to_bigwig(tmp_path, n_jobs=n_jobs, progress=False)
    assert not list(tmp_path.glob("*.bw")) and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("full", [FACTORS], indirect=True)
def test_zoom_levels_are_there(full, tmp_path):
    path = full.avocado.to_bigwig(tmp_path, n_jobs=1, progress=False).path[4]
    with pyBigWig.open(path) as handle:
        assert handle.header()["nLevels"] > 1
