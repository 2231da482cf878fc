from __future__ import annotations

import logging
import pickle
import re
import tracemalloc

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import coordinates, cube_of, genome_bins, intervals_near, rows_of, spell_out

from xr_avocado.assembly import chromosome_sizes
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import GenomeIndex, assign_bins, bins_of, coarsen, select

SIZES = {"chr1": 1_010, "chr2": 2_000, "chr10": 260}
BINS = GenomeBins([("chr1", 0, 1_010), ("chr2", 500, 1_500), ("chr10", 0, 260)], 25)


@pytest.fixture
def cube() -> xr.Dataset:
    return cube_of(BINS, chromsizes=SIZES)


@pytest.fixture(scope="module")
def genome() -> xr.Dataset:
    """A cube of all of hg38, with nothing in it."""
    sizes = chromosome_sizes("hg38")
    bins = GenomeBins.from_chromsizes(sizes, 25)
    signal = da.zeros((1, 1, len(bins)), chunks=(1, 1, 1 << 24), dtype=np.float32)
    cube = xr.Dataset(
        {"signal": (("celltype", "assay", "position"), signal)},
        coords={"celltype": ["C1"], "assay": ["A1"]},
        attrs={"chromsizes": sizes},
    )
    return assign_bins(cube, bins)


def check(ds: xr.Dataset | xr.DataArray, model: list, *, indexed: bool = True) -> None:
    """The coordinates are those of the model, and the index is there and agrees."""
    assert coordinates(ds) == model
    assert ds.chrom.dtype.kind == "U" and ds.start.dtype == ds.end.dtype == np.int64
    assert ("chrom" in ds.xindexes) == indexed
    if indexed:
        assert coordinates(bins_of(ds)) == model and isinstance(ds.xindexes["chrom"], GenomeIndex)


class TestRows:
    @given(st.data(), genome_bins())
    def test_slices_masks_and_ascending_rows_keep_the_index(self, data, bins):
        cube, model = cube_of(bins), spell_out(bins)
        for _ in range(2):
            rows = data.draw(rows_of(len(model)))
            cut, model = np.arange(len(model))[rows], [model[i] for i in np.arange(len(model))[rows]]
            signal = cube.signal.values[..., cut]
            cube = cube.isel(position=rows)
            check(cube, model)
            check(cube.signal, model)
            assert np.array_equal(cube.signal.values, signal)

    def test_rows_out_of_order_keep_their_coordinates(self, cube):
        model = spell_out(BINS)
        for rows in ([3, 1, 2], [4, 4], slice(None, None, -1)):
            check(cube.isel(position=rows), [model[i] for i in np.arange(len(model))[rows]], indexed=False)

    def test_one_row_has_scalar_coordinates(self, cube):
        one = cube.isel(position=-1)
        assert (one.chrom.item(), one.start.item(), one.end.item()) == ("chr10", 250, 260)
        assert one.chrom.dims == ()

    def test_points_have_coordinates_of_their_own_dim(self, cube):
        genes = cube.isel(position=xr.DataArray([50, 2], dims="gene"))
        assert genes.chrom.dims == ("gene",) and genes.start.values.tolist() == [BINS.start[50], 50]

    def test_rows_outside_are_xarrays_own_error(self, cube):
        with pytest.raises(IndexError):
            cube.isel(position=[1_000])


class TestSel:
    @given(st.data(), genome_bins())
    def test_a_region_gives_the_bins_that_overlap_it(self, data, bins):
        chrom, start, end = data.draw(intervals_near(bins))
        cube, model = cube_of(bins), spell_out(bins)
        wanted = [b for b in model if b[0] == chrom and b[1] < end and b[2] > start]
        if not wanted:
            with pytest.raises(GenomeError):
                cube.sel(chrom=chrom, start=slice(start, end))
        else:
            check(cube.sel(chrom=chrom, start=slice(start, end)), wanted)
            check(cube.sel(chrom=chrom), [b for b in model if b[0] == chrom])
            check(cube.sel(chrom=chrom, start=slice(start, None)), [b for b in model if b[0] == chrom and b[2] > start])

    def test_a_base_gives_the_bin_that_holds_it(self, cube):
        one = cube.sel(chrom="chr2", start=510)
        assert (one.start.item(), one.end.item(), one.signal.dims) == (500, 525, ("celltype", "assay"))
        assert cube.sel(chrom="chr2", start=xr.DataArray(1_499)).start.item() == 1_475
        with pytest.raises(GenomeError, match="holds no bin"):
            cube.sel(chrom="chr2", start=499)

    def test_points_give_a_bin_each(self, cube):
        tss = pd.DataFrame({"chrom": ["chr2", "chr1", "chr2"], "start": [510, 1_009, 700]}).rename_axis("gene")
        at = cube.sel(chrom=xr.DataArray(tss.chrom), start=xr.DataArray(tss.start))
        assert coordinates(at) == [("chr2", 500, 525), ("chr1", 1_000, 1_010), ("chr2", 700, 725)]
        assert at.signal.dims == ("celltype", "assay", "gene")
        with pytest.raises(GenomeError, match="chr1:2,000 is in no bin"):
            cube.sel(chrom=xr.DataArray(["chr1"], dims="gene"), start=xr.DataArray([2_000], dims="gene"))

    def test_several_chromosomes_come_in_genome_order(self, cube):
        check(cube.sel(chrom=["chr10", "chr1"]), [b for b in spell_out(BINS) if b[0] != "chr2"])
        check(cube.sel(chrom=["chr1", "chr2"]), [b for b in spell_out(BINS) if b[0] != "chr10"])

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            ({"start": 5}, "select bins by chrom"),
            ({"chrom": "chr1", "end": 50}, "select bins by chrom"),
            ({"chrom": "1"}, "did you mean 'chr1'"),
            ({"chrom": "chr3"}, "there are chr1, chr2, chr10"),
            (
                {"chrom": "chr2", "start": slice(0, 100)},
                "chr2:0-100 holds no bin of this cube; on chr2 it has 500-1,500",
            ),
            ({"chrom": "chr2", "start": slice(600, 600)}, "is empty"),
            ({"chrom": "chr2", "start": slice(600, 700, 2)}, "has no step"),
            ({"chrom": "chr2", "start": 600.5}, "start is a base"),
            ({"chrom": slice("chr1", "chr2")}, "chromosomes have no range"),
            ({"chrom": ["chr1", "chr2"], "start": 5}, "several chromosomes go without start"),
            ({"chrom": "chr1", "method": "nearest"}, "leave method and tolerance out"),
        ],
    )
    def test_what_cannot_be_selected_says_why(self, cube, labels, says):
        with pytest.raises(GenomeError, match=re.escape(says)):
            cube.sel(labels) if "method" not in labels else cube.sel(**labels)

    def test_other_labels_go_along(self, cube):
        assert dict(cube.sel(celltype="C1", chrom="chr10").sizes) == {"assay": 2, "position": 11}


class TestSurvival:
    """What keeps the bins in order keeps the index; what does not keeps the coordinates."""

    @pytest.mark.parametrize(
        "operation",
        [
            lambda ds: ds.chunk(position=7),
            lambda ds: ds.chunk(),
            lambda ds: ds.chunk(position=7).load(),
            lambda ds: ds.chunk(position=7).compute(),
            lambda ds: ds.chunk(position=7).persist(),
            lambda ds: ds.chunk(position=7).unify_chunks(),
            lambda ds: ds.copy(),
            lambda ds: ds.copy(deep=True),
            lambda ds: pickle.loads(pickle.dumps(ds)),
            lambda ds: ds.transpose("position", ...),
            lambda ds: ds.expand_dims("replicate"),
            lambda ds: ds + 1,
            lambda ds: (ds.signal - ds.signal.mean("celltype")).to_dataset(name="signal"),
            lambda ds: ds.where(ds.start >= 0),
            lambda ds: ds.assign(other=ds.signal.astype(np.float64)),
            lambda ds: ds.fillna(0),
            lambda ds: ds.mean("celltype"),
            lambda ds: ds.isel(celltype=0),
            lambda ds: ds.rolling(position=3).mean(),
            lambda ds: ds.shift(position=1),
            lambda ds: ds.roll(position=1),
            lambda ds: ds.drop_vars("observed"),
            lambda ds: ds.rename(signal="x"),
            lambda ds: ds.set_coords("signal").reset_coords("signal"),
            lambda ds: ds[["signal"]].groupby("chrom").map(lambda g: g - g.mean("position")),
            lambda ds: ds.map(np.sinh),
            lambda ds: xr.apply_ufunc(np.sinh, ds.chunk(position=7), dask="parallelized"),
            lambda ds: xr.merge([ds, ds.signal.rename("other")]),
            lambda ds: xr.concat([ds.isel(celltype=[0]), ds.isel(celltype=[1])], "celltype", data_vars="minimal"),
            lambda ds: xr.concat([ds, ds], "replicate", data_vars="all"),
            lambda ds: xr.align(ds, ds.copy(deep=True), join="exact")[0],
            lambda ds: xr.align(ds, ds.copy(deep=True), join="outer")[1],
            lambda ds: ds.reindex_like(ds.signal),
            lambda ds: ds.drop_isel(position=[]),
            lambda ds: ds.where(ds.chrom != "", drop=True),
            lambda ds: ds.sortby(["celltype"]),
        ],
    )
    def test_the_index_survives(self, cube, operation):
        check(operation(cube), spell_out(BINS))

    @pytest.mark.parametrize(
        "operation", [lambda ds: ds.chunk(position=7), lambda ds: ds.load(), lambda ds: ds.copy(deep=True)]
    )
    def test_coordinates_stay_lazy(self, genome, operation):
        coords = operation(genome.drop_vars("signal"))
        assert all(not coords[name].variable._in_memory and coords[name].chunks is None for name in ("chrom", "start"))

    def test_rolled_coordinates_lose_the_index(self, cube):
        model = spell_out(BINS)
        check(cube.roll(position=1, roll_coords=True), model[-1:] + model[:-1], indexed=False)

    def test_renamed_coordinates_and_dims_are_found_by_their_new_names(self, cube):
        renamed = cube.rename(chrom="contig", position="bin")
        assert renamed.sel(contig="chr10").sizes["bin"] == 11
        assert bins_of(renamed.rename(bin="position")) == BINS
        assert bins_of(renamed, dim="bin") == BINS

    def test_attributes_of_coordinates_survive(self, cube):
        cube.start.attrs["units"] = "bp"
        assert cube.isel(position=slice(3)).start.attrs == {"units": "bp"}

    def test_means_by_chromosome(self, cube):
        means = cube.signal.groupby("chrom").mean("position")
        assert np.allclose(means.sel(chrom="chr10"), cube.signal.sel(chrom="chr10").mean("position"))

    def test_chromosomes_that_sort_otherwise_come_back_in_place(self, cube):
        # By name chr10 sorts before chr2, and groupby works through the groups by name.
        centred = cube.signal.groupby("chrom").map(lambda g: g - g.mean("position"))
        check(centred, spell_out(BINS))
        assert np.allclose(centred.sel(chrom="chr2").mean(), 0, atol=1e-6)

    def test_a_comparison_with_a_coordinate_masks(self, cube):
        check(cube.isel(position=(cube.chrom == "chr10").values), [b for b in spell_out(BINS) if b[0] == "chr10"])
        check(cube.where(cube.chrom == "chr10", drop=True), [b for b in spell_out(BINS) if b[0] == "chr10"])

    def test_frames_have_the_coordinates_as_columns(self, cube):
        track = cube.isel(celltype=0, assay=0).drop_vars(["celltype", "assay"])
        frame = track.drop_indexes(["chrom", "start", "end"]).to_dataframe()
        assert coordinates(frame) == spell_out(BINS)
        assert np.array_equal(frame["signal"], track.signal.values)
        assert len(cube.signal.isel(celltype=0, assay=0).to_pandas()) == len(BINS)

    def test_stacking_leaves_plain_coordinates(self, cube):
        stacked = cube.stack(track_bin=("celltype", "position"))
        assert stacked.chrom.values.tolist() == [chrom for chrom, *_ in spell_out(BINS)] * 2

    def test_plain_coarsening_works_with_functions_for_the_coordinates(self, cube):
        ten = (
            cube.sel(chrom="chr2")
            .coarsen(position=10, coord_func={"chrom": "min", "start": "min", "end": "max"})
            .mean()
        )
        assert coordinates(ten) == [("chr2", start, start + 250) for start in range(500, 1_500, 250)]

    def test_a_track_plots(self, cube):
        import matplotlib.pyplot as plt

        line = cube.signal.isel(celltype=0, assay=0).sel(chrom="chr2").plot(x="start")[0]
        assert line.get_xdata()[0] == 500
        plt.close("all")

    def test_a_short_coordinate_shows_its_values(self, cube):
        assert "array([   0,   25," in repr(cube.start) and "'chr1'" in repr(cube.chrom)

    def test_there_is_no_pandas_index(self, cube):
        with pytest.raises(TypeError, match="to_dataframe"):
            cube.xindexes["chrom"].to_pandas_index()

    @pytest.mark.filterwarnings("ignore:.*:zarr.errors.UnstableSpecificationWarning")
    def test_a_plain_zarr_store_gives_the_bins_back(self, cube, tmp_path):
        cube.chunk(position=20).to_zarr(tmp_path / "plain.zarr", consolidated=False)
        opened = xr.open_zarr(tmp_path / "plain.zarr", consolidated=False)
        assert coordinates(opened) == spell_out(BINS) and "chrom" not in opened.xindexes
        assert bins_of(opened) == BINS


class TestTwoAxes:
    @settings(max_examples=50)
    @given(st.data(), genome_bins())
    def test_pieces_in_order_join_and_others_do_not(self, data, bins):
        cube, rows = cube_of(bins), sorted(data.draw(st.lists(st.integers(0, len(bins)), min_size=4, max_size=4)))
        pieces = [
            cube.isel(position=slice(a, b), celltype=0) for a, b in zip(rows[::2], rows[1::2], strict=True) if a < b
        ]
        if pieces:
            joined = xr.concat(pieces, "position", data_vars="minimal")
            kept = [i for a, b in zip(rows[::2], rows[1::2], strict=True) for i in range(a, b)]
            check(joined, [spell_out(bins)[i] for i in kept])
            assert np.array_equal(joined.signal, cube.signal.isel(celltype=0, position=kept))
            with pytest.raises(GenomeError, match="cannot concatenate along 'position'"):
                xr.concat([pieces[0], pieces[0]], "position", data_vars="minimal")

    @pytest.mark.parametrize("join", ["inner", "outer", "left", "right"])
    def test_different_axes_never_align(self, cube, join):
        with pytest.raises(GenomeError, match="differ: (?=.*92 bins of 25 bp)(?=.*11 bins of 25 bp)"):
            xr.align(cube, cube.sel(chrom="chr10"), join=join)
        with pytest.raises(xr.AlignmentError):
            xr.align(cube, cube.sel(chrom="chr10"), join="exact")

    def test_arithmetic_of_different_axes_says_what_to_do(self, cube):
        with pytest.raises(GenomeError, match="avocado.sel"):
            cube.signal - cube.signal.isel(position=slice(1, None))
        shifted = assign_bins(cube, GenomeBins([("chr1", 25, 1_010), ("chr2", 500, 1_525), ("chr10", 0, 260)], 25))
        assert shifted.sizes == cube.sizes
        with pytest.raises(GenomeError, match="avocado.sel"):
            cube.signal + shifted.signal

    @given(genome_bins(), genome_bins())
    def test_cubes_are_equal_where_their_axes_are(self, one, other):
        a, b = cube_of(one).drop_vars("signal"), cube_of(other).drop_vars("signal").assign_attrs(binsize=one.binsize)
        same = coordinates(one) == coordinates(other)
        assert a.equals(a.copy(deep=True)) and a.identical(a.copy(deep=True))
        assert a.equals(b) == same
        assert a.xindexes["chrom"].equals(b.xindexes["chrom"]) == (one == other)

    def test_equal_to_spelled_out_coordinates(self, cube):
        plain = cube.drop_indexes(["chrom", "start", "end"]).compute()
        plain = plain.assign_coords({name: ("position", plain[name].values) for name in ("chrom", "start", "end")})
        assert cube.equals(plain) and plain.equals(cube)

    def test_tokens_follow_the_axis(self, cube):
        again = pickle.loads(pickle.dumps(cube))
        other = assign_bins(cube, GenomeBins([("chr1", 25, 1_010), ("chr2", 500, 1_525), ("chr10", 0, 260)], 25))
        assert dask.base.tokenize(cube) == dask.base.tokenize(again) != dask.base.tokenize(other)


class TestGenomeWide:
    def test_an_axis_and_a_look_at_it_take_next_to_no_memory(self, genome):
        select(genome, "chr2:1Mb-2Mb")
        sizes = chromosome_sizes("hg38")
        tracemalloc.start()
        cube = assign_bins(genome, GenomeBins.from_chromsizes(sizes, 25))
        assert "chr1" in repr(cube) and "chr1" in cube._repr_html_()
        cut = cube.sel(chrom="chr7").copy(deep=True).sel(chrom="chr7", start=slice(1_000_000, 2_000_000))
        assert cut.start.values[0] == 1_000_000
        select(cube, "chr2:1Mb-2Mb").drop_vars("signal").load()
        assert cube.equals(pickle.loads(pickle.dumps(cube.drop_vars("signal"))).assign(signal=cube.signal))
        assert tracemalloc.get_traced_memory()[1] < 4e6
        tracemalloc.stop()

    def test_it_pickles_small(self, genome):
        assert len(pickle.dumps(genome.xindexes["chrom"])) < 20_000
        assert len(pickle.dumps(genome.drop_vars("signal"))) < 20_000

    def test_the_repr_shows_the_ends(self, genome):
        text = repr(genome)
        assert (
            re.search(r"start .* int64 .*0 25 50 .*16525 16550", text)
            and "GenomeIndex (123,531,467 bins of 25 bp" in text
        )

    def test_a_chromosome_is_spelled_out_as_it_is(self, genome):
        one = genome.sel(chrom="chr21")
        assert np.array_equal(one.start.values, np.arange(0, 46_709_983, 25))
        assert one.end.values[-1] == 46_709_983 and set(np.unique(one.chrom)) == {"chr21"}


def test_workers_get_the_index(cube):
    lazy = cube.chunk(position=20)
    jobs = [dask.delayed(select)(lazy, "chr2:600-700"), dask.delayed(coarsen)(lazy, 4), dask.delayed(bins_of)(lazy)]
    cut, wide, bins = dask.compute(*jobs, scheduler="processes", num_workers=1)
    assert bins == BINS
    xr.testing.assert_identical(cut, select(cube, "chr2:600-700"))
    xr.testing.assert_identical(wide, coarsen(cube, 4))


class TestAssign:
    def test_bins_must_be_as_many_as_the_dim_is_long(self, cube):
        with pytest.raises(CubeError, match="'position' is 92 long, but there are 2 bins"):
            assign_bins(cube, GenomeBins([("chr1", 0, 50)], 25))

    def test_a_coarse_dim_has_coordinates_of_its_own(self, cube):
        coarse = BINS.coarsen(10)
        fitted = assign_bins(
            cube.assign(genome_factors_250bp=("position_250bp", np.arange(len(coarse)))), coarse, "position_250bp"
        )
        assert fitted.start_250bp.values.tolist() == coarse.start.tolist()
        assert bins_of(fitted, "position_250bp") == coarse and bins_of(fitted) == BINS
        assert fitted.attrs["binsize"] == 25
        assert fitted.sel(chrom_250bp="chr10").sizes == {**fitted.sizes, "position_250bp": 2}

    @pytest.mark.parametrize("dim", ["position", "position_250bp", "position_5kbp"])
    def test_lost_indexes_are_rebuilt_from_coordinates(self, cube, dim):
        binsize = {"position": 25, "position_250bp": 250, "position_5kbp": 5_000}[dim]
        bins = BINS.coarsen(binsize // 25)
        ds = assign_bins(xr.Dataset(attrs={"binsize": 25}), bins, dim)
        assert bins_of(ds.drop_indexes(list(ds.coords)), dim) == bins

    def test_where_bins_are_lost_the_error_says_what_to_do(self, cube):
        with pytest.raises(CubeError, match="open_cube"):
            bins_of(cube.drop_vars(["chrom", "start", "end"]))
        with pytest.raises(CubeError, match="no bins in genome order .* sort the dataset"):
            bins_of(cube.isel(position=[3, 1, 2]))
        lost = cube.drop_indexes(["chrom", "start", "end"])
        del lost.attrs["binsize"]
        with pytest.raises(CubeError, match=re.escape("ds.attrs['binsize'] = 25")):
            bins_of(lost)

    def test_set_xindex_builds_it(self, cube):
        plain = cube.drop_indexes(["chrom", "start", "end"])
        assert bins_of(plain.set_xindex(["chrom", "start", "end"], GenomeIndex, binsize=25)) == BINS
        with pytest.raises(GenomeError, match="needs the bin size"):
            plain.set_xindex(["chrom", "start", "end"], GenomeIndex)


class TestSelect:
    def test_region_strings(self, cube):
        check(select(cube, "chr1:1,000-1,010"), [("chr1", 1_000, 1_010)])
        check(select(cube, "chr10"), [b for b in spell_out(BINS) if b[0] == "chr10"])
        check(select(cube, "chr2:1.4kb-"), [("chr2", s, s + 25) for s in range(1_400, 1_500, 25)])
        check(
            select(cube, ["chr10:30-40", "chr1:0-1", "chr10:40-60"]),
            [("chr1", 0, 25), ("chr10", 25, 50), ("chr10", 50, 75)],
        )
        check(select(cube.signal, "chr10:30-40"), [("chr10", 25, 50)])

    @pytest.mark.parametrize(
        ("region", "says"),
        [
            ("chr1:0-1,011", "chr1:0-1,011 reaches past the end of chr1, which is 1,010 long"),
            ("chr1:5kb-", "chr1:5,000- reaches past the end of chr1"),
            ("1:0-100", "did you mean 'chr1'"),
            ("chr9", "chromosome 'chr9' is not here"),
            ("chr2:0-100", "holds no bin of this cube"),
            (["chr1", "chr2:0-100"], "holds no bin of this cube"),
            ("chr1:9-5", "is empty"),
            ("chr1:a-b", "is not a region"),
        ],
    )
    def test_a_region_that_is_not_there_says_so(self, cube, region, says):
        with pytest.raises(GenomeError, match=re.escape(says)):
            select(cube, region)

    @settings(max_examples=50)
    @given(st.data(), genome_bins())
    def test_a_table_gives_the_union_of_the_bins_it_overlaps(self, data, bins):
        table = pd.DataFrame(
            data.draw(st.lists(intervals_near(bins), min_size=1, max_size=5)), columns=["chrom", "start", "end"]
        )
        rows = table.itertuples(index=False, name=None)
        wanted = {b for chrom, s, e in rows for b in spell_out(bins) if b[0] == chrom and b[1] < e and b[2] > s}
        if wanted:
            check(select(cube_of(bins), table), [b for b in spell_out(bins) if b in wanted])
        else:
            with pytest.raises(GenomeError, match="none of the"):
                select(cube_of(bins), table)

    def test_tables_of_every_kind_select_alike(self, cube, tmp_path):
        import pyranges

        frame = pd.DataFrame({"chrom": ["chr10", "chr1", "chr7"], "start": [0, 100, 5], "end": [30, 150, 9]})
        upper = frame.set_axis(["Chromosome", "Start", "End"], axis=1)
        frame.to_csv(tmp_path / "a.bed", sep="\t", header=False, index=False)
        wanted = [("chr1", 100, 125), ("chr1", 125, 150), ("chr10", 0, 25), ("chr10", 25, 50)]
        for table in (frame, upper, pyranges.PyRanges(upper), tmp_path / "a.bed", str(tmp_path / "a.bed")):
            check(select(cube, table), wanted)

    def test_intervals_elsewhere_are_passed_over_and_counted(self, cube, caplog):
        with caplog.at_level(logging.INFO, "xr_avocado"):
            select(cube, pd.DataFrame({"chrom": ["chr1", "chr2", "chr7"], "start": [0, 0, 0], "end": [9, 9, 9]}))
        assert "2 of 3 intervals" in caplog.text
        with pytest.raises(GenomeError, match="did you mean 'chr1'"):
            select(cube, pd.DataFrame({"chrom": ["1"], "start": [0], "end": [9]}))

    @settings(max_examples=50)
    @given(st.data(), genome_bins())
    def test_all_scales_are_cut_together(self, data, bins):
        coarse = bins.coarsen(10)
        dim = "position_coarse"
        ds = assign_bins(cube_of(bins).assign(factors=(dim, np.arange(len(coarse)))), coarse, dim)
        chrom, start, end = data.draw(intervals_near(bins))
        if not any(c == chrom and s < end and e > start for c, s, e in spell_out(bins)):
            return
        cut = select(ds, f"{chrom}:{start}-{end}")
        held = cut.factors.values[bins_of(cut, dim).rows_of(bins_of(cut))]
        wanted = ds.factors.values[coarse.rows_of(bins)][bins.rows(chrom, start, end)]
        assert np.array_equal(held, wanted) and set(held) == set(cut.factors.values)

    def test_a_dataset_without_positions_is_refused(self, cube):
        with pytest.raises(CubeError, match="there is no 'position' dim"):
            select(cube[["observed"]].drop_vars(["chrom", "start", "end"], errors="ignore"), "chr1")


class TestCoarsen:
    @settings(max_examples=60)
    @given(st.data(), genome_bins(), st.integers(1, 12), st.sampled_from(["mean", "max", "min"]), st.booleans())
    def test_wider_bins_are_the_weighted_mean_of_what_they_cover(self, data, bins, factor, how, lazy):
        cube = cube_of(bins)
        holes = data.draw(st.lists(st.integers(0, len(bins) - 1), max_size=5))
        cube.signal[0, 0, holes] = np.nan
        ds = cube.chunk(position=data.draw(st.integers(1, len(bins)))) if lazy else cube
        wide = coarsen(ds, factor, how=how)
        check(wide, spell_out(bins.coarsen(factor)))
        assert (wide.signal.chunks is not None) == lazy and wide.signal.dtype == np.float32
        frame = cube.signal.isel(celltype=0, assay=0).to_series().to_frame("signal").reset_index(drop=True)
        frame = frame.assign(bp=bins.end - bins.start, row=bins.coarsen(factor).rows_of(bins)).dropna()
        if how == "mean":
            frame["signal"] = frame.signal.astype(np.float64) * frame.bp
            wanted = frame.groupby("row").signal.sum() / frame.groupby("row").bp.sum()
        else:
            wanted = frame.groupby("row").signal.agg(how)
        got = wide.signal.isel(celltype=0, assay=0).values
        assert np.allclose(got, wanted.reindex(range(len(got))), rtol=1e-5, equal_nan=True)

    def test_other_variables_stay_and_the_bin_size_follows(self, cube):
        wide = coarsen(cube.assign_coords(gc=("position", np.arange(92.0))), 10)
        assert wide.attrs == {**cube.attrs, "binsize": 250}
        assert wide.observed.identical(cube.observed) and list(wide.data_vars) == ["signal", "observed"]
        assert "gc" in wide.coords and wide.gc.values[0] == 4.5
        assert wide.signal.dims == cube.signal.dims and bins_of(wide) == BINS.coarsen(10)

    def test_a_genome_is_coarsened_without_loading_it(self, genome):
        wide = coarsen(genome, 200)
        assert wide.sizes["position"] == len(GenomeBins.from_chromsizes(genome.chromsizes, 5_000))
        assert float(wide.signal[..., -4:].max()) == 0
        assert max(wide.signal.chunks[-1]) < (1 << 24) / 200 * 1.01

    def test_the_model_stays_behind_with_its_own_bins(self, cube):
        coarse = BINS.coarsen(10)
        fitted = cube.assign(
            genome_factors_25bp=(("position", "factor_25bp"), np.zeros((92, 2))),
            genome_factors_250bp=(("position_250bp", "factor_250bp"), np.zeros((len(coarse), 2))),
            celltype_factors=(("celltype", "celltype_factor"), np.zeros((2, 2))),
            network_weight=(("a", "b"), np.zeros((2, 2))),
        ).assign_attrs(avocado="{}")
        wide = coarsen(assign_bins(fitted, coarse, "position_250bp"), 10)
        assert list(wide.data_vars) == ["signal", "observed"] and "avocado" not in wide.attrs
        assert set(wide.coords) == {"celltype", "assay", "chrom", "start", "end"}
        assert "avocado" in fitted.attrs

    @pytest.mark.parametrize("factor", [0, -1, 2.5, True])
    def test_a_factor_is_a_whole_number(self, cube, factor):
        with pytest.raises(CubeError, match="factor"):
            coarsen(cube, factor)

    def test_what_cannot_be_averaged_says_so(self, cube):
        with pytest.raises(CubeError, match="how is one of mean, max, min"):
            coarsen(cube, 2, how="median")
        with pytest.raises(CubeError, match="'gene' lies along position and holds no numbers"):
            coarsen(cube.assign(gene=("position", np.full(92, "x"))), 2)
