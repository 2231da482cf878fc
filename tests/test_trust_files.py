"""Files that lie, break off or hang: each is the right result or an error that names it, and costs no other track."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import damage
import numpy as np
import pandas as pd
import pyBigWig
import pytest

from xr_avocado.cube import CubeError, experiments
from xr_avocado.genome import GenomeBins
from xr_avocado.io import workers
from xr_avocado.io.bigwig import BigWigError, chromosomes, read_bins, write_bins
from xr_avocado.io.build import SheetError, build_cube
from xr_avocado.io.zarr import open_cube

SIZES = {"chr1": 20_000, "chr2": 5_010}


def write_track(path: Path, sizes: dict[str, int] = SIZES, *, seed: int = 0) -> Path:
    bins = GenomeBins.from_chromsizes(sizes, 10)
    write_bins(path, bins, np.random.default_rng(seed).gamma(0.5, 4, len(bins)), sizes, progress=False)
    return path


def sheet_of(*paths: Path | str) -> pd.DataFrame:
    return pd.DataFrame({"celltype": [f"C{i}" for i in range(len(paths))], "assay": "A", "path": list(map(str, paths))})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[damage.Whole]:
    folder = tmp_path_factory.mktemp("samples")
    return [damage.whole(path) for path in damage.write_samples(folder)]


# --- bytes that are others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(5))
def test_a_damaged_file_is_right_or_an_error_that_names_it(samples, kind, tmp_path):
    one, counts = samples[kind], dict.fromkeys((damage.RIGHT, damage.ERROR, damage.UNDETECTABLE, damage.WRONG), 0)
    for i, (what, content, changed) in enumerate(damage.mutants(one, 100, seed=kind)):
        path = tmp_path / f"{i}.bw"
        path.write_bytes(content)
        result, word = damage.outcome(one, path, changed)
        counts[result] += 1
        assert result != damage.WRONG, f"{one.name}, {what} at {sorted(changed)[:1]}: {word}"
    # Were nothing checked, or all refused, one of these would be 0.
    assert counts[damage.RIGHT] >= 15 and counts[damage.ERROR] >= 15
    assert not counts[damage.UNDETECTABLE] or one.name == "uncompressed.bw"


def test_real_files_cut_at_every_4_kib(shared, tmp_path):
    path = tmp_path / "cut.bw"
    for name in ("fixedStep_negative.bw", "pyBigWig_test.bw"):
        shutil.copyfile(shared / "data" / "bigwig_edge" / name, path)
        sizes = chromosomes(path)
        (chrom, end), *_ = sizes.items()
        bins = GenomeBins([(chrom, 0, min(end, 2_000_000))], 1000)
        expected, refused = read_bins(path, bins), 0
        cuts = range(path.stat().st_size // 4096 * 4096, -1, -4096)
        for keep in cuts:
            os.truncate(path, keep)
            try:
                np.testing.assert_array_equal(read_bins(path, bins), expected)
            except BigWigError as error:
                assert str(path) in str(error)
                refused += 1
        # What is left when the last of the zoom levels is cut is whole for our purpose.
        assert refused >= len(cuts) - 3


def patched(path: Path, target: Path, change) -> Path:
    """Write a file anew with its only block of records changed, behind its end, checksum and all."""
    content = bytearray(path.read_bytes())
    (index,) = struct.unpack_from("<Q", content, 24)
    (at,) = damage.leaf_entries(content, index + 48)
    offset, size = struct.unpack_from("<QQ", content, at + 16)
    raw = bytearray(zlib.decompress(content[offset : offset + size]))
    packed = zlib.compress(change(raw) or raw)
    struct.pack_into("<QQ", content, at + 16, len(content), len(packed))
    target.write_bytes(content + packed)
    return target


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three records on one chromosome, in one block."""
    handle = pyBigWig.open(str(tmp_path / "three.bw"), "w")
    handle.addHeader([("chr1", 100)])
    handle.addEntries(["chr1"] * 3, [0, 20, 60], ends=[10, 40, 100], values=[1.0, 2.0, 3.0])
    handle.close()
    return tmp_path / "three.bw"


def test_the_changer_changes_what_is_asked_for(three, tmp_path):
    bins = GenomeBins([("chr1", 0, 100)], 20)
    assert read_bins(three, bins).tolist() == [0.5, 2, 0, 3, 3]
    other = patched(three, tmp_path / "other.bw", lambda raw: struct.pack_into("<f", raw, 32, 5.0))
    assert read_bins(other, bins).tolist() == [2.5, 2, 0, 3, 3]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("records overlap", lambda raw: struct.pack_into("<I", raw, 28, 30)),
        ("records are not in order", lambda raw: struct.pack_into("<II", raw, 36, 60, 100)),
        ("a record is empty", lambda raw: struct.pack_into("<I", raw, 40, 20)),
        ("a record ends before its start", lambda raw: struct.pack_into("<I", raw, 40, 5)),
        ("a record lies beyond its block", lambda raw: struct.pack_into("<I", raw, 52, 101)),
        ("records of another chromosome", lambda raw: struct.pack_into("<I", raw, 0, 1)),
        ("more records than there are bytes", lambda raw: struct.pack_into("<H", raw, 22, 4)),
        ("fewer records than there are bytes", lambda raw: struct.pack_into("<H", raw, 22, 2)),
        ("records of a kind that there is not", lambda raw: struct.pack_into("<B", raw, 20, 4)),
        ("a block without a head", lambda raw: raw[:10]),
        ("a block that unpacks to gigabytes", lambda raw: raw + bytes(50_000_000)),
    ],
)
def test_records_that_break_the_format_are_told(three, tmp_path, what, change):
    path = patched(three, tmp_path / "patched.bw", change)
    with pytest.raises(BigWigError, match=r"patched\.bw is damaged: (the|its) records"):
        read_bins(path, GenomeBins([("chr1", 0, 100)], 20))


@pytest.mark.parametrize(
    ("value", "mean"), [(3e38, 3e38), (-3e38, -3e38), (np.nan, 0), (np.inf, 0), (-np.inf, 0), (-0.0, 0)]
)
def test_any_float32_is_a_value_and_what_is_no_number_is_none(three, tmp_path, value, mean):
    path = patched(three, tmp_path / "value.bw", lambda raw: struct.pack_into("<f", raw, 44, value))
    bins = GenomeBins([("chr1", 0, 100)], 20)
    np.testing.assert_allclose(read_bins(path, bins), [0.5, mean, 0, 3, 3], rtol=1e-6)
    ignored = mean if np.isfinite(value) else np.nan
    np.testing.assert_allclose(read_bins(path, bins, uncovered="ignore"), [1, ignored, np.nan, 3, 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("transform", "stored"), [("arcsinh", np.arcsinh(3e38)), ("log1p", np.log1p(3e38)), ("none", 3e38)]
)
def test_the_largest_float32_goes_into_a_cube(three, tmp_path, transform, stored):
    path = patched(three, tmp_path / "huge.bw", lambda raw: struct.pack_into("<f", raw, 44, 3e38))
    how = {"genome": {"chr1": 100}, "binsize": 20, "transform": transform, "progress": False}
    cube = build_cube(sheet_of(path), tmp_path / "a.zarr", **how)
    np.testing.assert_allclose(cube.signal[0, 0, 1], stored, rtol=2**-10)


def test_a_chromosome_shorter_than_its_records_is_told(three, tmp_path):
    content = bytearray(three.read_bytes())
    at = content.index(b"chr1\0\0\0\0") + 8 if b"chr1\0\0\0\0" in content else content.index(b"chr1") + 8
    assert struct.unpack_from("<I", content, at) == (100,)
    struct.pack_into("<I", content, at, 90)
    (tmp_path / "lies.bw").write_bytes(content)
    with pytest.raises(BigWigError, match=r"lies\.bw is damaged: it has signal up to base 100 of .* ends at 90"):
        read_bins(tmp_path / "lies.bw", GenomeBins([("chr1", 0, 90)], 20))


def test_an_index_that_circles_ends(three, tmp_path):
    content = bytearray(three.read_bytes())
    (index,) = struct.unpack_from("<Q", content, 24)
    root = struct.pack("<BBHIIIIQ", 0, 0, 1, 0, 0, 0, 100, len(content))
    content += root
    struct.pack_into("<BBHIIIIQ", content, index + 48, 0, 0, 1, 0, 0, 0, 100, len(content) - len(root))
    (tmp_path / "circle.bw").write_bytes(content)
    with pytest.raises(BigWigError, match=r"circle\.bw is damaged: its index"):
        read_bins(tmp_path / "circle.bw", GenomeBins([("chr1", 0, 90)], 20))


def test_300_chromosomes(tmp_path):
    sizes = {f"scaffold_{i}": 50 + i for i in range(300)}
    path = write_track(tmp_path / "many.bw", sizes)
    assert chromosomes(path) == sizes
    cube = build_cube(sheet_of(path), tmp_path / "many.zarr", genome=sizes, progress=False)
    handle = pyBigWig.open(str(path))
    for chrom in ("scaffold_0", "scaffold_255", "scaffold_299"):
        bases = handle.values(chrom, 0, sizes[chrom], numpy=True).astype(np.float64)
        expected = [np.arcsinh(bases[i : i + 25].mean()) for i in range(0, len(bases), 25)]
        np.testing.assert_allclose(cube.sel(chrom=chrom).signal[0, 0], expected, rtol=2**-10)
    handle.close()


# --- files that are none, or not as they are called ----------------------------------------------------------------------


def test_what_is_no_bigwig_is_told_for_what_it_is(tmp_path):
    good = write_track(tmp_path / "good.bw")
    (tmp_path / "gz.bw").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "folder.bw").mkdir()
    os.mkfifo(tmp_path / "pipe.bw")
    (tmp_path / "dangling.bw").symlink_to(tmp_path / "nowhere.bw")
    cases = {
        "gz.bw": "is compressed with gzip",
        "folder.bw": "is a folder",
        "pipe.bw": "is a pipe",
        "dangling.bw": "is not there",
    }
    with pytest.raises(SheetError) as error:
        build_cube(
            sheet_of(*(tmp_path / name for name in cases), "http://127.0.0.1:9/x.bw"),
            tmp_path / "cube.zarr",
            genome=SIZES,
            progress=False,
        )
    for name, says in cases.items():
        assert f"{name} {says}" in str(error.value)
    assert "http://127.0.0.1:9/x.bw is a URL: download the file first" in str(error.value)


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_told(tmp_path, locked):
    (tmp_path / "locked").mkdir()
    path = write_track(tmp_path / "locked" / "secret.bw")
    (path if locked == "file" else path.parent).chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(BigWigError, match=r"secret\.bw cannot be read: Permission denied"):
            chromosomes(path)
    finally:
        if user == 0:
            os.seteuid(0)
        path.parent.chmod(0o700)


def test_chromosomes_named_otherwise_in_one_file_are_told(tmp_path):
    plain = write_track(tmp_path / "plain.bw", {"1": 20_000, "2": 5_010})
    ucsc = write_track(tmp_path / "ucsc.bw")
    for genome in (SIZES, {"1": 20_000, "2": 5_010}):
        with pytest.raises(SheetError, match="there is no chromosome of the assembly that all files have|did you mean"):
            build_cube(sheet_of(ucsc, plain), tmp_path / "cube.zarr", genome=genome, progress=False)


def test_a_file_of_another_assembly_is_told_by_its_lengths(tmp_path):
    other = write_track(tmp_path / "other.bw", {"chr1": 20_001, "chr2": 5_010})
    with pytest.raises(SheetError, match=r"other\.bw: chr1 is 20,001 long there and 20,000 in the assembly"):
        build_cube(
            sheet_of(write_track(tmp_path / "a.bw"), other), tmp_path / "cube.zarr", genome=SIZES, progress=False
        )


# --- workers that end, hang or run out of memory -------------------------------------------------------------------------

FAILING_DISK = """
import os, signal, time
plain = os.pread
def pread(fd, size, offset):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("memory"):
        raise MemoryError("no room for 1 TB")
    if name.startswith("broken"):
        raise OSError(5, "Input/output error")
    return plain(fd, size, offset)
os.pread = pread
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells the name of an open file")
def test_a_file_that_ends_its_reader_costs_no_other_track(tmp_path, monkeypatch):
    """The workers' way to the disk is replaced by one that crashes, hangs, fails and runs out of memory, by the name of the file."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "sitecustomize.py").write_text(FAILING_DISK)
    names = ["good0", "crash1", "hang2", "memory3", "broken4", "crash5", "good6"]
    paths = [write_track(tmp_path / f"{name}.bw", seed=i) for i, name in enumerate(names)]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import xr_avocado.io.worker"], check=True)
    # Time enough to start, however busy the machine is.
    monkeypatch.setattr(workers, "PATIENCE", 5 + 8 * (time.perf_counter() - began))
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "disk"))
        with pytest.raises(SheetError, match="5 of 7 tracks failed; 2 are done and kept") as error:
            build_cube(sheet_of(*paths), tmp_path / "cube.zarr", genome=SIZES, n_jobs=2, progress=False)
    for says in (
        "crash1.bw): the process that read it ended by SIGSEGV: the file is most likely damaged",
        f"hang2.bw): the process that read it did nothing for {workers.PATIENCE:,.0f} s and was ended",
        "memory3.bw): MemoryError: no room for 1 TB",
        "broken4.bw cannot be read at byte",
        "crash5.bw): the process that read it ended by SIGSEGV",
    ):
        assert says in str(error.value)
    assert "good" not in str(error.value)
    with pytest.raises(CubeError, match="has not finished"):
        open_cube(tmp_path / "cube.zarr")
    good = sheet_of(*paths).iloc[[0, 6]]
    began = time.time_ns()
    cube = build_cube(good, tmp_path / "cube.zarr", genome=SIZES, progress=False)
    assert experiments(cube) == [("C0", "A"), ("C6", "A")]
    # What was done before was not done again.
    assert all(p.stat().st_mtime_ns < began for p in (tmp_path / "cube.zarr" / "signal" / "c").rglob("0/0"))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
