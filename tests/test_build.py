"""build_cube and to_bigwig: from a sheet of bigWig files to a cube and back, through kills, crashes and wrong sheets."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyBigWig
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import bins_of, select
from xr_avocado.io import export
from xr_avocado.io.bigwig import BigWigError, chromosomes, read_bins, write_bins
from xr_avocado.io.build import SheetError, build_cube
from xr_avocado.io.export import to_bigwig
from xr_avocado.io.sheet import axis_of, fingerprint, read_sheet
from xr_avocado.io.zarr import open_cube, to_zarr

SIZES = {"chr2": 30_013, "chr1": 20_000, "chrM": 510}
PAIRS = [("T cell/CD4+ é", "H3K4me3"), ("001", "DNase"), ("T cell/CD4+ é", "DNase")]


def write_track(path, sizes=SIZES, *, seed=0, low=0.0):
    rng = np.random.default_rng(seed)
    bins = GenomeBins.from_chromsizes(sizes, 10)
    values = low + rng.gamma(0.5, 4, len(bins))
    values[rng.random(len(bins)) < 0.1] = np.nan
    write_bins(path, bins, values, sizes, progress=False)
    return path


def write_sheet(folder, rows, name="samples.tsv"):
    table = pd.DataFrame(rows, columns=["celltype", "assay", "path"])
    table.to_csv(folder / name, sep="," if name.endswith("csv") else "\t", index=False)
    return folder / name


def build(sheet, store=None, **how):
    store = Path(sheet).parent / "cube.zarr" if store is None else store
    return build_cube(sheet, store, **{"genome": SIZES, "progress": False, "n_jobs": 1, **how})


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A sheet of three tracks, and the cube that was built of it, as they were before any test."""
    folder = tmp_path_factory.mktemp("first")
    rows = [(*pair, write_track(folder / f"{i}.bw", seed=i).name) for i, pair in enumerate(PAIRS)]
    sheet = write_sheet(folder, rows)
    build(sheet)
    return sheet


@pytest.fixture
def built(first, tmp_path):
    """The sheet, with the built cube beside it."""
    shutil.copytree(first.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / first.name


@pytest.fixture
def sheet(built):
    """The sheet, with nothing built of it."""
    shutil.rmtree(built.parent / "cube.zarr")
    return built


def hashes(store):
    return {
        str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in store.rglob("*") if p.is_file()
    }


def left_beside(store):
    return [name for name in os.listdir(store.parent) if name.startswith(".")]


# --- what a build gives ----------------------------------------------------------------------------------------------------


def test_a_cube_holds_the_bins_of_its_files(sheet):
    cube = build(sheet, n_jobs=2)
    assert cube.celltype.values.tolist() == ["T cell/CD4+ é", "001"]
    assert cube.assay.values.tolist() == ["H3K4me3", "DNase"]
    assert cube.observed.values.tolist() == [[True, True], [False, True]]
    bins = GenomeBins.from_chromsizes(SIZES, 25)
    assert bins_of(cube) == bins
    for i, (celltype, assay) in enumerate(PAIRS):
        means = read_bins(sheet.parent / f"{i}.bw", bins)
        expected = np.arcsinh(means).astype(np.float32).astype(np.float16)
        np.testing.assert_array_equal(cube.signal.sel(celltype=celltype, assay=assay), expected)
    assert cube.signal.sel(celltype="001", assay="H3K4me3").isnull().all()
    assert cube.attrs == {
        "genome": "custom",
        "chromsizes": SIZES,
        "transform": "arcsinh",
        "uncovered": "zero",
        "binsize": 25,
    }
    assert left_beside(sheet.parent / "cube.zarr") == []


@pytest.mark.parametrize(("transform", "uncovered"), [("arcsinh", "ignore"), ("log1p", "zero"), ("none", "ignore")])
def test_transforms_and_what_is_uncovered(sheet, transform, uncovered):
    cube = build(
        sheet, transform=transform, uncovered=uncovered, binsize=40, regions=["chr1:1,000-1,990", "chr2:29kb-"]
    )
    bins = GenomeBins([("chr2", 29_000, 30_013), ("chr1", 1000, 2000)], 40)
    assert bins_of(cube) == bins
    forward = {"arcsinh": np.arcsinh, "log1p": np.log1p, "none": np.asarray}[transform]
    expected = forward(read_bins(sheet.parent / "1.bw", bins, uncovered=uncovered))
    tolerance = 2**-24 if transform == "none" else 2**-11
    np.testing.assert_allclose(cube.signal.sel(celltype="001", assay="DNase"), expected, rtol=tolerance, atol=1e-6)
    assert cube.attrs["uncovered"] == uncovered and cube.attrs["transform"] == transform


def test_the_sheet_may_be_a_csv_or_a_frame(first, monkeypatch):
    expected = read_sheet(first)
    assert [(*track[:2], *map(os.path.basename, track.paths)) for track in expected] == [
        (*pair, f"{i}.bw") for i, pair in enumerate(PAIRS)
    ]
    table = pd.read_csv(first, sep="\t", dtype=str)
    table.to_csv(first.parent / "samples.csv", index=False, encoding="utf-8-sig")
    assert read_sheet(first.parent / "samples.csv") == expected
    monkeypatch.chdir(first.parent)
    assert read_sheet(table.assign(note="more columns are passed over")) == expected


def test_regions_are_sorted_merged_and_widened():
    regions = pd.DataFrame(
        {"chrom": ["chr1", "chr2", "chr1", "chr1"], "start": [500, 110, 90, 120], "end": [510, 120, 130, 300]}
    )
    bins, left_out = axis_of(regions, 25, SIZES, {"a.bw": SIZES}, [])
    assert bins == GenomeBins([("chr2", 100, 125), ("chr1", 75, 300), ("chr1", 500, 525)], 25)
    assert left_out == []


def test_chromosomes_that_a_file_lacks_are_left_out(tmp_path, caplog):
    rows = [("C1", "A1", write_track(tmp_path / "a.bw").name)]
    rows += [("C2", "A1", write_track(tmp_path / "b.bw", {"chr3": 100, "chr1": 20_000, "chr2": 30_013}).name)]
    with caplog.at_level("INFO", "xr_avocado"):
        cube = build(write_sheet(tmp_path, rows), genome={**SIZES, "chr3": 100})
    assert bins_of(cube) == GenomeBins([("chr2", 0, 30_013), ("chr1", 0, 20_000)], 25)
    assert "chrM, chr3" in caplog.text


def test_replicates_are_averaged_before_the_transform(tmp_path):
    rows = [("C1", "A1", write_track(tmp_path / f"{i}.bw", seed=i).name) for i in range(3)]
    sheet = write_sheet(tmp_path, rows)
    with pytest.raises(SheetError, match="C1 A1 has 3 files; average them with replicates='mean', or keep one"):
        build(sheet)
    for uncovered, mean in (("zero", np.mean), ("ignore", np.nanmean)):
        cube = build(sheet, tmp_path / f"{uncovered}.zarr", replicates="mean", precision="float32", uncovered=uncovered)
        tracks = [read_bins(tmp_path / f"{i}.bw", bins_of(cube), uncovered=uncovered) for i in range(3)]
        np.testing.assert_allclose(cube.signal[0, 0], np.arcsinh(mean(tracks, axis=0)), rtol=1e-6)


def test_a_track_is_read_chunk_by_chunk(built, monkeypatch):
    expected = build(built).compute()
    monkeypatch.setattr("xr_avocado.io.plan.CHUNK", 300)
    cube = build(built, built.parent / "small.zarr")
    assert cube.signal.chunks[2][:2] == (300, 300)
    xr.testing.assert_identical(cube.compute(), expected)


def test_keepbits(sheet):
    cube = build(sheet, precision=6)
    exact = np.arcsinh(read_bins(sheet.parent / "1.bw", bins_of(cube)))
    np.testing.assert_allclose(cube.signal.sel(celltype="001", assay="DNase"), exact, rtol=2**-7, atol=1e-6)
    assert len(np.unique(cube.signal.sel(celltype="001", assay="DNase"))) < 700


def test_a_cube_of_real_tracks_is_its_files_to_float16(shared, tmp_path):
    pilot = shared / "data" / "roadmap_pilot"
    tracks = [("E116", "H3K4me3"), ("E003", "H3K27me3"), ("E065", "H3K9me3")]
    rows = [(*track, str(pilot / "bigwig" / f"{'.'.join(track)}.pval.signal.bw")) for track in tracks]
    frame = pd.DataFrame(rows, columns=["celltype", "assay", "path"])
    how = {"genome": "hg19", "regions": pilot / "pilot_regions.hg19.bed"}
    cube = build(frame, tmp_path / "pilot.zarr", **how)
    assert cube.sizes["position"] == 1_126_469
    for celltype, assay, path in rows:
        exact = np.arcsinh(read_bins(path, bins_of(cube)))
        stored = cube.signal.sel(celltype=celltype, assay=assay).values.astype(np.float64)
        normal = exact >= 2**-14
        # float16 has 11 significant bits, so that rounding to nearest errs by at most one part in 2**11; 2**-25 below 2**-14.
        assert (abs(stored - exact)[normal] / exact[normal]).max() <= 2**-11
        assert abs(stored - exact)[~normal].max(initial=0) <= 2**-25
    files = to_bigwig(select(cube, "chr21"), tmp_path / "out", variable="signal", progress=False)
    again = build(
        tmp_path / "out" / "samples.tsv",
        tmp_path / "again.zarr",
        genome="hg19",
        regions=bins_of(select(cube, "chr21")).segments,
    )
    assert len(files) == 3
    np.testing.assert_array_equal(
        again.signal.sel(celltype=cube.celltype, assay=cube.assay), select(cube, "chr21").signal
    )


# --- to bigWig and back ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_lengths():
    """One chromosome of every length mod 25, in an order that is not the assembly's; signal that is not float32."""
    lengths = [200 + 30 * k + k for k in range(25)]
    assert {length % 25 for length in lengths} == set(range(25))
    sizes = {f"chr{k}": length for k, length in enumerate(lengths)}
    bins = GenomeBins.from_chromsizes(dict(reversed(sizes.items())), 25)
    return sizes, bins


def test_a_cube_goes_to_bigwigs_and_back(tmp_path, all_lengths):
    sizes, bins = all_lengths
    rng = np.random.default_rng(0)
    write_bins(tmp_path / "a.bw", bins, rng.gamma(0.3, 50, len(bins)), sizes, progress=False)
    write_bins(tmp_path / "b.bw", bins, rng.normal(0, 5, len(bins)), sizes, progress=False)
    sheet = write_sheet(tmp_path, [("C1", "A1", "a.bw"), ("C2", "A2", "b.bw")])
    cube = build(sheet, genome=sizes, precision="float32")
    files = to_bigwig(cube, tmp_path / "out", variable="signal", progress=False)
    assert files.celltype.tolist() == ["C1", "C2"] and files.assay.tolist() == ["A1", "A2"]
    assert [os.path.relpath(path, tmp_path) for path in files.path] == ["out/C1.A1.signal.bw", "out/C2.A2.signal.bw"]
    for original, path in zip(["a.bw", "b.bw"], files.path, strict=True):
        assert chromosomes(path) == sizes
        np.testing.assert_allclose(read_bins(path, bins), read_bins(tmp_path / original, bins), rtol=3e-6)
        handle = pyBigWig.open(path)
        assert all(handle.intervals(chrom)[-1][1] == size for chrom, size in sizes.items())
        handle.close()
    again = build(tmp_path / "out" / "samples.tsv", tmp_path / "again.zarr", genome=sizes, precision="float32")
    assert bins_of(again) == bins_of(cube)
    np.testing.assert_allclose(again.signal, cube.signal, rtol=1e-6, atol=1e-7)


@given(
    sizes=st.lists(st.integers(1, 130), min_size=1, max_size=4).map(
        lambda n: {f"chr{i}": size for i, size in enumerate(n)}
    ),
    order=st.randoms(),
    piece=st.sampled_from([1, 3, 1 << 20]),
)
def test_tracks_of_any_chromosomes_come_back(sizes, order, piece, tmp_path_factory):
    chroms = list(sizes)
    order.shuffle(chroms)
    bins = GenomeBins.from_chromsizes({chrom: sizes[chrom] for chrom in chroms}, 25)
    values = np.random.default_rng(len(bins)).normal(size=(1, 2, len(bins))).astype(np.float32)
    cube = xr.Dataset(
        {"signal": (("celltype", "assay", "position"), values), "observed": (("celltype", "assay"), [[True, True]])},
        coords={"celltype": ["C"], "assay": ["A", "B"]},
        attrs={"chromsizes": sizes, "transform": "arcsinh"},
    )
    from xr_avocado.index import assign_bins

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "PIECE", piece)
        files = to_bigwig(
            assign_bins(cube, bins), tmp_path_factory.getbasetemp() / "out", variable="signal", progress=False
        )
    for j, path in enumerate(files.path):
        np.testing.assert_allclose(np.arcsinh(read_bins(path, bins)), values[0, j], rtol=1e-6, atol=1e-7)


def test_names_of_files_stay_in_the_folder(tmp_path):
    labels = ["../../etc", "a/b", "a_b", "A_B", ".hidden", "é ü", "x" * 300]
    n = len(labels)
    bins = GenomeBins([("chr1", 0, 50)], 25)
    from xr_avocado.index import assign_bins

    cube = assign_bins(
        xr.Dataset(
            {
                "signal": (("celltype", "assay", "position"), np.ones((n, 1, 2), np.float32)),
                "observed": (("celltype", "assay"), np.ones((n, 1), bool)),
            },
            coords={"celltype": labels, "assay": ["H3K4me3 (ab/1)"]},
            attrs={"chromsizes": {"chr1": 50}},
        ),
        bins,
    )
    (tmp_path / "deep" / "er").mkdir(parents=True)
    files = to_bigwig(cube, tmp_path / "deep" / "er", variable="signal", progress=False)
    assert files.celltype.tolist() == labels
    assert len({path.casefold() for path in files.path}) == n
    assert {os.path.dirname(path) for path in files.path} == {str(tmp_path / "deep" / "er")}
    assert sorted(os.listdir(tmp_path / "deep" / "er")) == sorted([*map(os.path.basename, files.path), "samples.tsv"])
    back = build(
        tmp_path / "deep" / "er" / "samples.tsv", tmp_path / "back.zarr", genome={"chr1": 50}, transform="none"
    )
    assert back.celltype.values.tolist() == labels
    assert (back.signal == 1).all()


def test_imputed_tracks_are_those_asked_for(tmp_path, built):
    cube = build(built)
    asked = xr.zeros_like(cube.observed)
    asked[1, 0] = True
    imputed = cube.assign(imputed=cube.signal.fillna(1.0), imputed_tracks=asked)
    files = to_bigwig(imputed, tmp_path / "out", progress=False)
    assert files[["celltype", "assay"]].values.tolist() == [["001", "H3K4me3"]]
    assert files.path[0].endswith("001.H3K4me3.imputed.bw")
    np.testing.assert_allclose(read_bins(files.path[0], bins_of(cube)), np.sinh(1.0), rtol=1e-6)
    plain = to_bigwig(imputed, tmp_path / "plain", tracks=[("001", "H3K4me3")], untransform=False, progress=False)
    np.testing.assert_allclose(read_bins(plain.path[0], bins_of(cube)), 1.0)


def test_what_cannot_be_exported_is_told(tmp_path, built):
    cube = build(built)
    bare = cube.drop_attrs(deep=False).assign_attrs(binsize=25)
    cases = [
        (lambda: to_bigwig(cube, tmp_path / "out"), CubeError, "has no 'imputed'; add it with"),
        (lambda: to_bigwig(bare, tmp_path / "out", variable="signal"), CubeError, "needs the lengths of chromosomes"),
        (
            lambda: to_bigwig(cube, tmp_path / "out", variable="observed"),
            CubeError,
            "tracks are celltype x assay x position",
        ),
        (
            lambda: to_bigwig(cube, tmp_path / "out", variable="signal", tracks=[("X", "DNase")]),
            CubeError,
            "'X' is not a celltype",
        ),
        (lambda: to_bigwig(cube, tmp_path / "out", variable="signal", tracks=[]), CubeError, "no track of 'signal'"),
        (
            lambda: to_bigwig(cube.assign_attrs(chromsizes={"1": 5}), tmp_path / "out", variable="signal"),
            CubeError,
            "chromosome 'chr2' is not here",
        ),
        (
            lambda: to_bigwig(
                cube.assign_attrs(chromsizes=dict.fromkeys(SIZES, 99)), tmp_path / "out", variable="signal"
            ),
            BigWigError,
            "ends at 99",
        ),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


# --- killed, crashed, added to ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Tracks that take a while, and the store that an undisturbed build makes of them."""
    folder = tmp_path_factory.mktemp("many")
    sizes = {"chr1": 3_000_010, "chr2": 2_000_000}
    files = [write_track(folder / f"{i}.bw", sizes, seed=i).name for i in range(5)]
    rows = [(f"C{i // 3}", f"A{i % 3}", files[i % 5]) for i in range(15)]
    sheet = write_sheet(folder, rows)
    build(sheet, folder / "whole.zarr", genome=sizes)
    return sheet, sizes, hashes(folder / "whole.zarr")


def killed_build(sheet, store, sizes, done):
    """Build in a process that is killed, with all of its kind, once so many tracks are done."""
    code = f"from xr_avocado.io.build import build_cube; build_cube({str(sheet)!r}, {str(store)!r}, genome={sizes!r}, n_jobs=2, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    tracks = store.with_name(f".{store.name}.building") / "tracks"
    finished = lambda: [p for p in tracks.glob("*") if p.suffix != ".tmp"]
    while process.poll() is None and (len(finished()) < done or not tracks.exists()):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {p.name for p in finished()}


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(many, tmp_path):
    sheet, sizes, expected = many
    store, inodes = tmp_path / "cube.zarr", {}
    for done in (1, 5):
        finished = killed_build(sheet, store, sizes, done)
        assert len(finished) >= done and not store.exists()
        with pytest.raises(CubeError, match="has not finished: run the same build_cube again"):
            open_cube(store)
        tracks = store.with_name(".cube.zarr.building") / "tracks"
        now = {p: p.stat().st_ino for name in finished for p in (tracks / name).rglob("*") if p.is_file()}
        assert inodes.items() <= now.items()
        inodes = now
    build(sheet, store, genome=sizes)
    assert hashes(store) == expected
    assert left_beside(store) == []
    kept = {p.stat().st_ino for p in (store / "signal" / "c").rglob("*") if p.is_file()}
    assert len(kept & set(inodes.values())) >= 5


def test_a_build_killed_alone_takes_its_workers_along(many, tmp_path):
    sheet, sizes, expected = many
    store = tmp_path / "cube.zarr"
    code = f"from xr_avocado.io.build import build_cube; build_cube({str(sheet)!r}, {str(store)!r}, genome={sizes!r}, n_jobs=2, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    tracks = tmp_path / ".cube.zarr.building" / "tracks"
    while process.poll() is None and not (tracks.exists() and any(tracks.iterdir())):
        time.sleep(0.002)
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        for _ in range(500):
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    build(sheet, store, genome=sizes)
    assert hashes(store) == expected


def test_tracks_are_added_as_if_they_had_been_there(many, tmp_path):
    sheet, sizes, expected = many
    rows = pd.read_csv(sheet, sep="\t").assign(path=lambda t: [str(sheet.parent / p) for p in t.path])
    store = tmp_path / "cube.zarr"
    first = build(rows[:4], store, genome=sizes).compute()
    assert first.sizes["celltype"] == 2
    inode = (store / "signal/c/0/0/0").stat().st_ino
    build(rows[4:9], store, genome=sizes)
    cube = build(rows, store, genome=sizes)
    assert hashes(store) == expected
    assert (store / "signal/c/0/0/0").stat().st_ino == inode
    xr.testing.assert_identical(
        cube.compute().sel(celltype=first.celltype, assay=first.assay).where(first.observed).signal, first.signal
    )


def test_a_store_that_is_added_to_stays_until_the_new_one_is_whole(built, tmp_path):
    store = tmp_path / "cube.zarr"
    build(built, store)
    before = hashes(store)
    (tmp_path / "text.bw").write_text("no bigWig")
    rows = [("new", "DNase", write_track(tmp_path / "ok.bw", low=-9).name), ("new", "H3K4me3", "text.bw")]
    with pytest.raises(SheetError, match="text.bw is not a bigWig"):
        build(write_sheet(tmp_path, rows), store)
    assert hashes(store) == before and left_beside(store) == []


def test_a_store_is_found_again_after_a_kill_amid_its_replacement(built, tmp_path):
    """For an instant neither the old store nor the new one is in its place."""
    store, staging = tmp_path / "cube.zarr", tmp_path / ".cube.zarr.building"
    before = hashes(store)
    staging.mkdir()
    store.rename(staging / "store.old")
    build(built, store)
    assert hashes(store) == before


def test_a_changed_file_is_told_and_a_moved_one_is_not(built, tmp_path):
    store = built.parent / "cube.zarr"
    build(built)
    before = hashes(store)
    moved = built.parent / "moved"
    moved.mkdir()
    for path in [*built.parent.glob("*.bw"), built]:
        path.rename(moved / path.name)
    build(moved / built.name, store)
    assert hashes(store) == before
    write_track(moved / "1.bw", seed=99)
    with pytest.raises(SheetError, match=r"files of its tracks have changed(?s:.*)001 DNase: .*1\.bw is not the file"):
        build(moved / built.name, store)
    assert hashes(store) == before


def test_a_store_of_other_settings_is_not_added_to(built):
    build(built)
    for how, message in [
        ({"binsize": 50}, "bins of 25 bp"),
        ({"regions": "chr1"}, "was built with bins"),
        ({"transform": "log1p"}, "transform 'arcsinh', not 'log1p'"),
        ({"uncovered": "ignore"}, "uncovered 'zero', not 'ignore'"),
        ({"precision": "float32"}, "dtype 'float16', not 'float32'"),
        ({"precision": 7}, "keepbits None, not 7"),
    ]:
        with pytest.raises(CubeError, match=message):
            build(built, **how)


def test_a_fitted_store_is_not_added_to(built):
    store = built.parent / "cube.zarr"
    cube = build(built)
    to_zarr(
        cube.assign(celltype_factors=(("celltype", "f"), np.ones((2, 3), np.float32))),
        store,
        overwrite=True,
        progress=False,
    )
    with pytest.raises(CubeError, match=r"holds more than signal \(celltype_factors\)"):
        build(built)


def test_a_store_written_anew_takes_more_tracks(built, tmp_path):
    store = built.parent / "cube.zarr"
    to_zarr(build(built), store, overwrite=True, progress=False)
    rows = [("new", "DNase", write_track(tmp_path / "new.bw", seed=7).name)]
    cube = build(write_sheet(tmp_path, rows, "more.tsv"), store)
    assert cube.celltype.values.tolist() == ["T cell/CD4+ é", "001", "new"]
    expected = np.arcsinh(read_bins(tmp_path / "new.bw", bins_of(cube)))
    np.testing.assert_allclose(cube.signal.sel(celltype="new", assay="DNase"), expected, rtol=2**-11, atol=1e-6)
    assert cube.signal.sel(celltype="001", assay="DNase").notnull().all()


def test_a_track_that_fails_is_named_and_the_others_are_kept(tmp_path):
    rows = [(f"C{i}", "A", write_track(tmp_path / f"{i}.bw", seed=i, low=-5 if i == 1 else 0).name) for i in range(3)]
    sheet = write_sheet(tmp_path, rows)
    with pytest.raises(
        SheetError,
        match=r"1 of 3 tracks failed; 2 are done(?s:.*)C1 A \(.*1\.bw\): the signal is -.* at chr2:.*'log1p' cannot take",
    ):
        build(sheet, transform="log1p")
    assert not (tmp_path / "cube.zarr").exists()


def test_scripts_need_no_main_guard(sheet):
    script = sheet.parent / "script.py"
    script.write_text(
        f"import xr_avocado as xa\nxa.build_cube('samples.tsv', 'script.zarr', genome={SIZES!r}, progress=False)\n"
    )
    subprocess.run([sys.executable, script.name], cwd=sheet.parent, check=True)
    assert open_cube(sheet.parent / "script.zarr").observed.sum() == 3


# --- sheets that are wrong -------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_files_is_told_at_once(tmp_path):
    good = write_track(tmp_path / "good.bw").name
    (tmp_path / "text.bw").write_text("chr1\t0\t5\t1")
    (tmp_path / "bed.bb").write_bytes(bytes.fromhex("ebf28987") + bytes(100))
    names = write_track(tmp_path / "names.bw", {"2": 30_013, "1": 20_000, "M": 510}).name
    other = write_track(tmp_path / "other.bw", {"chr2": 30_014, "chr1": 20_000, "chrM": 510}).name
    files = [good, "absent.bw", "text.bw", "bed.bb", names, other, "."]
    sheet = write_sheet(tmp_path, [(f"C{i}", "A", path) for i, path in enumerate(files)])
    with pytest.raises(SheetError) as error:
        build(sheet, regions=["chr1", "chr2"])
    for problem in (
        "absent.bw is not there",
        "text.bw is not a bigWig",
        "bed.bb is a bigBed",
        "names.bw: chromosome 'chr2' is not here; there are 2, 1, M; did you mean '2'?",
        "other.bw: chr2 is 30,014 long there and 30,013 in the assembly: is it from another assembly?",
        "is a folder",
    ):
        assert problem in str(error.value)
    assert "good.bw" not in str(error.value)
    assert not (tmp_path / "cube.zarr").exists() and left_beside(tmp_path / "cube.zarr") == []


def test_files_without_a_shared_chromosome_are_told(tmp_path):
    names = write_track(tmp_path / "names.bw", {"2": 30_013, "1": 20_000}).name
    with pytest.raises(SheetError, match=r"names\.bw: chromosome 'chr2' is not here; there are 2, 1; did you mean '2'"):
        build(write_sheet(tmp_path, [("C", "A", names)]))
    with pytest.raises(SheetError, match="no chromosome of the assembly that all files have"):
        axis_of(None, 25, SIZES, {"a.bw": {"chr1": 20_000}, "b.bw": {"chr2": 30_013}}, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no TSV or CSV"),
        ("celltype\tassay\tpath\n", "has no rows"),
        ("cell\tassay\tfile\nC\tA\tx.bw\n", "has no column celltype, path; it has cell, assay, file"),
        ("celltype,assay,path\nC,A,x.bw\nC,,y.bw\n,A,\n", r"row 2 has no assay\n.*row 3 has no celltype, path"),
        ("celltype\tassay\tpath\nC\tA\tx.bw\nC\tA\ty.bw\n", "C A has 2 files; average them with replicates='mean'"),
    ],
)
def test_a_sheet_that_is_wrong_is_told(tmp_path, text, message):
    (tmp_path / "sheet.tsv").write_text(text)
    with pytest.raises(SheetError, match=message) as error:
        build(tmp_path / "sheet.tsv")
    assert "sheet.tsv" in str(error.value)


def test_arguments_are_checked_before_work_starts(sheet):
    for how, error, message in [
        ({"transform": "log"}, ValueError, "choose one of arcsinh"),
        ({"uncovered": "nan"}, ValueError, "uncovered must be one of"),
        ({"precision": "float64"}, ValueError, "precision must be"),
        ({"replicates": "sum"}, ValueError, "replicates must be 'mean'"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be at least 1"),
        ({"genome": "hg99"}, GenomeError, "neither a file nor an assembly"),
        ({"regions": "chr1:5-"}, None, ""),
        ({"regions": "chr9", "store": "nine.zarr"}, GenomeError, "chromosome 'chr9' is not here"),
        ({"regions": "chr1:0-20,001", "store": "nine.zarr"}, GenomeError, "chr1 ends at 20,000"),
    ]:
        if error is not None:
            with pytest.raises(error, match=message):
                build(sheet, **{**how, "store": sheet.parent / how.get("store", "cube.zarr")})
    with pytest.raises(SheetError, match="there is no sheet"):
        build(sheet.parent / "absent.tsv")
    with pytest.raises(SheetError, match="a sheet is the path of a TSV or CSV file, or a frame; got dict"):
        build_cube({}, sheet.parent / "cube.zarr", genome=SIZES)
    (sheet.parent / "mine").mkdir()
    (sheet.parent / "mine" / "letter.txt").write_text("Dear Sir")
    with pytest.raises(CubeError, match="is no zarr store, so it is not replaced"):
        build(sheet, sheet.parent / "mine")


def test_labels_and_paths_are_as_written(tmp_path):
    (tmp_path / "s.tsv").write_text("celltype\tassay\tpath\tnote\n007\tNA\t~/x.bw\t1\n 1e5 \tTrue\tsub dir/y.bw\t\n")
    tracks = read_sheet(tmp_path / "s.tsv")
    assert [(t.celltype, t.assay) for t in tracks] == [("007", "NA"), ("1e5", "True")]
    assert tracks[0].paths == (os.path.expanduser("~/x.bw"),)
    assert tracks[1].paths == (str(tmp_path / "sub dir" / "y.bw"),)


def test_a_fingerprint_follows_contents_and_not_names(tmp_path):
    a = write_track(tmp_path / "a.bw", seed=1)
    (tmp_path / "b.bw").write_bytes(a.read_bytes())
    os.utime(tmp_path / "b.bw", (0, 0))
    assert fingerprint(str(a)) == fingerprint(str(tmp_path / "b.bw"))
    assert fingerprint(str(write_track(tmp_path / "c.bw", seed=2))) != fingerprint(str(a))
