from __future__ import annotations

import copy
import json
import pickle
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    binsizes,
    coordinates,
    genome_bins,
    intervals_near,
    is_axis,
    rows_of,
    segment_tables,
    spell_out,
)

from xr_avocado.assembly import chromosome_sizes
from xr_avocado.genome import GenomeBins, GenomeError


@given(segment_tables(), binsizes())
def test_an_axis_is_its_segments_cut_on_the_grid(table, binsize):
    bins = GenomeBins(table, binsize)
    assert coordinates(bins) == spell_out(table, binsize)
    assert len(bins) == len(spell_out(table, binsize))
    assert bins.chrom.dtype.kind == "U" and bins.start.dtype == bins.end.dtype == np.int64
    assert GenomeBins(bins.segments, binsize) == bins


@given(st.data(), genome_bins())
def test_bins_looked_up_by_row_are_those_spelled_out(data, bins):
    model = spell_out(bins)
    rows = data.draw(st.lists(st.integers(0, len(model) - 1), max_size=20))
    chrom, start, end = bins.at(np.array(rows, np.int64))
    assert list(zip(chrom.tolist(), start.tolist(), end.tolist(), strict=True)) == [model[row] for row in rows]


@given(genome_bins())
def test_a_bin_continues_the_one_that_it_touches_on_the_grid(bins):
    model = spell_out(bins)
    touches = [a[0] == b[0] and a[2] == b[1] and b[1] % bins.binsize == 0 for a, b in pairwise(model)]
    assert bins.continues.tolist() == [False, *touches]


@given(st.data(), genome_bins())
def test_any_subset_in_order_is_an_axis_of_just_these_bins(data, bins):
    rows = data.draw(rows_of(len(bins)))
    model = spell_out(bins)
    assert coordinates(bins[rows]) == [model[i] for i in np.arange(len(model))[rows]]
    again = data.draw(rows_of(len(bins[rows])))
    assert coordinates(bins[rows][again]) == [model[i] for i in np.arange(len(model))[rows][again]]


@given(st.data(), genome_bins(max_segments=2))
def test_rows_in_any_order_are_an_axis_or_an_error(data, bins):
    model = spell_out(bins)
    rows = data.draw(rows_of(len(bins), ascending=False) | st.permutations(range(len(bins))).map(np.array))
    wanted = [model[i] for i in np.arange(len(model))[rows]]
    if is_axis(wanted):
        assert coordinates(bins[rows]) == wanted
    else:
        with pytest.raises(GenomeError, match="genome order"):
            bins[rows]


def test_chromosomes_may_change_places():
    bins = GenomeBins([("chr1", 0, 60), ("chr2", 10, 30)], 25)
    assert coordinates(bins[np.array([3, 4, 0, 1, 2])]) == coordinates(
        GenomeBins([("chr2", 10, 30), ("chr1", 0, 60)], 25)
    )


@pytest.mark.parametrize("rows", [[7], [-8], [0, 100]])
def test_rows_outside_are_refused(rows):
    with pytest.raises(GenomeError, match="there are 7 bins"):
        GenomeBins([("chr1", 0, 110), ("chr2", 50, 100)], 25)[np.array(rows)]


@given(st.data(), genome_bins())
def test_the_bins_found_are_those_that_overlap(data, bins):
    asked = data.draw(st.lists(intervals_near(bins), max_size=6))
    first, last = bins.overlaps(*(np.array(column) for column in zip(*asked, strict=True))) if asked else ([], [])
    for (chrom, start, end), a, b in zip(asked, first, last, strict=True):
        overlapping = [i for i, (c, s, e) in enumerate(spell_out(bins)) if c == chrom and s < end and e > start]
        assert list(range(a, b)) == overlapping
        if overlapping:
            assert bins.rows(chrom, start, end) == slice(a, b)
        else:
            with pytest.raises(GenomeError, match="not here|holds no bin"):
                bins.rows(chrom, start, end)


@given(genome_bins(), st.integers(1, 12))
def test_wider_bins_hold_the_finer_ones(bins, factor):
    coarse = bins.coarsen(factor)
    assert coordinates(coarse) == spell_out(
        list(bins.segments.itertuples(index=False, name=None)), bins.binsize * factor
    )
    wide = spell_out(coarse)
    rows = coarse.rows_of(bins)
    for row, (chrom, start, end) in zip(rows.tolist(), spell_out(bins), strict=True):
        assert wide[row][0] == chrom and wide[row][1] <= start and end <= wide[row][2]


@given(st.data(), genome_bins(), st.integers(1, 8))
def test_the_wider_bins_of_a_cut_axis_are_found_by_coordinate(data, bins, factor):
    coarse, rows = bins.coarsen(factor), data.draw(rows_of(len(bins)))
    assert coarse.rows_of(bins[rows]).tolist() == coarse.rows_of(bins)[rows].tolist()


def test_bins_outside_the_wider_axis_are_refused():
    wide = GenomeBins([("chr1", 0, 100)], 50)
    with pytest.raises(GenomeError, match="chr1:100-125 is not covered"):
        wide.rows_of(GenomeBins([("chr1", 0, 50), ("chr1", 100, 125)], 25))
    with pytest.raises(GenomeError, match="do not nest"):
        wide.rows_of(GenomeBins([("chr1", 0, 90)], 30))


@given(st.data(), genome_bins())
def test_an_axis_cut_in_pieces_joins_again(data, bins):
    cut = sorted(data.draw(st.lists(st.integers(0, len(bins)), max_size=3)))
    pieces = [bins[a:b] for a, b in zip([0, *cut], [*cut, len(bins)], strict=True) if a < b]
    assert GenomeBins.concat(pieces) == bins
    if len(pieces) > 1:
        with pytest.raises(GenomeError):
            GenomeBins.concat([pieces[0], pieces[0]])


def test_joining_different_bin_sizes_says_what_to_do():
    with pytest.raises(GenomeError, match="coarsen the finer"):
        GenomeBins.concat([GenomeBins([("chr1", 0, 100)], 25), GenomeBins([("chr2", 0, 100)], 50)])


@given(genome_bins())
def test_an_axis_comes_back_from_its_coordinates_its_json_and_a_pickle(bins):
    assert GenomeBins.from_coordinates(bins.chrom, bins.start, bins.end, bins.binsize) == bins
    assert GenomeBins.from_attrs(json.loads(json.dumps(bins.to_attrs()))) == bins
    for again in (pickle.loads(pickle.dumps(bins)), copy.deepcopy(bins)):
        assert again == bins and hash(again) == hash(bins)


@given(genome_bins(), genome_bins())
def test_axes_are_equal_where_their_bins_and_bin_sizes_are(one, other):
    assert (one == other) == (one.binsize == other.binsize and coordinates(one) == coordinates(other))


def test_coordinates_that_are_no_bins_are_refused():
    with pytest.raises(GenomeError, match="are not bins of 10 bp"):
        GenomeBins.from_coordinates(np.array(["chr1"] * 2), np.array([0, 25]), np.array([25, 50]), 10)


@given(st.data(), binsizes())
def test_regions_become_whole_bins_each_once(data, binsize):
    regions = data.draw(segment_tables())
    sizes = {
        chrom: max(end for c, _, end in regions if c == chrom) + data.draw(st.integers(0, 30)) for chrom, *_ in regions
    }
    model = []
    for chrom in sizes:
        cells = {k for c, s, e in regions if c == chrom for k in range(s // binsize, -(-e // binsize))}
        model += [(chrom, k * binsize, min((k + 1) * binsize, sizes[chrom])) for k in sorted(cells)]
    assert coordinates(GenomeBins.from_regions(regions, binsize, sizes)) == model


def test_regions_beyond_their_chromosome_are_refused():
    with pytest.raises(GenomeError, match="chr1 ends at 1,000, but a region reaches 1,001"):
        GenomeBins.from_regions([("chr1", 0, 1001)], 25, {"chr1": 1000})
    with pytest.raises(GenomeError, match="did you mean 'chr1'"):
        GenomeBins.from_regions([("1", 0, 1001)], 25, {"chr1": 1000})


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        ([("chr1", 10, 10)], "segment 1, chr1:10-10, is empty"),
        ([("chr1", -1, 10)], "starts below 0"),
        ([("chr1", 0, 50), ("chr1", 40, 60)], "segment 2, chr1:40-60, overlaps"),
        ([("chr1", 50, 60), ("chr1", 0, 10)], "segment 2, chr1:0-10, starts before"),
        ([("chr1", 0, 10), ("chr2", 0, 10), ("chr1", 20, 30)], "segment 3, chr1:20-30, comes back"),
        ([("chr1", 0)], "a segment is (chrom, start, end)"),
    ],
)
def test_a_bad_segment_table_names_its_row(segments, says):
    with pytest.raises(GenomeError, match=re.escape(says)):
        GenomeBins(segments, 25)


@pytest.mark.parametrize("binsize", [0, -25, 2.5])
def test_a_bin_size_is_a_whole_number(binsize):
    with pytest.raises(GenomeError, match="bin size"):
        GenomeBins([("chr1", 0, 10)], binsize)


def test_an_axis_of_nothing_holds_nothing():
    nothing = GenomeBins([("chr1", 0, 100)], 25)[:0]
    assert len(nothing) == 0 and coordinates(nothing) == [] and "nothing" in repr(nothing)
    assert GenomeBins([], 25) == nothing
    with pytest.raises(GenomeError):
        nothing.rows("chr1")


def test_an_axis_reads_well():
    assert (
        repr(GenomeBins([("chr1", 0, 110), ("chr2", 50, 100)], 25))
        == "<GenomeBins: 7 bins of 25 bp in 2 segments of chr1, chr2>"
    )


def test_a_chromosome_named_otherwise_is_suggested():
    with pytest.raises(GenomeError, match="did you mean '7'"):
        GenomeBins([("7", 0, 100)], 25).rows("chr7")


def test_the_pilot_regions_have_as_many_bins_as_the_published_arrays(shared):
    folder = shared / "data" / "roadmap_pilot"
    regions = pd.read_csv(folder / "pilot_regions.hg19.bed", sep="\t", header=None).iloc[:, :3]
    bins = GenomeBins.from_regions(regions, 25, chromosome_sizes(folder / "hg19.chrom.sizes"))
    assert len(bins) == 1_126_469
