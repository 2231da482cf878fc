"""Stores on disks that fill, lie or are taken away: complete or absent, and damage is told with the file's name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from xr_avocado import datasets
from xr_avocado.cube import CubeError, hold_out
from xr_avocado.genome import GenomeBins
from xr_avocado.io import lock
from xr_avocado.io.bigwig import BigWigError, read_bins, write_bins
from xr_avocado.io.build import SheetError, build_cube
from xr_avocado.io.export import to_bigwig
from xr_avocado.io.lock import only_one
from xr_avocado.io.zarr import open_cube, to_zarr

SIZES = {"chr1": 50_010}
BINS = GenomeBins.from_chromsizes(SIZES, 25)


def sheet_of(folder: Path, n: int = 3, sizes: dict[str, int] = SIZES) -> pd.DataFrame:
    folder.mkdir(exist_ok=True)
    bins = GenomeBins.from_chromsizes(sizes, 25)
    for i in range(n):
        values = np.random.default_rng(i).gamma(0.5, 4, len(bins))
        write_bins(folder / f"{i}.bw", bins, values, sizes, progress=False)
    paths = [str(folder / f"{i}.bw") for i in range(n)]
    return pd.DataFrame({"celltype": [f"C{i}" for i in range(n)], "assay": "A", "path": paths})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted-like cube in a store, of chunks small enough to be several."""
    cube = hold_out(datasets.simulate().isel(position=slice(0, 6_000)), [("C1", "DNase"), ("C2", "H3K4me3")])
    factors = xr.DataArray(np.random.default_rng(0).random((6_000, 3), np.float32), dims=("position", "factor_25bp"))
    store = tmp_path_factory.mktemp("whole") / "cube.zarr"
    cube = cube.assign(signal=cube.signal.chunk(celltype=1, assay=1, position=1 << 14), genome_factors_25bp=factors)
    to_zarr(cube, store, progress=False)
    return store


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cube.zarr"))


def chunk_of(store: Path, array: str) -> Path:
    return next(p for p in sorted((store / array / "c").rglob("*")) if p.is_file())


# --- damage ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", ["signal", "genome_factors_25bp", "observed", "celltype"])
def test_a_flipped_bit_is_told_with_its_chunk(store, array):
    path = chunk_of(store, array)
    content = path.read_bytes()
    for at in np.random.default_rng(0).choice(len(content), 12).tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with pytest.raises(CubeError, match=rf"{array}/c/[\d/]+ is damaged: its contents do not have the checksum"):
            open_cube(store)[array].load()
    path.write_bytes(content)
    open_cube(store)[array].load()


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_chunk_cut_short_is_told(store, keep):
    path = chunk_of(store, "signal")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CubeError, match=r"signal/c/[\d/]+ is damaged"):
        open_cube(store).signal.load()


@pytest.mark.parametrize(
    ("array", "says"), [("signal", r"signal has 0 of the 1 chunks"), ("genome_factors_25bp", "has 0 of the 1 chunks")]
)
def test_a_missing_chunk_is_told_and_is_no_missing_signal(store, array, says):
    chunk_of(store, array).unlink()
    with pytest.raises(CubeError, match=says):
        open_cube(store)[array].load()


def test_missing_tracks_stay_missing_tracks(whole):
    cube = open_cube(whole)
    assert not cube.observed.all()
    assert cube.signal.where(~cube.observed).isnull().all()
    assert "chunks_written" not in cube.signal.attrs


def test_a_copy_that_broke_off_is_told(store):
    shutil.rmtree(store / "signal" / "c" / "0")
    cube = open_cube(store)
    there = cube.observed.values[0].nonzero()[0][0]
    with pytest.raises(CubeError, match="has 0 of the"):
        cube.signal[0, there].load()
    cube.signal[1].load()
    (store / "observed" / "zarr.json").unlink()
    with pytest.raises(CubeError, match="observed"):
        open_cube(store)


def test_a_build_is_told_of_as_well(tmp_path):
    cube = build_cube(sheet_of(tmp_path), tmp_path / "built.zarr", genome=SIZES, n_jobs=1, progress=False)
    path = chunk_of(tmp_path / "built.zarr", "signal")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CubeError, match=r"signal/c/0/0/0 is damaged"):
        cube.signal.load()
    path.unlink()
    with pytest.raises(CubeError, match="has 0 of the 1 chunks"):
        cube.signal.load()


def test_plain_zarr_reads_what_we_write_and_notices_too(store):
    np.testing.assert_array_equal(
        zarr.open_array(store / "signal", mode="r")[:], open_cube(store).signal.values.astype(np.float16)
    )
    path = chunk_of(store, "signal")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(store / "signal", mode="r")[:]


def test_a_store_travels_to_other_processes(whole):
    cube = open_cube(whole)
    xr.testing.assert_identical(pickle.loads(pickle.dumps(cube)).compute(), cube.compute())


def edit(path: Path, change) -> None:
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(zarr_format=4),
        lambda m: m.update(node_type="array"),
        lambda m: m.update(attributes=7),
        lambda m: m["attributes"].update(xr_avocado_format=99),
        lambda m: m["attributes"].update(xr_avocado_format="new"),
        lambda m: m["attributes"].update(segments="chr1"),
        lambda m: m["attributes"].update(segments=[["chr1", 0]]),
        lambda m: m["attributes"].update(binsize=0),
        lambda m: m["attributes"].update(binsize="25"),
        lambda m: m["attributes"].update(transform=["arcsinh"]),
    ],
)
def test_metadata_that_is_none_is_told_with_the_store_s_name(store, change):
    edit(store / "zarr.json", change)
    with pytest.raises(CubeError) as error:
        open_cube(store)
    assert str(store) in str(error.value) or "transform" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(shape=[1, 1, 1]),
        lambda m: m.update(data_type="float128"),
        lambda m: m.update(codecs=[]),
        lambda m: m.update(codecs=[{"name": "of the future"}]),
        lambda m: m.update(chunk_grid={}),
        lambda m: m.pop("dimension_names"),
        lambda m: m.update(dimension_names=["x", "y", "z"]),
    ],
)
def test_arrays_that_cannot_be_are_told(store, change):
    edit(store / "signal" / "zarr.json", change)
    with pytest.raises(CubeError):
        open_cube(store).signal.load()


# --- who may write, and when -------------------------------------------------------------------------------------------------


def test_of_two_writers_the_second_is_told(tmp_path, simulated):
    sheet, part = sheet_of(tmp_path / "in"), simulated.isel(position=slice(4_000))
    model = part.avocado.sel("chr1").avocado.fit("small", epochs=1, progress=False)
    writers = {
        "cube.zarr": lambda: build_cube(sheet, tmp_path / "cube.zarr", genome=SIZES, n_jobs=1, progress=False),
        "copy.zarr": lambda: to_zarr(part, tmp_path / "copy.zarr", progress=False),
        "out/samples.tsv": lambda: to_bigwig(part, tmp_path / "out", variable="signal", progress=False),
        "chr1.json": lambda: model.avocado.to_keras(tmp_path / "chr1", progress=False),
    }
    for name, write in writers.items():
        with only_one(tmp_path / name), pytest.raises(CubeError, match=rf"another process is writing .*{name}: wait"):
            write()
        assert [path.name for path in tmp_path.rglob(".*")] == []
        write()


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from xr_avocado.io.lock import only_one\n"
        f"with only_one(Path({str(tmp_path / 'x')!r})):\n    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(CubeError, match="another process is writing"), only_one(tmp_path / "x"):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with only_one(tmp_path / "x"):
        assert os.listdir(tmp_path) == [".x.lock"]
    assert os.listdir(tmp_path) == []


def test_a_lock_that_was_just_let_go_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, its last holder removes it."""
    taken, path = lock._taken, tmp_path / ".x.lock"
    tries = []

    def once_too_late(descriptor):
        tries.append(1)
        if len(tries) == 1:
            path.unlink()
        return taken(descriptor)

    monkeypatch.setattr(lock, "_taken", once_too_late)
    with only_one(tmp_path / "x"):
        assert path.exists() and len(tries) == 2


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path, simulated):
    sheet = sheet_of(tmp_path / "in")
    (tmp_path / "locked").mkdir()
    (tmp_path / "file").write_text("")
    targets = {tmp_path / "file" / "cube.zarr": "a part of its path is a file", tmp_path / ("x" * 300): "shorter name"}
    for target, says in targets.items():
        for write in (
            lambda target=target: to_zarr(simulated, target, progress=False),
            lambda target=target: build_cube(sheet, target, genome=SIZES, progress=False),
        ):
            with pytest.raises(CubeError, match=f"cannot be written.*{says}"):
                write()


def test_a_disk_that_fills_during_to_zarr_leaves_nothing(small_disk, simulated):
    noise = simulated.assign(
        signal=simulated.signal + np.random.default_rng(0).random(simulated.signal.shape, np.float32)
    )
    with pytest.raises(CubeError, match=r"cube\.zarr cannot be written: No space left on device; make room"):
        to_zarr(noise, small_disk / "cube.zarr", progress=False, precision="float32")
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_during_a_build_goes_on_when_there_is_room(small_disk, tmp_path):
    sizes = {"chr1": 5_000_000}
    sheet = sheet_of(tmp_path / "in", 4, sizes)
    with pytest.raises((SheetError, CubeError), match="No space left on device"):
        build_cube(sheet, small_disk / "cube.zarr", genome=sizes, n_jobs=1, progress=False)
    assert not (small_disk / "cube.zarr").exists()
    subprocess.run(["mount", "-o", "remount,size=40M", str(small_disk)], check=True)
    cube = build_cube(sheet, small_disk / "cube.zarr", genome=sizes, n_jobs=1, progress=False)
    expected = build_cube(sheet, tmp_path / "cube.zarr", genome=sizes, n_jobs=1, progress=False)
    xr.testing.assert_identical(cube.compute(), expected.compute())
    assert os.listdir(small_disk) == ["cube.zarr"]


@pytest.mark.parametrize("n", [20_000, 90_000, 140_000, 170_000, 200_000, 400_000])
def test_a_disk_that_fills_during_a_bigwig_is_told(small_disk, n, monkeypatch):
    """Where it was full, libBigWig left a file cut short and said nothing, or ended the process."""
    monkeypatch.setattr("xr_avocado.io.bigwig_writer.check_room", lambda *_: None)
    bins, values = GenomeBins([("chr1", 0, n * 25)], 25), np.random.default_rng(0).random(n).astype(np.float32)
    try:
        write_bins(small_disk / "x.bw", bins, values, {"chr1": n * 25}, progress=False)
        np.testing.assert_array_equal(read_bins(small_disk / "x.bw", bins), values)
        assert n <= 90_000
    except BigWigError as error:
        assert "has no room for" in str(error) and n > 20_000
        assert os.listdir(small_disk) == []


def test_a_disk_that_fills_during_to_bigwig_leaves_no_part(small_disk, simulated):
    with pytest.raises(BigWigError, match="MB"):
        to_bigwig(simulated, small_disk / "out", variable="signal", progress=False)
    # What the same call would go on from is kept, and names the export; here nothing had been computed yet.
    assert [path.name for path in small_disk.rglob("*") if path.is_file() and path.name != "identity"] == []


# --- killed ------------------------------------------------------------------------------------------------------------------


def killed_after(code: str, seconds: float) -> bool:
    """Run code in a process that is killed, with all of its kind, after a time; tell whether it had ended before."""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def test_what_a_killed_write_left_is_removed_by_the_next_and_nothing_else_is(tmp_path, simulated):
    (tmp_path / ".cube.zarr.0123abcd.tmp").mkdir()
    mine = [".cube.zarr.notes.tmp", ".cube.zarr.0123abcd.tmp.old", ".other.zarr.0123abcd.tmp", "cube.zarr.0123abcd.tmp"]
    for name in mine:
        (tmp_path / name).mkdir()
    to_zarr(simulated, tmp_path / "cube.zarr", progress=False)
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, "cube.zarr"])


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_a_build_killed_at_any_moment_ends_as_an_undisturbed_one(tmp_path):
    sizes = {"chr1": 3_000_010}
    sheet = sheet_of(tmp_path / "in", 6, sizes)
    sheet.to_csv(tmp_path / "sheet.tsv", sep="\t", index=False)
    how = f"genome={sizes!r}, n_jobs=2, progress=False"
    began = time.perf_counter()
    build_cube(tmp_path / "sheet.tsv", tmp_path / "whole.zarr", genome=sizes, n_jobs=2, progress=False)
    lasts = time.perf_counter() - began
    store = tmp_path / "cube.zarr"
    code = f"import xr_avocado as xa; xa.build_cube({str(tmp_path / 'sheet.tsv')!r}, {str(store)!r}, {how})"
    for fraction in np.random.default_rng().uniform(0.3, 1.5, 3):
        killed_after(code, fraction * lasts)
    build_cube(tmp_path / "sheet.tsv", store, genome=sizes, n_jobs=2, progress=False)
    assert files_of(store) == files_of(tmp_path / "whole.zarr")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
