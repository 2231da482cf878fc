"""Training that ends in a store, and files of results, where the disk is full, read-only or somebody else's: nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import CONFIG, QUIET

from xr_avocado import datasets
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins
from xr_avocado.io.atomic import replacing, telling
from xr_avocado.io.bigwig import BigWigError, read_bins, write_bins
from xr_avocado.io.build import build_cube
from xr_avocado.io.checkpoint import Checkpoint
from xr_avocado.io.zarr import open_cube

TRAIN = {"config": CONFIG, "epochs": 2, **QUIET}
STORED = {"checkpoint_minutes": 0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The same sums in the same order, in this process and in others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return datasets.simulate(n_celltypes=4, n_assays=3, chromsizes={"chr1": 100_010, "chr2": 60_000})


@pytest.fixture(scope="module")
def old(cube: xr.Dataset) -> xr.Dataset:
    """The part of the panel that is fitted first: three cell types, one chromosome."""
    return cube.avocado.sel("chr1").isel(celltype=slice(3)).compute()


@pytest.fixture(scope="module")
def fitted(old: xr.Dataset) -> xr.Dataset:
    return old.avocado.fit(**TRAIN)


def resize(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def till_there_is_room(call: Callable[[], xr.Dataset], disk: Path, kilobytes: range) -> tuple[xr.Dataset, list[str]]:
    """Call until the disk, which grows from one call to the next, is large enough: the result, and what the errors said."""
    told = []
    for size in kilobytes:
        resize(disk, f"size={size}k")
        try:
            return call().compute(), told
        except CubeError as error:
            told.append(str(error))
            assert f"{disk}" in told[-1] and "No space left on device; make room and call again" in told[-1]
            assert not [p for p in disk.rglob("*") if p.name.endswith((".part", ".tmp", ".lock"))]
    raise AssertionError(told[-1])


# --- a full disk -------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_during_fit_costs_no_work_that_was_kept(small_disk, old, fitted):
    store = small_disk / "cube.zarr"
    call = lambda: old.avocado.fit(store=store, **TRAIN, **STORED)
    got, told = till_there_is_room(call, small_disk, range(64, 6_000, 448))
    assert len(told) >= 2 and "context" in told[0] and "factors" in told[-1]
    xr.testing.assert_equal(got.drop_vars("signal"), fitted.drop_vars("signal"))
    assert os.listdir(small_disk) == ["cube.zarr"]


def test_a_disk_that_fills_while_a_store_is_replaced_leaves_the_old_one_whole(small_disk, old, fitted):
    store = small_disk / "cube.zarr"
    resize(small_disk, "size=20M")
    old.avocado.fit(store=store, **TRAIN)
    before = files_of(store)
    resize(small_disk, f"size={sum(map(len, before.values())) // 1024 + 400}k")
    with pytest.raises(CubeError, match="No space left on device"):
        old.avocado.fit(store=store, overwrite=True, seed=1, **TRAIN)
    assert files_of(store) == before
    resize(small_disk, "size=20M")
    other = old.avocado.fit(store=store, overwrite=True, seed=1, **TRAIN)
    assert other.attrs["avocado"]["seed"] == 1 and os.listdir(small_disk) == ["cube.zarr"]


@pytest.mark.parametrize("axis", ["position", "celltype"])
def test_a_disk_that_fills_during_extend_costs_no_work_that_was_kept(small_disk, cube, fitted, axis):
    new = cube.avocado.sel("chr2").isel(celltype=slice(3)) if axis == "position" else cube.avocado.sel("chr1")
    expected = fitted.avocado.extend(new, epochs=2, progress=False)
    store = small_disk / "cube.zarr"
    call = lambda: fitted.avocado.extend(new, epochs=2, store=store, progress=False)
    got, told = till_there_is_room(call, small_disk, range(64, 6_000, 448))
    assert told
    xr.testing.assert_equal(got, expected.compute())
    assert os.listdir(small_disk) == ["cube.zarr"]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(small_disk):
    work = Checkpoint(small_disk / "work", {"seed": 0})
    work.save({"total": np.arange(1000)}, {"step": 1})
    with pytest.raises(CubeError, match=r"work cannot be written: No space left on device; make room and call again"):
        work.save({"total": np.random.default_rng(0).random(1 << 18)}, {"step": 2})
    assert os.listdir(small_disk) == ["work"]
    assert work.load().state == {"step": 1}


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system does not tell which files are open")
def test_a_part_of_an_extension_that_was_damaged_is_told_and_done_anew(tmp_path, cube, fitted, monkeypatch):
    new = cube.avocado.sel("chr2").isel(celltype=slice(3))
    extend = lambda store: fitted.avocado.extend(new, epochs=2, store=store, **QUIET).compute()
    expected, store = extend(tmp_path / "whole.zarr"), tmp_path / "cube.zarr"

    def stop(*args: object, **how: object) -> None:
        raise RuntimeError("the power fails")

    with monkeypatch.context() as changed, pytest.raises(RuntimeError, match="the power fails"):
        changed.setattr("xr_avocado.fit_store.write_cube", stop)
        extend(store)
    (part,) = (tmp_path / ".cube.zarr.fitting").glob("*.done")
    content, rng = part.read_bytes(), np.random.default_rng(0)
    before = len(os.listdir("/dev/fd"))
    for at in rng.integers(len(content), size=20).tolist():
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 1 << 3]) + content[at + 1 :]):
            part.write_bytes(damaged)
            try:
                got = extend(store)
            except CubeError as error:
                assert f"{part} is damaged" in str(error) and "remove it and call again" in str(error)
                assert not store.exists()
            else:
                # Of a zip some bytes say nothing: times, permissions.
                xr.testing.assert_equal(got, expected)
                shutil.rmtree(store)
                part.parent.mkdir()
    assert len(os.listdir("/dev/fd")) == before
    part.unlink()
    xr.testing.assert_equal(extend(store), expected)
    assert sorted(os.listdir(tmp_path)) == ["cube.zarr", "whole.zarr"]


# --- two at once -------------------------------------------------------------------------------------------------------------

CHILD = """
import sys, time, torch
from importlib import import_module
from pathlib import Path
torch.set_num_threads(1)
import xr_avocado as xa
store, (module, name) = sys.argv[1], sys.argv[2].split(":")
module = import_module(f"xr_avocado.{{module}}")
work = getattr(module, name)
def waiting(*args, **how):
    print("training", flush=True)
    while not Path(store).with_name("go").exists():
        time.sleep(0.05)
    return work(*args, **how)
setattr(module, name, waiting)
{call}
"""


@contextmanager
def at_work(store: Path, where: str, call: str) -> Iterator[None]:
    """Another process that trains towards a store, and waits in a function of the package until the block ends."""
    arguments = [sys.executable, "-c", CHILD.format(call=call), str(store), where]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "training\n"
        try:
            yield
        finally:
            store.with_name("go").touch()
        assert first.wait(600) == 0


def told_to_wait(*calls: Callable[[], object]) -> None:
    for call in calls:
        with pytest.raises(CubeError, match=r"another process is writing .*cube\.zarr: wait until it has ended"):
            call()


def test_of_two_that_train_towards_one_store_the_second_is_told_and_nothing_is_damaged(tmp_path, cube, old, fitted):
    store = tmp_path / "cube.zarr"
    old.avocado.to_zarr(f"{store}.in", precision="float32", progress=False)
    sheet = tmp_path / "sheet.tsv"
    sheet.write_text(f"celltype\tassay\tpath\nC1\tA\t{tmp_path}/x.bw\n")
    call = f"xa.open_cube(store + '.in').avocado.fit(store=store, **{dict(TRAIN, **STORED)!r})"
    with at_work(store, "fit:load_panel", call):
        told_to_wait(
            lambda: old.avocado.fit(store=store, **TRAIN),
            lambda: old.avocado.fit(store=store, overwrite=True, seed=7, **TRAIN),
            lambda: fitted.avocado.extend(cube.avocado.sel("chr1"), store=store, epochs=1, progress=False),
            lambda: cube.avocado.to_zarr(store, overwrite=True, progress=False),
            lambda: build_cube(sheet, store, genome={"chr1": 50_010}, progress=False),
        )
        assert not store.exists()
    xr.testing.assert_equal(open_cube(store).compute().drop_vars("signal"), fitted.drop_vars("signal"))
    # Once it has ended, the same call opens what the first one made.
    began = time.time_ns()
    again = old.avocado.fit(store=store, **TRAIN)
    assert all(path.stat().st_mtime_ns < began for path in store.rglob("*"))
    xr.testing.assert_equal(again.compute().drop_vars("signal"), fitted.drop_vars("signal"))
    assert sorted(os.listdir(tmp_path)) == ["cube.zarr", "cube.zarr.in", "go", "sheet.tsv"]


def test_of_two_that_extend_towards_one_store_the_second_is_told_and_nothing_is_damaged(tmp_path, cube, fitted):
    store = tmp_path / "cube.zarr"
    cube.avocado.to_zarr(f"{store}.in", precision="float32", progress=False)
    fitted.avocado.to_zarr(f"{store}.fitted", precision="float32", progress=False)
    fitted, cube = open_cube(f"{store}.fitted"), open_cube(f"{store}.in")
    new = cube.isel(celltype=slice(3)).avocado.sel("chr2")
    extend = lambda store=store, new=new, **how: fitted.avocado.extend(
        new, **{"epochs": 2, **how}, store=store, **QUIET
    )
    call = """
new = xa.open_cube(store + ".in").isel(celltype=slice(3)).avocado.sel("chr2")
xa.open_cube(store + ".fitted").avocado.extend(new, epochs=2, store=store, progress=False)"""
    with at_work(store, "extend_positions:_learn_piece", call):
        told_to_wait(
            extend,
            lambda: extend(overwrite=True, seed=7),
            lambda: extend(new=cube.avocado.sel("chr1")),
        )
        assert not store.exists()
    expected = extend(tmp_path / "alone.zarr").compute()
    xr.testing.assert_equal(extend().compute(), expected)
    assert sorted(os.listdir(tmp_path)) == ["alone.zarr", "cube.zarr", "cube.zarr.fitted", "cube.zarr.in", "go"]


# --- read-only ---------------------------------------------------------------------------------------------------------------


def test_from_a_read_only_disk_everything_is_read_and_writing_says_where_not_to(
    small_disk, tmp_path, cube, old, fitted
):
    sizes = {"chr1": 100_010}
    bins = GenomeBins.from_chromsizes(sizes)
    values = np.random.default_rng(0).random(len(bins)).astype(np.float32)
    resize(small_disk, "size=40M")
    store, track = small_disk / "cube.zarr", small_disk / "x.bw"
    kept = old.avocado.fit(store=store, **TRAIN).compute()
    write_bins(track, bins, values, sizes, progress=False)
    (small_disk / "folder").mkdir()
    resize(small_disk, "ro")

    xr.testing.assert_identical(open_cube(store).compute(), kept)
    xr.testing.assert_identical(old.avocado.fit(store=store, **TRAIN).compute(), kept)
    np.testing.assert_array_equal(read_bins(track, bins), values)
    np.testing.assert_array_equal(xr.open_dataset(track, engine="bigwig").signal, values)
    sheet = tmp_path / "sheet.tsv"
    sheet.write_text(f"celltype\tassay\tpath\nC1\tA\t{track}\n")
    build_cube(sheet, tmp_path / "built.zarr", genome=sizes, n_jobs=1, progress=False)

    paper = old.avocado.fit("small", epochs=1, **QUIET)
    writers = {
        "to_zarr": lambda: old.avocado.to_zarr(small_disk / "new.zarr", **QUIET),
        "to_zarr over": lambda: old.avocado.to_zarr(store, overwrite=True, **QUIET),
        "build_cube": lambda: build_cube(sheet, small_disk / "new.zarr", genome=sizes, **QUIET),
        "fit": lambda: old.avocado.fit(store=small_disk / "new.zarr", **TRAIN),
        "fit over": lambda: old.avocado.fit(store=store, seed=3, overwrite=True, **TRAIN),
        "extend": lambda: fitted.avocado.extend(cube.avocado.sel("chr1"), store=small_disk / "new.zarr", **QUIET),
        "to_bigwig": lambda: old.avocado.to_bigwig(small_disk / "out", variable="signal", **QUIET),
        "to_bigwig there": lambda: old.avocado.to_bigwig(small_disk / "folder", variable="signal", **QUIET),
        "write_bins": lambda: write_bins(track, bins, values, sizes, progress=False),
        "to_chromhmm": lambda: old.avocado.to_chromhmm(small_disk / "folder", variable="signal", **QUIET),
        "report": lambda: old.avocado.report(small_disk / "report.html", **QUIET),
        "segment": lambda: fitted.avocado.segment(2, bed=small_disk / "states.bed", **QUIET),
        "to_keras": lambda: paper.avocado.to_keras(small_disk / "model", **QUIET),
    }
    for name, write in writers.items():
        with pytest.raises(
            CubeError, match="cannot be written: Read-only file system; write to another place"
        ) as error:
            write()
        assert str(small_disk) in str(error.value), name
    xr.testing.assert_identical(open_cube(store).compute(), kept)


def test_an_error_of_a_file_that_is_read_is_not_taken_for_one_of_the_file_that_is_written(tmp_path):
    source, target = tmp_path / "in" / "x.bw", tmp_path / "out" / "y.zarr"
    with pytest.raises(PermissionError, match="x.bw"), telling(target):
        raise PermissionError(13, "Permission denied", str(source))
    with pytest.raises(CubeError, match="y.zarr cannot be written: Permission denied"), telling(target):
        raise PermissionError(13, "Permission denied", str(target.with_name(".y.zarr.tmp")))


# --- what is in the way ------------------------------------------------------------------------------------------------------


def test_a_folder_is_not_replaced_by_a_file(tmp_path, cube, fitted):
    mine = tmp_path / "results"
    mine.mkdir()
    (mine / "notes.txt").write_text("dear to me")
    bins, sizes = GenomeBins([("chr1", 0, 100)], 25), {"chr1": 100}
    for write in (
        lambda: cube.avocado.report(mine, progress=False),
        lambda: fitted.avocado.segment(2, bed=mine, progress=False),
        lambda: write_bins(mine, bins, np.ones(4), sizes, progress=False),
    ):
        with pytest.raises(
            CubeError, match="results cannot be written: Is a directory; a folder is there: choose another name"
        ):
            write()
    with pytest.raises(CubeError, match="Is a directory"), replacing(mine) as temporary:
        temporary.write_text("a file")
    assert (mine / "notes.txt").read_text() == "dear to me" and os.listdir(tmp_path) == ["results"]


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system does not tell which files are open")
def test_a_bigwig_that_could_not_be_finished_is_closed(tmp_path):
    bins, sizes = GenomeBins([("chr1", 0, 100_000)], 25), {"chr1": 100_000}
    values = np.ones(len(bins))
    values[-1] = 1e39
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        with pytest.raises(BigWigError, match="more than a bigWig can hold"):
            write_bins(tmp_path / "x.bw", bins, values, sizes, progress=False)
    assert len(os.listdir("/dev/fd")) == before
    values[-1] = 1
    write_bins(tmp_path / "x.bw", bins, values, sizes, progress=False)
    np.testing.assert_array_equal(read_bins(tmp_path / "x.bw", bins), values)
    assert os.listdir(tmp_path) == ["x.bw"]
