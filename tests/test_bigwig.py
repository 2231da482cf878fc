"""bigWig files: every bin against a per-base model, every file that breaks careless readers, and writing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyBigWig
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xr_avocado.genome import GenomeBins
from xr_avocado.io import bigwig, bigwig_writer
from xr_avocado.io.bigwig import BigWigError, chromosomes, read_bins, write_bins

BINSIZES = st.sampled_from([1, 3, 10, 25, 200])
FLOAT32 = st.floats(-1e6, 1e6, width=32)


@st.composite
def records(draw, *, finite=True):
    """Chromosome lengths, in any order, and bedGraph records: gaps, touching records, bare chromosomes."""
    sizes, table = {}, []
    for chrom in draw(st.permutations(["chr1", "chr2", "chr10", "M"]))[: draw(st.integers(1, 4))]:
        end = 0
        for _ in range(draw(st.integers(0, 6))):
            start = end + draw(st.integers(0, 60))
            end = start + draw(st.integers(1, 60))
            value = draw(FLOAT32 if finite else FLOAT32 | st.just(np.nan))
            table.append((chrom, start, end, value))
        sizes[chrom] = end + draw(st.integers(1, 40))
    return sizes, table


@st.composite
def axes(draw, sizes):
    """Segments that start and end anywhere on these chromosomes, in any order of chromosomes."""
    table = []
    for chrom in draw(st.permutations(list(sizes)))[: draw(st.integers(1, len(sizes)))]:
        cuts = sorted(draw(st.sets(st.integers(0, sizes[chrom]), min_size=2, max_size=6)))
        pairs = list(zip(cuts[:-1], cuts[1:], strict=True))
        table += [(chrom, a, b) for a, b in pairs if draw(st.booleans())] or [(chrom, *pairs[0])]
    return GenomeBins(table, draw(BINSIZES))


def write_records(path, sizes, table):
    handle = pyBigWig.open(str(path), "w")
    handle.addHeader(list(sizes.items()))
    for chrom, start, end, value in table:
        handle.addEntries([chrom], [start], ends=[end], values=[value])
    handle.close()


def mean_by_base(sizes, table, bins, uncovered):
    bases = {chrom: np.full(size, np.nan) for chrom, size in sizes.items()}
    for chrom, start, end, value in table:
        bases[chrom][start:end] = np.float32(value)
    means = []
    for chrom, start, end in zip(bins.chrom, bins.start, bins.end, strict=True):
        own = bases[chrom][start:end]
        covered = own[np.isfinite(own)]
        length = len(own) if uncovered == "zero" else len(covered)
        means.append(covered.sum() / length if length else np.nan)
    return np.array(means)


@pytest.mark.parametrize("uncovered", ["zero", "ignore"])
@pytest.mark.parametrize("finite", [True, False])
@settings(max_examples=40)
@given(data=st.data())
def test_bins_are_the_means_of_their_bases(data, finite, uncovered, tmp_path_factory):
    sizes, table = data.draw(records(finite=finite))
    bins = data.draw(axes(sizes))
    path = tmp_path_factory.getbasetemp() / "random.bw"
    write_records(path, sizes, table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigwig, "STEP", data.draw(st.sampled_from([1, 60, bigwig.STEP])))
        means = read_bins(path, bins, uncovered=uncovered)
    np.testing.assert_allclose(means, mean_by_base(sizes, table, bins, uncovered), rtol=1e-9, atol=1e-9)
    first = data.draw(st.integers(0, len(bins)))
    rows = slice(first, data.draw(st.integers(first, len(bins))))
    np.testing.assert_array_equal(read_bins(path, bins, uncovered=uncovered, rows=rows), means[rows])


@pytest.mark.parametrize("form", ["array", "function", "iterable"])
@settings(max_examples=60)
@given(data=st.data())
def test_what_is_written_is_read_back(data, form, tmp_path_factory):
    order = data.draw(st.permutations(["chr1", "chr2", "chr10"]))
    sizes = {chrom: data.draw(st.integers(1, 400)) for chrom in order}
    bins = data.draw(axes(sizes))
    values = np.array(data.draw(st.lists(FLOAT32 | st.just(np.nan), min_size=len(bins), max_size=len(bins))))
    if form == "iterable":
        sizes = {chrom: sizes[chrom] for chrom in [*bins.chroms, *(c for c in sizes if c not in bins.chroms)]}
    cuts = sorted({0, len(bins), *data.draw(st.lists(st.integers(0, len(bins)), max_size=3))})
    given_as = {
        "array": values,
        "function": lambda rows: values[rows],
        "iterable": (values[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)),
    }
    path = tmp_path_factory.getbasetemp() / "written.bw"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigwig_writer, "SHORT", data.draw(st.sampled_from([0, 3, 64])))
        write_bins(path, bins, given_as[form], sizes, progress=False)
    assert list(chromosomes(path).items()) == list(sizes.items())
    expected = {chrom: np.full(size, np.nan) for chrom, size in sizes.items()}
    for chrom, start, end, value in zip(bins.chrom, bins.start, bins.end, values, strict=True):
        expected[chrom][start:end] = np.float32(value)
    handle = pyBigWig.open(str(path))
    for chrom, bases in expected.items():
        written = handle.values(chrom, 0, len(bases), numpy=True)
        np.testing.assert_array_equal(written if len(written) else np.full(len(bases), np.nan), bases)
    handle.close()
    np.testing.assert_allclose(read_bins(path, bins, uncovered="ignore"), values, rtol=1e-7)


@given(length=st.integers(1, 130), binsize=BINSIZES)
def test_the_last_bin_ends_where_the_chromosome_does(length, binsize, tmp_path_factory):
    bins = GenomeBins([("chr1", 0, length)], binsize)
    path = tmp_path_factory.getbasetemp() / "last.bw"
    write_bins(path, bins, np.arange(len(bins)) + 1.0, {"chr1": length}, progress=False)
    handle = pyBigWig.open(str(path))
    assert handle.intervals("chr1")[-1][1] == length
    handle.close()
    assert read_bins(path, bins)[-1] == len(bins)


def test_zeros_are_values_and_nan_is_a_gap(tmp_path):
    bins = GenomeBins([("chr1", 0, 100)], 25)
    write_bins(tmp_path / "x.bw", bins, np.array([0.0, np.nan, 2.0, np.inf]), {"chr1": 100}, progress=False)
    handle = pyBigWig.open(str(tmp_path / "x.bw"))
    assert handle.intervals("chr1") == ((0, 25, 0.0), (50, 75, 2.0))
    # Safe here: the file has no NaN, which is what the zero test above says.
    assert handle.header()["nBasesCovered"] == 50
    handle.close()


def test_a_track_without_values_has_chromosomes_and_no_records(tmp_path, caplog):
    bins = GenomeBins([("chr1", 0, 100)], 25)
    write_bins(tmp_path / "x.bw", bins, np.full(4, np.nan), {"chr1": 100}, progress=False)
    assert "no finite value" in caplog.text
    assert chromosomes(tmp_path / "x.bw") == {"chr1": 100}
    assert np.isnan(read_bins(tmp_path / "x.bw", bins, uncovered="ignore")).all()
    assert read_bins(tmp_path / "x.bw", bins).tolist() == [0, 0, 0, 0]


def test_browsers_get_zoom_levels(tmp_path):
    bins = GenomeBins([("chr1", 0, 500_000)], 25)
    write_bins(tmp_path / "x.bw", bins, np.random.default_rng(0).random(len(bins)), {"chr1": 500_000}, progress=False)
    handle = pyBigWig.open(str(tmp_path / "x.bw"))
    assert handle.header()["nLevels"] > 0
    handle.close()


@pytest.mark.parametrize(
    ("values", "sizes", "message"),
    [
        (np.zeros(3), {"chr1": 100}, "4 bins need as many"),
        ([np.zeros(3)], {"chr1": 100}, "ended after 3"),
        ([np.zeros(3), np.zeros(2)], {"chr1": 100}, "gives more"),
        (np.zeros(4), {"1": 100}, "did you mean '1'"),
        (np.zeros(4), {"chr1": 99}, "chr1 ends at 99"),
        (np.full(4, 1e39), {"chr1": 100}, "float32"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, values, sizes, message):
    path = tmp_path / "x.bw"
    path.write_text("old")
    with pytest.raises(BigWigError, match=message):
        write_bins(path, GenomeBins([("chr1", 0, 100)], 25), values, sizes, progress=False)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.bw"]


def test_an_iterable_in_another_order_than_the_header_is_refused(tmp_path):
    bins = GenomeBins([("chr2", 0, 50), ("chr1", 0, 50)], 25)
    with pytest.raises(BigWigError, match="another order.*function from rows"):
        write_bins(tmp_path / "x.bw", bins, [np.zeros(4)], {"chr1": 50, "chr2": 50}, progress=False)


def test_a_full_disk_is_told_before_the_library_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(bigwig_writer, "BYTES", 1 << 60)
    with pytest.raises(BigWigError, match="MB left"):
        write_bins(tmp_path / "x.bw", GenomeBins([("chr1", 0, 100)], 25), np.zeros(4), {"chr1": 100}, progress=False)
    assert os.listdir(tmp_path) == []


# --- files that are none, and files from elsewhere -------------------------------------------------------------------------


def test_each_kind_of_bad_file_has_its_own_error(tmp_path):
    good = tmp_path / "good.bw"
    write_records(good, {"chr1": 1000}, [("chr1", 0, 500, 1.0)])
    content = good.read_bytes()
    cases = {
        "absent.bw": (None, "is not there"),
        "empty.bw": (b"", "is empty"),
        "text.bw": (b"chr1\t0\t500\t1.0\n", "not a bigWig"),
        "short.bw": (content[:40], "only 40 bytes"),
        "cut.bw": (content[:200], "truncated"),
        "swapped.bw": (content[3::-1] + content[4:], "big-endian"),
        "intervals.bw": (bytes.fromhex("ebf28987") + content[4:], "bigBed"),
    }
    for name, (data, message) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        for read in (chromosomes, lambda path: read_bins(path, GenomeBins([("chr1", 0, 100)], 25))):
            with pytest.raises(BigWigError, match=message) as error:
                read(tmp_path / name)
            assert name in str(error.value)
    with pytest.raises(BigWigError, match="is a folder"):
        chromosomes(tmp_path)
    with pytest.raises(BigWigError, match="is a URL"):
        chromosomes("https://example.org/x.bw")


def test_a_file_cut_anywhere_never_gives_other_values(tmp_path):
    sizes, rng = {"chr1": 200_000}, np.random.default_rng(0)
    bins = GenomeBins.from_chromsizes(sizes)
    write_bins(tmp_path / "whole.bw", bins, rng.random(len(bins)), sizes, progress=False)
    content, whole = (tmp_path / "whole.bw").read_bytes(), read_bins(tmp_path / "whole.bw", bins)
    refused = 0
    for keep in np.linspace(1, len(content) - 1, 40).astype(int):
        (tmp_path / "cut.bw").write_bytes(content[:keep])
        try:
            np.testing.assert_array_equal(read_bins(tmp_path / "cut.bw", bins), whole)
        except BigWigError:
            refused += 1
    assert refused > 30


def test_damaged_records_are_an_error_that_names_the_place(tmp_path):
    sizes, rng = {"chr1": 200_000}, np.random.default_rng(0)
    bins = GenomeBins.from_chromsizes(sizes)
    write_bins(tmp_path / "x.bw", bins, rng.random(len(bins)), sizes, progress=False)
    content = bytearray((tmp_path / "x.bw").read_bytes())
    content[2000:6000] = rng.bytes(4000)
    (tmp_path / "x.bw").write_bytes(content)
    with pytest.raises(BigWigError, match=r"x\.bw is damaged: the records at byte [\d,]+ cannot be unpacked"):
        read_bins(tmp_path / "x.bw", bins)


def test_an_unknown_chromosome_or_a_foreign_length_is_told(tmp_path):
    write_records(tmp_path / "x.bw", {"1": 1000}, [("1", 0, 500, 1.0)])
    with pytest.raises(BigWigError, match=r"x\.bw: chromosome 'chr1' is not here; there are 1; did you mean '1'\?"):
        read_bins(tmp_path / "x.bw", GenomeBins([("chr1", 0, 100)], 25))
    with pytest.raises(BigWigError, match="1 ends at 1,000, but bins reach 1,001"):
        read_bins(tmp_path / "x.bw", GenomeBins([("1", 0, 1001)], 25))


def test_arguments_are_checked(tmp_path):
    bins = GenomeBins([("chr1", 0, 100)], 25)
    write_records(tmp_path / "x.bw", {"chr1": 1000}, [("chr1", 0, 500, 1.0)])
    with pytest.raises(ValueError, match="uncovered must be one of zero, ignore; got 'skip'"):
        read_bins(tmp_path / "x.bw", bins, uncovered="skip")


# Means worked out from the records that `bigWigToBedGraph` shows, bin by bin, first for "zero", then for "ignore".
EDGE = {
    "header_only.bw": ("chr21", 1000, 1100, [0, 0, 0, 0], [np.nan] * 4),
    "nan_inf_values.bw": ("chr21", 1000, 1150, [1, 0, 2, 0, 0, 0], [1, np.nan, 2, np.nan, np.nan, 0]),
    "mini_nozoom.bw": ("chr1", 0, 12, [16 / 12], [16 / 8]),
    "pyBigWig_test.bw": ("1", 75, 175, [0, 1.4, 1.4, 1.5 / 25], [np.nan, 1.4, 1.4, 1.5]),
    "fixedStep_negative.bw": ("chr1", 11475, 11500, [26.57 / 25], [26.57 / 11]),
}


@pytest.mark.parametrize("name", EDGE)
def test_files_that_break_careless_readers(shared, name):
    path = shared / "data" / "bigwig_edge" / name
    chrom, start, end, zero, ignore = EDGE[name]
    bins = GenomeBins([(chrom, start, end)], 25)
    np.testing.assert_allclose(read_bins(path, bins), zero, rtol=1e-6)
    np.testing.assert_allclose(read_bins(path, bins, uncovered="ignore"), ignore, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"), [("bigBed_renamed.bw", "is a bigBed"), ("truncated_half.bw", "is truncated")]
)
def test_files_that_are_no_bigwig(shared, name, message):
    with pytest.raises(BigWigError, match=rf"{name} {message}"):
        chromosomes(shared / "data" / "bigwig_edge" / name)


def test_every_edge_file_is_tested(shared):
    there = {path.name for path in Path(shared / "data" / "bigwig_edge").iterdir()}
    assert there == {*EDGE, "bigBed_renamed.bw", "truncated_half.bw"}


@pytest.mark.parametrize("uncovered", ["zero", "ignore"])
def test_a_real_track_reads_as_other_readers_have_it(shared, uncovered):
    pybigtools = pytest.importorskip("pybigtools")
    path = shared / "data" / "roadmap_pilot" / "bigwig" / "E116.H3K4me3.pval.signal.bw"
    # The second region reaches out of what the file covers, into bins that are covered in part and not at all.
    regions = [("chr1", 151_158_040, 151_358_040), ("chr2", 51_657_680, 51_659_000)]
    ours = read_bins(path, GenomeBins(regions, 40), uncovered=uncovered)
    handle = pyBigWig.open(str(path))
    fill, theirs, bases = 0.0 if uncovered == "zero" else None, [], []
    for chrom, start, end in regions:
        how = {"bins": (end - start) // 40, "summary": "mean", "exact": True, "fillna": None, "uncovered": fill}
        theirs.append(pybigtools.open(str(path)).values(chrom, start, end, **how))
        own = handle.values(chrom, start, end, numpy=True).reshape(-1, 40).astype(np.float64)
        covered = np.isfinite(own)
        number = np.full(len(own), 40) if uncovered == "zero" else covered.sum(1)
        bases.append(np.where(number > 0, np.where(covered, own, 0).sum(1) / np.maximum(number, 1), np.nan))
    handle.close()
    np.testing.assert_allclose(ours, np.concatenate(theirs), rtol=1e-6)
    np.testing.assert_allclose(ours, np.concatenate(bases), rtol=1e-9)
    assert np.isnan(ours).any() == (uncovered == "ignore") and (ours > 0).any()
